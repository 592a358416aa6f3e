"""The analysis of channels that can only be removed together, and their removal."""
