"""Verbs that make or use a catalogue: infer, verify, export, dustmap, report, analyse."""

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
    SettingsFile,
    TwoMass,
    Unwise,
    app,
    companion_files,
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
