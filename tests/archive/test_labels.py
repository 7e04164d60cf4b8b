"""Labels: columns, units, matches, the join at 7000 K, repeated visits and the paper's cuts."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from xpbayes.archive.label_surveys import SURVEYS, LabelColumns, LabelSurvey
from xpbayes.archive.labels import TrainingCuts, join_labels, read_labels, training_cuts
from xpbayes.archive.positions import Positions, match_positions
from xpbayes.errors import InputError

NAMES = ("teff", "feh", "logg")


def lamost(path, rows, header="source,ra,dec,snrg,snrr,snri,teff,teff_err,feh,feh_err,logg,logg_err"):
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def stars(n: int = 3, **changes) -> Positions:
    values = {
        "source_id": np.arange(1, n + 1) * 1000,
        "ra": np.linspace(10, 20, n),
        "dec": np.linspace(-5, 60, n),
        "pmra": np.zeros(n),
        "pmdec": np.zeros(n),
        "epoch": np.full(n, 2016.0),
    }
    return Positions(**{**values, **changes})


def test_the_nearest_star_within_a_quarter_arcsecond_matches():
    s = stars()
    near = 0.2 / 3600
    found = match_positions([s], s.ra + np.array([0, near, 2 * near]), s.dec + np.array([near, 0, near]), 2016.0)
    # The third is 0.2" up and, at 60 degrees, 0.4" x cos(60) = 0.2" across: 0.28" away.
    assert_array_equal(found, [1000, 2000, -1])
    assert_array_equal(match_positions([s], s.ra, s.dec + 0.3 / 3600, 2016.0), [-1, -1, -1])
    assert_array_equal(match_positions([s], np.array([np.nan]), np.array([0.0]), 2016.0), [-1])


def test_proper_motion_takes_stars_to_the_surveys_epoch():
    s = stars(pmra=np.array([100.0, np.nan, 0.0]), pmdec=np.array([0.0, np.nan, -200.0]))
    ra, dec = s.ra.copy(), s.dec.copy()
    ra[0] -= 100.0 * 16 / 3.6e6 / np.cos(np.radians(dec[0]))  # where it was 16 years before, by hand
    dec[2] += 200.0 * 16 / 3.6e6
    assert_array_equal(match_positions([s], ra, dec, 2000.0), [1000, 2000, 3000])
    assert_array_equal(match_positions([s], ra, dec, 2016.0), [-1, 2000, -1])


def test_lamost_and_hot_payne_join_at_7000_kelvin(tmp_path):
    s = stars()
    rows = [f"x,{s.ra[i]},{s.dec[i]},50,60,70,{t},40,-0.1,0.05,4.1,0.1" for i, t in enumerate((5800, 7200, 6900))]
    cool = lamost(tmp_path / "lamost.csv", rows)
    rows = [f"x,{s.ra[i]},{s.dec[i]},50,60,70,{t},90,-0.3,0.09,3.9,0.2" for i, t in ((1, 7400), (2, 6950))]
    hot = lamost(tmp_path / "hot.csv", rows)
    parts = [
        read_labels(LabelSurvey(survey=name, files=("x",)), [path], NAMES, [s])
        for name, path in (("lamost_afgk", cool), ("hot_payne", hot))
    ]
    joined = join_labels(parts)
    assert_array_equal(joined.source_id, [1000, 3000, 2000])
    assert_allclose(joined.value[:, 0], [5.8, 6.9, 7.4])
    assert_array_equal(joined.survey, ["lamost_afgk", "lamost_afgk", "hot_payne"])
    assert_allclose(joined.error[2], [0.09, 0.09, 0.2])
    assert [(c.removed, c.left) for c in parts[0].cuts] == [(0, 3), (0, 3), (1, 2), (0, 2)]


def test_the_visit_with_the_highest_signal_to_noise_wins(tmp_path):
    s = stars()
    rows = [
        f"x,{s.ra[0]},{s.dec[0]},{snr},90,90,{t},40,0,0.05,4,0.1" for snr, t in ((30, 5000), (80, 5100), (50, 5200))
    ]
    part = read_labels(LabelSurvey(survey="lamost_afgk", files=("x",)), [lamost(tmp_path / "l.csv", rows)], NAMES, [s])
    joined = join_labels([part])
    assert len(part) == 3 and len(joined) == 1
    assert_allclose(joined.value[0, 0], 5.1)
    assert joined.cuts[-1].removed == 2 and joined.snr[0] == 80


def test_a_generic_survey_maps_its_columns_and_its_bad_values_are_missing(tmp_path):
    (tmp_path / "g.csv").write_text(
        "gaia,T,eT,m,em,g,eg,sn\n1000,5.5,0.1,-0.2,0.1,4.4,0.1,90\n2000,-9999,-9999,0,0.1,4,0.1,50\n3000,6.0,0.1,-9999,-1,4,0.1,5\n"
    )
    columns = LabelColumns(
        source_id=("nope", "gaia"),
        snr=("sn",),
        labels={"teff": ("T",), "feh": ("m",), "logg": ("g",)},
        errors={"teff": ("eT",), "feh": ("em",), "logg": ("eg",)},
    )
    survey = LabelSurvey(files=("g.csv",), columns=columns, teff_unit="kK", error_floor={"teff": 0.02})
    out = read_labels(survey, [tmp_path / "g.csv"], NAMES, None)
    assert_array_equal(out.source_id, [1000, 3000])
    assert_allclose(out.error[0, 0], np.hypot(0.1, 0.02))
    assert np.isnan(out.value[1, 1]) and np.isnan(out.error[1, 1]) and out.value[1, 2] == 4
    strict = survey.model_copy(update={"snr_min": 20.0})
    assert_array_equal(read_labels(strict, [tmp_path / "g.csv"], NAMES, None).source_id, [1000])


@pytest.mark.parametrize("name", sorted(SURVEYS))
def test_every_preset_reads_a_file_with_its_own_column_names(tmp_path, name):
    c = SURVEYS[name].columns
    teff = 8000.0 if name == "hot_payne" else 5000.0
    star = stars(1, epoch=np.array([SURVEYS[name].epoch]))
    first = {"ra": (c.ra[0], star.ra[0]), "dec": (c.dec[0], star.dec[0])}
    if c.source_id:
        first["source_id"] = (c.source_id[0], 1000)
    columns = dict(first.values())
    for label, value in zip(NAMES, (teff, -0.5, 4.0), strict=True):
        columns[c.labels[label][0]], columns[c.errors[label][0]] = value, 0.1
    columns |= dict.fromkeys(c.snr, 50.0)
    header, values = ",".join(columns), ",".join(str(v) for v in columns.values())
    (tmp_path / "x.csv").write_text(f"{header.upper()}\n{values}\n")
    out = read_labels(LabelSurvey(survey=name, files=("x.csv",)), [tmp_path / "x.csv"], NAMES, [star])
    assert out.source_id.tolist() == [1000]
    assert_allclose(out.value[0], [teff / 1e3, -0.5, 4.0])
    assert SURVEYS[name].source


def test_an_identifier_of_an_earlier_gaia_release_is_never_taken_for_dr3s():
    names = {n for preset in SURVEYS.values() for n in preset.columns.source_id}
    assert not names & {"gaia_source_id", "ref_id", "gaiadr2_source_id", "gaia_dr2_source_id"}


def test_a_match_does_not_depend_on_the_blocks_that_gaia_comes_in():
    rng = np.random.default_rng(0)
    n = 300
    values = {"ra": rng.uniform(0, 360, n), "dec": np.degrees(np.arcsin(rng.uniform(-1, 1, n)))}
    values["ra"][:2], values["dec"][:2] = (359.99999, 0.00001), (0.0, 0.0)  # neighbours across the origin
    whole = stars(n, **values, pmra=rng.normal(0, 200, n), pmdec=rng.normal(0, 200, n))
    ra, dec = whole.at(2000.0)
    ra, dec = ra + rng.normal(0, 0.1 / 3600, n), np.clip(dec + rng.normal(0, 0.1 / 3600, n), -90, 90)
    order = rng.permutation(n)
    blocks = [Positions(**{k: v[part] for k, v in vars(whole).items()}) for part in np.array_split(order, 7)]
    expected = match_positions([whole], ra, dec, 2000.0)
    assert (expected > 0).sum() > 200
    assert_array_equal(match_positions(blocks, ra, dec, 2000.0), expected)


def test_problems_are_said_in_one_sentence(tmp_path):
    path = lamost(tmp_path / "l.csv", ["x,1,2,5,5,5,5000,10,0,0.1,4,0.1"])
    survey = LabelSurvey(survey="lamost_afgk", files=("x",))
    with pytest.raises(InputError, match="needs ra and dec in Gaia's source table"):
        read_labels(survey, [path], NAMES, None)
    with pytest.raises(InputError, match="no source_id column"):
        read_labels(survey.model_copy(update={"match": "source_id"}), [path], NAMES, None)
    with pytest.raises(InputError, match="did you mean 'apogee'"):
        read_labels(survey.model_copy(update={"survey": "apoge"}), [path], NAMES, None)
    with pytest.raises(InputError, match="no column teff for the label teff"):
        read_labels(survey, [lamost(tmp_path / "m.csv", ["1,2"], "ra,dec")], NAMES, [stars()])


def good_star(n: int = 9) -> dict[str, np.ndarray]:
    return {
        "label_snr": np.full(n, 50.0),
        "teff_error": np.full(n, 0.05),
        "feh_error": np.full(n, 0.05),
        "logg_error": np.full(n, 0.05),
        "parallax": np.full(n, 1.0),
        "parallax_error": np.full(n, 0.1),
        "fidelity_v2": np.full(n, 0.99),
        "phot_bp_rp_excess_factor": np.full(n, 1.2),
    }


def test_each_of_the_papers_cuts_removes_its_own_star():
    c = good_star()
    c["label_snr"][0], c["teff_error"][1], c["feh_error"][2], c["logg_error"][3] = 20.0, 0.5, 0.5, np.nan
    c["parallax"][4], c["fidelity_v2"][5], c["phot_bp_rp_excess_factor"][6] = 0.3, 0.5, 1.3
    keep, table = training_cuts(TrainingCuts(), c, "here")
    assert_array_equal(keep, [False] * 7 + [True] * 2)
    assert [(t.removed, t.left) for t in table] == [(0, 9)] + [(1, 8 - i) for i in range(7)]


def test_a_cut_without_its_column_is_refused_and_may_be_switched_off():
    c = good_star()
    c["fidelity_v2"][:] = np.nan
    with pytest.raises(InputError, match="fidelity_min needs fidelity_v2"):
        training_cuts(TrainingCuts(), c, "here")
    keep, _ = training_cuts(TrainingCuts(fidelity_min=False), c, "here")
    assert keep.all()
