"""Measurements as plots and pages."""
