"""Rows of a catalogue made by hand, and small things that tests of the analyses share."""

import numpy as np

from xpbayes.analysis.topic import Rows


def make_rows(n, joined=None, solved=None, **columns):
    """Rows with plain defaults for what is not named."""
    defaults = {
        "source_id": np.arange(n) + 2**60,
        "ra": np.linspace(0, 359, n),
        "dec": np.linspace(-89, 89, n),
        "stellar_params_est": np.tile([5.0, 0.0, 3.0, 0.2, 1.0], (n, 1)),
        "stellar_params_err": np.tile([0.1, 0.1, 0.1, 0.02, 0.1], (n, 1)),
        "quality_flags": np.zeros(n, np.uint8),
        "converged": np.ones(n, bool),
        "chi2_opt": np.full(n, 60.0),
        "n_obs": np.full(n, 64),
        "dof": np.full(n, 59),
    }
    defaults |= {f"{name}_confidence": np.full(n, np.nan) for name in ("teff", "feh", "logg")}
    return Rows(defaults | columns, joined or {}, np.ones(n, bool) if solved is None else solved)


def halves(rows):
    """The same rows in two unequal parts: gathering must not depend on how they come."""
    n = len(rows)
    cut = n // 3
    for part in (slice(0, cut), slice(cut, n)):
        yield Rows(
            {k: v[part] for k, v in rows.columns.items()},
            {k: v[part] for k, v in rows.joined.items()},
            rows.solved[part],
        )
