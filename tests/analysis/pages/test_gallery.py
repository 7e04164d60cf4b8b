"""All figures from a finished run: files, page, and a reason for every figure that is not there."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose

from tests.command_line import refused
from xpbayes import analyse
from xpbayes.analysis.figures.dust import read_birds_eye
from xpbayes.analysis.figures.extinction_curve import compare_with_file, compare_with_published
from xpbayes.analysis.figures.training_record import draw_self_cleaning, from_card
from xpbayes.analysis.pages.gallery import ANALYSES, choose
from xpbayes.analysis.run_inputs import Run
from xpbayes.analysis.topic import NotDrawnError
from xpbayes.errors import InputError

DRAWN = {
    "kiel", "prior", "correlations", "residuals", "pulls", "flux_residuals", "main_sequence", "metallicity", "giant_branch",
    "curve", "reliability",
}  # fmt: skip


@pytest.fixture(scope="module")
def out(figure_folder):
    return figure_folder


@pytest.mark.thorough
def test_every_analysis_is_drawn_or_says_why(out):
    record = {f["name"]: f for f in json.loads((out / "analyses.json").read_text())["figures"]}
    assert list(record) == [a.name for a in ANALYSES]
    drawn = {name for name, figure in record.items() if "caption" in figure}
    assert drawn >= DRAWN
    for name, figure in record.items():
        if name in drawn:
            assert {f"{name}.png", f"{name}.pdf", f"{name}.ecsv"} <= set(figure["files"])
            assert all((out / file).stat().st_size > 300 for file in figure["files"])
            assert re.search(r"\d", figure["caption"])
        else:
            assert len(figure["not_drawn_because"]) > 20
    assert "no dust map was named" in record["dust_sky"]["not_drawn_because"]
    assert "no phase of self-cleaning" in record["self_cleaning"]["not_drawn_because"]


def test_numbers_beside_a_figure_have_units_and_its_caption(out):
    from astropy.table import Table

    table = Table.read(out / "kiel.ecsv")
    assert str(table["teff"].unit) == "kK" and "ZGR23 Fig. 1" in table.meta["paper"]
    assert table["inferred"].sum() > 300


def test_the_page_shows_all_and_loads_nothing(out):
    page = (out / "index.html").read_text(encoding="utf-8")
    text = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", page)
    assert "http" not in text and not re.search(r"<(script|link|iframe)[^>]* (src|href)=\"(?!data:)", text)
    assert page.count("<img") == len(re.findall(r"\.png\"", text)) >= len(DRAWN)
    links = re.findall(r'href="([^"]+)"', text)
    ids = set(re.findall(r'id="([^"]+)"', text))
    for link in links:
        if link.startswith("#"):
            assert link[1:] in ids
        elif not link.startswith("data:"):
            assert (out / link).is_file()


def test_only_what_was_asked_for_is_made(analysed, tmp_path, capsys):
    from xpbayes.cli import main

    with pytest.raises(SystemExit) as stopped:
        main(["analyse", str(analysed), "--only", "curve", "--only", "external", "--out", str(tmp_path / "o")])
    assert stopped.value.code in (0, None)
    said = capsys.readouterr()
    assert "external: not drawn because no table of another survey was named (--external)" in said.err
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == [
        "analyses.json", "curve.ecsv", "curve.pdf", "curve.png", "curve_scatter.ecsv", "index.html",
    ]  # fmt: skip


class TestBadInput:
    def test_an_unknown_name(self):
        with pytest.raises(InputError, match=r"no analysis 'keil' \(did you mean 'kiel'\?\)"):
            choose(["keil"])

    def test_nothing_that_can_be_drawn(self, analysed, tmp_path):
        with pytest.raises(
            InputError, match=r"none of 1 figures can be drawn; the first, clusters: not drawn because no"
        ):
            analyse(analysed, tmp_path / "o", only=["clusters"])
        assert not (tmp_path / "o").exists()

    def test_an_external_table_without_a_match(self, analysed, tmp_path):
        path = tmp_path / "survey.csv"
        path.write_text("source_id,ra,dec,teff,teff_err,feh,feh_err,logg,logg_err\n12,1,2,5000,50,0,0.1,4,0.1\n")
        with pytest.raises(InputError, match="none of its 1 stars with labels is a solved star of the catalogue"):
            analyse(analysed, tmp_path / "o", {"external": path}, only=["external"])

    def test_an_external_table_with_a_wrong_column(self, analysed, tmp_path):
        path = tmp_path / "survey.csv"
        path.write_text("source_id,ra,dec,temperature,teff_err,feh,feh_err,logg,logg_err\n12,1,2,5000,50,0,0.1,4,0.1\n")
        said = refused(
            "analyse", analysed, "--external", path, "--only", "external", "--out", tmp_path / "o", "--quiet"
        )
        assert "survey.csv: has no column teff" in said

    def test_a_catalogue_with_a_wrong_column(self, analysed, tmp_path):
        table = pq.read_table(analysed / "catalogue.parquet")
        names = ["icov" if n == "stellar_params_icov_triu" else n for n in table.column_names]
        pq.write_table(
            table.rename_columns(names).replace_schema_metadata(table.schema.metadata), tmp_path / "c.parquet"
        )
        inputs = ("analyse", analysed, "--catalogue", tmp_path / "c.parquet")
        said = refused(*inputs, "--only", "correlations", "--out", tmp_path / "o", "--quiet")
        assert "c.parquet: has no column 'stellar_params_icov_triu'" in said and "infer it again" in said

    @pytest.mark.parametrize("verb", ["analyse", "report", "dustmap"])
    def test_an_unfinished_catalogue(self, verb, analysed, tmp_path):
        (tmp_path / "c").mkdir()
        (tmp_path / "c" / "manifest.json").write_text(
            json.dumps({"version": 1, "identity": {"about": {"labels": ["teff"]}}, "complete": False})
        )
        words = {
            "analyse": ("--catalogue", tmp_path / "c"),
            "report": (analysed / "model", tmp_path / "c", analysed / "stars.parquet"),
            "dustmap": (tmp_path / "c",),
        }
        said = refused(verb, *words[verb], "--out", tmp_path / "o", "--quiet")
        assert "is not finished; go on with 'xpbayes infer" in said

    def test_one_bad_file_costs_one_figure(self, analysed, tmp_path):
        (tmp_path / "curve.txt").write_text("no numbers\n")
        analyse(analysed, tmp_path / "o", {"curve": tmp_path / "curve.txt"}, only=["curve", "prior"])
        by_name = {f["name"]: f for f in json.loads((tmp_path / "o" / "analyses.json").read_text())["figures"]}
        assert "two columns of numbers" in by_name["curve"]["not_drawn_because"] and "caption" in by_name["prior"]

    def test_a_folder_that_is_no_dust_map(self, analysed, tmp_path):
        with pytest.raises(InputError, match="make one with 'xpbayes dustmap'"):
            analyse(analysed, tmp_path / "o", {"dust_map": tmp_path}, only=["dust_sky"])


def test_self_cleaning_reads_the_card():
    """A card as training writes it: twins 0.75 mag brighter outside of the circle."""
    rng = np.random.default_rng(0)
    outlier = np.arange(200) % 5 == 0
    found = {
        "row": list(range(200)), "logg_pull": rng.normal(size=200).tolist(),
        "parallax_pull": np.where(outlier, 5.0, rng.normal(size=200)).tolist(), "parallax": [2.0] * 200,
        "outlier": outlier.tolist(),
        "absolute_magnitude": [None, *(4.8 - 0.75 * outlier + 0.01 * rng.normal(size=200))[1:].tolist()],
    }  # fmt: skip
    phases = [{"update": "stars"}, {"diagnostic": found, "n_stars": 5000, "dropped_by": {"both": 0.25}}]
    numbers = from_card({"phases": phases})
    assert abs(numbers.magnitude_shift + 0.75) < 0.01 and numbers.n_stars == 5000
    assert np.isnan(numbers.absolute_magnitude[0]) and draw_self_cleaning(numbers).axes
    with pytest.raises(NotDrawnError, match="no phase of self-cleaning"):
        from_card({"phases": phases[:1]})


class TestCurve:
    WAVELENGTH = np.array([400.0, 500.0, 700.0, 1235.0, 2159.0])

    def test_a_published_curve_is_scaled_on_the_channels_it_has(self, tmp_path):
        path = tmp_path / "curve.txt"
        path.write_text("# wavelength value\n400 8\n500 6\n900 3\n1235 1.5\n")
        learned = np.array([4.0, 3.0, 2.0, 0.75, 0.4])
        curve = compare_with_file(path, self.WAVELENGTH, learned)
        assert_allclose(curve.wavelength_nm, [400, 500, 1235])
        assert_allclose(curve.value, [4.0, 3.0, 0.75])
        assert curve.rms < 1e-12

    @pytest.mark.parametrize("text", ["a b\n", "400 8\n", "4000 8\n5000 6\n", "400 8 1\n500 6 1\n", "400 -1\n500 2\n"])
    def test_something_else_is_one_sentence(self, tmp_path, text):
        path = tmp_path / "curve.txt"
        path.write_text(text)
        with pytest.raises(InputError, match=r"curve\.txt"):
            compare_with_file(path, self.WAVELENGTH, np.ones(5))

    def test_the_published_curve_of_the_paper(self, shared_data):
        """CCM89 with R_V = 3.1 is near ZGR23's curve in the optical: 66 channels are found."""
        path = shared_data / "zgr23" / "extinction_curve.txt"
        wavelength, value = np.loadtxt(path).T
        assert len(compare_with_file(path, wavelength, 0.3 * value).value) == 66
        assert min(c.rms for c in compare_with_published(wavelength[:61], value[:61])) < 0.06


def test_a_birds_eye_view_reads_back_what_was_written(tmp_path):
    from xpbayes.analysis.dust_map.birds_eye import BirdsEye

    axis = np.linspace(-1, 1, 9)
    density = np.random.default_rng(0).random((9, 9))
    density[0] = np.nan
    above = BirdsEye(axis=axis, density=density, covered=np.ones((9, 9)), max_height=0.4)
    back = read_birds_eye(above.write(tmp_path / "above.fits"))
    assert_allclose(back.axis, axis)
    assert_allclose(back.density, density, rtol=1e-6)
    assert back.max_height == 0.4
    (tmp_path / "above.fits").write_text("no")
    with pytest.raises(InputError, match="make the map again"):
        read_birds_eye(tmp_path / "above.fits")


def test_a_run_hands_out_shared_things_once():
    run, made = Run(), []
    assert run.once("a", lambda: made.append(1) or "x") == run.once("a", lambda: made.append(2)) == "x"
    assert made == [1]


def test_the_code_of_its_page_runs(analysed, tmp_path, monkeypatch, capsys):
    page = (Path(__file__).resolve().parents[3] / "docs" / "analyses.md").read_text()
    (tmp_path / "demo").symlink_to(analysed)
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(block, "docs/analyses.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == ["prior: drawn", "curve: drawn"]
    assert (tmp_path / "curve.svg").stat().st_size > 10_000


def test_its_page_names_every_analysis():
    page = (Path(__file__).resolve().parents[3] / "docs" / "analyses.md").read_text()
    assert [n for n in (a.name for a in ANALYSES) if f"`{n}`" not in page] == []
