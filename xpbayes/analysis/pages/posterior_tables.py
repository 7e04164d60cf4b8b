"""What `xpbayes sample` prints: every star's parameters, and whether its chains can be trusted."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from xpbayes.analysis.figures import drawing as figures

if TYPE_CHECKING:
    import xarray as xr
    from rich.console import Console

MAX_ROWS = 40
MIN_WIDTH = 160
"""Characters a line: where a terminal is narrower, or a file takes its place, lines break but no number is cut."""


def wide_console(width: int) -> "Console":
    """A console of at least so many characters a line."""
    from rich.console import Console

    return Console(highlight=False, width=max(Console().width, width))


def print_draws(groups: "Mapping[str, xr.Dataset]") -> None:
    """Print mean and standard deviation of every parameter, R-hat, ESS and divergences; at most 40 stars.

    Args:
        groups: from `runs.sample`.
    """
    from rich.table import Table

    posterior, known = groups["posterior"], groups["diagnostics"]
    names = [str(name) for name in posterior.data_vars]
    table = Table(caption="mean ± standard deviation of the posterior; worst R-hat and ESS of the parameters")
    for heading in ("source_id", *(_heading(n) for n in names), "R-hat", "ESS bulk", "tail", "divergent", ""):
        table.add_column(heading, justify="right")
    source_id = posterior["source_id"].to_numpy()
    for i, star in enumerate(source_id[:MAX_ROWS]):
        cells = []
        for name in names:
            values = figures.display_scale(name) * posterior[name].isel(source_id=i).to_numpy().astype(np.float64)
            spread = float(values.std())
            digits = int(np.clip(1 - np.floor(np.log10(spread)), 0, 6)) if spread > 0 else 3
            cells.append(f"{values.mean():.{digits}f} ± {spread:.{digits}f}")
        one = known.isel(source_id=i)
        table.add_row(
            str(star),
            *cells,
            f"{float(one['r_hat'].max()):.3f}",
            f"{float(one['ess_bulk'].min()):.0f}",
            f"{float(one['ess_tail'].min()):.0f}",
            str(int(one["n_divergent"])),
            "" if bool(one["settled"]) else "not settled",
        )
    console = wide_console(MIN_WIDTH)
    console.print(table)
    if len(source_id) > MAX_ROWS:
        console.print(f"... and {len(source_id) - MAX_ROWS} more")
    console.print(f"{int(known['settled'].sum())} of {len(source_id)} stars have settled")


def _heading(name: str) -> str:
    unit = {"extinction": "mag", "parallax": "mas"}.get(name, figures.LABEL_UNIT.get(name, ""))
    return f"{ {'extinction': 'E'}.get(name, figures.LABEL_TEXT.get(name, name)) } [{unit}]"
