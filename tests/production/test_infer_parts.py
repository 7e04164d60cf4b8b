"""Production: the same bytes however the work is cut up, interrupted and gone on with, and one sentence for every fault."""

import errno
import gzip
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_array_equal

import xpbayes
from tests.command_line import refused
from tests.command_line import run as run_command
from tests.conftest import QUICK, inference_toml, with_columns
from tests.listening import heard
from xpbayes.data.rejected import read_quarantine
from xpbayes.data.spectra_file import write_star_table
from xpbayes.errors import InputError
from xpbayes.production.model_file import save_model
from xpbayes.production.table import catalogue_about, list_column, read_catalogue
from xpbayes.runs import infer_parts as parts_run
from xpbayes.runs.infer_parts import infer_parts
from xpbayes.runs.verify import verify

PER_PART = 40


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


@pytest.fixture(scope="module")
def inputs(sample, tmp_path_factory):
    """A folder with two star tables, 120 stars in 3 parts; one star has a negative error."""
    folder = tmp_path_factory.mktemp("inputs") / "stars"
    bad = sample.band_inverse_error.copy()
    bad[7] = -1
    sample = replace(sample, band_inverse_error=bad)
    write_star_table(sample.take(np.arange(0, 80)), folder / "a.parquet")
    write_star_table(sample.take(np.arange(80, 120)), folder / "b.parquet")
    return folder


def run(model_folder, inputs, out, **options):
    return infer_parts(model_folder, inputs, out, QUICK, stars_per_part=PER_PART, **{"processes": 1, **options})


@pytest.fixture(scope="module")
def undisturbed(model_folder, inputs, tmp_path_factory):
    return run(model_folder, inputs, tmp_path_factory.mktemp("undisturbed") / "catalogue")


def test_a_finished_catalogue(undisturbed, sample):
    assert sorted(contents(undisturbed)) == [
        "manifest.json",
        *(f"part-00000-{i:04d}.parquet" for i in range(2)),
        "part-00001-0000.parquet",
        "quarantine.csv",
    ]
    manifest = json.loads((undisturbed / "manifest.json").read_text())
    assert manifest["complete"]
    total = manifest["totals"]
    assert (total["rows_read"], total["rows_written"], total["rows_quarantined"]) == (120, 120, 0)
    assert total["status"] == {"flux error is negative": 1, "ok": 119}
    catalogue = read_catalogue(undisturbed)
    about = catalogue_about(catalogue)
    assert_array_equal(catalogue["gdr3_source_id"].to_numpy(), sample.source_id[:120])
    assert about["labels"] == ["teff", "feh", "logg"] and about["settings"]["use_parallax"] is False
    verify(undisturbed)


def test_as_the_one_file_way(undisturbed, model_folder, inputs):
    """Other batches, so not the same bits: but the same stars, to a hundredth of their errors."""
    parts = read_catalogue(undisturbed)
    one = xpbayes.infer(model_folder, inputs, config=QUICK)
    error = list_column(parts, "stellar_params_err")
    shift = list_column(parts, "stellar_params_est") - list_column(one, "stellar_params_est")
    assert np.nanmedian(np.abs(shift) / error) < 1e-2


@pytest.mark.thorough
def test_two_processes_give_the_same_bytes(undisturbed, model_folder, inputs, tmp_path, said):
    run(model_folder, inputs, tmp_path / "c", processes=2)
    assert contents(tmp_path / "c") == contents(undisturbed)
    assert any("stars/s" in line and "left" in line and "failures: 1 flux error is negative" in line for line in said)


def test_shards_give_the_same_bytes(undisturbed, model_folder, inputs, tmp_path, said):
    for i in (2, 0, 1):
        run(model_folder, inputs, tmp_path / "c", shard=(i, 3))
    assert contents(tmp_path / "c") == contents(undisturbed)
    assert sum("the last of them completes" in line for line in said) == 2


@pytest.fixture(scope="module")
def begun(undisturbed, model_folder, inputs, tmp_path_factory):
    """What is there after one of three shards."""
    return run(model_folder, inputs, tmp_path_factory.mktemp("begun") / "c", shard=(0, 3))


@pytest.fixture
def half_done(begun, tmp_path):
    """A copy of the same that a test may change."""
    return Path(shutil.copytree(begun, tmp_path / "c"))


class TestResume:
    def test_finished_parts_stay_and_the_rest_is_made(self, half_done, undisturbed, model_folder, inputs):
        before = {p.name: p.stat().st_mtime_ns for p in half_done.glob("part-*")}
        assert len(before) == 1
        run(model_folder, inputs, half_done, resume=True)
        assert contents(half_done) == contents(undisturbed)
        assert all((half_done / name).stat().st_mtime_ns == when for name, when in before.items())

    def test_a_finished_one_has_nothing_to_do(self, undisturbed, model_folder, inputs, said):
        run(model_folder, inputs, undisturbed, resume=True)
        assert "complete already" in said[0]

    def test_without_it_a_folder_in_use_is_refused(self, half_done, model_folder, inputs, tmp_path):
        with pytest.raises(InputError, match="holds a catalogue already; go on with it by --resume"):
            run(model_folder, inputs, half_done)
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "thesis.tex").touch()
        with pytest.raises(InputError, match="is not empty and holds no catalogue"):
            run(model_folder, inputs, tmp_path / "other", resume=True)

    def test_other_settings_are_refused(self, half_done, model_folder, inputs):
        other = QUICK.model_copy(update={"n_starts": 3})
        with pytest.raises(InputError, match=r"other settings \(n_starts: 2 then, 3 now\)"):
            infer_parts(model_folder, inputs, half_done, other, stars_per_part=PER_PART, resume=True)

    def test_another_part_size_is_refused(self, half_done, model_folder, inputs):
        with pytest.raises(InputError, match=r"other inputs \(stars_per_part: 40 then, 60 now\)"):
            infer_parts(model_folder, inputs, half_done, QUICK, stars_per_part=60, resume=True)

    def test_another_model_is_refused(self, half_done, model_folder, inputs, tmp_path):
        shutil.copytree(model_folder, tmp_path / "model")
        with open(tmp_path / "model" / "card.json", "a") as card:
            card.write("\n")
        with pytest.raises(InputError, match=r"another model \(card.json"):
            run(tmp_path / "model", inputs, half_done, resume=True)

    def test_another_selection_is_refused(self, half_done, model_folder, inputs):
        with pytest.raises(InputError, match=r"another selection of stars \(selection: all then, training now\)"):
            run(model_folder, inputs, half_done, resume=True, only="training")

    def test_more_inputs_are_refused(self, half_done, model_folder, inputs, tmp_path):
        with pytest.raises(InputError, match=r"other inputs \(files: 2 then, 1 now\)"):
            run(model_folder, inputs / "a.parquet", half_done, resume=True)

    def test_a_changed_input_is_refused(self, model_folder, inputs, tmp_path):
        """Even one of the same size: its checksum tells."""
        copy = tmp_path / "stars"
        shutil.copytree(inputs, copy)
        out = run(model_folder, copy, tmp_path / "c", shard=(0, 3))
        raw = bytearray((copy / "a.parquet").read_bytes())
        raw[1000] ^= 1
        (copy / "a.parquet").write_bytes(raw)
        with pytest.raises(InputError, match=r"a.parquet: has changed since parts were made from it"):
            run(model_folder, copy, out, resume=True)

    def test_a_touched_input_is_no_other_input(self, undisturbed, model_folder, inputs, tmp_path):
        copy = tmp_path / "stars"
        shutil.copytree(inputs, copy)
        out = run(model_folder, copy, tmp_path / "c", shard=(0, 3))
        os.utime(copy / "a.parquet")
        run(model_folder, copy, out, resume=True)
        assert contents(out)["part-00001-0000.parquet"] == contents(undisturbed)["part-00001-0000.parquet"]

    def test_a_damaged_part_is_made_again(self, half_done, undisturbed, model_folder, inputs, said):
        part = next(half_done.glob("part-*"))
        raw = bytearray(part.read_bytes())
        raw[200] ^= 1
        part.write_bytes(raw)
        run(model_folder, inputs, half_done, resume=True)
        assert contents(half_done) == contents(undisturbed)
        assert sum("is not what its record says" in line for line in said) == 1

    def test_what_a_killed_process_left_is_cleared_away(self, half_done, undisturbed, model_folder, inputs):
        (half_done / f"part-00000-0001.parquet.{os.uname().nodename}-999999999.tmp").write_bytes(b"half")
        run(model_folder, inputs, half_done, resume=True)
        assert contents(half_done) == contents(undisturbed)


def test_columns_that_a_model_cannot_fill_are_said_once(trained, inputs, tmp_path, monkeypatch, said):
    def stop(*_):
        raise InputError("enough")

    monkeypatch.setattr(parts_run, "infer_task", stop)
    for name, trust in (("with", trained.trust), ("without", None)):
        save_model(replace(trained, trust=trust), tmp_path / name)
        with pytest.raises(InputError, match="enough"):
            run(tmp_path / name, inputs, tmp_path / f"{name}-catalogue")
        told = [line for line in said if "p_outside_model and reliability are null" in line]
        assert len(told) == (trust is None)


class TestFaults:
    def test_a_vanished_input_is_one_sentence(self, model_folder, inputs, tmp_path):
        copy = tmp_path / "stars"
        shutil.copytree(inputs, copy)
        work = parts_run.infer_task

        def vanish_then_work(job, chunk):
            (copy / "b.parquet").unlink(missing_ok=True)
            return work(job, chunk)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parts_run, "infer_task", vanish_then_work)
            with pytest.raises(InputError, match=r"b.parquet: has gone since the run began; .* --resume"):
                run(model_folder, copy, tmp_path / "c")
        shutil.copy(inputs / "b.parquet", copy)
        run(model_folder, copy, tmp_path / "c", resume=True)
        verify(tmp_path / "c")

    def test_an_input_that_vanishes_while_its_stars_are_solved_is_one_sentence(self, model_folder, inputs, tmp_path):
        copy = tmp_path / "stars"
        shutil.copytree(inputs, copy)
        solve = parts_run.solve_batch

        def solve_then_vanish(*arguments):
            found = solve(*arguments)
            (copy / "a.parquet").unlink(missing_ok=True)
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parts_run, "solve_batch", solve_then_vanish)
            with pytest.raises(InputError, match=r"a.parquet: has gone since the run began; .* --resume"):
                run(model_folder, copy, tmp_path / "c")

    def test_a_model_that_is_replaced_during_the_run_is_noticed(self, model_folder, inputs, tmp_path):
        model = tmp_path / "model"
        shutil.copytree(model_folder, model)
        solve = parts_run.solve_batch

        def solve_and_replace(*arguments):
            card = (model / "card.json").read_text()
            (model / "card.json").write_text(card + "\n")
            return solve(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parts_run, "solve_batch", solve_and_replace)
            with pytest.raises(InputError, match=r"card.json has changed since the run began"):
                run(model, inputs, tmp_path / "c")
        with pytest.raises(InputError, match="is not finished"):
            verify(tmp_path / "c")
        with pytest.raises(InputError, match="begun with another model"):
            run(model, inputs, tmp_path / "c", resume=True)

    def test_the_second_of_two_runs_at_once_is_refused(self, model_folder, inputs, undisturbed, tmp_path):
        solve, refusals = parts_run.solve_batch, []

        def solve_and_resume(*arguments):
            with pytest.raises(InputError, match="another run is at work there; wait until it ends") as refused:
                run(model_folder, inputs, tmp_path / "c", resume=True)
            refusals.append(refused)
            return solve(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parts_run, "solve_batch", solve_and_resume)
            run(model_folder, inputs, tmp_path / "c")
        assert refusals and contents(tmp_path / "c") == contents(undisturbed)

    @pytest.mark.parametrize("wrong", [{"processes": 0}, {"processes": -1}, {"stars_per_part": 0}, {"engine": "ray"}])
    def test_an_impossible_number_leaves_nothing_behind(self, model_folder, inputs, tmp_path, wrong):
        with pytest.raises(InputError, match="is not possible|is no engine"):
            infer_parts(model_folder, inputs, tmp_path / "c", QUICK, **wrong)
        assert not (tmp_path / "c").exists()

    def test_a_full_disk_is_one_sentence_and_can_be_gone_on_from(
        self, model_folder, inputs, undisturbed, tmp_path, monkeypatch
    ):
        """The system has no room left when the fifth file is to be forced to disk."""
        force, calls = os.fsync, []

        def full(descriptor: int) -> None:
            calls.append(descriptor)
            if len(calls) == 5:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            force(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(InputError, match=r"cannot be written \(No space left on device\); make room and go on"):
                run(model_folder, inputs, tmp_path / "c")
        assert not list((tmp_path / "c").rglob("*.tmp"))
        run(model_folder, inputs, tmp_path / "c", resume=True)
        assert contents(tmp_path / "c") == contents(undisturbed)

    @pytest.mark.parametrize("limit", [2_000, 20_000])
    def test_a_system_that_takes_no_more_bytes_is_one_sentence(self, model_folder, inputs, tmp_path, limit):
        """The operating system itself refuses to make any file larger: the manifest, then a part."""

        def refuse() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        (tmp_path / "run.toml").write_text(inference_toml(QUICK.model_copy(update={"n_starts": 1, "n_draws": 0})))
        command = [sys.executable, "-m", "xpbayes", "infer", model_folder, inputs, "--out", tmp_path / "c", "--settings",
                   tmp_path / "run.toml", "--stars-per-part", PER_PART, "--processes", 1]  # fmt: skip
        # Python writes bytecode short without noticing: an import here would leave every later process a broken library.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION")}
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        result = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, preexec_fn=refuse, check=False, env=environment
        )
        assert result.returncode == 2 and "Traceback" not in result.stderr
        assert "cannot be written (File too large); make room" in result.stderr.splitlines()[-1]

    def test_repeated_stars_are_found_before_the_work(self, model_folder, inputs, sample, tmp_path):
        write_star_table(sample.take(np.arange(60, 100)), tmp_path / "more.parquet")
        with pytest.raises(InputError, match=r"40 source_ids occur more than once .*\(first: \d+, in .* and .*\)"):
            run(model_folder, [inputs, tmp_path / "more.parquet"], tmp_path / "c")
        assert not (tmp_path / "c").exists()

    def test_an_input_named_twice_is_refused(self, model_folder, inputs, tmp_path):
        with pytest.raises(InputError, match="a.parquet: is named twice"):
            run(model_folder, [inputs, inputs / "a.parquet"], tmp_path / "c")

    def test_other_channels_are_refused_before_the_work(self, model_folder, inputs, tmp_path):
        table = pq.read_table(inputs / "a.parquet")
        about = json.loads(table.schema.metadata[b"xpbayes"])
        about["channels"]["names"][1] = "xp401"
        pq.write_table(table.replace_schema_metadata({"xpbayes": json.dumps(about)}), tmp_path / "a.parquet")
        with pytest.raises(InputError, match=r"1 missing \(first: xp402\), 1 unknown \(first: xp401\)"):
            run(model_folder, tmp_path / "a.parquet", tmp_path / "c")

    def test_no_solution_at_all_is_one_sentence(self, model_folder, sample, tmp_path):
        few = sample.take(np.arange(5))
        write_star_table(replace(few, flux=np.full_like(few.flux, np.nan)), tmp_path / "nan.parquet")
        with pytest.raises(InputError, match="none of its 5 rows has a solution"):
            run(model_folder, tmp_path / "nan.parquet", tmp_path / "c")

    def test_flags_for_parts_beside_a_file_are_refused(self, model_folder, inputs, tmp_path):
        sentence = refused("infer", model_folder, inputs, "--out", tmp_path / "c.parquet", "--resume")
        assert "--resume is for catalogues in parts" in sentence


def test_one_side_of_the_split(model_folder, inputs, tmp_path):
    run(model_folder, inputs, tmp_path / "c", only="held-out")
    total = json.loads((tmp_path / "c" / "manifest.json").read_text())["totals"]
    assert total["rows_written"] + total["rows_not_selected"] == 120
    assert 10 < total["rows_written"] < 45
    verify(tmp_path / "c")


def test_a_table_in_pieces_gives_the_stars_of_the_whole(
    model_folder, sample, inputs, undisturbed, tmp_path, monkeypatch
):
    """Tables larger than what is read at once: the same stars in the same parts."""
    monkeypatch.setattr("xpbayes.production.inputs.STARS_AT_ONCE", 32)
    run(model_folder, inputs, tmp_path / "c")
    pieces, whole = read_catalogue(tmp_path / "c"), read_catalogue(undisturbed)
    assert_array_equal(pieces["gdr3_source_id"].to_numpy(), whole["gdr3_source_id"].to_numpy())
    shift = list_column(pieces, "stellar_params_est") - list_column(whole, "stellar_params_est")
    assert np.nanmedian(np.abs(shift) / list_column(whole, "stellar_params_err")) < 1e-2


@pytest.mark.slow
def test_three_kills_change_no_byte(model_folder, inputs, undisturbed, tmp_path):
    """benchmarks/kill_test.py kills fifty times."""
    (tmp_path / "run.toml").write_text(inference_toml(QUICK))
    command = [sys.executable, "-m", "xpbayes", "infer", model_folder, inputs, "--out", tmp_path / "c", "--resume",
               "--settings", tmp_path / "run.toml", "--stars-per-part", PER_PART, "--processes", 2, "-q"]  # fmt: skip
    records = tmp_path / "c" / "records"
    for kill in range(3):
        process = subprocess.Popen(list(map(str, command)), start_new_session=True, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while len(list(records.glob("part-*.json"))) < kill + 1 and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not json.loads((tmp_path / "c" / "manifest.json").read_text())["complete"]
    run(model_folder, inputs, tmp_path / "c", resume=True)
    assert contents(tmp_path / "c") == contents(undisturbed)


@pytest.mark.slow
def test_dask_with_a_worker_killed_twice_gives_the_same_bytes(model_folder, inputs, undisturbed, tmp_path):
    pytest.importorskip("distributed", reason="the extra dist is not installed")
    (tmp_path / "run.toml").write_text(inference_toml(QUICK))
    command = [sys.executable, "-m", "xpbayes", "infer", model_folder, inputs, "--out", tmp_path / "c", "--engine",
               "dask", "--settings", tmp_path / "run.toml", "--stars-per-part", PER_PART, "--processes", 3]  # fmt: skip
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    killed: list[int] = []
    while len(killed) < 2 and process.poll() is None:
        found = subprocess.run(
            ["pgrep", "-P", str(process.pid), "-f", "spawn_main"], capture_output=True, text=True, check=False
        )
        for pid in map(int, found.stdout.split()):
            # A worker that has loaded JAX is at work, or about to be.
            with open(f"/proc/{pid}/maps") as maps:
                busy = "jaxlib" in maps.read()
            if busy and pid not in killed and len(killed) < 2:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                break
        time.sleep(0.05)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert len(killed) == 2 and contents(tmp_path / "c") == contents(undisturbed)
    assert "Traceback" not in errors


class TestSurvey:
    """Files of spectra: one chunk each, companions joined piece by piece."""

    @pytest.fixture(scope="class")
    def survey(self, model_folder, tmp_path_factory):
        folder = tmp_path_factory.mktemp("survey") / "survey"
        result = run_command("simulate", model_folder, "--stars", 90, "--out", folder, "-q")
        assert result.returncode == 0, result.stderr
        (bulk,) = (folder / "xp").iterdir()
        lines = gzip.decompress(bulk.read_bytes()).splitlines(keepends=True)
        at = next(i for i, line in enumerate(lines) if line.startswith(b"source_id"))
        head, data = lines[: at + 1], lines[at + 1 :]
        assert len(data) == 90
        data[3] = b"no row at all\n"
        bulk.unlink()
        for number, rows in enumerate((data[:60], data[60:])):
            (folder / "xp" / f"Xp_{number}.csv.gz").write_bytes(gzip.compress(b"".join([*head, *rows])))
        gaia = folder / "gaia_source.csv.gz"
        last = gzip.decompress(gaia.read_bytes()).splitlines()[-1]
        gaia.write_bytes(gaia.read_bytes() + gzip.compress(b"0," + last.partition(b",")[2] + b"\n"))
        return folder / "survey.toml"

    @pytest.fixture(scope="class")
    def said(self):
        return []

    @pytest.fixture(scope="class")
    def catalogue(self, survey, model_folder, tmp_path_factory, said):
        out = tmp_path_factory.mktemp("parts") / "c"
        config = QUICK.model_copy(update={"use_parallax": True})
        with heard(said.append):
            return infer_parts(model_folder, survey, out, config, processes=1)

    def test_every_row_is_accounted_for(self, catalogue):
        manifest = json.loads((catalogue / "manifest.json").read_text())
        total = manifest["totals"]
        assert (total["rows_read"], total["rows_written"], total["rows_quarantined"]) == (90, 89, 1)
        assert total["companion_rows_quarantined"] == 1
        of_gaia, bad = read_quarantine(catalogue / "quarantine.csv")
        assert (bad.file, bad.row) == ("Xp_0.csv.gz", 4) and (of_gaia.file, of_gaia.row) == ("gaia_source.csv.gz", 91)
        assert sorted(manifest["quarantined_by_reason"].values()) == [1, 1]
        verify(catalogue)

    def test_the_last_line_tells_of_every_companion(self, catalogue, said):
        notes = json.loads((catalogue / "manifest.json").read_text())["notes"]
        assert said[-1] == "; ".join(notes)
        gaia, two_mass = notes
        assert gaia == "Gaia source table 90 of 91 rows used, 1 quarantined"
        assert two_mass.startswith("2MASS ") and two_mass.endswith(" rows used, 0 quarantined")

    def test_companions_are_joined(self, catalogue, survey):
        """Parallax, bands and positions come from files that are read in pieces: as `infer` does at once."""
        rows = read_catalogue(catalogue)
        about = catalogue_about(rows)
        assert about["n_with_parallax"] > 80
        ra, dec = (rows[name].to_numpy(zero_copy_only=False) for name in ("ra", "dec"))
        source = pd.read_csv(survey.parent / "gaia_source.csv.gz", comment="#").set_index("source_id")
        source = source.loc[rows["gdr3_source_id"].to_numpy()]
        assert_array_equal(ra, source["ra"].to_numpy())
        assert_array_equal(dec, source["dec"].to_numpy())
        assert rows["n_obs"].to_numpy().max() > 61

    @pytest.mark.slow  # star tables in two processes, and surveys in one, are tested above
    def test_two_processes_give_the_same_bytes(self, catalogue, survey, model_folder, tmp_path):
        config = QUICK.model_copy(update={"use_parallax": True})
        infer_parts(model_folder, survey, tmp_path / "c", config, processes=2)
        assert contents(tmp_path / "c") == contents(catalogue)

    def test_stars_in_two_files_are_found(self, survey, model_folder, tmp_path):
        folder = tmp_path / "survey"
        shutil.copytree(survey.parent, folder)
        packed = (folder / "xp" / "Xp_1.csv.gz").read_bytes()
        (folder / "xp" / "Xp_2.csv.gz").write_bytes(packed + gzip.compress(b"\n"))  # a copy would be refused at once
        with pytest.raises(InputError, match=r"30 source_ids have more than one row \(first: \d+, in part-00001"):
            infer_parts(model_folder, folder / "survey.toml", tmp_path / "c", QUICK, processes=1)

    def test_a_changed_companion_is_refused(self, survey, model_folder, tmp_path):
        folder = tmp_path / "survey"
        shutil.copytree(survey.parent, folder)
        infer_parts(model_folder, folder / "survey.toml", tmp_path / "c", QUICK, shard=(0, 2), processes=1)
        raw = bytearray((folder / "gaia_source.csv.gz").read_bytes())
        raw[4] ^= 1  # the time stamp in gzip's header: the same size, and the same rows
        (folder / "gaia_source.csv.gz").write_bytes(raw)
        with pytest.raises(InputError, match=r"gaia_source.csv.gz: has changed since"):
            infer_parts(model_folder, folder / "survey.toml", tmp_path / "c", QUICK, shard=(1, 2), processes=1)


def test_parallaxes_are_counted(model_folder, sample, tmp_path):
    known = np.where(np.arange(20) < 15, 1.0, np.nan).astype(np.float32)
    few = with_columns(sample.take(np.arange(20)), parallax=known, parallax_error=known * 0.1)
    write_star_table(few, tmp_path / "few.parquet")
    config = QUICK.model_copy(update={"use_parallax": True})
    infer_parts(model_folder, tmp_path / "few.parquet", tmp_path / "c", config, processes=1)
    assert catalogue_about(read_catalogue(tmp_path / "c"))["n_with_parallax"] == 15


def test_an_unfinished_catalogue_cannot_be_read(half_done):
    for use in (read_catalogue, verify):
        with pytest.raises(InputError, match=r"is not finished; go on with 'xpbayes infer"):
            use(half_done)


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(InputError, match=r"is not a catalogue in parts \(no manifest.json\)"):
        read_catalogue(tmp_path)


def test_parts_hold_no_path_of_this_machine(undisturbed, inputs):
    for name, raw in contents(undisturbed).items():
        assert str(inputs.parent).encode() not in raw, name


def test_chains_use_the_cores_that_the_engine_gave(monkeypatch, trained, sample):
    """Beside other processes, one core each; alone, all there are."""
    from xpbayes.inference.sampling import ladder
    from xpbayes.production.engine import CORES

    asked = []

    def refine_with_nuts(model, stars, inferred, config, seeds, threads):
        asked.append(threads)
        return inferred, np.zeros(len(inferred.estimate), bool)

    monkeypatch.setattr(ladder, "refine_with_nuts", refine_with_nuts)
    refined = QUICK.model_copy(update={"refine": True})
    for given in ("3", "0,1", None):
        if given is None:
            monkeypatch.delenv(CORES, raising=False)
        else:
            monkeypatch.setenv(CORES, given)
        xpbayes.infer(trained, sample.take(np.arange(5)), config=refined)
    assert asked == [1, 2, None]
