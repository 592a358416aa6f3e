"""The commands. Nothing else in the package reads argv or the environment."""

from fxelastic.cli.app import export_main, main

__all__ = ["export_main", "main"]
