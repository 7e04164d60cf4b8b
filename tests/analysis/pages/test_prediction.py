"""The figure of a predicted spectrum."""

import numpy as np
from numpy.testing import assert_allclose

from xpbayes import predict_flux
from xpbayes.analysis.pages.prediction import prediction_figure


def test_it_says_the_parameters_and_shows_the_error_of_the_model(trained):
    prediction = predict_flux(trained, teff=5000, feh=-0.2, logg=2.5, extinction=0.3, parallax=0.5)
    (axis,) = prediction_figure(prediction).axes
    for words in ("Teff = 5000 K", "[Fe/H] = -0.2 dex", "E = 0.3 mag", "parallax = 0.5 mas"):
        assert words in axis.get_title()
    (band,) = axis.collections
    corners = band.get_paths()[0].vertices
    for k, wavelength in enumerate(prediction.wavelength_nm):
        edges = corners[np.isclose(corners[:, 0], wavelength), 1]
        expected = prediction.flux[k] * np.exp([-prediction.model_error[k], prediction.model_error[k]])
        assert_allclose([edges.min(), edges.max()], expected, rtol=1e-6)
