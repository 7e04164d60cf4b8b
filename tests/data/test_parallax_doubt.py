"""What Gaia's columns say of parallaxes, before any flux is looked at."""

import numpy as np

from xpbayes.data.stars import LEAST, MOST, parallax_doubt

NOTHING = np.array([np.nan])


def test_without_its_columns_a_parallax_is_taken_at_its_word():
    assert parallax_doubt(NOTHING, NOTHING) is None
    doubt = parallax_doubt(np.array([np.nan, 0.9]), np.array([np.nan, np.nan]))
    assert doubt.prior[0] == 0.0 < doubt.prior[1]


def test_either_column_makes_a_parallax_doubtful():
    fidelity, ruwe = np.array([1.0, 0.5, 0.1, 1.0, 0.1, 1.0]), np.array([0.8, 1.0, 1.0, 1.4, np.nan, 9.0])
    prior = parallax_doubt(fidelity, ruwe).prior
    assert prior[0] == np.float32(LEAST)
    assert 0.49 < prior[1] < 0.51 < 0.89 < prior[2] < 0.91
    assert 0.29 < prior[3] < 0.31 and 0.59 < prior[5] <= 0.6, "a large RUWE alone settles nothing"
    assert (parallax_doubt(np.zeros(1), np.array([5.0])).prior == np.float32(MOST)).all()
