"""Serving: run the best subnet, watch its latency, change it while requests go on (§5.3)."""
