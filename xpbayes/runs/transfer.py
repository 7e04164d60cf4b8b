"""Learn how to bring the stars of another data release to a model's, from stars that are in both."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xpbayes.archive.columns import Column
from xpbayes.archive.tables import read_table
from xpbayes.data.join import rows_of
from xpbayes.data.spectra import OK, Spectra, join_star_tables
from xpbayes.data.spectra_file import read_star_table, star_table_files
from xpbayes.errors import InputError
from xpbayes.instrument.instrument import InstrumentId
from xpbayes.instrument.transfer import MOST, covariances, learn_transfer
from xpbayes.production.model_file import CARD, TrainedModel
from xpbayes.release import titles
from xpbayes.runs.inputs import PathLike, check_writable, created, load_if_path, saved, versions

log = logging.getLogger(__name__)


def transfer(
    model: TrainedModel | PathLike,
    pairs: Spectra | PathLike | Sequence[Spectra | PathLike],
    out: PathLike | None = None,
    crosswalk: PathLike | None = None,
) -> TrainedModel:
    """Learn a transfer, with which a model trained on one data release serves another one's stars.

    Args:
        model: a trained model, its folder, or the name of one that comes with the package.
        pairs: star tables of both releases, or folders of them: some stars as each release has them.
        out: folder for the model with its transfer, its own folder perhaps; nothing is written if None.
        crosswalk: table with the other release's source_id and, as dr3_source_id or so, the model's; without one a star
            has the same source_id in both.

    Returns:
        the model with its transfer; `transfer.ratio`, `.noise` and `.n_pairs` say what was found.

    Raises:
        InputError: the tables are not of two releases, the model's among them, or too few stars are in both.

    Example:
        >>> model = xpbayes.transfer("model", ["dr3.parquet", "dr4.parquet"], out="model")  # doctest: +SKIP
    """
    listed = [pairs] if isinstance(pairs, Spectra | str | Path) else list(pairs)
    check_writable(out, listed, crosswalk, files=(CARD, "*.safetensors"))
    trained = load_if_path(model)
    source, target = _both(trained, listed)
    own = target.source_id if crosswalk is None else _translated(target, source, Path(crosswalk))
    row = rows_of(own, source.source_id)
    usable = (row >= 0) & _whole(target) & np.where(row >= 0, _whole(source)[row], False)
    log.info(f"{int((row >= 0).sum())} stars are in both, {int(usable.sum())} with all samples")
    index = np.flatnonzero(usable)
    index = index[:: max(1, -(-len(index) // MOST))]
    sides = [
        covariances(table.flux[at][:, : table.channels.n_xp], table.xp_whitening[at])[:2]
        for table, at in ((source, row[index]), (target, index))
    ]
    found = learn_transfer(source.instrument, target.instrument, *sides)
    log.info(
        f"learned from {found.n_pairs} pairs ({found.n_outliers} left out): flux ratio {found.ratio[0].min():.4f} to "
        f"{found.ratio[0].max():.4f}, noise x {found.noise:.3f}"
    )
    entry = {"created": created(), "versions": versions()}
    return saved(replace(trained, transfer=found, card={**trained.card, "transfer": entry}), out)


def _both(model: TrainedModel, pairs: Sequence[Spectra | PathLike]) -> tuple[Spectra, Spectra]:
    """All stars of the other release, and all of the model's."""
    tables: dict[InstrumentId, list[tuple[Spectra, str]]] = {}
    for given in pairs:
        if isinstance(given, Spectra):
            tables.setdefault(given.instrument, []).append((given, "a table in memory"))
            continue
        for path in star_table_files(given):
            table = read_star_table(path)
            tables.setdefault(table.instrument, []).append((table, path.name))
    others = [instrument for instrument in tables if instrument != model.instrument]
    if len(others) != 1 or model.instrument not in tables:
        of = titles(list(dict.fromkeys(i.release for i in tables))) or "nothing"
        raise InputError(
            f"a transfer needs stars of the model's instrument ({model.instrument.title}) and of one other; what was given "
            f"is of {of}, {len(tables)} instruments"
        )
    joined = []
    for instrument in (others[0], model.instrument):
        parts, names = zip(*tables[instrument], strict=True)
        table = join_star_tables(parts, names)
        if table.channels.n_xp != model.channels.n_xp or not model.channels.n_xp:
            raise InputError(f"{names[0]}: has {table.channels.n_xp} XP samples, the model {model.channels.n_xp}")
        joined.append(table)
    return joined[0], joined[1]


def _whole(table: Spectra) -> NDArray[np.bool_]:
    """(star,) usable, with all XP samples."""
    return (table.problems() == OK) & table.channel_present()[:, : table.channels.n_xp].all(axis=1)


def _translated(target: Spectra, source: Spectra, path: Path) -> NDArray[np.int64]:
    """(star,) of the target's stars, the source's identifiers by a crosswalk; -1 where it has none or several."""
    theirs = f"{target.instrument.release}_source_id"
    table = read_table(path, [Column("source_id", "id", required=True), Column(theirs, "id", required=True)])
    own, other = table.columns[theirs], table.columns["source_id"]
    once = np.ones(len(own), bool)
    for ids in (own, other):
        _, where, count = np.unique(ids, return_inverse=True, return_counts=True)
        once &= count[where] == 1
    own, other = own[once], other[once]
    log.info(f"{path}: {len(other)} stars of {source.instrument.title} have one neighbour that is theirs alone")
    row = rows_of(target.source_id, own) if len(own) else np.full(len(target), -1)
    return np.where(row >= 0, other[row] if len(other) else -1, -1)
