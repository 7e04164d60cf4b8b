"""One line that says how a production run is doing: stars/s, done, left, failures by reason."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from xpbayes.data.spectra import OK
from xpbayes.production.parts import PartRecord
from xpbayes.progress import speed

log = logging.getLogger(__name__)


class Progress:
    """Counts finished parts and says how things stand, no more often than the reader wants.

    What is left is told from bytes of input, because a compressed file does not say how many stars it holds.
    """

    def __init__(self, total_weight: float, every: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._every, self._clock = total_weight, every, clock
        self._begun = self._said = clock()
        self._weight = self._weight_before = 0.0
        self._stars = self._stars_before = 0
        self._failures: Counter[str] = Counter()

    def already(self, records: Iterable[PartRecord], weight: float) -> None:
        """Count what an earlier run has finished: it is done, but says nothing about this run's speed."""
        self._count(records)
        self._weight += weight
        self._stars_before, self._weight_before = self._stars, self._weight

    def add(self, records: Sequence[PartRecord], weight: float) -> None:
        """Count what was finished now."""
        self._count(records)
        self._weight += weight
        now = self._clock()
        if now - self._said >= self._every or self._weight >= self._total * (1 - 1e-9):
            self._said = now
            log.info(self.line())

    def line(self) -> str:
        """How things stand."""
        seconds = max(self._clock() - self._begun, 1e-9)
        share = self._weight / self._total if self._total else 1.0
        fresh = self._weight - self._weight_before
        left = seconds * (self._total - self._weight) / fresh if fresh > 0 else float("nan")
        text = (
            f"{self._stars:,} stars done, {100 * share:.1f} % of the input, "
            f"{speed((self._stars - self._stars_before) / seconds)}, {_duration(left)} left"
        )
        failures = ", ".join(f"{n:,} {reason}" for reason, n in self._failures.most_common())
        return text + (f"; failures: {failures}" if failures else "; no failures")

    def _count(self, records: Iterable[PartRecord]) -> None:
        for record in records:
            self._stars += record.n_rows
            self._failures.update({k: n for k, n in record.status.items() if k != OK})
            self._failures.update(f"quarantined ({r.reason})" for r in record.quarantined)


def _duration(seconds: float) -> str:
    if not seconds < 1e9:
        return "unknown time"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours} h {m:02d} min" if hours else f"{m} min {s:02d} s" if m else f"{s} s"
