"""Surveys drawn from a trained model and written in the formats of the real ones: every door's end-to-end test."""
