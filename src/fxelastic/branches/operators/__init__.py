"""Compression operators: each replaces the layers of a block, or the block, by cheaper ones."""
