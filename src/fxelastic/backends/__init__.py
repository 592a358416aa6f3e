"""Inference frameworks: what they fuse, and how models are exported to them."""

from fxelastic.backends.base import fusion_rules

__all__ = ["fusion_rules"]
