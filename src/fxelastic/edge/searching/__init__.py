"""Search for the best subnet of a latency budget, on the device's own data."""
