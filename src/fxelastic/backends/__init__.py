"""Inference frameworks: their fusion rules, and the export to them."""

from fxelastic.backends.base import fusion_rules

__all__ = ["fusion_rules"]
