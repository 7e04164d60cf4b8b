"""Verbs that look closely at posteriors: fit, star, sample, check, compare."""

from pathlib import Path
from typing import Annotated

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
from xpbayes.production.bundled import DEFAULT_MODEL


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
    from xpbayes.analysis.pages.posterior_tables import print_draws
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
