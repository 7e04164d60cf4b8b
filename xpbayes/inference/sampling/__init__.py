"""Draws from posteriors: importance sampling, NUTS, their proposals and diagnostics."""
