"""Training, starts, the batched second-order solver, uncertainty, posterior draws. Knows no file format."""

# The link `inference` at the project's root shows this room; importing through it would make a second copy.
if __name__ != "xpbayes.inference":
    raise ImportError("import xpbayes.inference, not the link beside it")
