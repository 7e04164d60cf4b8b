"""The report: complete, self-contained, honest about parallaxes; sections of single stars with the catalogue's numbers."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest
import xarray as xr
from numpy.testing import assert_allclose

from tests.command_line import refused
from tests.conftest import QUICK, with_other_curve
from xpbayes.analysis.pages import report as report_module
from xpbayes.analysis.pages.gallery import ANALYSES, choose
from xpbayes.analysis.pages.report import GROUPS
from xpbayes.analysis.pages.requested_stars import (
    FISHER,
    LAPLACE,
    NUTS,
    POSTERIOR,
    find_neighbours,
    headline,
    neighbour_figure,
    neighbour_table,
    parameter_table,
    posterior_figure,
    read_draws,
    remarks,
    requested_stars,
    typical_stars,
)
from xpbayes.analysis.posterior_file import parameter_names, write_posterior
from xpbayes.data.spectra_file import read_star_table
from xpbayes.errors import InputError
from xpbayes.identity import Side
from xpbayes.production.model_file import save_model
from xpbayes.production.table import catalogue_about, read_catalogue, write_catalogue
from xpbayes.runs.infer_parts import infer_parts
from xpbayes.runs.report import report


class Page(HTMLParser):
    """What a browser would follow or load, and the order of headings."""

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.links, self.images, self.external, self.headings = [], [], [], [], []
        self.cells: list[str] = []
        self.tables = self.captions = 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if "id" in values:
            self.ids.append(values["id"])
        self.tables += tag == "table"
        self.captions += tag == "caption"
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "a":
            self.links.append(values["href"])
        if tag == "img":
            self.images.append(values)
        if tag == "th":
            assert values["scope"] in ("col", "row")
        outside = (tag == "script" and "src" in values) or (tag == "link" and not values["href"].startswith("data:"))
        if tag == "iframe" or outside:
            self.external.append(tag)


@pytest.fixture(scope="module")
def inputs(analysed):
    return analysed / "model", analysed / "catalogue.parquet", analysed / "stars.parquet"


@pytest.fixture(scope="module")
def page(report_page):
    return report_page.read_text(encoding="utf-8")


@pytest.fixture
def one_figure(monkeypatch):
    """The report with one quick figure of the paper."""
    monkeypatch.setattr(report_module, "ANALYSES", choose(["correlations"]))


def test_everything_is_embedded_and_every_link_leads_somewhere(page):
    parsed = Page(page)
    assert not parsed.external and "http" not in re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", page)
    assert len(page) < 15e6
    for image in parsed.images:
        assert image["src"].startswith("data:image/png;base64,") and len(image["alt"]) > 20
        assert len(image["src"]) > 20_000, "an empty figure"
    assert len(parsed.ids) == len(set(parsed.ids))
    assert all(link.startswith("#") and link[1:] in parsed.ids for link in parsed.links)


def test_headings_are_in_order_and_every_table_has_a_caption(page):
    parsed = Page(page)
    assert parsed.headings[0] == 1 and parsed.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(parsed.headings, parsed.headings[1:], strict=False))
    assert parsed.tables == parsed.captions >= 10


def test_every_analysis_has_its_section():
    shown = [name for _, names in GROUPS.values() for name in names]
    assert sorted(shown) == sorted(a.name for a in ANALYSES)


def test_figures_of_the_paper_are_there_or_the_page_says_why_not(page):
    for analysis in ANALYSES:
        assert f'id="{analysis.name}"' in page or f"<b>{analysis.title}</b>" in page
    for name in ("residuals", "kiel", "prior", "correlations", "flux_residuals", "main_sequence", "curve"):
        assert f'id="{name}"' in page
    assert "not drawn because no dust map was named" in page


def test_it_says_that_no_parallax_was_used(page):
    assert page.count("No parallax was used") >= 3  # at the top, and with figures of results
    assert "derived from the labels" in page


def test_its_table_equals_the_validation(page, inputs, trained):
    from xpbayes.analysis.validation import accuracy, compare

    cells = re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", page)
    tables = [i for i, cell in enumerate(cells) if cell == "Teff [K]" and cells[i + 1] == "all"]
    for at, answer in zip(tables, ("posterior", "mode"), strict=False):  # medians come first
        comparison = compare(
            read_catalogue(inputs[1]), read_star_table(inputs[2]), trained.labels, (0.02, 0.02, 0.02), answer
        )
        row = next(r for r in accuracy(comparison) if (r.label, r.group) == ("teff", "all"))
        expected = [f"{row.n:,}", f"{1e3 * row.scatter:.0f}", f"{1e3 * row.bias:+.0f}", f"{row.coverage68:.1%}"]
        assert cells[at + 2 : at + 6] == expected
        if answer == "posterior":
            assert f"<b>{expected[1]}</b>scatter in Teff" in page
    assert len(tables) >= 2 and page.index("Posterior medians, ") < page.index("Modes, as ZGR23 publish them")


def test_refined_labels_have_their_own_table(inputs, trained):
    """With the numbers of the refined columns, not of the posterior; here half a standard deviation off."""
    from xpbayes.analysis.validation import accuracy, compare

    catalogue = read_catalogue(inputs[1])
    values = {
        name: np.stack(catalogue[f"stellar_params_{name}"].to_numpy(zero_copy_only=False))[:, :3]
        for name in ("median", "p16", "p84", "std")
    }
    shift = 0.5 * values["std"]
    for name in ("median", "p16", "p84"):
        values[name] = values[name] + shift
    for name, of in values.items():
        catalogue = catalogue.append_column(f"refined_{name}", pa.array(list(of)))
    share = np.where(np.arange(len(catalogue)) < len(catalogue) // 4, 0.5, 1.0)
    catalogue = catalogue.append_column("refined_share", pa.array(share))
    run = report_module.Reported(trained, catalogue, read_star_table(inputs[2]))
    sentence, table, _ = report_module._refined(run, (0.02, 0.02, 0.02)).parts
    assert "25.0% of the catalogue's stars" in sentence
    before = next(
        r for r in accuracy(compare(catalogue, run.stars, trained.labels, answer="posterior")) if r.group == "all"
    )
    after = next(r for r in table.rows if r[:2] == ("Teff [K]", "all"))
    assert float(after[4]) > 1e3 * before.bias + 5


def test_model_card_cuts_and_provenance_are_listed(page, trained):
    for cut in trained.card["cuts"]:
        assert cut["what"] in page
    for text in (
        "How long each stage took",
        "Where it can be trusted",
        trained.card["arrays_checksum"],
        "use_parallax",
    ):
        assert text in page


def test_a_catalogue_in_parts_gives_the_same_numbers(page, inputs, tmp_path, one_figure):
    quick = QUICK.model_copy(update={"n_draws": 256})
    parts = infer_parts(inputs[0], inputs[2], tmp_path / "parts", quick, processes=1, stars_per_part=250)
    assert len(list(parts.glob("*.parquet"))) == 2
    text = report(inputs[0], parts, inputs[2], tmp_path / "r.html").read_text(encoding="utf-8")
    for start, end in (('<h2 id="accuracy"', '<h3 id="accuracy-labels"'), ('<h2 id="flags"', '<h2 id="card"')):
        assert text.split(start)[1].split(end)[0] == page.split(start)[1].split(end)[0]
    assert "in parts; each carries the same settings" in text and "use_parallax" in text


def test_unlabelled_stars_give_a_page_that_says_so(inputs, tmp_path, one_figure):
    table = read_star_table(inputs[2])
    bare = replace(table, columns={k: v for k, v in table.columns.items() if k in ("ra", "dec")})
    text = report(*inputs[:2], bare, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "no inferred star has labels" in text and 'id="correlations"' in text


def test_a_catalogue_without_draws_shows_modes_and_says_so(inputs, tmp_path, one_figure):
    catalogue = read_catalogue(inputs[1])
    about = catalogue_about(catalogue)
    for name in ("mean", "std", "median", "p16", "p84"):
        i = catalogue.column_names.index(f"stellar_params_{name}")
        nothing = pa.array([[None] * 5] * len(catalogue), catalogue.schema.field(i).type)
        catalogue = catalogue.set_column(i, catalogue.schema.field(i), nothing)
    path = write_catalogue(catalogue, tmp_path / "c.parquet")
    assert catalogue_about(read_catalogue(path)) == about
    text = report(inputs[0], path, inputs[2], tmp_path / "r.html").read_text(encoding="utf-8")
    assert "inferred without draws" in text and "Modes against labels" in text
    assert "Accuracy of posterior medians" not in text and "Posterior medians, " not in text


class TestRequestedStars:
    @pytest.fixture(scope="class")
    def table(self, inputs):
        return read_catalogue(inputs[1])

    @pytest.fixture(scope="class")
    def chains(self, trained, table):
        """Made-up draws of the first star."""
        first = int(table["source_id"][0].as_py())
        return {first: np.random.default_rng(0).normal(1.0, 0.1, (400, 5))}

    @pytest.fixture(scope="class")
    def star(self, trained, table, inputs, chains):
        (found,) = requested_stars(
            trained, table, catalogue_about(table), read_star_table(inputs[2]), list(chains), chains
        )
        return found

    def test_answers_are_the_catalogue_s(self, star, table, chains):
        row = table.slice(0, 1).to_pylist()[0]
        assert_allclose(star.answers[FISHER].centre, row["stellar_params_est"])
        assert_allclose(star.answers[FISHER].sigma, row["stellar_params_err"])
        full = np.zeros((5, 5))
        full[np.triu_indices(5)] = row["laplace_cov_triu"]
        assert_allclose(star.answers[LAPLACE].sigma, np.sqrt(np.diag(full)))
        assert_allclose(star.answers[POSTERIOR].quantiles[1], row["stellar_params_median"])
        draws = chains[star.fit.source_id]
        assert_allclose(star.answers[NUTS].quantiles[0], np.quantile(draws, 0.16, axis=0))
        assert_allclose(star.answers[NUTS].sigma, draws.std(axis=0))

    def test_neighbours_are_the_nearest(self, star, table, trained):
        estimate = np.array(table["stellar_params_est"].to_pylist())[:, :3]
        ids = table["source_id"].to_numpy()
        scale = np.asarray(trained.forward.label_scale)
        distance = np.linalg.norm((estimate - estimate[0]) / scale, axis=1)
        order = np.argsort(distance)[1:9]
        assert star.neighbours.source_id.tolist() == ids[order].tolist()
        assert_allclose(star.neighbours.distance, distance[order])
        assert_allclose(star.neighbours.estimate, estimate[order])

    def test_a_star_is_no_neighbour_of_itself_and_unsolved_ones_are_none(self):
        labels = np.array([[0.0, 0.0], [1.0, 0.0], [np.nan, 0.0], [0.5, 0.0]])
        near = find_neighbours(7, labels[0], np.array([7, 8, 9, 10]), labels, labels, np.array([0.5, 1.0]))
        assert near.source_id.tolist() == [10, 8] and near.distance.tolist() == [1.0, 2.0]

    def test_figures_draw_these_numbers(self, star):
        figure = posterior_figure(star)
        assert len(figure.axes) == 5
        lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
        answer = star.answers[FISHER]
        x, y = lines[FISHER].get_data()
        assert_allclose(x[np.argmax(y)], 1e3 * answer.centre[0], atol=0.05 * 1e3 * answer.sigma[0])
        assert_allclose(y.max(), 1 / (1e3 * answer.sigma[0] * np.sqrt(2 * np.pi)), rtol=1e-2)
        median = lines[f"{POSTERIOR}, median and 16–84 %"]
        assert_allclose(median.get_xdata(), 1e3 * star.answers[POSTERIOR].quantiles[1, 0])
        training = np.random.default_rng(1).normal(size=(50, 3))
        kiel = {line.get_label(): line for line in neighbour_figure(star, training).axes[0].get_lines()}
        assert_allclose(kiel["neighbours"].get_xdata(), 1e3 * star.neighbours.estimate[:, 0])
        assert_allclose(kiel["neighbours"].get_ydata(), star.neighbours.estimate[:, 2])

    def test_tables_are_in_displayed_units(self, star):
        rows = parameter_table(star).rows
        assert rows[0][0] == "Teff [K]" and rows[0][1].startswith(f"{1e3 * star.fit.value[0]:.0f} +")
        assert rows[0][2].startswith(f"{1e3 * star.fit.estimate[0]:.0f} ± ")
        assert len(rows[0]) == 6 and rows[4][-1] == "–"  # no parallax was measured
        near = neighbour_table(star)
        assert len(near.rows) == 8 and near.rows[0][2] == f"{1e3 * star.neighbours.estimate[0, 0]:.0f}"
        assert headline(star).startswith("Teff ")

    def test_remarks_say_flags_in_words(self, star, table):
        row = table.slice(0, 1).to_pylist()[0]
        said = " ".join(remarks({**row, "k_hat": 0.9, "n_modes": 2, "runner_up_delta": 1.5}, star.fit, Side.HELD_OUT))
        assert (
            "cannot be trusted: k_hat is 0.90" in said and "the second is higher by 1.5" in said and "held out" in said
        )
        flagged = remarks({**row, "converged": False}, replace(star.fit, flags=8), Side.KEPT_ASIDE)
        assert flagged[0].startswith("Flagged: chi2_opt / 61 exceeds 2") and "did not converge" in flagged[1]
        lost = replace(star.fit, status="no flux")
        assert remarks(row, lost, Side.TRAINING) == ["There is no solution: no flux."]

    def test_the_page_has_a_section_of_each(self, page, table, trained):
        wanted = typical_stars(table, trained)
        assert 2 <= len(wanted) <= 3
        for source_id in wanted:
            assert f'id="star-{source_id}"' in page and f'href="#star-{source_id}"' in page
            assert f'id="star-{source_id}-posterior"' in page

    def test_typical_stars_are_what_they_are_called(self, table, trained):
        by_id = {row["source_id"]: row for row in table.to_pylist()}
        giant, dwarf, *flagged = (by_id[s] for s in typical_stars(table, trained))
        assert giant["quality_flags"] == dwarf["quality_flags"] == 0
        assert giant["stellar_params_est"][2] < 3.3 and dwarf["stellar_params_est"][2] > 3.8
        assert all(row["quality_flags"] > 0 for row in flagged)

    def test_draws_come_back_from_their_file(self, trained, chains, tmp_path):
        (source_id, values), names = next(iter(chains.items())), parameter_names(trained.labels)
        path = self.write(tmp_path / "d.nc", values, source_id, names, trained.card["arrays_checksum"])
        assert_allclose(read_draws(path, trained)[source_id], values)
        other = self.write(tmp_path / "o.nc", values, source_id, names, "of another")
        with pytest.raises(InputError, match="was drawn with another model"):
            read_draws(other, trained)

    @staticmethod
    def write(path, values, source_id, names, checksum):
        by_chain = values.reshape(2, -1, 1, len(names))
        dims = ("chain", "draw", "source_id")
        posterior = xr.Dataset({n: (dims, by_chain[..., i]) for i, n in enumerate(names)}, {"source_id": [source_id]})
        return write_posterior({"posterior": posterior.assign_attrs(model=checksum)}, path)

    def test_a_star_that_is_not_there_is_one_sentence(self, inputs, tmp_path):
        said = refused("report", *inputs, "--out", tmp_path / "r.html", "--source-id", 12)
        assert "1 of 1 requested stars are not in the catalogue (first: source_id 12)" in said
        assert not (tmp_path / "r.html").exists()


def test_another_models_catalogue_is_refused(inputs, trained, tmp_path):
    other = save_model(with_other_curve(trained), tmp_path / "m")
    with pytest.raises(InputError, match="was made with another model"):
        report(other, *inputs[1:], tmp_path / "r.html")
