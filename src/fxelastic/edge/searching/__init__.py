"""Search for the best subnet within limits, on the device's own data."""
