"""Make the figures of the paper from a finished run, and the page that shows them."""

from collections.abc import Sequence
from pathlib import Path

from xpbayes.analysis.pages.gallery import INDEX, RECORD, choose, make_figures, write_figures
from xpbayes.analysis.run_inputs import find_inputs, open_run
from xpbayes.runs.inputs import check_writable


def analyse(
    folder: Path | None,
    out: Path,
    named: dict[str, Path | None] | None = None,
    only: Sequence[str] = (),
    survey: str = "custom",
    sfd_maps: Path | None = None,
) -> Path:
    """Make the figures of a run and the page that shows them, whose path is returned.

    Args:
        folder: of a run, as `xpbayes demo` leaves it; None if every input is named.
        out: folder for everything.
        named: inputs that are elsewhere: model, catalogue, stars, external, clusters, dust_map, curve.
        only: names of analyses; all if empty.
        survey: whose columns the external table has.
        sfd_maps: folder of the SFD maps.

    Raises:
        InputError: nothing could be drawn, or an input is damaged or belongs to something else.
    """
    analyses = choose(only)
    inputs = find_inputs(folder, named or {})
    check_writable(out, *inputs.values(), files=(INDEX, RECORD))
    run = open_run(inputs, survey, sfd_maps)
    return write_figures(run, make_figures(run, analyses), out, list(inputs.values()))
