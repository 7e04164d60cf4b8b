"""One star, from its identifier to a page: fetched from Gaia's archive or taken from files, solved, drawn."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from xpbayes.analysis.pages.star_page import NUMBERS, StarFit, write_page
from xpbayes.archive.adql import as_announced, make_query
from xpbayes.archive.direct import CompanionFiles, open_inputs
from xpbayes.archive.gaia_archive import DATALINK_URL, TAP_URL, Patience, fetch_spectra, fetch_tables, probe
from xpbayes.config import InferenceConfig
from xpbayes.data.spectra import Spectra, join_star_tables
from xpbayes.errors import InputError
from xpbayes.production.model_file import TrainedModel
from xpbayes.release import DEFAULT_RELEASE, release_named
from xpbayes.runs.fit import fit
from xpbayes.runs.inputs import PathLike, check_writable, load_if_path, stream_tables

log = logging.getLogger(__name__)

PAGE = "index.html"
FETCHED = "archive"
"""Folder of what was fetched, in the star's own: a second look asks the archive for nothing."""
SOON = Patience(retries=2, pause_s=2.0, timeout_s=60.0, poll_s=1.0)
"""For somebody who waits at a terminal."""


def fetch_stars(
    source_ids: Sequence[int],
    folder: PathLike | None = None,
    *,
    release: str = DEFAULT_RELEASE.name,
    tap_url: str = TAP_URL,
    data_url: str = DATALINK_URL,
    patience: Patience = SOON,
) -> Spectra:
    """Get the XP spectra of a few stars, as far as they have one, from Gaia's archive; parallaxes and 2MASS are joined.

    Args:
        source_ids: which stars.
        folder: for what is fetched, which is not asked for again; nothing is kept if None.
        release: data release that the source_ids are of: dr3 or dr4.
        tap_url, data_url: of the archive's services.
        patience: how often to retry.

    Raises:
        InputError: none of them has a spectrum, or the archive does not answer.
    """
    profile = release_named(release)
    with tempfile.TemporaryDirectory(prefix="xpbayes-") as scratch:
        out = Path(scratch if folder is None else folder)
        spectra = fetch_spectra(source_ids, out / "xp", release=release, url=data_url, patience=patience)
        if not spectra:
            raise InputError(
                f"{profile.title} {source_ids[0]}: the archive has no XP spectrum of it; only stars with "
                f"has_xp_continuous have one, most brighter than G = 17.65"
            )
        companions: dict[str, list[Path]] = {"unwise": []}
        for table in ("gaia", "two_mass"):
            announced = profile.name == DEFAULT_RELEASE.name
            there = as_announced(profile) if announced else probe(profile, table, url=tap_url, patience=patience)
            queries = [make_query(table, star, star, there) for star in sorted(set(source_ids))]
            companions[table] = fetch_tables(queries, out / table, url=tap_url, patience=patience)
        stream, source = stream_tables(open_inputs([str(path) for path in spectra], companions), None)
        found = [table for table in stream if len(table)]
    if not found:
        raise InputError(f"{source['path']}: has no spectrum that can be used; see the lines above")
    return join_star_tables(found, [str(source["path"])] * len(found))


def star(  # noqa: PLR0913 - what the verb of the command line can say
    model: TrainedModel | PathLike,
    source_id: int,
    out: PathLike | None = None,
    config: InferenceConfig | None = None,
    *,
    files: PathLike | Sequence[PathLike] = (),
    companions: CompanionFiles = None,
    release: str = DEFAULT_RELEASE.name,
    tap_url: str = TAP_URL,
    data_url: str = DATALINK_URL,
    patience: Patience = SOON,
) -> StarFit:
    """Solve one star, found by its identifier alone.

    Args:
        model: a trained model, its folder, or the name of one that comes with the package.
        config: settings; the defaults if None.
        source_id: of Gaia.
        out: folder for the star's page, figure and numbers, and for what was fetched; nothing is kept if None.
        files: where to take the star from, as `infer` takes inputs; Gaia's archive is asked if there are none.
        companions: of these files, as for `infer`.
        release, tap_url, data_url, patience: as for `fetch_stars`.

    Raises:
        InputError: the star has no spectrum, or is not in the files; the archive does not answer; the folder cannot be
            written.

    Example:
        >>> xpbayes.star("model", 4295806720, "star")  # doctest: +SKIP
    """
    trained = load_if_path(model)
    given = [files] if isinstance(files, str | Path) else list(files)
    check_writable(out, model, given, files=(NUMBERS, PAGE, "*.png"))
    if given:
        inputs = open_inputs(given, companions)
        if len(inputs) > 1:
            raise InputError(f"{inputs[1]}: is of another kind than {inputs[0]}; name files of one kind")
        (found,) = fit(trained, inputs[0], [source_id], out, config)
        where = f"from {', '.join(Path(one).name for one in given)}"
    else:
        kept = None if out is None else Path(out) / FETCHED
        urls = {"tap_url": tap_url, "data_url": data_url}
        fetched = fetch_stars([source_id], kept, release=release, patience=patience, **urls)
        (found,) = fit(trained, fetched.on(trained.channels), [source_id], out, config)
        where = f"from Gaia's archive, {release_named(release).title}"
    if out is not None:
        name = "" if isinstance(model, TrainedModel) else f" {Path(model).name}"
        card = trained.card
        about = f"model{name} of {card.get('n_training', 0):,} training stars, {card.get('created', '')[:10]}"
        log.info(f"wrote {write_page(found, Path(out) / PAGE, where, about)}")
    return found
