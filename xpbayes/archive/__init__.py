"""Doors for survey files. One format, one module; each yields a star table."""
