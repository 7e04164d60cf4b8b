"""From survey measurements to fluxes with covariances on the channel set."""
