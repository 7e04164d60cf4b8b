"""Small catalogues with known stars, written as inference writes them: only the columns that a dust map reads."""

import json

import astropy.units as u
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.coordinates import SkyCoord

from xpbayes.analysis.dust_map.selection import Measured


def catalogue_rows(longitude, latitude, e, plx, sigma_e, sigma_plx, rho=0.0, **replaced):
    """Rows of stars at Galactic positions [deg] with given E, parallax and errors."""
    n = len(longitude)
    icrs = SkyCoord(l=longitude * u.deg, b=latitude * u.deg, frame="galactic").icrs
    estimate = np.column_stack([np.full((n, 3), [5.0, 0.0, 3.0]), e, plx])
    triangle = np.zeros((n, 15))
    triangle[:, 12:] = np.column_stack(
        np.broadcast_arrays(np.square(sigma_e) + 0 * e, rho * sigma_e * sigma_plx + 0 * e, np.square(sigma_plx) + 0 * e)
    )
    columns = {
        "gdr3_source_id": np.arange(n, dtype=np.int64),
        "ra": icrs.ra.deg,
        "dec": icrs.dec.deg,
        "stellar_params_est": fixed(estimate),
        "stellar_params_cov_triu": fixed(triangle),
        "chi2_opt": np.full(n, 60.0, np.float32),
        "dof": np.full(n, 61, np.int16),
        "status": ["ok"] * n,
    }
    about = json.dumps({"kind": "catalogue", "version": 1, "labels": ["teff", "feh", "logg"]})
    return pa.table({**columns, **replaced}).replace_schema_metadata({"xpbayes": about})


def fixed(values):
    flat = pa.array(np.asarray(values, np.float32).reshape(-1), from_pandas=True)
    return pa.FixedSizeListArray.from_arrays(flat, np.shape(values)[1])


def measured(e, plx, sigma_e, sigma_plx, rho=0.0, pixel=None):
    """Stars as the means take them."""
    e, plx, sigma_e, sigma_plx = (np.asarray(a, np.float64) + np.zeros(len(e)) for a in (e, plx, sigma_e, sigma_plx))
    pixel = np.zeros(len(e), np.int64) if pixel is None else np.asarray(pixel, np.int64)
    return Measured(pixel, e, plx, sigma_e**2, sigma_plx**2, rho * sigma_e * sigma_plx, sigma_plx / plx)


@pytest.fixture(scope="session")
def patch_catalogue(tmp_path_factory):
    """6,000 stars within 3 deg of l, b = 100, 20 behind E = 0.2 mag/kpc x distance; small errors; three row groups."""
    rng = np.random.default_rng(0)
    n = 6000
    longitude, latitude = 100 + rng.uniform(-3, 3, n), 20 + rng.uniform(-3, 3, n)
    distance = 4.0 * rng.random(n) ** (1 / 2)
    plx, sigma_e = 1 / distance, rng.uniform(0.005, 0.03, n)
    e = 0.2 * distance + sigma_e * rng.standard_normal(n)
    rows = catalogue_rows(longitude, latitude, e, plx, sigma_e, 0.002 * plx)
    path = tmp_path_factory.mktemp("catalogue") / "catalogue.parquet"
    pq.write_table(rows, path, row_group_size=2500)
    return path
