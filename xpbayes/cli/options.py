"""The command line's applications, which the verbs join; options and arguments that several verbs share, each once.

A bracket before a small letter is escaped: rich would take it for markup and show nothing.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from xpbayes.config import Settings

app = typer.Typer(
    name="xpbayes",
    help="Stellar parameters with honest uncertainties from Gaia XP spectra.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
fetch = typer.Typer(help="Get real data.", no_args_is_help=True)
app.add_typer(fetch, name="fetch")

SettingsFile = Annotated[
    Path | None, typer.Option("--settings", help="TOML file with tables \\[training], \\[inference] and \\[sampling].")
]
Only = Annotated[str, typer.Option(help="all, or a side of the model's own split: training, kept-aside or held-out.")]


def _named(model: Path | None) -> Path | None:
    """A model's folder, also where its name was given."""
    from xpbayes.production.bundled import model_folder

    return None if model is None else model_folder(model)


ModelFolder = Annotated[
    Path,
    typer.Argument(help="Folder of the model, or the name of one that comes with the package.", callback=_named),
]
Parallax = Annotated[bool | None, typer.Option(help="Use measured parallaxes (default) or not.")]
DoubtParallax = Annotated[
    bool | None,
    typer.Option(
        help="Doubt measured parallaxes as fidelity_v2, RUWE and fluxes have it (default), or take their word."
    ),
]
CatalogueFiles = Annotated[Path, typer.Argument(help="Catalogue: a file or a folder of parts.")]
StarFiles = Annotated[Path, typer.Argument(help="File of XP spectra, folder of them, star table or survey.toml.")]
Spectra = Annotated[
    list[str],
    typer.Argument(
        help="Files of XP spectra in any format, folders or '*' patterns of them, HATS catalogues; tables, of labels too."
    ),
]
Gaia = Annotated[list[Path] | None, typer.Option(help="Gaia's source table of these stars; several times for several.")]
TwoMass = Annotated[list[Path] | None, typer.Option(help="2MASS matches by source_id.")]
Unwise = Annotated[list[Path] | None, typer.Option(help="unWISE matches by source_id.")]
Alone = Annotated[bool, typer.Option("--alone", help="Look for no tables beside the spectra.")]

SourceIds = Annotated[list[int] | None, typer.Option(help="Gaia source_id; give it once per star.")]
Random = Annotated[int | None, typer.Option(min=1, help="So many stars at random instead.")]
ChoiceSeed = Annotated[int, typer.Option(min=0, help="Of the random choice of stars.")]
ReleaseName = Annotated[str | None, typer.Option("--release", help="Data release: dr3 (default) or dr4.")]
Flat = Annotated[
    bool | None, typer.Option(help="One number a column \\[K, dex, mag, mas]; default for all but Parquet, HATS.")
]
TableOut = Annotated[Path, typer.Option(help="Star table to write (.parquet).")]


def companion_files(
    gaia: list[Path] | None, two_mass: list[Path] | None, unwise: list[Path] | None, alone: bool
) -> dict[str, list[Path]]:
    """Tables that belong to spectra, as the functions of the package take them."""
    named = {"gaia": gaia or [], "two_mass": two_mass or [], "unwise": unwise or []}
    return {kind: files for kind, files in named.items() if files or alone}


def read_settings(path: Path | None, out: Path, **options: dict[str, Any]) -> "Settings":
    """Read a settings file and what the command line says instead; refuse it where the verb would write over it."""
    from xpbayes.config import Settings
    from xpbayes.files import refuse_overwriting

    beside = [p for p in out.iterdir() if p.suffix != ".toml"] if out.is_dir() else []  # no verb writes .toml
    for taken in (out, *beside):
        refuse_overwriting(taken, [path] if path is not None else ())
    return Settings.read(path, **options)


def _listen(context: typer.Context, quiet: bool) -> bool:
    """Show what the command says while it works, unless that is not wanted."""
    if not quiet:
        from xpbayes.progress import progress_shown

        context.with_resource(progress_shown())
    return quiet


Quiet = Annotated[bool, typer.Option("--quiet", "-q", callback=_listen, help="No progress lines.")]
