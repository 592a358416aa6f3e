"""The commands. Nothing else in the package reads argv or the environment."""

from fxelastic.cli.app import main
from fxelastic.cli.export import export_main

__all__ = ["export_main", "main"]
