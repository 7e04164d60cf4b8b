"""Spectra from arrays: the same as from the archive's doors, in any unit, and a sentence for what cannot be."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from astropy import units as u
from astropy.table import Column, MaskedColumn, QTable, Table
from astropy.utils.masked import Masked
from numpy.testing import assert_allclose, assert_array_equal

from xpbayes.api.spectra import Spectra
from xpbayes.archive.xp_sampled import SAMPLED_GRID_NM
from xpbayes.channels import BANDS, XP_GRID_NM
from xpbayes.data.spectra_file import read_star_table
from xpbayes.errors import InputError
from xpbayes.instrument.photometry import flux_from_magnitude
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
        ({"flux": FLUX * 1e-18 * SI}, "its errors have no unit"),
        ({"flux": FLUX * u.one}, "flux is in 1.0, which is no"),
        ({"error": np.full((N, 61), 1e-3)}, "as no XP spectrum is"),
        ({"error": None, "covariance": np.eye(61) * np.full((N, 1, 1), 1e-36)}, "as no XP spectrum is"),
        ({"error": ERROR * 1e18}, "as no XP spectrum is"),
        ({"source_id": IDS.astype(float)}, "through floating point"),
        ({"source_id": np.array([2**63 + 5, 1, 2, 3], np.uint64)}, r"1 of 4 .*first: row 0, source_id 9.*outside 1"),
        ({"source_id": [3, 0, -7, 5]}, "2 of 4 .*first: row 1, source_id 0 is outside 1"),
        ({"source_id": np.ma.array(IDS, mask=[0, 0, 1, 0])}, "first: row 2, source_id is missing"),
        ({"columns": {"source_id": IDS}}, "a name of the star table's own"),
        ({"columns": {"flux": np.ones(N)}}, "a name of the star table's own"),
        ({"columns": {"parallax": np.ones(N)}}, "parallax is given twice"),
        ({"columns": {"teff": np.full(N, 5800.0)}}, "teff: every value is outside .* as it was given, in kK"),
        ({"labels": {"teff": (5.8, 0.05)}}, "teff: every value is outside .* as it was given, in K"),
        ({"labels": {"logg": (np.full(N, 100.0) * u.cm / u.s**2, 0.1)}}, "logg is in cm / s2"),
        ({"bands": {"J": (np.full(N, 12.0) * u.ABmag, 0.02)}}, "give Vega magnitudes"),
        ({"bands": {"J": (np.full(N, 12e3) * u.mmag, 0.02)}}, "its errors have no unit"),
        ({"parallax": (np.full(N, 2e-3) * u.arcsec, 0.1)}, "its errors have no unit"),
        ({"bands": {"K": (1, 0.1)}}, "no band .did you mean 'Ks'"),
        ({"parallax": 2.0}, "not a pair"),
        ({"parallax": (np.ones(3), 0.1)}, "parallax has shape"),
    ],
)
def test_what_cannot_be_is_one_sentence(changes, message):
    with pytest.raises(InputError, match=message):
        made(**changes)


MASK = np.arange(N) == 1


@pytest.mark.parametrize(
    "hidden",
    [
        lambda values, unit: np.ma.array(values, mask=MASK),
        lambda values, unit: MaskedColumn(values, mask=MASK, unit=unit),
        lambda values, unit: Masked(values * unit, mask=MASK),
        lambda values, unit: Masked(values, mask=MASK),
        lambda values, unit: pd.Series(values).mask(MASK),
        lambda values, unit: pa.array(values, mask=MASK),
        lambda values, unit: np.where(MASK, -99999.0, values) * unit,
    ],
)
def test_what_is_masked_or_a_sentinel_is_missing(hidden):
    values = np.where(MASK, 5.0, [10.0, 9.0, 8.0, 7.0])
    spectra = made(
        bands={"J": (hidden(values, u.mag), 0.02)},
        parallax=(hidden(values, u.mas), 0.1 * u.mas),
        labels={"teff": (hidden(1e3 * values, u.K), 50.0), "feh": (0, hidden(values / 100, u.dex))},
        columns={"mine": hidden(values, u.one), "pmra": hidden(values, u.mas / u.yr)},
    )
    for found in (*spectra.magnitude("J"), *map(spectra.column, ("parallax", "teff", "feh_error", "pmra"))):
        assert_array_equal(np.isnan(found), MASK)
    assert_array_equal(np.isnan(spectra.column("mine")) | (spectra.column("mine") == -99999), MASK)


def test_masked_fluxes_are_missing():
    flux = Masked(np.where(MASK[:, None], 0.0, FLUX) * 1e-18 * SI, mask=np.broadcast_to(MASK[:, None], FLUX.shape))
    for one in (flux, np.where(MASK[:, None], -999.0, FLUX * 1e-18) * SI):
        assert_array_equal(made(flux=one, error=ERROR * 1e-18 * SI).channel_present()[:, :61].any(axis=1), ~MASK)


def test_what_nobody_can_have_measured_is_missing_and_counted(caplog):
    spectra = made(
        parallax=([-9999, 900, 2, 2], [0.1, 0.1, 0, -9999]),
        bands={"J": ([99.99, 10, 10, 10], [0.02, 9.999, 0, 0.02])},
        columns={"fidelity_v2": np.full(N, -99.0), "ra": [3996, 1, 1, 1], "dec": [400, 1, 1, 1]},
    )
    assert_array_equal(spectra.is_measured("parallax"), False)
    assert_array_equal(spectra.channel_present()[:, 61], [False, False, False, True])
    assert np.isnan(spectra.column("fidelity_v2")).all() and np.isnan(spectra.column("ra")).sum() == 1
    (line,) = caplog.messages
    assert "parallax outside -900 ... 900: 2 taken for missing" in line and "J_error not positive: 1 taken" in line


def test_columns_are_converted_and_keep_their_digits(tmp_path):
    date = np.full(N, 2459000.123456)
    spectra = made(
        parallax=None,
        columns={
            "ra": np.full(N, 1.0) * u.hourangle,
            "parallax": np.full(N, 0.002) * u.arcsec,
            "teff": np.full(N, 5800.0) * u.K,
            "date": date * u.day,
            "big": np.arange(N).astype(">f4"),
            "count": np.ma.array(np.arange(N), mask=MASK),
            "word": np.ma.array(list("abcd"), mask=MASK),
        },
    )
    back = Spectra.read(spectra.save(tmp_path / "stars.parquet"))
    for name, expected in {"ra": 15.0, "parallax": 2.0, "teff": 5.8, "date": date, "big": np.arange(N)}.items():
        assert_allclose(back.column(name), expected, rtol=1e-7 if name == "teff" else 1e-15)
    assert_array_equal(back.column("count"), [0, np.nan, 2, 3])
    assert back.columns["word"].tolist() == ["a", "", "c", "d"] and back.extra_units["date"] == "d"


def test_logarithms_and_small_magnitudes_are_read():
    spectra = made(
        labels={
            "teff": (5800 * u.K, 0.05 * u.kK),
            "feh": (Column(np.zeros(N), unit="dex"), 0.1),
            "logg": (np.full(N, 2.4) * u.dex(u.m / u.s**2), 0.1),
        },
        bands={"J": (np.full(N, 12e3) * u.mmag, 20.0 * u.mmag)},
    )
    for name, expected in {"teff": 5.8, "teff_error": 0.05, "feh": 0.0, "logg": 4.4, "logg_error": 0.1}.items():
        assert_allclose(spectra.column(name), expected, rtol=1e-6)
    assert_allclose(spectra.magnitude("J"), [np.full(N, 12.0), np.full(N, 0.02)], rtol=1e-5)


def test_a_star_whose_covariance_none_has_is_told(caplog):
    covariance = np.broadcast_to(np.eye(61), (N, 61, 61)).copy()
    covariance[1, 0, 1] = covariance[1, 1, 0] = 1e6
    covariance[2, 0, 1] = covariance[2, 1, 0] = np.nan
    spectra = made(error=None, covariance=covariance, calibrated=True)
    assert_array_equal(spectra.problems() == "flux error is not finite", [False, True, True, False])
    assert f"2 of 4 stars are not positive definite (first: source_id {IDS[1]})" in caplog.text


@pytest.mark.parametrize("suffix", ["csv", "fits", "xml", "ecsv"])
def test_gaias_files_are_read(shared_data, suffix):
    files = sorted((shared_data / "xp_continuous").glob(f"*.{suffix}"))
    if not files:
        pytest.skip(f"no {suffix} file among the shared real data")
    for path in files:
        spectra = Spectra.read(path)
        assert len(spectra) >= 1 and spectra.channels.names[0] == "xp392" and spectra.snr.max() > 10


def test_a_folder_of_gaias_files_is_read(shared_data, tmp_path):
    files = [shared_data / "xp_continuous/XP_CONTINUOUS_RAW.csv", shared_data / "xp_sampled/XP_SAMPLED_RAW_dr3int6.csv"]
    for path in files:
        (tmp_path / path.name).symlink_to(path)
    assert_array_equal(Spectra.read(tmp_path).source_id, np.concatenate([Spectra.read(f).source_id for f in files]))


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
    flux, inverse = flux_from_magnitude(magnitude, np.full(N, 0.02), BANDS["J"], floor=0.0)
    error = np.divide(1.0, inverse, out=np.full(N, np.nan), where=inverse > 0)
    back, sigma = made(bands={"J": (magnitude, 0.02)}).magnitude("J")
    assert_allclose(back, magnitude, atol=1e-5)
    assert_allclose(sigma[[0, 2, 3]], 0.02, rtol=1e-5)
    again = made(bands={"J": (back, sigma)})
    assert_allclose(again.band_inverse_error, made(bands={"J": (magnitude, 0.02)}).band_inverse_error, rtol=1e-6)
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


def test_a_qtable_and_big_endian_columns_are_read(gaias_file, shared_data):
    table = QTable.read(gaias_file, 1)
    table["source_id"] = table["source_id"].astype(">i8")
    table["parallax"] = Masked(np.full(len(table), 2e-3) * u.arcsec, mask=np.arange(len(table)) == 0)
    table["parallax_error"] = np.full(len(table), 20.0) * u.uas
    spectra = Spectra.from_coefficients(table)
    assert_array_equal(spectra.source_id, table["source_id"])
    assert_allclose(spectra.column("parallax")[1:], 2.0, rtol=1e-6)
    assert np.isnan(spectra.column("parallax")[0])
    path = shared_data / "xp_sampled/XP_SAMPLED_RAW_dr3int6.fits"
    rows = Table.read(path)
    typed = QTable({name: np.array(rows[name].tolist()) * SI for name in ("flux", "flux_error")})
    typed["source_id"], typed["wavelength"] = rows["source_id"], [SAMPLED_GRID_NM * 1e-3] * len(rows) * u.um
    assert_allclose(Spectra.from_coefficients(typed).flux, Spectra.read(path).flux, rtol=1e-6)


def test_identifiers_in_floating_point_are_refused_in_memory_too(gaias_file):
    table = Table.read(gaias_file, 1)
    table["source_id"] = table["source_id"].astype(float)
    with pytest.raises(InputError, match="in memory.*source_id|source_id.*in memory"):
        Spectra.from_coefficients(table)


@pytest.mark.parametrize("rows", [3, [1, 2], {"source_id": [1]}])
def test_what_is_no_table_is_refused(rows):
    with pytest.raises(InputError):
        Spectra.from_coefficients(rows)
