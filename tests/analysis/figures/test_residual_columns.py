import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from tests.analysis.rows import halves, make_rows
from xpbayes.analysis.figures.confidence import judged
from xpbayes.analysis.figures.residual_columns import (
    ExternalStars,
    ValidationStars,
    read_external,
    residual_tables,
    residuals,
)
from xpbayes.analysis.topic import NotDrawnError
from xpbayes.errors import InputError
from xpbayes.identity import Side, Split

RNG = np.random.default_rng(0)
LABELS = ("teff", "feh", "logg")
N = 2000


@pytest.fixture(scope="module")
def rows():
    truth = np.stack(
        [
            RNG.uniform(3.5, 9, N),
            RNG.normal(0, 0.4, N),
            RNG.uniform(1, 5, N),
            RNG.gamma(2, 0.2, N),
            RNG.gamma(2, 0.5, N),
        ],
        axis=1,
    )
    error = np.tile([0.1, 0.15, 0.2, 0.03, 0.1], (N, 1))
    joined = {}
    for i, name in enumerate((*LABELS, "reddening", "parallax")):
        joined[name] = truth[:, i] + 0.05 * RNG.normal(size=N)
        joined[f"{name}_error"] = np.full(N, 0.05)
    joined["feh"][:100] = np.nan
    joined["parallax_error"][::2] = np.nan
    for name in LABELS:
        joined[name][-200:] = np.nan
    flags = np.where(np.arange(N) % 10 == 0, 8, 0).astype(np.uint8)
    confidence = {f"{n}_confidence": RNG.random(N).astype(np.float32) for n in LABELS}
    return make_rows(
        N, joined, solved=np.arange(N) % 7 > 0, stellar_params_est=truth + error * RNG.normal(size=(N, 5)),
        stellar_params_err=error, quality_flags=flags, **confidence,
    )  # fmt: skip


def _gathered(rows, *arguments):
    gatherer = ValidationStars(LABELS, *arguments)
    for part in halves(rows):
        gatherer.add(part)
    return gatherer, gatherer.result()


def test_stars_are_those_that_a_mask_in_plain_numpy_picks(rows):
    gatherer, stars = _gathered(rows, Split(0.3, seed=5), (0.02, 0.02, 0.02), 7.0)
    any_label = np.isfinite(np.stack([rows.joined[n] for n in LABELS])).any(axis=0)
    held = Split(0.3, seed=5).on(Side.HELD_OUT, rows["source_id"])
    cool = ~(rows.joined["teff"] >= 7.0)
    use = rows.solved & any_label & cool & held
    assert_array_equal(stars.source_id, rows["source_id"][use])
    assert gatherer.n_seen == (rows.solved & any_label & cool & ~held).sum()
    assert gatherer.n_hot == (rows.solved & any_label & ~cool).sum()
    assert_allclose(stars.label[:, 1], rows.joined["feh"][use])
    assert_allclose(stars.label_error[:, 2], np.hypot(0.05, 0.02))  # the floor is for labels
    assert_allclose(stars.label_error[:, 3], 0.05)
    assert_array_equal(np.isnan(stars.label[:, 4]), np.isnan(rows.joined["parallax_error"][use]))


def test_residuals_against_numpy(rows):
    _, stars = _gathered(rows, None)
    for normalised in (False, True):
        found = {r.name: r for r in residuals(stars, normalised)}
        difference = stars.estimate - stars.label
        for i, name in enumerate(stars.label_names):
            values = difference[:, i] / (np.hypot(stars.error[:, i], stars.label_error[:, i]) if normalised else 1.0)
            values = values[np.isfinite(values)] * (1e3 if name == "teff" and not normalised else 1.0)
            median = np.median(values)
            assert found[name].n == len(values)
            assert_allclose(found[name].bias, median)
            assert_allclose(found[name].scatter, 1.4826 * np.median(np.abs(values - median)))
        if normalised:
            assert all(abs(r.scatter - 1) < 0.15 for r in found.values())  # the errors are the true ones


def test_tables_hold_what_is_drawn(rows):
    _, stars = _gathered(rows, None)
    found = residuals(stars, False)
    tables = residual_tables(found, False)
    assert len(set(map(len, (s.values for s in tables[""].values())))) == 1
    assert_allclose(tables[""]["p50"].values[: len(found[0].density.n)], found[0].density.percentiles[:, 1])


def test_unconfident_estimates_of_one_label_do_not_lose_the_others(rows):
    _, stars = _gathered(rows, None)
    found = {r.name: r.n for r in residuals(stars, False, confident=True)}
    for i, name in enumerate(LABELS):
        assert found[name] == (np.isfinite(stars.label[:, i]) & (stars.confidence[:, i] >= 0.5)).sum()
    assert found["extinction"] == np.isfinite(stars.label[:, 3]).sum()


class TestConfidence:
    def test_sides_are_those_of_one_half(self, rows):
        _, stars = _gathered(rows, None)
        check = judged(stars, 3)
        known = np.isfinite(stars.label[:, :3]).all(axis=1)
        good = known & (stars.confidence[:, 2] >= 0.5)
        side = next(s for s in check.sides if (s.label, s.side) == ("logg", "good"))
        assert side.n == good.sum()
        assert_allclose(side.rms, np.sqrt(np.mean((stars.estimate - stars.label)[good, 2] ** 2)))

    def test_no_confidence_is_one_sentence(self, rows):
        _, stars = _gathered(make_rows(N, rows.joined), None)
        with pytest.raises(NotDrawnError, match="no star with labels has confidences"):
            judged(stars, 3)


class TestExternal:
    def _write(self, path, source_id, teff, column="source_id"):
        lines = [f"{column},ra,dec,teff,teff_err,feh,feh_err,logg,logg_err"]
        lines += [
            f"{s},{10 + i},{-5},{t},50,0.1,0.05,4.0,0.1" for i, (s, t) in enumerate(zip(source_id, teff, strict=True))
        ]
        path.write_text("\n".join(lines))
        return path

    def test_stars_match_by_source_id_and_the_unit_is_kelvin(self, analysed, tmp_path):
        from xpbayes.production.reader import open_catalogue

        ids = np.array([2**60 + 3, 5, 2**60 + 40])
        path = self._write(tmp_path / "survey.csv", ids, [5000, 5100, 5200])
        other = read_external(path, "custom", LABELS, open_catalogue(analysed / "catalogue.parquet"))
        gatherer = ExternalStars(LABELS, other)
        for part in halves(make_rows(60)):
            gatherer.add(part)
        stars = gatherer.result()
        assert_array_equal(stars.source_id, [2**60 + 3, 2**60 + 40])
        assert_allclose(stars.label[:, 0], [5.0, 5.2])
        assert np.isnan(stars.label[:, 3:]).all()

    def test_without_source_id_they_match_by_position(self, analysed, tmp_path):
        from xpbayes.production.reader import open_catalogue

        catalogue = open_catalogue(analysed / "catalogue.parquet")
        first = next(catalogue.tables(("source_id", "ra", "dec")))
        ra, dec = first["ra"][5].as_py(), first["dec"][5].as_py()
        path = tmp_path / "survey.csv"
        path.write_text(
            f"ra,dec,teff,teff_err,feh,feh_err,logg,logg_err\n{ra + 1e-4},{dec},5000,50,0,0.1,4,0.1\n"
            f"{ra},{dec + 0.1},5000,50,0,0.1,4,0.1\n"
        )
        other = read_external(path, "custom", LABELS, catalogue)
        assert_array_equal(other.source_id, [first["source_id"][5].as_py()])

    def test_an_unknown_survey_is_one_sentence(self, analysed, tmp_path):
        from xpbayes.production.reader import open_catalogue

        path = self._write(tmp_path / "survey.csv", [1], [5000])
        with pytest.raises(InputError, match=r"unknown label survey 'apoge' \(did you mean 'apogee'\?\)"):
            read_external(path, "apoge", LABELS, open_catalogue(analysed / "catalogue.parquet"))
