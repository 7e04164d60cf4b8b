"""Checks of posteriors: simulation-based calibration, predictive draws."""
