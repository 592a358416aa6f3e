"""What was measured, as plots and pages."""
