"""The figure of checks: every number that the card holds is drawn and written, and what is missing leaves no panel."""

import pytest

from xpbayes.analysis.figures.training_record import PANELS, draw_checks, measured, numbers
from xpbayes.analysis.topic import NotDrawnError

BIN = {"low": 0.1, "high": 0.2, "n": 50, "value": 0.01}
LAST = {"low": 0.8, "high": 20.0, "n": 40, "value": -0.03}
LINE = {"slope": 0.98, "slope_error": 0.01, "zero_point": 0.004, "zero_point_error": 0.002, "n": 400}
SHARE = {"n": 400, "share": 0.66}
CHECKED = {
    "extinction": LINE | {"difference": [BIN, LAST]},
    "extinction_pulls": {"E": [BIN, LAST], "teff": [{"low": 8.5, "high": 60.0, "n": 30, "value": 0.4}], "logg": []},
    "coverage": {"flux_only": {"teff": SHARE, "parallax": SHARE}, "with_parallax": {"teff": SHARE}},
    "parallax_pulls": {"teff": [{"low": 4.0, "high": 5.0, "n": 30, "value": 0.4}]},
    "parallax_ratio": [{"low": 20.0, "high": 1000.0, "n": 90, "value": 0.99}],
}
CARD = {"held_out": {"n": 400, "checked": CHECKED}, "phases": [{"kept_by_kind": {"all": 0.9, "giants": 0.8}}]}


def test_every_number_is_drawn_and_written():
    found = measured(CARD)
    assert set(found) == set(PANELS)
    figure = draw_checks(found)
    assert len(figure.axes) == len(PANELS)
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["0.1–0.2", "> 0.8"]
    table = numbers(found)
    assert {len(series.values) for series in table.values()} == {4 + 3 + 3 + 1 + 1 + 2}
    assert list(table["value"].values[:4]) == [0.98, 0.004, 0.01, -0.03]


def test_what_is_missing_leaves_no_panel():
    """Stars without parallaxes and reddening: coverage of labels and the kinds kept."""
    some = CARD | {"held_out": {"n": 400, "checked": {"coverage": {"flux_only": {"teff": SHARE}, "with_parallax": {}}}}}
    found = measured(some)
    assert list(found) == ["coverage", "kept_by_kind"] and len(draw_checks(found).axes) == 2
    with pytest.raises(NotDrawnError, match="held_out_stars above 0"):
        measured({"held_out": {"checked": {"coverage": {"flux_only": {}}}}})
