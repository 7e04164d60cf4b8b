"""The report: complete, self-contained, honest about parallaxes, and clean in a real browser."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.conftest import QUICK
from xpbayes.archive.star_table import write_star_table
from xpbayes.errors import InputError
from xpbayes.pipeline import infer, report


class Page(HTMLParser):
    """What a browser would follow or load."""

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.links, self.images, self.external, self.tables = set(), [], [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids.add(values.get("id"))
        self.tables += tag == "table"
        if tag == "a":
            self.links.append(values["href"])
        if tag == "img":
            self.images.append(values)
        if tag in ("script", "iframe") or (tag == "link" and not values["href"].startswith("data:")):
            self.external.append(tag)


@pytest.fixture(scope="module")
def paths(trained, model_folder, sample, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    part = sample.take(np.arange(0, 2000, 4))
    stars = write_star_table(part, folder / "stars.parquet")
    infer(model_folder, stars, folder / "catalogue.parquet", QUICK, only="held-out")
    return model_folder, folder / "catalogue.parquet", stars, folder / "report.html"


@pytest.fixture(scope="module")
def page(paths):
    return report(*paths).read_text(encoding="utf-8")


def test_everything_is_embedded_and_every_link_leads_somewhere(page):
    parsed = Page(page)
    assert not parsed.external and "http" not in re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", page)
    assert len(parsed.images) == 5
    for image in parsed.images:
        assert image["src"].startswith("data:image/png;base64,") and len(image["alt"]) > 20
        assert len(image["src"]) > 20_000, "an empty figure"
    assert all(link.startswith("#") and link[1:] in parsed.ids for link in parsed.links)


def test_it_says_that_no_parallax_was_used(page):
    assert page.count("No parallax was used") >= 3  # at the top, and with each figure of results
    assert "derived from the labels" in page


def test_its_table_equals_the_validation(page, paths, trained):
    from xpbayes.analysis.validation import accuracy, compare
    from xpbayes.archive.star_table import read_star_table
    from xpbayes.catalogue.table import read_catalogue

    comparison = compare(read_catalogue(paths[1])[0], read_star_table(paths[2]), trained.labels, (0.02, 0.02, 0.02))
    row = next(r for r in accuracy(comparison) if (r.label, r.group) == ("teff", "all"))
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", page)
    at = cells.index("Teff [K]")
    assert cells[at + 2 : at + 4] == [f"{row.n:,}", f"{1e3 * row.scatter:.0f}"]


def test_cuts_and_timings_are_listed(page, trained):
    for cut in trained.card["cuts"]:
        assert cut["what"] in page
    assert "How long each stage took" in page


def test_unlabelled_stars_give_a_page_that_says_so(model_folder, paths, sample, tmp_path):
    part = sample.take(np.arange(64))
    from dataclasses import replace

    bare = replace(part, columns={k: v for k, v in part.columns.items() if k in ("ra", "dec")})
    infer(model_folder, bare, tmp_path / "c.parquet", QUICK)
    text = report(model_folder, tmp_path / "c.parquet", bare, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "no inferred star has labels" in text and "holds no training labels" in text


def test_another_models_catalogue_is_refused(paths, trained, tmp_path):
    from dataclasses import replace

    from xpbayes.modelfile import save_model

    other = save_model(
        replace(trained, forward=replace(trained.forward, ln_curve=trained.forward.ln_curve + 0.1)), tmp_path / "m"
    )
    with pytest.raises(InputError, match="was made with another model"):
        report(other, *paths[1:3], tmp_path / "r.html")


@pytest.mark.parametrize("width", [1280, 390])
def test_a_real_browser_has_nothing_to_complain_about(page, paths, tmp_path, width):
    """Headless Chromium: no console message, and a screenshot that is not blank, at desktop and phone width."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    shot = tmp_path / "shot.png"
    run = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
         f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},3000", f"--screenshot={shot}",
         paths[3].as_uri()],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert "CONSOLE" not in run.stderr
    from matplotlib.image import imread

    pixels = imread(shot)
    assert pixels.shape[1] >= width and pixels[..., :3].std() > 0.05
