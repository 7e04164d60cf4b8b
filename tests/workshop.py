"""A folder with everything that a page of the documentation may take for granted, small and real."""

import gzip
import shutil
from pathlib import Path

import numpy as np
import polars as pl
from astropy.table import Table

from tests.archive.test_next_release import IDS as DR4_IDS
from tests.archive.test_next_release import survey as dr4_survey
from tests.conftest import QUICK
from tests.instrument.stub import stub
from xpbayes.archive.prepare import prepare
from xpbayes.channels import XP_GRID_NM
from xpbayes.config import Recipe
from xpbayes.data.spectra import Spectra
from xpbayes.data.spectra_file import write_star_table
from xpbayes.runs.infer import infer
from xpbayes.runs.infer_parts import infer_parts
from xpbayes.simulation.sky import simulate_sky

N, N_SKY = 250, 80
"""Stars from the bundled sample, with those that pages name one chunk; and simulated ones."""
NAMED = (1222926864488848640, 792167036547424128, 5866286617486854656, 1542079630784289280, 6051805285969944192)
"""Stars of the bundled sample that the pages name."""
ARCHIVED = 4295806720
"""A star that they fetch from Gaia's archive, or take from a file."""


def bundled_in_short(bundled: Spectra) -> Spectra:
    """Some stars of the bundled sample, those that pages name among them."""
    named = np.flatnonzero(np.isin(bundled.source_id, NAMED))
    return bundled.take(np.union1d(np.arange(0, 5 * N, 5), named))


def furnish(folder: Path, model: Path, bundled: Spectra) -> None:
    """Fill a folder: a model, star tables, catalogues, a survey's files, a finished run."""
    folder.mkdir()
    shutil.copytree(model, folder / "model")
    stars = bundled_in_short(bundled)
    ids = stars.source_id.copy()
    ids[1] = ARCHIVED
    stars = stars.replace(source_id=ids)
    write_star_table(stars, folder / "stars.parquet")
    write_star_table(bundled.take(np.arange(1, 501, 5)), folder / "other.parquet")
    write_star_table(bundled.take(np.arange(2, 502, 5)), folder / "mine.parquet")
    infer(model, stars, folder / "catalogue.parquet", config=QUICK)
    simulate_sky(model, N_SKY, folder / "sky", Recipe(), "80,0,0.4")
    for file in (folder / "sky").iterdir():
        file.rename(folder / file.name)
    (folder / "sky").rmdir()
    with_parallax = QUICK.model_copy(update={"use_parallax": True})
    infer_parts(model, folder / "survey.toml", folder / "catalogue", with_parallax, processes=1)
    prepare(folder / "survey.toml", folder / "stars")
    (spectra,) = (folder / "xp").iterdir()
    (folder / "XP.csv").write_bytes(gzip.decompress(spectra.read_bytes()))
    Table.read(folder / "tmass.csv.gz", format="ascii.csv").write(folder / "2mass.vot", format="votable")
    Table.read(folder / "gaia_source.csv.gz", format="ascii.csv").write(folder / "gaia.fits")
    truth = pl.read_parquet(folder / "truth.parquet")
    labels = {"source_id": truth["source_id"], "teff": 1e3 * truth["teff"], "feh": truth["feh"], "logg": truth["logg"]}
    pl.DataFrame(labels | {"teff_err": 50.0, "feh_err": 0.05, "logg_err": 0.1}).write_csv(folder / "mine.csv")
    (folder / "demo").mkdir()
    shutil.copytree(model, folder / "demo" / "model")
    for name in ("stars.parquet", "catalogue.parquet"):
        shutil.copy(folder / name, folder / "demo")


def furnish_two_releases(folder: Path, bundled: Spectra) -> None:
    """What the page about DR4 has beside: stars as both releases have them, and a survey of the new one."""
    stars = bundled.take(bundled.channel_present()[:, :61].all(axis=1) & (bundled.snr > 30)).take(slice(0, 120))
    ratio = 1.0 + 0.03 * np.sin((XP_GRID_NM - 400.0) / 150.0)
    flux = np.concatenate([stars.flux[:, :61] / ratio, stars.flux[:, 61:]], axis=1).astype(np.float32)
    packed = stars.xp_whitening * np.concatenate([ratio[: i + 1] for i in range(61)])
    ids = stars.source_id + 10**12
    other = stars.replace(flux=flux, xp_whitening=packed.astype(np.float32), instrument=stub().about, source_id=ids)
    write_star_table(stars, folder / "dr3_stars.parquet")
    write_star_table(other, folder / "dr4_stars.parquet")
    crosswalk = pl.DataFrame({"source_id": ids, "dr3_source_id": stars.source_id})
    crosswalk.write_parquet(folder / "dr3_neighbourhood.parquet")
    (folder / "ids.txt").write_text("\n".join(map(str, DR4_IDS)) + "\n")
    (folder / "survey.toml").unlink()
    for file in dr4_survey(folder / "dr4").parent.iterdir():
        file.rename(folder / file.name)
    (folder / "dr4").rmdir()
