"""Verbs that make or ask a model - train, adapt, card, predict, ... - and that look closely at posteriors."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from xpbayes.cli.options import (
    Alone,
    ChoiceSeed,
    DoubtParallax,
    Gaia,
    ModelFolder,
    Only,
    Parallax,
    Quiet,
    Random,
    ReleaseName,
    SettingsFile,
    SourceIds,
    StarFiles,
    TwoMass,
    Unwise,
    app,
    companion_files,
    read_settings,
)
from xpbayes.errors import InputError
from xpbayes.production.bundled import DEFAULT_MODEL


@app.command()
def train(  # noqa: PLR0913 - an argument for each option of the command line
    stars: Annotated[Path, typer.Argument(help="Star table with labels, or a folder of them.")],
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    settings: SettingsFile = None,
    preset: Annotated[str | None, typer.Option(help="default, or zgr23: the paper's own six training phases.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the initial weights and the batches.")] = None,
    validation_fraction: Annotated[float | None, typer.Option(help="Share of source_ids held out.")] = None,
    split_seed: Annotated[int | None, typer.Option(help="Which split by source_id.")] = None,
    model_error: Annotated[
        bool | None, typer.Option(help="Learn a covariance of the model's own error (default) or not (the paper).")
    ] = None,
    curve_variation: Annotated[
        bool | None,
        typer.Option(
            help="Learn how the extinction curve varies, and a xi for every star, or not (default, and the paper)."
        ),
    ] = None,
    second_stage: Annotated[
        bool | None, typer.Option(help="Learn to refine labels by what residuals tell (default) or not (the paper).")
    ] = None,
    epochs_scale: Annotated[float | None, typer.Option(help="Multiply the epochs of gradient phases.")] = None,
    held_out_stars: Annotated[
        int | None, typer.Option(help="Held-out stars inferred for the model card; 0 skips it.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last phase of a stopped run.")] = False,
    quiet: Quiet = False,
) -> None:
    """Learn a model from stars with labels, and print its card."""
    run = read_settings(
        settings,
        out,
        training={
            "seed": seed,
            "validation_fraction": validation_fraction,
            "split_seed": split_seed,
            "preset": preset,
            "model_error": model_error,
            "curve_variation": curve_variation,
            "second_stage": second_stage,
            "epochs_scale": epochs_scale,
            "held_out_stars": held_out_stars,
        },
    )
    from xpbayes.runs.train import train as learn

    model = learn(stars, out, run.training, resume=resume)
    if not quiet:
        from rich.console import Console

        from xpbayes.analysis.pages.model_card import print_card

        print_card(model, Console(stderr=True))
    print(out)


@app.command()
def adapt(
    model: ModelFolder,
    stars: Annotated[Path, typer.Argument(help="Star table with labels of your own, or a folder of them.")],
    out: Annotated[Path, typer.Option(help="Folder for the adapted model.")],
    layers: Annotated[
        Literal["none", "last", "all"], typer.Option(help="Of the network after the labels' scale: none, last, all.")
    ] = "none",
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the stars in each of two rounds.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the batches.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Bring a model to a few stars with labels of your own, from some fifty on, and say whether it helped."""
    from xpbayes.config import parse_settings
    from xpbayes.runs.adapt import adapt as run
    from xpbayes.training.adapt import AdaptationConfig

    values = {"layers": layers, "seed": seed, **({} if epochs is None else {"epochs": epochs})}
    run(model, stars, out, parse_settings(AdaptationConfig, values, "the adaptation"))
    print(out)


@app.command()
def models() -> None:
    """List the models that come with the package: their names stand wherever a model's folder does."""
    from xpbayes.production.bundled import BUNDLED

    for name, about in BUNDLED.items():
        print(f"{name}{' (default)' if name == DEFAULT_MODEL else ''}: {about.summary}")
        print(f"  for {about.good_for}; not for {about.not_for}")
        print(f"  licence: {about.licence}")


@app.command()
def card(model: ModelFolder = Path(DEFAULT_MODEL)) -> None:
    """Print a model's card: what it was trained on, where it can be trusted, how good it is, its limits."""
    from xpbayes.analysis.pages.model_card import print_card
    from xpbayes.production.model_file import load_model

    print_card(load_model(model))


@app.command()
def confidence(
    model: ModelFolder,
    catalogue: Annotated[Path, typer.Argument(help="What it inferred for held-out stars.")],
    stars: Annotated[Path, typer.Argument(help="Star table with labels that the catalogue was inferred from.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the model with classifiers; MODEL itself if none.")
    ] = None,
    figures: Annotated[Path | None, typer.Option(help="Folder for figures and numbers of how well they work.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, batches and dropout.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Train classifiers that say how far Teff, [Fe/H] and log g of each star can be trusted."""
    from xpbayes.analysis.pages.confidence import print_check
    from xpbayes.config import ConfidenceConfig
    from xpbayes.runs.confidence import confidence as learn

    target = model if out is None else out
    _, check = learn(model, catalogue, stars, target, ConfidenceConfig(seed=seed), figures)
    print_check(check)
    print(target)


@app.command()
def uncertainty(
    model: ModelFolder,
    stars: Annotated[Path, typer.Argument(help="Star table that it was trained on.")],
    figure: Annotated[Path | None, typer.Option(help="Figure of what is added, by label (.png).")] = None,
    n_stars: Annotated[int, typer.Option("--stars", min=100, help="Training stars that are looked at.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Of their choice.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Work out how well training has determined the model, and what that adds to errors; kept in the model's folder."""
    from xpbayes.analysis.pages.model_uncertainty import print_uncertainty, write_figure
    from xpbayes.runs.inputs import check_writable
    from xpbayes.runs.uncertainty import uncertainty as work_out

    check_writable(figure, model, stars)
    found = work_out(model, stars, model, n_stars, seed=seed)
    print_uncertainty(found)
    if figure is not None:
        print(write_figure(found, figure))


@app.command()
def transfer(
    model: ModelFolder,
    pairs: Annotated[
        list[Path], typer.Argument(help="Star tables of both releases, or folders of them: the same stars.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the model with its transfer; MODEL itself if none.")
    ] = None,
    crosswalk: Annotated[
        Path | None, typer.Option(help="Table source_id, dr3_source_id; without one, ids are the same in both.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Learn how another data release's spectra differ, so that the model serves its stars until one is trained on them."""
    from xpbayes.runs.transfer import transfer as learn

    target = model if out is None else out
    learn(model, pairs, target, crosswalk)
    print(target)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def predict(
    context: typer.Context,
    model: ModelFolder = Path(DEFAULT_MODEL),
    teff: Annotated[float | None, typer.Option(help="Effective temperature [K].")] = None,
    feh: Annotated[float | None, typer.Option(help="Metallicity [Fe/H] \\[dex].")] = None,
    logg: Annotated[float | None, typer.Option(help="Surface gravity log g \\[dex].")] = None,
    extinction: Annotated[float, typer.Option(help="Extinction scalar E \\[mag].")] = 0.0,
    parallax: Annotated[float, typer.Option(help="Parallax \\[mas].")] = 1.0,
    plot: Annotated[Path | None, typer.Option(help="Figure to write (.png, .pdf or .svg).")] = None,
) -> None:
    """Predict one star's flux in every channel; labels beyond these three are given as --NAME VALUE."""
    labels: dict[str, float] = {k: v for k, v in (("teff", teff), ("feh", feh), ("logg", logg)) if v is not None}
    extra = list(context.args)
    while extra:
        option = extra.pop(0)
        if not option.startswith("--") or not extra:
            raise InputError(f"'{option}' is not understood; further labels are given as --NAME VALUE")
        try:
            labels[option[2:].replace("-", "_")] = float(extra.pop(0))
        except ValueError as error:
            raise InputError(f"the value of {option} is not a number") from error
    from xpbayes.analysis.pages.prediction import draw_prediction, print_prediction
    from xpbayes.runs.inputs import check_writable
    from xpbayes.runs.predict import predict_flux

    check_writable(plot, model)
    prediction = predict_flux(model, extinction=extinction, parallax=parallax, **labels)
    print_prediction(prediction)
    if plot is not None:
        draw_prediction(prediction, plot)
        print(f"wrote {plot}", file=sys.stderr)


@app.command()
def fit(
    model: ModelFolder,
    stars: StarFiles,
    source_id: Annotated[list[int], typer.Option(help="Gaia source_id; give it once per star.")],
    out: Annotated[Path, typer.Option(help="Folder for fit.json and one figure per star.")],
    settings: SettingsFile = None,
    parallax: Parallax = None,
    doubt_parallax: DoubtParallax = None,
    quiet: Quiet = False,
) -> None:
    """Fit a few stars: parameters with errors, every optimum found, and a figure of data and model."""
    run = read_settings(settings, out, inference={"use_parallax": parallax, "doubt_parallax": doubt_parallax})
    from xpbayes.analysis.pages.star_page import print_star
    from xpbayes.runs.fit import fit as solve

    for star in solve(model, stars, source_id, out, run.inference):
        print_star(star)


@app.command()
def star(  # noqa: PLR0913 - an argument for each option of the command line
    source_id: Annotated[int, typer.Argument(help="Gaia source_id.")],
    model: Annotated[
        Path, typer.Option(help="Folder of the model, or the name of one that comes with the package.")
    ] = Path(DEFAULT_MODEL),
    out: Annotated[
        Path | None, typer.Option(help="Folder for page, figure and numbers; star-SOURCE_ID if none.")
    ] = None,
    files: Annotated[
        list[str] | None, typer.Option("--from", help="File of XP spectra that has the star: the archive is not asked.")
    ] = None,
    gaia: Gaia = None,
    two_mass: TwoMass = None,
    unwise: Unwise = None,
    alone: Alone = False,
    release: ReleaseName = None,
    settings: SettingsFile = None,
    parallax: Parallax = None,
    doubt_parallax: DoubtParallax = None,
    quiet: Quiet = False,
) -> None:
    """Fetch one star's spectrum, parallax and 2MASS magnitudes, solve it, print a table and write a page."""
    folder = out or Path(f"star-{source_id}")
    run = read_settings(settings, folder, inference={"use_parallax": parallax, "doubt_parallax": doubt_parallax})
    from xpbayes.analysis.pages.star_page import print_star
    from xpbayes.release import DEFAULT_RELEASE
    from xpbayes.runs.star import PAGE
    from xpbayes.runs.star import star as solve

    companions = companion_files(gaia, two_mass, unwise, alone)
    print_star(
        solve(
            model,
            source_id,
            folder,
            run.inference,
            files=files or (),
            companions=companions,
            release=release or DEFAULT_RELEASE.name,
        )
    )
    print(folder / PAGE)


@app.command()
def sample(  # noqa: PLR0913 - an argument for each option of the command line
    model: ModelFolder,
    stars: StarFiles,
    out: Annotated[Path, typer.Option(help="File for the draws (.nc); ArviZ opens it.")],
    source_id: SourceIds = None,
    random: Random = None,
    draws: Annotated[int | None, typer.Option(help="Draws kept per chain.")] = None,
    warmup: Annotated[int | None, typer.Option(help="Transitions per chain that adapt the step size.")] = None,
    chains: Annotated[int | None, typer.Option(help="Chains per star.")] = None,
    settings: SettingsFile = None,
    parallax: Parallax = None,
    doubt_parallax: DoubtParallax = None,
    only: Only = "all",
    channels: Annotated[
        bool | None, typer.Option(help="Likelihood and predicted flux of every channel; default: up to 64 stars.")
    ] = None,
    seed: ChoiceSeed = 0,
    quiet: Quiet = False,
) -> None:
    """Draw from single stars' posteriors with NUTS, and say whether the chains can be trusted."""
    given = {"draws": draws, "warmup": warmup, "chains": chains}
    run = read_settings(
        settings, out, inference={"use_parallax": parallax, "doubt_parallax": doubt_parallax}, sampling=given
    )
    from xpbayes.analysis.pages.posterior_comparison import print_draws
    from xpbayes.runs.sample import sample as run_sample

    print_draws(
        run_sample(model, stars, out, source_id or (), random, run.inference, run.sampling, only, channels, seed)
    )
    print(out)


@app.command()
def check(
    model: ModelFolder,
    out: Annotated[Path, typer.Option(help="Folder for report.html, table and numbers.")],
    like: Annotated[Path | None, typer.Option(help="Star table whose noise to imitate; default: bundled.")] = None,
    stars: Annotated[int, typer.Option(min=50, help="How many stars to simulate.")] = 1000,
    nuts: Annotated[int, typer.Option(min=0, help="So many of them are sampled with NUTS as well.")] = 100,
    settings: SettingsFile = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all random numbers.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Check error bars by simulation-based calibration: are truths where posteriors say they are?"""
    run = read_settings(settings, out)
    from xpbayes.analysis.pages.calibration_page import print_check
    from xpbayes.runs.check import check as run_check

    print_check(run_check(model, like, out, stars, nuts, run.inference, run.sampling, seed))
    print(out)


@app.command()
def compare(  # noqa: PLR0913 - an argument for each option of the command line
    model: ModelFolder,
    stars: Annotated[Path, typer.Argument(help="Star table, or folder of them.")],
    out: Annotated[Path, typer.Option(help="Folder for report.html and tables.")],
    source_id: SourceIds = None,
    random: Random = None,
    settings: SettingsFile = None,
    parallax: Parallax = None,
    doubt_parallax: DoubtParallax = None,
    only: Only = "all",
    seed: ChoiceSeed = 0,
    quiet: Quiet = False,
) -> None:
    """Compare cheap error bars with NUTS for the same real stars, and show where they fail."""
    run = read_settings(settings, out, inference={"use_parallax": parallax, "doubt_parallax": doubt_parallax})
    from xpbayes.analysis.pages.posterior_comparison import print_comparison
    from xpbayes.runs.compare import compare as run_compare

    print_comparison(run_compare(model, stars, out, source_id or (), random, run.inference, run.sampling, only, seed))
    print(out)
