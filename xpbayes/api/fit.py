"""The result of a fit in memory: a table of stars that can be sliced, converted, drawn and saved.

`Fit` wraps the catalogue that `runs.infer` makes, the spectra it was made from and the model. What the recommended value of
a parameter is, `production.flat` says. Units here are K, dex, dex, mag and mas; the catalogue itself keeps ZGR23's kK.
"""

import base64
import html
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xpbayes.data.spectra import OK, Spectra, rows_at
from xpbayes.errors import InputError, nearest
from xpbayes.inference.linear_algebra import from_upper_triangle
from xpbayes.production.flat import columns_for, flat_table
from xpbayes.production.table import list_column, text_column
from xpbayes.schema import Column, QualityFlag

if TYPE_CHECKING:
    import pandas as pd
    from astropy.table import Table
    from matplotlib.figure import Figure

    from xpbayes.analysis.pages.star_page import StarFit
    from xpbayes.production.model_file import TrainedModel

ROWS_SHOWN = 8
"""Of a fit in a notebook."""


@dataclass(frozen=True, eq=False)
class Flags:
    """The quality flags of some stars, (star,) bits; `flags.POOR_FIT` and so on are masks."""

    value: NDArray[np.uint8]

    @property
    def basic(self) -> NDArray[np.bool_]:
        """(star,) whether the star passes the basic reliability cut: no bit from 8 on."""
        return self.value < 8

    @property
    def strict(self) -> NDArray[np.bool_]:
        """(star,) whether no bit is set."""
        return self.value == 0

    def __getattr__(self, name: str) -> NDArray[np.bool_]:
        if name in QualityFlag.__members__:
            return (self.value & np.uint8(QualityFlag[name])) > 0
        raise AttributeError(f"there is no flag '{name}'{nearest(name, QualityFlag.__members__)}")


@dataclass(frozen=True, eq=False)
class Fit:
    """Stars and what is known of their parameters.

    Labels, `extinction` and `parallax` are attributes: (star,) arrays in K, dex, mag and mas, each with `_err`, `_p16`,
    `_p84`, `_mode` and `_mode_err` beside it, as `fit.teff_err`; of a model with a second stage, whose labels are refined,
    `teff_forward` and so on are those before. A slice, a mask or an array of rows gives a smaller `Fit`, a number a `Star`.

    Attributes:
        catalogue: one row a star, columns as in `schema.catalogue_columns`, metadata as a catalogue file has them.
        about: the same metadata: model, settings, input.
        model: what the stars were fitted with.
        spectra: what was fitted, in the same order.
    """

    catalogue: pa.Table
    about: dict[str, Any] = field(repr=False)
    model: "TrainedModel" = field(repr=False)
    spectra: Spectra = field(repr=False)

    def __len__(self) -> int:
        return len(self.catalogue)

    @cached_property
    def _flat(self) -> pa.Table:
        """One number a column."""
        return flat_table(self.catalogue, self.about)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of `covariance`."""
        return (*self.model.labels, "extinction", "parallax")

    @property
    def source_id(self) -> NDArray[np.int64]:
        """(star,) Gaia's identifiers."""
        return self.catalogue["source_id"].to_numpy()

    @property
    def status(self) -> NDArray[np.str_]:
        """(star,) 'ok', or why the star has no solution."""
        return text_column(self.catalogue, "status")

    @property
    def flags(self) -> Flags:
        """The quality flags."""
        return Flags(self.catalogue["quality_flags"].to_numpy())

    @property
    def covariance(self) -> NDArray[np.float64]:
        """(star, parameter, parameter) of `parameters`, by Laplace, prior included, in K, dex, mag and mas."""
        full = from_upper_triangle(list_column(self.catalogue, "laplace_cov_triu"))
        scale = np.array([1e3 if name == "teff" else 1.0 for name in self.parameters])
        return full * scale[:, None] * scale

    @cached_property
    def columns(self) -> dict[str, NDArray[Any]]:
        """The flat columns, by name."""
        return {
            name: text_column(self._flat, name).astype(str)
            if pa.types.is_string(self._flat.schema.field(name).type)
            else self._flat[name].to_numpy()
            for name in self._flat.column_names
        }

    def __getattr__(self, name: str) -> NDArray[Any]:
        if name.startswith("_") or name == "columns":  # of copying and pickling
            raise AttributeError(name)
        if name in self.columns:
            return self.columns[name]
        raise AttributeError(f"a fit has no '{name}'{nearest(name, self.columns)}")

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *self.columns})

    def __getitem__(self, index: Any) -> "Fit | Star":
        """A `Star` for a number; a smaller `Fit` for a slice, a mask or an array of rows; InputError for anything else."""
        if isinstance(index, SupportsIndex) and not isinstance(index, np.ndarray):
            return Star(self._rows(np.array([range(len(self))[index]])))
        try:
            rows = np.arange(len(self))[rows_at(index)]
        except (IndexError, ValueError) as error:
            raise InputError(
                f"{index!r:.40} picks no stars of a fit; give a number, a slice, or a mask or row numbers of its "
                f"{len(self)} stars; columns are attributes, as fit.teff"
            ) from error
        return self._rows(rows)

    def _rows(self, rows: NDArray[np.integer]) -> "Fit":
        return Fit(self.catalogue.take(pa.array(rows)), self.about, self.model, self.spectra.take(rows))

    def __iter__(self) -> "Iterator[Star]":
        return (Star(self._rows(np.array([row]))) for row in range(len(self)))

    def to_pandas(self) -> "pd.DataFrame":
        """Flat columns as a pandas frame; units are in its `attrs`."""
        import pandas as pd

        frame = pd.DataFrame(self.columns)
        frame.attrs["units"] = {c.name: c.unit for c in self._flat_columns if c.unit}
        return frame

    def to_table(self) -> "Table":
        """Flat columns as an astropy table with units, UCDs and descriptions."""
        from astropy import table as astropy

        table = astropy.Table()
        for column in self._flat_columns:
            values = self.columns[column.name]
            table[column.name] = astropy.Column(values, unit=column.unit or None, description=column.description)
            if column.ucd:
                table[column.name].meta["ucd"] = column.ucd
        table.meta["model"] = str(self.about.get("model", {}).get("arrays_checksum", ""))
        return table

    @property
    def _flat_columns(self) -> tuple[Column, ...]:
        return columns_for(self.about, self.catalogue.column_names)

    def save(self, path: str | Path, *, flat: bool | None = None) -> Path:
        """Write the stars to one file; InputError if the suffix is unknown, or the file cannot be written.

        Args:
            path: .parquet for a catalogue as `read_catalogue`, `report` and `verify` take it; .csv, .ecsv, .fits or .vot
                for the flat columns.
            flat: the flat columns, or those of the catalogue; as the suffix has it if None.
        """
        from xpbayes.production.export import save_catalogue

        return save_catalogue(self.catalogue, path, flat=flat)

    def plot(self, row: int = 0) -> "Figure":
        """Draw one star: spectrum and model, residuals, competing optima."""
        return Star(self._rows(np.array([range(len(self))[row]]))).plot()

    def __repr__(self) -> str:
        solved = self.status == OK
        how = "with parallax" if self.about.get("settings", {}).get("use_parallax", True) else "without parallax"
        return (
            f"<Fit of {len(self)} stars, {how}: {int(solved.sum())} solved, "
            f"{int((self.flags.basic & solved).sum())} pass the basic cut>"
        )

    def _repr_html_(self) -> str:
        frame = self.to_pandas()
        shown = [c for name in self.parameters for c in (name, f"{name}_err")]
        table = (
            frame[["source_id", *shown, "quality_flags", "status"]]
            .head(ROWS_SHOWN)
            .to_html(index=False, float_format=lambda value: f"{value:.4g}", border=0)
        )
        more = f"<p>{len(self) - ROWS_SHOWN} more rows</p>" if len(self) > ROWS_SHOWN else ""
        return f"<p>{html.escape(repr(self), quote=False)}</p>{table}{more}{self._picture()}"

    def _picture(self) -> str:
        """A small Kiel diagram of the solved stars as an inline image; nothing where no star was solved."""
        from matplotlib.figure import Figure

        good = np.isfinite(self.teff) & np.isfinite(self.logg) if "logg" in self.columns else np.zeros(0, bool)
        if not good.any():
            return ""
        figure = Figure(figsize=(3.2, 2.4), layout="constrained")
        axes = figure.subplots()
        axes.plot(self.teff[good], self.logg[good], ".", markersize=3)
        axes.invert_xaxis()
        axes.invert_yaxis()
        axes.set_xlabel("Teff [K]")
        axes.set_ylabel("log g [dex]")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=90)
        code = base64.b64encode(buffer.getvalue()).decode()
        return f'<img alt="Teff and log g of these stars" src="data:image/png;base64,{code}">'


class Star:
    """One star of a fit: its row, and what a closer look finds. Parameters are attributes, as of a `Fit`."""

    def __init__(self, row: Fit):
        self.row = row

    @cached_property
    def page(self) -> "StarFit":
        """Everything that `xpbayes fit` says of the star, found by many starts when first asked for."""
        from xpbayes.config import InferenceConfig
        from xpbayes.runs.fit import fit

        settings = InferenceConfig.model_validate(self.row.about["settings"])
        return fit(self.row.model, self.row.spectra, [self.source_id], config=settings)[0]

    @property
    def source_id(self) -> int:
        """Gaia's identifier."""
        return int(self.row.source_id[0])

    @property
    def optima(self) -> "Sequence[Any]":
        """Distinct optima of the posterior, best first (`inference.search.modes.Mode`)."""
        return self.page.modes.modes

    @property
    def covariance(self) -> NDArray[np.float64]:
        """(parameter, parameter) as of `Fit.covariance`."""
        return self.row.covariance[0]

    @property
    def spectra(self) -> Spectra:
        """What was fitted."""
        return self.row.spectra

    @property
    def flags(self) -> QualityFlag:
        """The quality flags that are set."""
        return QualityFlag(int(self.row.flags.value[0]))

    def plot(self) -> "Figure":
        """Draw spectrum and model, residuals, competing optima."""
        from xpbayes.analysis.pages.star_page import star_figure

        return star_figure(self.page)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "row":
            raise AttributeError(name)
        if name in self.row.columns:
            return self.row.columns[name][0]
        known = (
            f"; its fit of one row has: star.row.{name}" if hasattr(self.row, name) else nearest(name, self.row.columns)
        )
        raise AttributeError(f"a star has no '{name}'{known}")

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *self.row.columns})

    def __repr__(self) -> str:
        if self.row.status[0] != OK:
            return f"<Star {self.source_id}: {self.row.status[0]}>"
        values = ", ".join(
            f"{name} {getattr(self, name):.5g} ± {getattr(self, f'{name}_err'):.2g}" for name in self.row.parameters
        )
        return f"<Star {self.source_id}: {values}>"
