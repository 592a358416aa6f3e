"""Cascades on a device: confidences, thresholds with a guarantee, and runs."""
