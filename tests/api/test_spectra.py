"""Spectra from arrays: the same as from the archive's doors, in any unit, and a sentence for what cannot be."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from astropy import units as u
from astropy.table import Table
from numpy.testing import assert_allclose, assert_array_equal

from xpbayes.api.spectra import Spectra
from xpbayes.archive.xp_sampled import SAMPLED_GRID_NM
from xpbayes.channels import BANDS, XP_GRID_NM
from xpbayes.data.spectra_file import read_star_table
from xpbayes.errors import InputError
from xpbayes.instrument.photometry import FLUX_ERROR_FLOOR, LN10_OVER_2P5, flux_from_magnitude
from xpbayes.instrument.xp_covariance import calibrate_sampled

RNG = np.random.default_rng(5)
N = 4
FLUX = RNG.uniform(5, 50, (N, 61))
ERROR = RNG.uniform(0.1, 0.3, (N, 61))
IDS = np.arange(N) + 5_853_498_713_190_525_696
SI = u.Unit("W m-2 nm-1")


def made(**changes):
    about = {"flux": FLUX, "error": ERROR, "source_id": IDS, "parallax": (np.full(N, 2.0), 0.1)}
    return Spectra(**(about | changes))


def test_errors_alone_are_taken_as_the_archives_sampled_spectra_are():
    expected = calibrate_sampled(FLUX, ERROR, np.ones((N, 61), bool))
    assert_allclose(made().xp_whitening, expected.whitening, rtol=1e-5, atol=1e-6)
    assert_allclose(made().flux[:, :61], FLUX, rtol=1e-6)


def test_units_are_converted():
    here = made()
    there = made(
        flux=(FLUX * 1e-18) * SI,
        error=(ERROR * 1e-15) * u.Unit("W m-2 um-1"),
        wavelength=XP_GRID_NM * 10 * u.AA,
        parallax=(np.full(N, 0.002) * u.arcsec, 100 * u.uas),
    )
    assert_allclose(there.xp_whitening, here.xp_whitening, rtol=1e-5, atol=1e-6)
    assert_allclose(there.column("parallax"), here.column("parallax"), rtol=1e-6)
    assert_allclose(there.column("parallax_error"), 0.1, rtol=1e-6)


def test_a_finer_grid_in_any_order_is_sampled():
    order = RNG.permutation(SAMPLED_GRID_NM.size)
    fine = np.full((N, SAMPLED_GRID_NM.size), 1e9)
    sigma = np.ones_like(fine)
    at = np.searchsorted(SAMPLED_GRID_NM, XP_GRID_NM)
    fine[:, at], sigma[:, at] = FLUX, ERROR
    there = made(flux=fine[:, order], error=sigma[:, order], wavelength=SAMPLED_GRID_NM[order])
    assert_array_equal(there.xp_whitening, made().xp_whitening)


def test_a_covariance_is_used_as_it_is_if_it_is_calibrated():
    root = RNG.normal(size=(N, 61, 61))
    covariance = root @ root.swapaxes(1, 2) + 5 * np.eye(61)
    spectra = made(error=None, covariance=covariance, calibrated=True)
    assert_allclose(spectra.flux_error()[:, :61] ** 2, np.diagonal(covariance, axis1=1, axis2=2), rtol=1e-3)
    other = made(error=None, covariance=covariance * 1e-36 * SI**2, calibrated=True)
    assert_allclose(other.xp_whitening, spectra.xp_whitening, rtol=1e-4, atol=1e-5)
    wider = made(error=None, covariance=covariance)
    assert np.all(wider.flux_error()[:, :61] > spectra.flux_error()[:, :61])


def test_missing_samples_and_bands_have_no_weight():
    flux, error = FLUX.copy(), ERROR.copy()
    flux[0, 3], error[1, 7], error[2, 9] = np.nan, np.nan, -1
    magnitude = np.array([12.0, np.nan, 11.0, 10.0])
    spectra = made(flux=flux, error=error, bands={"Ks": (magnitude, 0.02), "J": (magnitude + 0.5, 0.02)})
    assert spectra.channels.band_names == ("J", "Ks")
    present = spectra.channel_present()
    assert [tuple(np.flatnonzero(~row)) for row in present] == [(3,), (7, 61, 62), (9,), ()]
    expected, weight = flux_from_magnitude(magnitude, np.full(N, 0.02), BANDS["Ks"])
    assert_allclose(spectra.flux[:, 62], expected, rtol=1e-6)
    assert_allclose(spectra.band_inverse_error[:, 1], weight, rtol=1e-6)


def test_labels_come_in_kelvin_and_survive_the_file(tmp_path):
    spectra = made(labels={"teff": (5800.0, 50.0), "feh": (np.zeros(N), 0.1)}, columns={"ra": np.arange(4.0)})
    assert_allclose(spectra.column("teff"), 5.8)
    back = Spectra.read(spectra.save(tmp_path / "stars.parquet"))
    assert isinstance(back[:2], Spectra) and back.label_names == ("teff", "feh")
    for name in ("source_id", "flux", "xp_whitening", "band_inverse_error"):
        assert_array_equal(getattr(back, name), getattr(spectra, name))
    for name, values in spectra.columns.items():
        assert_array_equal(back.columns[name], values)
    assert read_star_table(tmp_path / "stars.parquet").channels == spectra.channels


def test_one_star_needs_no_leading_axis():
    star = Spectra(FLUX[1], error=ERROR[1], source_id=IDS[1])
    assert_array_equal(star.xp_whitening, made().xp_whitening[1:2])
    assert repr(star).startswith("<Spectra: 1 stars; 61 XP samples, J, H, Ks, W1, W2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flux": FLUX * 1e-18}, "give it as an astropy quantity"),
        ({"flux": FLUX * u.Jy}, "flux is in Jy"),
        ({"error": None}, "covariance of the fluxes or their errors"),
        ({"error": ERROR[:2]}, "error has shape .2, 61., not .4, 61."),
        ({"wavelength": XP_GRID_NM + 1}, "lacks 61 of the 61 samples"),
        ({"source_id": IDS.astype(float)}, "identifiers lose digits"),
        ({"bands": {"K": (1, 0.1)}}, "no band .did you mean 'Ks'"),
        ({"parallax": 2.0}, "not a pair"),
        ({"parallax": (np.ones(3), 0.1)}, "parallax has shape"),
    ],
)
def test_what_cannot_be_is_one_sentence(changes, message):
    with pytest.raises(InputError, match=message):
        made(**changes)


@pytest.mark.parametrize("suffix", ["csv", "fits", "xml", "ecsv"])
def test_gaias_files_are_read(shared_data, suffix):
    files = sorted((shared_data / "xp_continuous").glob(f"*.{suffix}"))
    if not files:
        pytest.skip(f"no {suffix} file among the shared real data")
    for path in files:
        spectra = Spectra.read(path)
        assert len(spectra) >= 1 and spectra.channels.names[0] == "xp392" and spectra.snr.max() > 10


def test_a_file_without_spectra_is_one_sentence(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("source_id,colour\n1,2\n")
    with pytest.raises(InputError, match="has neither coefficients"):
        Spectra.read(path)


def test_the_covariance_is_the_one_that_went_in():
    root = RNG.normal(size=(N, 61, 61))
    covariance = root @ root.swapaxes(1, 2) + 5 * np.eye(61)
    flux = FLUX.copy()
    flux[0, 3] = np.nan
    back = made(flux=flux, error=None, covariance=covariance, calibrated=True).covariance
    assert_allclose(back[1:], covariance[1:], rtol=1e-3, atol=1e-2)
    assert (
        np.isnan(back[0, 3]).all()
        and np.isnan(back[0, :, 3]).all()
        and np.isfinite(np.delete(back[0], 3, 0)).sum() == 60 * 60
    )


def test_bands_come_as_magnitudes_or_as_fluxes():
    magnitude = np.array([12.0, np.nan, 11.0, 10.0])
    flux, inverse = flux_from_magnitude(magnitude, np.full(N, 0.02), BANDS["J"])
    error = np.divide(1.0, inverse, out=np.full(N, np.nan), where=inverse > 0)
    back, sigma = made(bands={"J": (magnitude, 0.02)}).magnitude("J")
    assert_allclose(back, magnitude, atol=1e-5)
    assert_allclose(sigma[[0, 2, 3]], np.hypot(0.02, FLUX_ERROR_FLOOR / LN10_OVER_2P5), rtol=1e-5)
    one, other = made(bands={"J": (magnitude, 0.02)}), made(bands={"J": (flux * 1e-18 * SI, error * 1e-18 * SI)})
    assert_allclose(one.flux, other.flux, rtol=1e-6)
    assert_allclose(one.band_inverse_error, other.band_inverse_error, rtol=1e-6)


@pytest.fixture(scope="module")
def gaias_file(shared_data):
    return shared_data / "xp_continuous" / "XP_CONTINUOUS_RAW.fits"


@pytest.mark.parametrize("kind", ["astropy", "pandas", "arrow"])
def test_a_table_in_memory_is_read_as_its_file_is(gaias_file, kind):
    table = Table.read(gaias_file, 1)
    rows = {name: [np.asarray(cell) if np.ndim(cell) else cell for cell in table[name]] for name in table.colnames}
    made_of = {"astropy": lambda: table, "pandas": lambda: pd.DataFrame(rows), "arrow": lambda: pa.table(rows)}
    one, other = Spectra.read(gaias_file), Spectra.from_coefficients(made_of[kind]())
    assert_array_equal(one.source_id, other.source_id)
    assert_array_equal(one.flux, other.flux)
    assert_array_equal(one.xp_whitening, other.xp_whitening)


def test_the_parallax_of_a_table_is_taken_along_in_its_unit(gaias_file):
    table = Table.read(gaias_file, 1)
    table["parallax"], table["parallax_error"] = np.full(len(table), 2e-3) * u.arcsec, np.full(len(table), 20.0) * u.uas
    spectra = Spectra.from_coefficients(table)
    assert_allclose(spectra.column("parallax"), 2.0, rtol=1e-6)
    assert_allclose(spectra.column("parallax_error"), 0.02, rtol=1e-6)


def test_identifiers_in_floating_point_are_refused_in_memory_too(gaias_file):
    table = Table.read(gaias_file, 1)
    table["source_id"] = table["source_id"].astype(float)
    with pytest.raises(InputError, match="in memory.*source_id|source_id.*in memory"):
        Spectra.from_coefficients(table)


@pytest.mark.parametrize("rows", [3, [1, 2], {"source_id": [1]}])
def test_what_is_no_table_is_refused(rows):
    with pytest.raises(InputError):
        Spectra.from_coefficients(rows)
