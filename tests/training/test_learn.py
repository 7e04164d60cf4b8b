"""Training: reproducible, downhill, and able to find a known truth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from tests.listening import heard
from xpbayes.config import ZGR23_PHASES, HighQuality, Phase, TrainingConfig
from xpbayes.data import stars as starfiles
from xpbayes.errors import InputError
from xpbayes.models.extinction import NearInfraredLaw
from xpbayes.models.forward import predict_ln_flux
from xpbayes.models.objective import flux_chi2, objective
from xpbayes.models.star_model import StarModel
from xpbayes.training import phases
from xpbayes.training.learn import _without_grey, initial_theta, run_star_phase, train
from xpbayes.training.phases import learning_rates, run_gradient_phase, run_star_steps

TINY = TrainingConfig(
    phases=(
        Phase(update="model", epochs=4, learning_rate=3e-3),
        Phase(update="stars", epochs=4),
        Phase(update="model_error", epochs=2),
        Phase(update="model", epochs=3, learning_rate=1e-3),
    ),
    batch_size=64,
    prior_components=3,
)


@pytest.fixture(scope="module")
def stars(sample):
    labels = ("teff", "feh", "logg")
    use = np.isfinite(sample.labels(labels)[0]).all(axis=1) & np.isfinite(sample.column("spectroscopic_parallax"))
    part = sample.take(np.flatnonzero(use)[:600])
    return part.stars(
        labels, spectroscopic_parallax=True, label_error_floor=(0.02, 0.02, 0.02)
    ), part.channels.wavelengths


@pytest.fixture(scope="module")
def lines():
    return []


@pytest.fixture(scope="module")
def tiny(stars, lines):
    with heard(lines.append):
        return train(*stars, TINY)


def test_same_seed_same_result(stars, tiny):
    first, second = tiny, train(*stars, TINY)
    for a, b in zip(jax.tree.leaves(first.model), jax.tree.leaves(second.model), strict=True):
        assert_array_equal(np.asarray(a), np.asarray(b))
    assert_array_equal(np.asarray(first.theta_log), np.asarray(second.theta_log))


def test_another_seed_is_another_network(stars, tiny):
    other = train(*stars, TINY.model_copy(update={"seed": 1, "phases": TINY.phases[:1]}))
    assert not np.array_equal(np.asarray(other.model.forward.weights[0]), np.asarray(tiny.model.forward.weights[0]))


def test_record_tells_what_happened(tiny, lines):
    phases = tiny.phases
    assert [p["update"] for p in phases] == ["model", "stars", "model_error", "model"]
    assert len(phases[0]["loss_per_star"]) == 4 and len(lines) == 4
    assert phases[0]["loss_per_star"][-1] < phases[0]["loss_per_star"][0]


def test_model_error_can_be_switched_off(stars):
    result = train(*stars, TINY.model_copy(update={"model_error": False}))
    assert result.model.error is None
    assert [p["update"] for p in result.phases] == ["model", "stars", "model"]


def test_a_model_phase_leaves_the_stars_and_a_star_phase_the_model(stars, tiny):
    batch = jax.tree.map(jnp.asarray, stars[0])
    start = initial_theta(batch)
    trained = tiny
    before = jax.tree.map(np.array, trained.model)
    moved, converged, _ = run_star_phase(trained.model.forward, batch, start, Phase(update="stars", epochs=40))
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, np.asarray(b)), before, trained.model))
    assert not np.array_equal(np.asarray(moved), np.asarray(start)) and converged > 0.8
    kept = np.asarray(moved).copy()
    _, after, _ = run_gradient_phase(trained.model.forward, batch, moved, Phase(update="model"), 64, jax.random.key(0))
    assert_array_equal(np.asarray(after), kept)


def test_star_phase_lowers_every_stars_objective(stars, tiny):
    batch = jax.tree.map(jnp.asarray, stars[0])
    trained = tiny
    start = initial_theta(batch)
    moved, _, _ = run_star_phase(trained.model.forward, batch, start, Phase(update="stars", epochs=6))
    value = jax.jit(jax.vmap(lambda s, u: objective(StarModel(trained.model.forward), s, u)))
    before, after = np.asarray(value(batch, start)), np.asarray(value(batch, moved))
    assert np.all(after <= before + 1e-3 * np.abs(before))


# The paper's six phases. Four of the 600 stars' cuts are relaxed: their parallaxes are spectroscopic, at 25 %.
PAPER = TrainingConfig(
    preset="zgr23",
    batch_size=64,
    epochs_scale=1 / 64,
    prior_components=3,
    high_quality=HighQuality(min_parallax_over_error=3.0, max_reddening_error=0.15),
    phases=(
        *ZGR23_PHASES[:3],
        ZGR23_PHASES[3].model_copy(update={"max_flux_pull": 100.0}),
        *ZGR23_PHASES[4:],
    ),
)


@pytest.fixture(scope="module")
def paper(stars, tmp_path_factory):
    """The paper's training in short, with a copy of its checkpoint after every phase."""
    folder = tmp_path_factory.mktemp("paper")
    checkpoint = folder / "checkpoint.safetensors"
    copies = []

    def keep(line):
        copies.append(folder / f"after-{len(copies) + 1}.safetensors")
        copies[-1].write_bytes(checkpoint.read_bytes())

    with heard(keep):
        return train(*stars, PAPER, checkpoint), copies


def test_the_preset_is_table_1():
    phases = TrainingConfig(preset="zgr23").phases
    assert [(p.update, p.stars, p.method) for p in phases] == [
        ("model", "high_quality", "sgd"),
        ("both", "high_quality", "sgd"),
        ("stars", "all", "sgd"),
        ("self_cleaning", "all", "adam"),
        ("both", "survivors", "sgd"),
        ("stars", "all", "adam"),
    ]
    assert [p.learning_rate for p in phases if p.update != "self_cleaning"] == [1e-3, 1e-5, 1e-4, 1e-7, 1e-2]
    assert [p.star_learning_rate for p in phases if p.update == "both"] == [1e-4, 1e-5]
    assert [p.momentum for p in phases if p.update in ("model", "both")] == [0.5, 0.5, 0.5]
    assert TrainingConfig(preset="zgr23").model_error is False and TrainingConfig(preset="zgr23").batch_size == 512
    assert TrainingConfig(preset="zgr23", batch_size=64).batch_size == 64  # what is given beside a preset wins


def test_learning_rates_fall_where_the_paper_says():
    rates = learning_rates(ZGR23_PHASES[0], 1e-3, 128 * 10)
    assert np.allclose(
        rates[[0, 319, 320, 639, 640, 959, 960, 1279]], 1e-3 * 10.0 ** -np.array([0, 0, 1, 1, 2, 2, 3, 3])
    )
    adam = learning_rates(ZGR23_PHASES[5], 1e-2, 4096)
    assert np.allclose(adam[[0, 511, 512, 4095]], 1e-2 * 0.5 ** np.array([0, 0, 1, 7]))
    cosine = learning_rates(Phase(update="model", final_rate=0.1), 1.0, 1000)
    assert cosine[0] == 1.0 and abs(cosine[-1] - 0.1) < 1e-4 and np.all(np.diff(cosine) < 0)


@pytest.mark.thorough
def test_the_papers_training_goes_downhill(paper):
    result, _ = paper
    assert [p["update"] for p in result.phases] == ["model", "both", "stars", "self_cleaning", "both", "stars"]
    first, second, *_ = result.phases
    assert (
        first["loss_per_star"][-1] < first["loss_per_star"][0]
        and second["loss_per_star"][-1] < first["loss_per_star"][-1]
    )
    assert first["n_stars"] < 600 and result.model.error is None
    assert 0 < result.survivor.sum() < 600 and np.isfinite(np.asarray(result.theta_log)).all()


def test_outliers_and_low_quality_stars_do_not_move_where_they_take_no_part(paper, stars):
    """Between the copies after phases 1 and 2 only high-quality stars move, after 4 and 5 only survivors."""
    from safetensors.numpy import load_file

    def table(copy):
        return next(a for a in load_file(copy).values() if a.shape == (600, 5))

    result, copies = paper
    inverse = np.asarray(stars[0].label_inv_error)
    good = (inverse > 5).all(axis=1) & (stars[0].parallax * stars[0].parallax_inv_error > 3)
    good &= stars[0].reddening_inv_error > 1 / 0.15
    for before, after, part in ((0, 1, good), (3, 4, result.survivor)):
        moved = (table(copies[before]) != table(copies[after])).any(axis=1)
        assert not moved[~part].any() and moved[part].mean() > 0.8


def test_a_star_outside_of_the_batch_never_moves(stars, tiny):
    """One batch of 64 out of 100 stars, the model's momentum on: the other 36 keep every bit."""
    batch = jax.tree.map(jnp.asarray, stars[0]).take(slice(0, 100))
    start = initial_theta(batch)
    phase = Phase(update="both", star_learning_rate=1e-4, momentum=0.5, gradient_clip=1000.0)
    _, moved, losses = run_gradient_phase(tiny.model.forward, batch, start, phase, 64, jax.random.key(1))
    moved = (np.asarray(moved) != np.asarray(start)).any(axis=1)
    assert len(losses) == 1 and 60 <= moved.sum() <= 64


@jax.jit
def _gradients(forward, theta_log, stars):
    """Of every star's -2 ln posterior in its own parameters."""
    return jax.vmap(jax.grad(lambda u, star: objective(StarModel(forward), star, u)))(theta_log, stars)


def test_one_sgd_step_is_the_gradient_of_the_papers_loss(stars, tiny):
    """Star steps against differentiating -2 ln posterior, an independent path; no clipping."""
    batch = jax.tree.map(jnp.asarray, stars[0]).take(slice(0, 64))
    start = tiny.theta_log[:64]
    phase = Phase(update="stars", optimizer="sgd", schedule="steps", learning_rate=1e-6)
    moved = run_star_steps(tiny.model.forward, batch, start, phase, 64)
    with jax.default_matmul_precision("highest"):
        gradient = _gradients(tiny.model.forward, start, batch)
    expected = start - 1e-6 * gradient
    change = np.abs(np.asarray(expected - start)).max(axis=0)
    np.testing.assert_allclose(
        np.asarray(moved), np.asarray(expected), atol=2e-6 * np.abs(start).max() + 1e-3 * change.min()
    )


def test_one_step_of_both_is_equation_12_then_equations_13_and_14(stars, tiny):
    """The model's step against chi^2 per star + |W|^2 / n_W; the stars' against their own -2 ln posterior."""
    batch = jax.tree.map(jnp.asarray, stars[0]).take(slice(0, 64))
    start = tiny.theta_log[:64]
    rates = {"learning_rate": 1e-7, "star_learning_rate": 1e-6}
    phase = Phase(update="both", schedule="steps", **rates)
    model, moved, _ = run_gradient_phase(tiny.model.forward, batch, start, phase, 64, jax.random.key(0))

    def equation_12(m):
        chi2 = jax.vmap(lambda star, u: flux_chi2(m, star, u))(batch, start)
        return jnp.mean(chi2) + sum(jnp.sum(w**2) for w in m.weights) / m.n_weights

    with jax.default_matmul_precision("highest"):
        slope = jax.jit(jax.grad(equation_12))(tiny.model.forward)
        gradient = _gradients(model, start, batch)
    for before, after, g in (
        (tiny.model.forward.ln_curve, model.ln_curve, slope.ln_curve),
        (tiny.model.forward.biases[-1], model.biases[-1], slope.biases[-1]),
        (tiny.model.forward.weights[0], model.weights[0], slope.weights[0]),
    ):
        rounding = 2e-7 * np.abs(before).max()
        np.testing.assert_allclose(after - before, -1e-7 * g, rtol=2e-2, atol=rounding)
        assert np.abs(1e-7 * g).max() > 5 * rounding
    np.testing.assert_allclose(moved - start, -1e-6 * gradient, rtol=2e-2, atol=2e-6)


def test_a_batch_that_reaches_back_moves_no_star_twice(stars, tiny):
    """100 stars in batches of 64: the last batch overlaps the first; results as in one batch of 100."""
    batch = jax.tree.map(jnp.asarray, stars[0]).take(slice(0, 100))
    phase = Phase(update="stars", optimizer="adam", epochs=5, learning_rate=1e-3)
    in_two = run_star_steps(tiny.model.forward, batch, tiny.theta_log[:100], phase, 64)
    in_one = run_star_steps(tiny.model.forward, batch, tiny.theta_log[:100], phase, 100)
    np.testing.assert_allclose(np.asarray(in_two), np.asarray(in_one), atol=2e-5)


class TestResume:
    def test_from_every_phase_the_result_is_the_same(self, paper, stars, tmp_path):
        """Killed after phase 1, 3 or 5, then resumed: the same to the last bit as never stopped."""
        result, copies = paper
        for done in (1, 3, 5):
            checkpoint = tmp_path / f"{done}.safetensors"
            checkpoint.write_bytes(copies[done - 1].read_bytes())
            with heard() as lines:
                again = train(*stars, PAPER, checkpoint, resume=True)
            assert lines[0].startswith(f"resumed after phase {done}/6") and len(lines) == 7 - done
            for a, b in zip(jax.tree.leaves(result.model), jax.tree.leaves(again.model), strict=True):
                assert_array_equal(np.asarray(a), np.asarray(b))
            assert_array_equal(np.asarray(result.theta_log), np.asarray(again.theta_log))
            assert_array_equal(result.survivor, again.survivor)
            assert [p["update"] for p in again.phases] == [p["update"] for p in result.phases]

    @pytest.mark.parametrize("after", [3, 4])
    def test_with_a_model_error(self, stars, tmp_path, after):
        """The covariance survives the checkpoint, and what it is taken of: later phases see the same whitening."""
        checkpoint = tmp_path / "c.safetensors"
        config = TINY.model_copy(update={"phases": (*TINY.phases, Phase(update="stars", epochs=3))})

        def stop(line):
            if line.startswith(f"phase {after}/5"):
                raise KeyboardInterrupt

        with heard(stop), pytest.raises(KeyboardInterrupt):
            train(*stars, config, checkpoint)
        whole, again = train(*stars, config), train(*stars, config, checkpoint=checkpoint, resume=True)
        for a, b in zip(
            jax.tree.leaves((whole.model, whole.theta_log)),
            jax.tree.leaves((again.model, again.theta_log)),
            strict=True,
        ):
            assert_array_equal(np.asarray(a), np.asarray(b))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"seed": 1}, r"written with seed = 0, now it is 1; set it back"),
            ({"epochs_scale": 0.5}, "written with epochs_scale = 0.015625, now it is 0.5"),
            ({"phases": PAPER.phases[:5]}, "written with phases"),
        ],
    )
    def test_other_settings_are_refused(self, paper, stars, change, message):
        with pytest.raises(InputError, match=message) as caught:
            train(*stars, PAPER.model_copy(update=change), checkpoint=paper[1][0], resume=True)
        assert "\n" not in str(caught.value)

    def test_other_stars_are_refused(self, paper, stars):
        other = stars[0].take(np.arange(599, -1, -1))
        with pytest.raises(InputError, match="belongs to other training stars"):
            train(other, stars[1], PAPER, checkpoint=paper[1][0], resume=True)

    def test_a_damaged_checkpoint_is_refused(self, paper, stars, tmp_path):
        cut = tmp_path / "c.safetensors"
        cut.write_bytes(paper[1][0].read_bytes()[:-100])
        with pytest.raises(InputError, match="is not a usable checkpoint"):
            train(*stars, PAPER, checkpoint=cut, resume=True)


def test_no_high_quality_star_is_one_sentence(stars):
    with pytest.raises(
        InputError, match=r"none of 600 stars is of high quality \(strictest: high_quality.min_parallax"
    ):
        train(*stars, PAPER.model_copy(update={"high_quality": HighQuality()}))


def test_divergence_is_one_sentence(stars):
    wild = Phase(update="model", optimizer="sgd", learning_rate=1e3, epochs=3)
    with pytest.raises(
        InputError, match=r"phase 1 \(model, sgd\) diverged on 600 stars, and fewer than 1000 are likely to; bring more"
    ):
        train(*stars, TINY.model_copy(update={"phases": (wild,)}))


def test_the_grey_part_of_the_curve_goes_into_the_parallaxes(tiny):
    """No spectrum sees it: the same fluxes, a curve that obeys the law, and parallaxes moved by E times its excess."""
    law = NearInfraredLaw(63, 61, 0.4)
    model, moved = _without_grey(tiny.model.forward, tiny.theta_log, law)
    curve = np.exp(np.asarray(model.ln_curve, float))
    assert curve[63] / curve[61] == pytest.approx(0.4, abs=1e-5)
    before, after = (
        jax.vmap(predict_ln_flux, (None, 0))(m, p) for m, p in ((tiny.model.forward, tiny.theta_log), (model, moved))
    )
    np.testing.assert_allclose(after, before, atol=2e-5)
    excess = np.exp(np.asarray(tiny.model.forward.ln_curve, float)) - curve
    np.testing.assert_allclose(excess, excess[0], atol=1e-5)
    assert abs(excess[0]) > 1e-3, "the curve obeyed the law already: nothing was tested"


def test_stars_in_files_train_the_same_model(stars, tiny, tmp_path, monkeypatch):
    """The same steps on the same stars, some read at a time: nothing depends on where they are."""
    batch, wavelengths = stars
    monkeypatch.setattr(starfiles, "PIECE", 128)
    monkeypatch.setattr(phases, "STRETCH", 192)  # stretches of three steps, the last of them shared
    filed = starfiles.make_star_files(tmp_path, len(batch), batch.flux.shape[1], batch.labels.shape[1])
    starfiles.write_rows(filed, slice(None), batch)
    other = train(filed, wavelengths, TINY)
    for a, b in zip(jax.tree.leaves(tiny.model.forward), jax.tree.leaves(other.model.forward), strict=True):
        assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-5)
    assert_allclose(np.asarray(tiny.theta_log), np.asarray(other.theta_log), atol=1e-4)
    losses = [[p.get("loss_per_star") for p in found.phases] for found in (tiny, other)]
    assert_allclose(losses[0][0], losses[1][0], rtol=1e-5)
    assert_array_equal(np.asarray(filed.whitening), np.asarray(batch.whitening))
