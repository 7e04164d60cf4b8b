"""Finished pages and printed tables: the report, the gallery, single stars, comparisons, checks, the model card."""
