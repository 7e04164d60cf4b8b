"""survey.toml to star tables: joins by source_id, cuts counted, every row accounted for."""

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from tests.listening import heard
from xpbayes.archive.companions import read_companions
from xpbayes.archive.prepare import WORK, prepare
from xpbayes.archive.stream import stream_stars
from xpbayes.archive.survey_config import read_survey
from xpbayes.channels import XP_GRID_NM
from xpbayes.data.rejected import read_quarantine
from xpbayes.data.spectra_file import read_star_table
from xpbayes.errors import InputError
from xpbayes.files import locked
from xpbayes.instrument.bases import design_matrix

N = 12
IDS = 4295806720 + np.arange(N, dtype=np.int64) * 34359738368
FLUX = np.linspace(50, 200, N)[:, None] * (XP_GRID_NM / 600) ** np.linspace(-2, 2, N)[:, None]


def xp_lines() -> list[str]:
    coefficients = (FLUX * 1e-18) @ np.linalg.pinv(design_matrix() * 1e18).T * 1e18
    header = "source_id,bp_coefficients,bp_coefficient_errors,rp_coefficients,rp_coefficient_errors"
    error = "[" + ",".join(["0.5"] * 55) + "]"
    lines = [header]
    for i, c in zip(IDS, coefficients, strict=True):
        lines.append(f'{i},"{c[:55].tolist()}","{error}","{c[55:].tolist()}","{error}"')
    return lines


LINES = xp_lines()


def write(path, lines) -> None:
    text = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def survey(folder, extra: str = "", lines=LINES) -> str:
    folder.mkdir(exist_ok=True)
    write(folder / "bulk.csv.gz", lines)
    rng = np.random.default_rng(0)
    ra, dec = rng.uniform(0, 360, N), rng.uniform(-30, 30, N)
    header = "source_id,ra,dec,parallax,parallax_error,norm_dg,fidelity_v2,phot_bp_rp_excess_factor,ruwe"
    write(
        folder / "gaia.csv",
        [
            header,
            *(
                f"{i},{a},{d},2.0,0.1,{-20 if k != 3 else -2},0.9,1.2,1.0"
                for k, (i, a, d) in enumerate(zip(IDS, ra, dec, strict=True))
            ),
        ][:-1],
    )
    write(
        folder / "tmass.csv",
        [
            "source_id,j_m,j_msigcom,h_m,h_msigcom,ks_m,ks_msigcom,ph_qual",
            *(f"{i},12.0,0.02,11.5,0.02,11.4,0.02,AAB" for i in IDS),
        ],
    )
    write(
        folder / "labels.csv",
        ["ra,dec,snrg,snrr,snri,teff,teff_err,feh,feh_err,logg,logg_err"]
        + [
            f"{a},{d},{10 if k == 1 else 50},50,50,5500,30,-0.1,0.05,4.2,0.1"
            for k, (a, d) in enumerate(zip(ra, dec, strict=True))
        ][:8],
    )
    (folder / "survey.toml").write_text(
        extra
        + '\n[xp]\nfiles = ["*.csv.gz"]\n[gaia]\nfiles = ["gaia.csv"]\n[two_mass]\nfiles = ["tmass.csv"]\n'
        + '[[labels]]\nsurvey = "lamost_afgk"\nfiles = ["labels.csv"]\nepoch = 2016.0\n'
    )
    return folder / "survey.toml"


def test_every_table_finds_its_star(tmp_path, said):
    (path,) = prepare(survey(tmp_path / "s", 'select = "all"'), tmp_path / "out")
    table = read_star_table(path)
    assert_array_equal(table.source_id, IDS)
    assert len(table.channels) == 66
    assert_allclose(table.flux[:, :61], FLUX, rtol=1e-6)
    assert_allclose(table.column("parallax")[:-1], 2.0)
    assert np.isnan(table.column("parallax")[-1])  # not in Gaia's table
    present = table.channel_present()
    assert present[:, :61].all()
    expected = np.broadcast_to([True, True, False, False, False], (N, 5)).copy()
    expected[3] = False  # crowded
    assert_array_equal(present[:, 61:], expected)
    assert_array_equal(np.isfinite(table.column("teff")), np.arange(N) < 8)
    assert_allclose(table.column("teff_error")[:8], 0.03, rtol=1e-6)
    assert table.provenance["xp_error_scaling"] == "published"
    assert any("12 rows read: 12 stars written" in line for line in said)


def test_labelled_and_training_stars_are_counted(tmp_path):
    (path,) = prepare(survey(tmp_path / "a"), tmp_path / "out_a")
    assert len(read_star_table(path)) == 8
    (path,) = prepare(survey(tmp_path / "b", 'select = "training"'), tmp_path / "out_b")
    table = read_star_table(path)
    assert_array_equal(table.source_id, np.delete(IDS[:8], 1))  # S/N = 10 in g
    rules = {c.what: (c.removed, c.left) for c in table.cuts}
    assert rules["no label"] == (4, 8) and rules["label_snr > 20"] == (1, 7) and rules["parallax / error > 3"] == (0, 7)
    manifest = json.loads((tmp_path / "out_b" / "prepare.json").read_text())
    assert manifest["totals"] == {
        "rows_read": 12,
        "stars_written": 7,
        "stars_cut": 5,
        "rows_quarantined": 0,
        "eigenvalue_floor": 0,
        "parallax_uncorrected": 0,
    }


def test_bad_and_repeated_rows_go_to_the_quarantine(tmp_path):
    lines = [*LINES, LINES[3], LINES[5].replace(",0.5,", ",oops,", 1), "rubbish"]
    (path,) = prepare(survey(tmp_path / "s", 'select = "all"', lines), tmp_path / "out")
    assert len(read_star_table(path)) == N
    bad = read_quarantine(tmp_path / "out" / "quarantine.csv")
    assert [(r.row, r.source_id) for r in sorted(bad, key=lambda r: r.row)] == [(13, IDS[2]), (14, IDS[4]), (15, -1)]
    assert {r.file for r in bad} == {"bulk.csv.gz"}
    manifest = json.loads((tmp_path / "out" / "prepare.json").read_text())
    assert manifest["totals"]["rows_read"] == 15 and manifest["totals"]["rows_quarantined"] == 3


def test_a_star_that_two_files_hold_is_written_once(tmp_path):
    config = survey(tmp_path / "s", 'select = "all"\nstars_per_file = 5')
    write(tmp_path / "s" / "more.csv.gz", [LINES[0], *LINES[-2:]])
    paths = prepare(config, tmp_path / "out")
    assert sum(len(read_star_table(p)) for p in paths) == N
    bad = read_quarantine(tmp_path / "out" / "quarantine.csv")
    assert [r.reason for r in bad] == ["source_id was there before"] * 2 and {r.file for r in bad} == {"more.csv.gz"}


def test_streaming_gives_the_stars_that_prepare_writes(tmp_path):
    config = survey(tmp_path / "s", 'select = "all"')
    (path,) = prepare(config, tmp_path / "out")
    settings_ = read_survey(config)
    (part,) = stream_stars(settings_, config.parent, read_companions(settings_, config.parent))
    assert_array_equal(part.table.flux, read_star_table(path).flux)
    assert part.n_read == len(part.table) + len(part.rejected) + part.n_cut


def test_sampled_spectra_prepare_too(tmp_path):
    config = survey(tmp_path / "s", 'select = "all"')
    grid = np.arange(336.0, 1021.0, 2.0)
    lines = ["source_id,flux,flux_error"]
    for i in range(N):
        flux = np.interp(grid, XP_GRID_NM, FLUX[i]) * 1e-18
        lines.append(f'{IDS[i]},"{flux.tolist()}","{(0.01 * flux).tolist()}"')
    write(tmp_path / "s" / "bulk.csv.gz", lines)
    (path,) = prepare(config, tmp_path / "out")
    table = read_star_table(path)
    assert_allclose(table.flux[:, :61], FLUX, rtol=1e-6)
    assert table.provenance["xp_correlation"] == "implied by the XP bases"


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_row_is_ever_lost(tmp_path_factory, data):
    lines = list(LINES)
    for i in data.draw(st.sets(st.integers(1, N), max_size=4)):
        at = data.draw(st.integers(0, len(lines[i]) - 1))
        lines[i] = (
            lines[i][:at]
            + data.draw(st.sampled_from(["", "x", ",", '"', "NaN", "]", "[", "e999", "-"]))
            + lines[i][at + data.draw(st.integers(0, 3)) :]
        )
    folder = tmp_path_factory.mktemp("fuzz")
    out = folder / "out"
    prepare(survey(folder / "s", 'select = "all"', lines), out)
    totals = json.loads((out / "prepare.json").read_text())["totals"]
    assert totals["rows_read"] == N == totals["stars_written"] + totals["rows_quarantined"]
    assert len(read_quarantine(out / "quarantine.csv")) == totals["rows_quarantined"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "setting 'xp'"),
        ("[xp", "not valid TOML"),
        ('[xp]\nfiles = ["*.csv.gz"]\n[gaja]\n', "did you mean 'gaia'"),
        ('[xp]\nfiles = ["nothing*.csv"]', "no such file"),
        ('select = "training"\n[xp]\nfiles = ["bulk.csv.gz"]', "needs labels"),
        ('bands = ["Q"]\n[xp]\nfiles = ["bulk.csv.gz"]', "unknown band Q"),
        ('bands = ["J"]\n[xp]\nfiles = ["bulk.csv.gz"]\n[unwise]\nfiles = ["a"]', "add the bands"),
        ('[xp]\nfiles = ["bulk.csv.gz"]\n[reddening]\nsource = "columns"', "needs reddening.files"),
        ('[xp]\nfiles = ["bulk.csv.gz"]\n[reddening]\nsource = "bayestar19"\nmap_file = "no.h5"', "dustmaps"),
        (
            '[xp]\nfiles = ["bulk.csv.gz"]\n[[labels]]\nsurvey = "lamots"\nfiles = ["labels.csv"]',
            "unknown label survey",
        ),
    ],
)
def test_a_wrong_survey_is_refused_in_one_sentence(tmp_path, text, sentence):
    config = survey(tmp_path / "s")
    config.write_text(text)
    with pytest.raises(InputError, match="^[^\n]+$") as error:
        prepare(config, tmp_path / "out")
    assert sentence in str(error.value)
    assert not list(tmp_path.glob("out/*.parquet"))


def test_the_second_of_two_runs_at_once_is_refused(tmp_path):
    path, out = survey(tmp_path / "s"), tmp_path / "stars"
    with locked(out / WORK / "lock", "busy"):
        with pytest.raises(InputError, match="^[^\n]*stars: another run is at work there; wait until it ends[^\n]*$"):
            prepare(path, out)
        assert [p.name for p in out.iterdir()] == [WORK]
    assert prepare(path, out)


def test_a_folder_with_other_star_tables_is_left_alone(tmp_path):
    config = survey(tmp_path / "s")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.parquet").write_bytes(b"")
    with pytest.raises(InputError, match="already holds star tables"):
        prepare(config, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.parquet"]


def contents(folder) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_a_second_run_skips_what_is_done(tmp_path):
    config = survey(tmp_path / "s", 'select = "all"')
    first = prepare(config, tmp_path / "out")
    before = contents(tmp_path / "out")
    times = [p.stat().st_mtime_ns for p in first]
    with heard() as said:
        assert prepare(config, tmp_path / "out") == first
    assert said[0] == "1 of 1 XP files were done before"
    assert [p.stat().st_mtime_ns for p in first] == times and contents(tmp_path / "out") == before
    (tmp_path / "s" / "bulk.csv.gz").touch()  # another time, the same bytes
    assert prepare(config, tmp_path / "out") == first


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: write(s / "bulk.csv.gz", LINES[:-1]), "bulk.csv.gz: has changed"),
        (lambda s: write(s / "tmass.csv", ["source_id,j_m,j_msigcom", f"{IDS[0]},12,0.1"]), "with another tmass.csv"),
        (lambda s: write(s / "more.csv.gz", LINES[:-1]), "begun with 1 XP files, now there are 2"),
        (lambda s: s.joinpath("survey.toml").write_text(_other_scaling(s)), "other settings of 'xp'"),
        (lambda s: next(s.parent.glob("out/*.parquet")).unlink(), "1 star tables have gone"),
    ],
)
def test_changed_inputs_and_settings_are_refused_in_one_sentence(tmp_path, change, sentence):
    config = survey(tmp_path / "s", 'select = "all"')
    prepare(config, tmp_path / "out")
    change(tmp_path / "s")
    with pytest.raises(InputError, match="^[^\n]+start again$") as error:
        prepare(config, tmp_path / "out")
    assert sentence in str(error.value)


def _other_scaling(folder) -> str:
    return (folder / "survey.toml").read_text().replace("[xp]", '[xp]\nerror_scaling = "divided"')


KILLED = """
import os, signal, sys
from pathlib import Path
from xpbayes.archive import prepare as module
left = int(sys.argv[3])
replace = os.replace
def dying(source, target):  # every file appears by a rename: dying before and after one covers every moment
    global left
    left -= 1
    if left == 0 and sys.argv[4] == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = dying
module.prepare(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.thorough
def test_killed_at_any_moment_it_ends_with_the_same_bytes(tmp_path):
    """Two SIGKILLs and a resume against an undisturbed run: two XP files, five tables, a star in both files."""
    config = survey(tmp_path / "s", 'select = "all"\nstars_per_file = 5')
    write(tmp_path / "s" / "more.csv.gz", [LINES[0], *LINES[-2:], LINES[5].replace(str(IDS[4]), "77")])
    prepare(config, tmp_path / "whole")
    for nth, when in ((4, "before"), (6, "after")):  # among the tables of the first file; beside its record
        command = [sys.executable, "-c", KILLED, str(config), str(tmp_path / "out"), str(nth), when]
        assert subprocess.run(command, capture_output=True, check=False).returncode == -9
        assert not (tmp_path / "out" / "prepare.json").exists()
    prepare(config, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert len(contents(tmp_path / "out")) == 6
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_nothing_left_is_an_error_that_keeps_the_evidence(tmp_path):
    config = survey(tmp_path / "s", 'select = "all"', [LINES[0], "rubbish"])
    with pytest.raises(InputError, match="no star is left of 1 rows"):
        prepare(config, tmp_path / "out")
    assert len(read_quarantine(tmp_path / "out" / "quarantine.csv")) == 1
