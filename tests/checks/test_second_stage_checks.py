"""Checks of the second stage, each failing where it must."""

import pytest

from xpbayes.checks.held_out_checks import check_second_stage


def _rows(scatter, coverage=0.68, n=500):
    groups = ("all", "giants", "dwarfs")
    return [
        {"label": label, "group": group, "n": n, "scatter": scatter, "coverage68": coverage, "bias": 0.0}
        for label in ("teff", "feh", "logg")
        for group in groups
    ]


def _passed(forward, refined):
    return {check.name: check.passed for check in check_second_stage(forward, refined)}


def test_better_labels_whose_intervals_hold_pass():
    assert _passed(_rows(0.1), _rows(0.08)) == {"refined_labels": True, "refined_intervals": True}


def test_one_group_that_loses_fails():
    refined = _rows(0.08)
    refined[5]["scatter"] = 0.11
    found = check_second_stage(_rows(0.1), refined)[0]
    assert found.passed is False
    assert "1.10 (feh, dwarfs)" in found.measured


@pytest.mark.parametrize("coverage", [0.57, 0.79])
def test_intervals_that_do_not_hold_fail(coverage):
    refined = _rows(0.08)
    refined[1]["coverage68"] = coverage
    found = check_second_stage(_rows(0.1), refined)[1]
    assert found.passed is False
    assert f"{coverage:.1%} at worst (teff, giants)" in found.measured


def test_chance_is_allowed_for():
    """Of 150 stars 68.3 % is known to 3.8 %: 75 % is no finding, and of 5,000 it is one."""
    for n, passed in ((150, True), (5000, False)):
        assert _passed(_rows(0.1, n=n), _rows(0.08, 0.75, n))["refined_intervals"] is passed


def test_too_few_stars_are_not_judged():
    assert _passed(_rows(0.1, n=50), _rows(0.2, n=50)) == {"refined_labels": None, "refined_intervals": None}


def test_without_a_second_stage_there_is_nothing_to_check():
    assert check_second_stage(_rows(0.1), []) == []
