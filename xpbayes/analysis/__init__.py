"""Figures, validation and the report: reads finished products only, never refits anything."""

# The link `analysis` at the project's root shows this room; importing through it would make a second copy.
if __name__ != "xpbayes.analysis":
    raise ImportError("import xpbayes.analysis, not the link beside it")
