"""Pure functions of one star: absolute flux, extinction, priors, covariances, and the NumPyro posteriors."""

# The link `models` at the project's root shows this room; importing through it would make a second copy of every class.
if __name__ != "xpbayes.models":
    raise ImportError("import xpbayes.models, not the link beside it")
