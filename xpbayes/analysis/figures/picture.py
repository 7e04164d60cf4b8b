"""Figures that notebooks show: matplotlib's own are drawn there only once pyplot has been used."""

import io

from matplotlib.figure import Figure

DOTS_PER_INCH = 90


class Picture(Figure):
    """A figure without pyplot that a notebook draws where it is the last line of a cell."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
        return buffer.getvalue()
