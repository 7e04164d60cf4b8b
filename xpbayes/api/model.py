"""A trained model with verbs: what `xpbayes.load` and `xpbayes.train` return.

Every method works in memory and writes files only where `out` names one. Methods call the same runs as the command
line; what they cannot do, the functions of the package do with files of any size.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xpbayes.api.fit import Fit
from xpbayes.config import (
    FrozenSettings,
    InferenceConfig,
    SamplingConfig,
    TrainingConfig,
    parse_settings,
)
from xpbayes.data.spectra import Spectra
from xpbayes.data.stars import Stars
from xpbayes.errors import InputError
from xpbayes.production.bundled import DEFAULT_MODEL
from xpbayes.production.model_file import TrainedModel, load_model, save_model
from xpbayes.production.table import catalogue_about
from xpbayes.progress import progress_shown

if TYPE_CHECKING:
    import xarray as xr

    from xpbayes.analysis.pages.calibration_page import CalibrationCheck
    from xpbayes.analysis.pages.posterior_comparison import PosteriorComparison


S = TypeVar("S", bound=FrozenSettings)


class Model(TrainedModel):
    """A trained model: forward model, label prior, model error, and what was learned around them.

    `card` says what it was trained on and how well it does; `labels` and `channels` what it predicts.
    """

    def fit(
        self,
        spectra: Spectra,
        *,
        parallax: bool = True,
        draws: int | None = None,
        progress: bool = False,
        **settings: Any,
    ) -> Fit:
        """Infer the parameters of any number of stars.

        Args:
            spectra: bands that the model does not know are left out, those that it alone knows count as missing.
            parallax: use the measured parallaxes.
            draws: draws from each star's posterior for medians and quantiles; the default of `InferenceConfig` if None,
                0 for modes and covariances alone.
            progress: say on stderr how far it is.
            settings: any other field of `InferenceConfig`; `n_draws` is `draws`, `use_parallax` is `parallax`.

        Raises:
            InputError: spectra and model do not fit together, no star can be used, or a setting is unknown.
        """
        from xpbayes.runs.infer import infer

        for ours, theirs in (({"use_parallax": parallax}, not parallax), ({"n_draws": draws}, draws is not None)):
            if theirs and not ours.keys().isdisjoint(settings):
                raise InputError(f"setting '{next(iter(ours))}' is given under two names; give it once")
            settings = ours | settings
        stars, config = self._on(spectra), _settings(InferenceConfig, **settings)
        with progress_shown(progress):
            catalogue = infer(self, stars, config=config)
        return Fit(catalogue, catalogue_about(catalogue), self, stars)

    def predict(self, *, extinction: Any = 0.0, parallax: Any = 1.0, xi: Any = 0.0, **labels: Any) -> "xr.Dataset":
        """Predict fluxes.

        Arguments are numbers, arrays, which are broadcast together along `star`, or xarray's DataArrays, which are
        broadcast by the names of their dimensions: E [mag], not negative; parallax [mas], positive; xi of the star's
        extinction curve R + xi R1, 0 for the mean curve; the model's labels by name, teff in K, the others in dex.

        Returns:
            `flux` [1e-18 W m^-2 nm^-1], with a dimension `channel`; `model_error`, the relative 1-sigma error of the
            model itself; `ln_prior`, how common such stars were in training; `unlikely`, where that is below the model's
            threshold and the prediction an extrapolation. Coordinates are the arguments, channel names and `wavelength`.

        Raises:
            InputError: a label is missing or unknown, or a value is not possible.
        """
        from xpbayes.runs.predict import predict_fluxes

        return predict_fluxes(self, extinction=extinction, parallax=parallax, xi=xi, **labels)

    def sample(
        self,
        spectra: Spectra,
        *,
        chains: int | None = None,
        draws: int | None = None,
        warmup: int | None = None,
        parallax: bool = True,
        out: str | Path | None = None,
        progress: bool = False,
    ) -> Any:
        """Draw from the posteriors of a few stars with NUTS.

        Args:
            spectra: the stars.
            chains, draws, warmup: per star; the defaults of `SamplingConfig` if None.
            parallax: use the measured parallaxes.
            out: netCDF file; nothing is written if None.
            progress: say on stderr how far it is.

        Returns:
            ArviZ's object: InferenceData, or from ArviZ 1.0 on a DataTree.

        Raises:
            InputError: a star cannot be used, or a setting is not possible.
        """
        from xpbayes.analysis.posterior_file import to_arviz
        from xpbayes.runs.sample import sample

        sampling = _settings(SamplingConfig, chains=chains, draws=draws, warmup=warmup)
        with progress_shown(progress):
            groups = sample(
                self,
                stars := self._on(spectra),
                out,
                source_ids=stars.source_id.tolist(),
                inference=InferenceConfig(use_parallax=parallax),
                sampling=sampling,
            )
        return to_arviz(groups)

    def compare(
        self, spectra: Spectra, *, out: str | Path | None = None, parallax: bool = True
    ) -> "PosteriorComparison":
        """Compare modes with Fisher and Laplace errors, importance draws and NUTS for the same stars."""
        from xpbayes.runs.compare import compare

        stars, inference = self._on(spectra), InferenceConfig(use_parallax=parallax)
        return compare(self, stars, out, source_ids=stars.source_id.tolist(), inference=inference)

    def check(
        self,
        n: int = 1000,
        *,
        sampled: int = 100,
        spectra: Spectra | None = None,
        out: str | Path | None = None,
        seed: int = 0,
    ) -> "CalibrationCheck":
        """Check error bars by simulation: n truths from the prior, spectra from the likelihood, and what is inferred.

        Args:
            sampled: so many of the n stars are drawn from with NUTS, too.
            spectra: real stars whose noise is borrowed; the bundled sample if None.
            out: folder for the page; nothing is written if None.
        """
        from xpbayes.runs.check import check

        return check(self, spectra, out, n_stars=n, n_sampled=sampled, seed=seed)

    def log_posterior(
        self, spectra: Spectra, *, parallax: bool = True
    ) -> Callable[[Float[Array, " parameter"]], Float[Array, ""]]:
        """Ln posterior of one star up to a constant, for jax.jit, jax.grad and whatever needs a density (ZGR23 Eq. 17).

        It is a function of (parameter,): the labels (teff in kK), xi if the model's curve varies, ln E [mag] and ln
        parallax [mas], and refuses a vector of another length. The measured parallax is used if asked.

        Raises:
            InputError: not exactly one star, or it cannot be used.
        """
        from xpbayes.models.objective import objective

        if len(self._on(spectra)) != 1:
            raise InputError(f"log_posterior is of one star, {len(spectra)} were given; give spectra[0] or so")
        star = self._batch(spectra, parallax=parallax).take(jnp.asarray(0))
        xi = () if self.forward.curve_variation is None else ("xi",)
        names = (*(f"{name} [kK]" if name == "teff" else name for name in self.labels), *xi, "ln E", "ln parallax")

        def ln_posterior(theta_log: Float[Array, " parameter"]) -> Float[Array, ""]:
            if jnp.shape(theta_log) != (len(names),):
                shape = jnp.shape(theta_log)
                raise InputError(
                    f"ln posterior is of {len(names)} numbers, {', '.join(names)}; an array of shape {shape} was given"
                )
            return -0.5 * objective(self.star_model, star, theta_log)

        return ln_posterior

    def numpyro(self, spectra: Spectra, *, parallax: bool = True) -> Callable[[], None]:
        """The NumPyro model of some stars (METHOD 5), for any inference of NumPyro's: MCMC(NUTS(model.numpyro(spectra))).

        Sites are `labels`, `ln_E`, `ln_plx`, and `xi` if the model's curve varies, along the plate `star`. Measured
        parallaxes are used if asked. InputError if a star cannot be used.
        """
        from xpbayes.models.posterior import star_posterior

        return partial(star_posterior, self._batch(spectra, parallax=parallax), self.star_model)

    def _on(self, spectra: Spectra) -> Spectra:
        """Spectra on the model's bands; InputError for anything else than spectra."""
        if not isinstance(spectra, Spectra):
            raise InputError(
                f"a {type(spectra).__name__} is no Spectra; xpbayes.Spectra.read(path) reads a file, "
                f"xpbayes.Spectra.from_coefficients(table) takes a table, xpbayes.Spectra(flux, ...) arrays"
            )
        return spectra.on(self.channels)

    def _batch(self, spectra: Spectra, *, parallax: bool) -> Stars:
        """Stars as inference sees them, the model's error taken of the flux at their optima."""
        from xpbayes.inference.fit import fit_stars
        from xpbayes.inference.model_error import fold_in_model_error
        from xpbayes.models.theta import to_log
        from xpbayes.runs.sample import pick_stars

        stars = self._on(spectra)
        table = pick_stars(self, stars, stars.source_id.tolist(), None, "all", 0)
        config = InferenceConfig(use_parallax=parallax, n_draws=0)
        batch = table.stars(self.labels, doubt_parallax=config.doubt_parallax)
        found = fit_stars(self.star_model, batch, config)
        blind = jax.tree.map(jnp.asarray, batch.blind(parallax=parallax))
        return fold_in_model_error(self.star_model, blind, to_log(jnp.asarray(found.optimum)))

    def save(self, folder: str | Path) -> Path:
        """Write the model: arrays and card."""
        return save_model(self, folder)

    def __repr__(self) -> str:
        card = self.card
        rows = (card.get("held_out") or {}).get("accuracy", [])
        quality = ", ".join(f"{row['label']} {row['scatter']:.3g}" for row in rows if row["group"] == "all")
        return (
            f"<xpbayes model of {', '.join(self.labels)}: {len(self.channels)} channels "
            f"({self.channels.n_xp} XP samples{''.join(', ' + b for b in self.channels.band_names)}), trained on "
            f"{card.get('n_training', '?')} stars{'; held-out scatter ' + quality if quality else ''}>"
        )


def load(folder: str | Path = DEFAULT_MODEL) -> Model:
    """Read a model from its folder, or by the name of one that comes with the package.

    Raises:
        InputError: not a model, damaged, or from a newer xpbayes.
    """
    return _with_verbs(load_model(folder))


def train(
    stars: Spectra | str | Path,
    out: str | Path | None = None,
    config: TrainingConfig | None = None,
    *,
    resume: bool = False,
    progress: bool = False,
    **settings: Any,
) -> Model:
    """Train a model on stars with labels.

    Args:
        stars: spectra with labels, a star table's path, or a folder of star tables.
        out: folder for the model; nothing is written if None.
        config: settings; the defaults if None.
        resume: go on after the last phase that ended, if an earlier run to the same `out` was stopped.
        progress: say on stderr how far it is.
        settings: fields of `TrainingConfig` that differ, as ``seed=1``.

    Raises:
        InputError: the stars cannot be used, too few remain, a setting is unknown, or the run to resume had others.

    Example:
        >>> model = xpbayes.train("stars.parquet", out="model")  # doctest: +SKIP
    """
    from xpbayes.runs.train import train as run

    if settings:
        config = _settings(TrainingConfig, **((config or TrainingConfig()).model_dump() | settings))
    with progress_shown(progress):
        return _with_verbs(run(stars, out, config, resume=resume))


def adapt(
    model: TrainedModel | str | Path,
    stars: Spectra | str | Path,
    out: str | Path | None = None,
    *,
    progress: bool = False,
    **settings: Any,
) -> Model:
    """Bring a trained model to a few stars that have labels of their own.

    Args:
        model: a trained model or its folder.
        stars: spectra with labels, a star table's path, or a folder of star tables.
        out: folder for the adapted model; nothing is written if None.
        progress: say on stderr how far it is.
        settings: fields of `AdaptationConfig` that differ, as ``layers="all"``.

    Raises:
        InputError: model and stars do not fit together, labels are missing, or too few stars are left.

    Example:
        >>> model = xpbayes.adapt("model", "mine.parquet", out="adapted")  # doctest: +SKIP
    """
    from xpbayes.runs.adapt import adapt as run
    from xpbayes.training.adapt import AdaptationConfig

    with progress_shown(progress):
        return _with_verbs(run(model, stars, out, _settings(AdaptationConfig, **settings)))


def _with_verbs(model: TrainedModel) -> Model:
    return model if isinstance(model, Model) else Model(**vars(model))


def _settings(kind: type[S], **given: Any) -> S:
    """Settings with those given, where not None; InputError for an unknown one."""
    return parse_settings(kind, {name: value for name, value in given.items() if value is not None}, "settings")
