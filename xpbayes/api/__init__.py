"""What a notebook holds: a model with verbs, spectra, and a fit. The command line calls the same verbs."""
