"""Good and bad estimates by confidence (ZGR23 Figs. 10, 11), from the confidences that a catalogue holds.

`confidence.py` judges and draws; here the stars are chosen: those that trained neither the model nor its classifiers.
"""

import numpy as np

from xpbayes.analysis.figures import drawing as figures
from xpbayes.analysis.figures.residual_columns import (
    BASIC,
    CONFIDENCES,
    Matched,
    MatchGatherer,
    labelled,
    validation_cuts,
)
from xpbayes.analysis.pages.confidence import ConfidenceCheck, HeldOutFits, judge, residual_figure
from xpbayes.analysis.run_inputs import Run
from xpbayes.analysis.topic import Analysis, NotDrawnError, Product, Series, Task
from xpbayes.analysis.validation import Comparison
from xpbayes.identity import Side, Split
from xpbayes.training.reliability import RESIDUAL_FLOOR, residual_chi2


def judged(stars: Matched, n_labels: int) -> ConfidenceCheck:
    """Judge the confidences of matched stars.

    Args:
        stars: that trained neither the model nor its classifiers, with confidences.
        n_labels: how many of their parameters are labels.

    Raises:
        NotDrawnError: no star has both labels and confidences.
    """
    names = stars.names[:n_labels]
    targets = tuple(c.removesuffix("_confidence") for c in CONFIDENCES if c.removesuffix("_confidence") in names)
    at = [names.index(t) for t in targets]
    confidence = stars.confidence[:, [CONFIDENCES.index(f"{t}_confidence") for t in targets]]
    known = np.isfinite(np.hstack([confidence, stars.value[:, :n_labels]])).all(axis=1)
    if not known.any():
        raise NotDrawnError("no star with labels has confidences; train classifiers with 'xpbayes confidence'")
    stars, confidence = stars.take(np.asarray(known)), confidence[known]
    comparison = Comparison(
        stars.source_id, names, stars.estimate[:, :n_labels], stars.error[:, :n_labels], stars.value[:, :n_labels],
        stars.value_error[:, :n_labels], np.arange(len(stars)),
    )  # fmt: skip
    chi2_eps = residual_chi2(
        comparison.difference[:, at], comparison.error[:, at], comparison.label_error[:, at],
        np.array([RESIDUAL_FLOOR[t] for t in targets]),
    )  # fmt: skip
    fits = HeldOutFits(comparison, np.zeros((len(stars), 0), np.float32), targets, chi2_eps, 0)
    return judge(fits, np.ones(len(stars), bool), targets, confidence)


def _start(normalised: bool, run: Run) -> Task:
    gatherer = labelled(run)

    def check() -> tuple[ConfidenceCheck, str]:
        return run.once("confidence_check", lambda: _check(run, gatherer))

    return Task((gatherer,), lambda: _product(*check(), normalised))


def _check(run: Run, gatherer: MatchGatherer) -> tuple[ConfidenceCheck, str]:
    stars = gatherer.result()
    if not np.isfinite(stars.confidence).any():
        raise NotDrawnError(
            "the catalogue has no confidences; train classifiers with 'xpbayes confidence', infer again"
        )
    stars = stars.take((stars.flags < BASIC) & stars.converged)
    words = f"{validation_cuts(gatherer)}, converged"
    about = run.model.card.get("confidence") if run.model is not None else None
    if about is not None:
        split = about["split"]
        stars = stars.take(Split(split["fraction"], seed=split["seed"]).on(Side.HELD_OUT, stars.source_id))
        words += f", held out from the classifiers too ({split['fraction']:.0%} by source_id)"
    return judged(stars, len(run.labels)), words


def _product(check: ConfidenceCheck, words: str, normalised: bool) -> Product:
    n = len(check.confidence)
    what = "over both errors" if normalised else "in K and dex"
    sides = check.sides
    return Product(
        residual_figure(check, normalised),
        f"Residuals of estimates called good and bad by their confidence, {n} stars",
        f"Inferred minus label, {what}, of estimates with a confidence of at least 0.5 (left) and below (right), with "
        f"lines at 16, 50 and 84 %. {n:,} stars: {words}. Dots beyond the panel lie on its rim.",
        {
            "": {
                "label": Series([s.label for s in sides], "", "whose confidence"),
                "side": Series([s.side for s in sides], "", "good, bad or all"),
                "n": Series([s.n for s in sides], "", "stars"),
                "scatter": Series([figures.display_scale(s.label) * s.scatter for s in sides], "", "robust [K or dex]"),
                "median": Series([figures.display_scale(s.label) * s.bias for s in sides], "", "[K or dex]"),
                "rms": Series([figures.display_scale(s.label) * s.rms for s in sides], "", "[K or dex]"),
                "pull_scatter": Series([s.pull_scatter for s in sides], "", "robust, in both errors"),
                "share_bad": Series([s.share_bad for s in sides], "", "of stars with chi2_eps above 9"),
            }
        },
    )


NEEDS = ("catalogue", "stars")
CONFIDENCE = Analysis(
    "confidence", "Fig. 10", "Residuals of good and bad estimates", lambda run: _start(False, run), NEEDS
)
CONFIDENCE_PULLS = Analysis(
    "confidence_pulls",
    "Fig. 11",
    "Residuals of good and bad estimates over their errors",
    lambda run: _start(True, run),
    NEEDS,
)
