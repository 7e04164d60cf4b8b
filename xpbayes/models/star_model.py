"""What a trained model says of stars: their fluxes, how common they are, and how far the fluxes may be off."""

import equinox as eqx

from xpbayes.models.forward import ForwardModel
from xpbayes.models.model_error import ModelError
from xpbayes.models.prior import LabelPrior


class StarModel(eqx.Module):
    """All that a star's posterior needs but the star."""

    forward: ForwardModel  # from parameters to fluxes
    prior: LabelPrior | None = None  # the label mixture; None where measured labels take its place (training)
    # covariance of the forward model's relative error, by kind of star; None if there is none, or if the whitening
    # factors of the stars at hand have it already
    error: ModelError | None = None

    @property
    def label_prior(self) -> LabelPrior:
        """The label mixture, for what cannot do without one."""
        if self.prior is None:
            raise ValueError("this needs a label prior; a model in training has none")
        return self.prior

    @property
    def without_error(self) -> "StarModel":
        """The model of stars that have its error in their whitening factors; one compiled program serves all of them."""
        return self if self.error is None else StarModel(self.forward, self.prior)
