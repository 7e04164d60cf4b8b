"""Write docs/columns.md from the schema: `python scripts/write_columns.py`. A test checks that it is up to date."""

from pathlib import Path

from xpbayes.channels import xp_channels
from xpbayes.production.flat import flat_columns
from xpbayes.schema import FLAG_SENTENCES, Column, catalogue_columns, star_table_columns

TARGET = Path(__file__).resolve().parents[1] / "docs" / "columns.md"


def table(columns: tuple[Column, ...]) -> str:
    """One Markdown table, narrow enough for a phone: type and unit stand under the name."""
    lines = ["| column | meaning |", "|---|---|"]
    for c in columns:
        kind = str(c.type).replace("fixed_size_list<item: ", "list<")
        unit = f", {c.unit}" if c.unit else ""
        lines.append(f"| `{c.name}`<br>{kind.replace('<', '&lt;')}{unit} | {c.description} |")
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    flags = "\n".join(
        f"| {int(f).bit_length() - 1} | {int(f)} | `{f.name}` | {text} |" for f, text in FLAG_SENTENCES.items()
    )
    plain = {c.name for c in catalogue_columns()}
    return f"""# What each column means

Made from `xpbayes/schema.py` by `scripts/write_columns.py`. Units and descriptions are also in each file's metadata.

## Flat tables

One number a column: what `infer` and `export` write as .csv, .ecsv, .fits and .vot (Parquet with `--flat`), and what fits in
Python hold. `teff` is the recommended value, with half of its 68 % interval as error: the median of the posterior, refined
where the model has a [second stage](second_stage.md). Posterior modes and Fisher errors, `teff_mode` and `teff_mode_err`,
are ZGR23-compatible: what Zhang, Green & Rix (2023) publish. The columns `..._forward` and `refined_share` are there only of
a model with a second stage, confidences only of one with [classifiers](confidence.md).

{table(flat_columns(refined=True))}

## Catalogue

What `infer` writes as Parquet, one file or parts: ZGR23's Table 2, lists of all parameters in a column, then what else is
known of each star.

{table(catalogue_columns())}

With `xpbayes infer --model-uncertainty`, errors are [wider](posterior.md) and two columns follow:

{table(tuple(c for c in catalogue_columns(model_uncertainty=True) if c.name not in plain))}

Of a model with a [second stage](second_stage.md), unless `--no-second-stage`, columns of refined labels follow:

{table(tuple(c for c in catalogue_columns(refined=True) if c.name not in plain))}

Of a model whose [extinction curve](extinction_curve.md) varies (`train --curve-variation`), columns of each star's own curve
follow:

{table(tuple(c for c in catalogue_columns(curve=True) if c.name not in plain))}

With `xpbayes infer --binaries`, columns of an unresolved [second source](second_sources.md) follow:

{table(tuple(c for c in catalogue_columns(binaries=True) if c.name not in plain))}

### quality_flags

Below 8: basic reliability; 0: strict. Bits are never reused.

| bit | value | name | meaning |
|---|---|---|---|
{flags}

## Star table

For 66 channels and the labels Teff, [Fe/H] and log g. Further columns are kept as they are.

{table(star_table_columns(xp_channels()))}
"""


if __name__ == "__main__":
    TARGET.write_text(page())
    print(TARGET)
