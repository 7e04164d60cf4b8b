"""The progress line counts what was done now and what was done before apart."""

from xpbayes.data.rejected import Rejected
from xpbayes.production.parts import PartRecord
from xpbayes.production.progress import Progress


def part(n_ok: int, n_bad: int = 0, quarantined: int = 0) -> PartRecord:
    status = {"ok": n_ok} | ({"flux is not finite": n_bad} if n_bad else {})
    rejected = tuple(Rejected("a.csv", i + 1, i, "rubbish") for i in range(quarantined))
    n = n_ok + n_bad
    return PartRecord(0, 0, True, n + quarantined, n, 0, 0, status, 1, n, 1, "", "", 0, rejected)


def make(total: float) -> tuple[Progress, list[float]]:
    now = [0.0]
    return Progress(total, every=5.0, clock=lambda: now[0]), now


def test_speed_is_this_runs_alone(said):
    progress, now = make(100.0)
    progress.already([part(5000)], 50.0)
    now[0] = 10.0
    progress.add([part(1000)], 10.0)
    assert said == ["6,000 stars done, 60.0 % of the input, 100 stars/s, 40 s left; no failures"]


def test_a_few_stars_have_a_speed(said):
    progress, now = make(3.0)
    now[0] = 25.0
    progress.add([part(3)], 3.0)
    assert said == ["3 stars done, 100.0 % of the input, 0.12 stars/s, 0 s left; no failures"]


def test_failures_by_reason(said):
    progress, now = make(10.0)
    now[0] = 5400.0
    progress.add([part(90, 7, 3)], 5.0)
    assert said[0].endswith("1 h 30 min left; failures: 7 flux is not finite, 3 quarantined (rubbish)")


def test_not_more_often_than_wanted_but_always_at_the_end(said):
    progress, now = make(4.0)
    for second in range(1, 5):
        now[0] = second
        progress.add([part(1)], 1.0)
    assert len(said) == 1 and "100.0 %" in said[0]
