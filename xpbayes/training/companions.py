"""How much stars kept aside count where posteriors are calibrated: hypothesis B of METHOD 12, where labels are known.

A star that is brighter and redder than its labels say, at its parallax, is likelier two. Beside labels, parallax and
reddening estimate a companion has little to hide behind: of a mock survey's binaries with a second light above a tenth of
the first's more than half are found, and one single star in a hundred, of any kind, is taken for two. Where no parallax
was measured nothing tells binaries, and every star counts.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.special import expit, logsumexp

from xpbayes.data.stars import Stars, in_memory
from xpbayes.errors import InputError
from xpbayes.inference.model_error import fold_in_model_error
from xpbayes.inference.ridge import companion_ridge
from xpbayes.inference.search.solver import Solution, solve
from xpbayes.inference.second_source import EVOLVED, ln_evidence_of_single, solve_companions
from xpbayes.models.pair import CompanionRidge
from xpbayes.models.star_model import StarModel
from xpbayes.training.learn import initial_theta
from xpbayes.training.weights import star_weights

PIECE, N_STEPS = 2048, 30
MAX_ITERATIONS = 5
"""Each companion is begun where the next fainter one ended."""
FIRST_SHARE, LEAST_SHARE, MOST_SHARE, N_ROUNDS = 0.1, 0.01, 0.5, 20
"""The share of binaries is found from the odds."""


def counts_of(
    model: StarModel, stars: Stars, labels: tuple[str, ...], wavelength_nm: NDArray[np.floating]
) -> NDArray[np.float64]:
    """(star, parameter) how much each star counts for labels, E and ln parallax.

    For E less where the fluxes fit badly, too: behind dust of another law a star has no E to be compared with. Stars
    have labels, and the measurement's own whitening.
    """
    sound = replace(stars, doubt=None)
    start = initial_theta(sound, curve_varies=model.forward.curve_variation is not None)
    folded = fold_in_model_error(model, sound, start)
    solved = np.asarray(solve(StarModel(model.forward), folded, start, N_STEPS).theta_log)
    solved = np.where(np.isfinite(solved), solved, np.asarray(start))
    counts = np.ones((len(start), model.forward.n_labels + 2))
    measured = np.flatnonzero(np.asarray(stars.parallax_inv_error) > 0)
    ridge = _ridge(model, labels, wavelength_nm) if len(measured) else None
    if ridge is not None:
        of_these = single_probabilities(model, ridge, in_memory(sound, measured), solved[measured])
        counts[measured] = of_these[:, None]
    counts[:, -2] *= star_weights(model.forward, sound, jnp.asarray(solved), by_measurements=False)
    return counts


def _ridge(model: StarModel, labels: tuple[str, ...], wavelength_nm: NDArray[np.floating]) -> CompanionRidge | None:
    """Where companions lie; None if the model has no main sequence."""
    try:
        return companion_ridge(model, labels, wavelength_nm)
    except InputError:
        return None


def single_probabilities(
    model: StarModel, ridge: CompanionRidge, stars: Stars, theta_log: Float[NDArray, "star parameter"]
) -> NDArray[np.float64]:
    """(star,) probability of one star; 1 of giants, whose companions are hardly seen.

    Stars, in memory or in files, have labels and the measurement's own whitening; solutions took labels for measured.
    """
    start = np.asarray(theta_log, np.float32)
    asked = np.flatnonzero(start[:, ridge.at[2]] > EVOLVED)
    ln_odds = np.full(len(start), -np.inf)
    for begin in range(0, len(asked), PIECE):
        rows = asked[begin : begin + PIECE]
        ln_odds[rows] = _ln_odds(model, ridge, in_memory(stars, rows), start[rows])
    ln_odds = np.where(np.isnan(ln_odds), -np.inf, ln_odds)
    share, known = FIRST_SHARE, ln_odds[asked]
    for _ in range(N_ROUNDS if len(asked) else 0):
        share = float(np.clip(np.mean(_two(known, share)), LEAST_SHARE, MOST_SHARE))
    return np.asarray(1.0 - _two(ln_odds, share))


def _two(ln_odds: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    return np.asarray(expit(ln_odds + np.log(share / (1.0 - share))))


def _ln_odds(
    model: StarModel, ridge: CompanionRidge, stars: Stars, theta_log: NDArray[np.float32]
) -> NDArray[np.float64]:
    """(star,) ln of the evidence of two stars over that of one, around their labels."""
    labelled = StarModel(model.forward)
    folded = jax.tree.map(np.asarray, fold_in_model_error(model, stars, jnp.asarray(theta_log)))
    n = len(theta_log)
    nothing = jnp.zeros((n, 1))
    alone = Solution(jnp.asarray(theta_log)[:, None], nothing, nothing, nothing == 0, nothing.astype(int))
    tried = solve_companions(labelled, ridge, folded, theta_log, MAX_ITERATIONS)
    evidence = np.stack([np.asarray(one.ln_odds, np.float64) for one in tried], axis=1)
    return np.asarray(logsumexp(evidence, axis=1) - np.log(len(tried)) - ln_evidence_of_single(labelled, folded, alone))
