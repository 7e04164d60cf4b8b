"""An instrument that nobody has yet: DR3's basis functions cut to other numbers of coefficients."""

from dataclasses import replace

import numpy as np

from xpbayes.instrument.bases import instrument_of
from xpbayes.instrument.gaiaxpy import LN_ERROR_SHAPE
from xpbayes.instrument.instrument import Instrument, default_id
from xpbayes.release import DR4


def stub(counts: tuple[int, int] = DR4.counts, basis_ids: tuple[int | None, int | None] = (0, 0)) -> Instrument:
    def matrices(grid_nm):
        made = instrument_of("dr3").sides()
        return tuple((matrix[:, :k].copy(), weight) for (matrix, weight), k in zip(made, counts, strict=True))

    about = replace(default_id(DR4), models=("stub-bp", "stub-rp"), counts=counts, basis_ids=basis_ids)
    return Instrument(about, LN_ERROR_SHAPE, matrices)


def coefficients_of(flux: np.ndarray, instrument: Instrument) -> np.ndarray:
    """(star, coefficient) of both sides that give these samples [1e-18 W m^-2 nm^-1]."""
    from xpbayes.instrument.bases import design_matrix

    return flux @ np.linalg.pinv(design_matrix(instrument=instrument) / 1e-18, rcond=1e-14).T
