"""Figures of a run: each module gathers numbers in one pass and draws them."""
