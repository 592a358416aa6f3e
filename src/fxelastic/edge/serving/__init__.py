"""Serve the best subnet, monitor its latency, and switch subnets between requests."""
