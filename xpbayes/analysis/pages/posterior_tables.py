"""What `xpbayes sample` prints: every star's parameters, and whether its chains can be trusted."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from xpbayes.analysis.pages.numbers import heading, pair
from xpbayes.analysis.pages.page import Table, wide_console

if TYPE_CHECKING:
    import xarray as xr

MAX_ROWS = 40
MIN_WIDTH = 160
"""Characters a line."""


def print_draws(groups: "Mapping[str, xr.Dataset]") -> None:
    """Print mean and standard deviation of every parameter, R-hat, ESS and divergences; at most 40 stars.

    Args:
        groups: from `runs.sample`.
    """
    posterior, known = groups["posterior"], groups["diagnostics"]
    names = [str(name) for name in posterior.data_vars]
    source_id = posterior["source_id"].to_numpy()
    rows = []
    for i, star in enumerate(source_id[:MAX_ROWS]):
        one = known.isel(source_id=i)
        draws = posterior.isel(source_id=i).astype(np.float64)
        cells = [pair(n, float(draws[n].mean()), float(draws[n].std())) for n in names]
        ess = [f"{float(one[n].min()):.0f}" for n in ("ess_bulk", "ess_tail")]
        said = "" if bool(one["settled"]) else "not settled"
        rows.append((str(star), *cells, f"{float(one['r_hat'].max()):.3f}", *ess, str(int(one["n_divergent"])), said))
    headings = ("source_id", *(heading(n) for n in names), "R-hat", "ESS bulk", "tail", "divergent", "")
    console = wide_console(MIN_WIDTH)
    caption = "mean ± standard deviation of the posterior; worst R-hat and ESS of the parameters"
    Table(headings, rows, 0, caption).print(console)
    if len(source_id) > MAX_ROWS:
        console.print(f"... and {len(source_id) - MAX_ROWS} more")
    console.print(f"{int(known['settled'].sum())} of {len(source_id)} stars have settled")
