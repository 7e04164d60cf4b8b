"""The command line's applications; the verbs join them."""

import typer

app = typer.Typer(
    name="xpbayes",
    help="Stellar parameters with honest uncertainties from Gaia XP spectra.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
fetch = typer.Typer(help="Get real data.", no_args_is_help=True)
app.add_typer(fetch, name="fetch")
