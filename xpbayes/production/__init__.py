"""The catalogue: rows, flags, files."""
