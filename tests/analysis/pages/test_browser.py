"""Every page in a real headless browser: nothing to complain about, links, sorting, the keyboard, a phone, a dark room."""

import os
import re
import shutil

import pytest

from xpbayes.analysis.pages.page import Page, Section, Table

pytestmark = pytest.mark.thorough

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
DESKTOP, PHONE = (1280, 900), (390, 844)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if BROWSER is None or DRIVER is None:
        pytest.skip("no Chromium with chromedriver on this machine")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    flags = ["--headless=new", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    flags += ["--disable-sync", "--no-first-run", f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]
    flags += ["--no-sandbox"] if os.geteuid() == 0 else []
    for flag in flags:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def check_page(tmp_path_factory):
    """A page of sections, as `check` and `compare` write them."""
    table = Table(("who", "how many"), [("b", "1,200"), ("a", "−3"), ("c", "–"), ("10", "12 %")])
    sections = [Section("One", ["Words.", table]), Section("Two", ["More words."])]
    return Page("A page", "of sections", sections, ["Well."]).write(tmp_path_factory.mktemp("page") / "p.html")


@pytest.fixture(scope="module", params=["report", "figures", "sections"])
def path(request, check_page):
    if request.param == "sections":
        return check_page
    if request.param == "report":
        return request.getfixturevalue("report_page")
    return request.getfixturevalue("figure_folder") / "index.html"


def show(browser, path, size=DESKTOP, scheme="light"):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE},
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    browser.get(path.as_uri())


def column(browser, table, index):
    return browser.execute_script(
        "return [...arguments[0].tBodies[0].rows].map((row) => row.cells[arguments[1]].textContent.trim())",
        table,
        index,
    )


def test_no_message_and_no_missing_picture(browser, path):
    browser.get_log("browser")
    show(browser, path)
    assert browser.get_log("browser") == []
    sizes = browser.execute_script("return [...document.images].map((i) => i.complete && i.naturalWidth)")
    assert all(size > 100 for size in sizes)
    assert len(sizes) > 0 or path.name == "p.html"


def test_every_link_works(browser, path):
    show(browser, path)
    links = browser.execute_script("return [...document.links].map((a) => a.getAttribute('href'))")
    assert len(links) > 3
    for link in dict.fromkeys(links):
        if not link.startswith("#"):
            assert (path.parent / link).is_file(), link
            continue
        browser.execute_script("document.querySelector(`a[href='${arguments[0]}']`).click()", link)
        found = "const e = document.getElementById(arguments[0]); return [location.hash, e && e.getBoundingClientRect().top]"
        place, top = browser.execute_script(found, link[1:])
        assert place == link and top is not None and top < DESKTOP[1], link


def test_landmarks_and_names(browser, path):
    show(browser, path)
    counts = "return ['main', 'header', 'nav', 'footer', 'h1'].map((t) => document.querySelectorAll(t).length)"
    assert browser.execute_script(counts) == [1, 1, 1, 1, 1]
    assert browser.execute_script("return document.documentElement.lang") == "en"
    without_alt = "[...document.images].filter((i) => !i.alt).length"
    without_caption = "document.querySelectorAll('table:not(:has(caption))').length"
    nameless = f"return {without_alt} + {without_caption}"
    assert browser.execute_script(nameless) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_on_a_phone(browser, path, scheme):
    show(browser, path, PHONE, scheme)
    wide, page = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide <= page == PHONE[0]


def test_the_dark_scheme_applies_and_both_can_be_read(browser, path):
    style = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
    for scheme in ("light", "dark"):
        show(browser, path, scheme=scheme)
        page, ink = (luminance(c) for c in browser.execute_script(style))
        assert (page > ink) == (scheme == "light")
        for selector in ("a", ".soft", "nav a"):
            found = "return getComputedStyle(document.querySelector(arguments[0])).color"
            text = luminance(browser.execute_script(found, selector))
            contrast = (max(text, page) + 0.05) / (min(text, page) + 0.05)
            assert contrast >= 4.5, (scheme, selector)


def luminance(colour):
    """Of WCAG 2."""
    rgb = [int(v) / 255 for v in re.findall(r"\d+", colour)[:3]]
    return sum(
        w * (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4)
        for w, v in zip((0.2126, 0.7152, 0.0722), rgb, strict=True)
    )


def test_numbers_sort_as_numbers_and_missing_ones_stay_last(browser, check_page):
    show(browser, check_page)
    (table,) = browser.find_elements("css selector", "table.sortable")
    first, second = table.find_elements("css selector", "thead button")
    second.click()
    assert column(browser, table, 1) == ["−3", "12 %", "1,200", "–"]
    second.click()
    assert column(browser, table, 1) == ["1,200", "12 %", "−3", "–"]
    first.click()
    assert column(browser, table, 0) == ["10", "a", "b", "c"] and column(browser, table, 1)[0] == "12 %"
    states = [h.get_attribute("aria-sort") for h in table.find_elements("css selector", "thead th")]
    assert states == ["ascending", None]
    assert "sorted by who, ascending" in browser.find_element("id", "sorted").get_attribute("textContent")


def test_the_accuracy_table_sorts_with_the_keyboard_alone(browser, report_page):
    from selenium.webdriver.common.keys import Keys

    show(browser, report_page)
    body = browser.find_element("css selector", "body")
    body.send_keys(Keys.TAB)
    active = browser.switch_to.active_element
    assert active.get_attribute("class") == "skip" and active.rect["x"] >= 0  # the first stop, and it is seen
    active.send_keys(Keys.ENTER)
    assert browser.execute_script("return document.activeElement.id") == "content"
    heading = None
    for _ in range(12):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        heading = browser.switch_to.active_element
        if heading.tag_name == "button" and heading.text.startswith("scatter"):
            break
    assert heading is not None and heading.text.startswith("scatter")
    outline = browser.execute_script("return getComputedStyle(arguments[0]).outlineWidth", heading)
    assert float(outline.rstrip("px")) >= 2
    table = heading.find_element("xpath", "ancestor::table")
    before = column(browser, table, 3)
    heading.send_keys(Keys.ENTER)
    after = column(browser, table, 3)
    assert sorted(before) == sorted(after) and after == sorted(before, key=float) != before
    heading.send_keys(Keys.SPACE)
    assert column(browser, table, 3) == sorted(before, key=float, reverse=True)


def test_tables_are_complete_without_the_script(browser, report_page, tmp_path):
    text = report_page.read_text(encoding="utf-8")
    bare = tmp_path / "bare.html"
    bare.write_text(re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL), encoding="utf-8")
    rows = "return document.querySelectorAll('tbody tr').length"
    show(browser, report_page)
    counted = browser.execute_script(rows)
    show(browser, bare)
    assert browser.execute_script(rows) == counted > 40
    assert not browser.find_elements("css selector", "thead button")
