"""Parallaxes of globular-cluster stars, inferred and Gaia's (ZGR23 Fig. 18).

In: rows of a catalogue with proper motions and parallaxes, and a table of clusters: position, proper motion, parallax,
and the radii of the selection. Membership is cut on the sky and in proper motion, as in the paper.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xpbayes.analysis.figures import drawing
from xpbayes.analysis.figures.residual_columns import CONFIDENCES, confidences
from xpbayes.analysis.run_inputs import Run
from xpbayes.analysis.topic import Analysis, Gatherer, NotDrawnError, Product, Rows, Series, Task, require_columns
from xpbayes.analysis.validation import BASIC, robust_scatter
from xpbayes.archive.columns import Column
from xpbayes.archive.tables import read_table
from xpbayes.data.directions import unit_vectors
from xpbayes.errors import InputError
from xpbayes.production.reliability import MIN_CONFIDENCE

MIN_RELATIVE_ERROR = 0.2
"""Only stars whose Gaia parallax error exceeds this share of the cluster's parallax: where XP has something to add."""
MIN_MEMBERS = 5
FIELDS = (
    Column("name", "text", ("cluster",), required=True),
    Column("ra", required=True),
    Column("dec", required=True),
    Column("pmra", required=True),
    Column("pmdec", required=True),
    Column("parallax", aliases=("plx",), required=True),
    Column("radius", aliases=("outer_radius",), required=True),
    Column("inner_radius", aliases=("scale_radius",)),
    Column("pm_radius", required=True),
)
COLUMNS = {
    "x": ("deg", "east of the centre"), "y": ("deg", "north of the centre"), "pmra": ("mas.yr-1", "Gaia"),
    "pmdec": ("mas.yr-1", "Gaia"), "inferred": ("mas", "parallax"), "inferred_error": ("mas", ""),
    "measured": ("mas", "Gaia's parallax"), "measured_error": ("mas", ""),
}  # fmt: skip
"""What is kept of every member: unit and meaning."""
JOINS = ("pmra", "pmdec", "parallax", "parallax_error")


@dataclass(frozen=True)
class Cluster:
    """One cluster and its selection: positions and proper motions of its centre, radii of what is a member."""

    name: str
    ra: float  # [deg], as dec
    dec: float
    pmra: float  # [mas/yr], as pmdec
    pmdec: float
    parallax: float  # central [mas]
    radius: float  # on the sky [deg]
    inner_radius: float  # [deg]; crowding is worse further in
    pm_radius: float  # in proper motion [mas/yr]


def read_clusters(path: Path) -> list[Cluster]:
    """Read a table with the columns of `FIELDS`; InputError if one is missing, or not positive where it must be."""
    table = read_table(path, FIELDS)
    inner = table.floats("inner_radius")
    numbers = {f.name: table.floats(f.name) for f in FIELDS[1:]} | {"inner_radius": np.nan_to_num(inner)}
    out = [
        Cluster(str(name), **{key: float(values[i]) for key, values in numbers.items()})
        for i, name in enumerate(table.columns["name"])
    ]
    bad = [c for c in out if not (c.parallax > 0 and c.radius > c.inner_radius and c.pm_radius > 0)]
    if not out or bad:
        which = f"{len(bad)} of {len(out)} clusters (first: {bad[0].name})" if bad else "it has no cluster"
        raise InputError(f"{path}: {which} without a positive parallax, radius and pm_radius; complete them")
    return out


@dataclass(frozen=True)
class Members:
    """Stars of one cluster in the regime of uncertain parallaxes."""

    cluster: Cluster
    columns: dict[str, NDArray[np.float64]]  # (star,) those of `COLUMNS`
    n_sky: int  # stars left after the cut on the sky,
    n_motion: int  # in proper motion,
    n_reliable: int  # on reliability

    def __len__(self) -> int:
        return len(self.columns["x"])


class ClusterGatherer(Gatherer):
    """Keeps the members of every cluster."""

    reads = (
        "ra", "dec", "stellar_params_est", "stellar_params_err", "quality_flags", *CONFIDENCES,
    )  # fmt: skip
    joins = JOINS

    def __init__(self, clusters: Sequence[Cluster]) -> None:
        self.clusters = clusters
        self.parts: list[list[NDArray[np.float64]]] = [[] for _ in clusters]
        self.counts = np.zeros((len(clusters), 3), np.int64)

    def add(self, rows: Rows) -> None:
        """Take the next rows."""
        reliable = (rows["quality_flags"] < BASIC) & ~(confidences(rows) < MIN_CONFIDENCE).any(axis=1)
        motion = [rows.joined[n] for n in JOINS]
        for k, cluster in enumerate(self.clusters):
            x, y = offsets(rows["ra"], rows["dec"], cluster)
            distance = np.hypot(x, y)
            with np.errstate(invalid="ignore"):
                sky = rows.solved & (distance < cluster.radius) & (distance >= cluster.inner_radius)
                moving = sky & (np.hypot(motion[0] - cluster.pmra, motion[1] - cluster.pmdec) < cluster.pm_radius)
                uncertain = moving & reliable & (motion[3] > MIN_RELATIVE_ERROR * cluster.parallax)
            self.counts[k] += [sky.sum(), moving.sum(), (moving & reliable).sum()]
            inferred = [rows[f"stellar_params_{name}"][:, -1] for name in ("est", "err")]
            self.parts[k].append(np.stack([x, y, *motion[:2], *inferred, *motion[2:]], axis=1)[uncertain])

    def result(self) -> list[Members]:
        """Members of every cluster."""
        none = np.zeros((0, len(COLUMNS)))
        return [
            Members(cluster, dict(zip(COLUMNS, np.concatenate([none, *parts]).T, strict=True)), *counts)
            for cluster, parts, counts in zip(self.clusters, self.parts, self.counts.tolist(), strict=True)
        ]


def offsets(
    ra: NDArray[np.float64], dec: NDArray[np.float64], cluster: Cluster
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(star,) gnomonic offsets from a cluster's centre, east and north [deg]; NaN beyond 90 degrees."""
    star = unit_vectors(ra, dec)
    # The centre, and the directions east and north of it.
    axes = unit_vectors(cluster.ra + np.array([0.0, 90.0, 0.0]), np.array([cluster.dec, 0.0, cluster.dec + 90.0]))
    towards, east, north = axes @ star.T
    near = towards > 1e-6
    x, y = (np.degrees(np.divide(of, towards, out=np.full(len(ra), np.nan), where=near)) for of in (east, north))
    return x, y


def draw_clusters(all_members: Sequence[Members]) -> "drawing.Figure":
    """Sky, proper motions and parallaxes of every cluster."""
    figure, axes = drawing.panels(3, len(all_members), 10.2, 3.0 * len(all_members))
    for (sky, motion, parallax), members in zip(axes, all_members, strict=True):
        cluster, stars = members.cluster, members.columns
        drawing.dots(sky, stars["x"], stars["y"], 2.0)
        drawing.circle(sky, 0.0, 0.0, cluster.radius)
        drawing.circle(sky, 0.0, 0.0, cluster.inner_radius, ":")
        sky.set(aspect="equal", xlabel="east [°]", ylabel="north [°]", title=f"{cluster.name} ({len(members):,} stars)")
        sky.invert_xaxis()
        drawing.dots(motion, stars["pmra"], stars["pmdec"], 2.0)
        drawing.circle(motion, cluster.pmra, cluster.pmdec, cluster.pm_radius)
        motion.set(aspect="equal", xlabel="pmra [mas/yr]", ylabel="pmdec [mas/yr]", title="proper motions")
        shown = (("Gaia", stars["measured"], drawing.GREY), ("inferred", stars["inferred"], drawing.BLUE))
        reach = 5.0 * max(robust_scatter(values) for _, values, _ in shown)
        edges = np.linspace(cluster.parallax - reach, cluster.parallax + reach, 41)
        for text, values, colour in shown:
            parallax.hist(np.clip(values, edges[0], edges[-1]), edges, histtype="step", lw=1.5, color=colour,
                          label=f"{text} (scatter {robust_scatter(values):.3f})")  # fmt: skip
        parallax.axvline(cluster.parallax, color=drawing.ORANGE, ls=":", lw=1.2, label="cluster")
        parallax.set(xlabel="parallax [mas]", ylabel="stars", title="parallaxes")
        parallax.margins(y=0.4)  # room for the legend
        drawing.legend(parallax, 7.5, loc="upper left")
    return figure


def _start(run: Run) -> Task:
    assert run.clusters is not None
    require_columns(run, JOINS)
    gatherer = ClusterGatherer(read_clusters(run.clusters))
    return Task((gatherer,), lambda: _product(gatherer.result()))


def _product(found: list[Members]) -> Product:
    shown = [m for m in found if len(m) >= MIN_MEMBERS]
    if not shown:
        raise NotDrawnError(
            f"none of {len(found)} clusters has {MIN_MEMBERS} members in the catalogue (most: "
            f"{max(len(m) for m in found)} in {max(found, key=len).cluster.name})"
        )
    gone = [m.cluster.name for m in found if m not in shown]
    counts = "; ".join(
        f"{m.cluster.name}: {m.n_sky:,} on the sky, {m.n_motion:,} by proper motion, {m.n_reliable:,} reliable, "
        f"{len(m):,} shown" for m in shown
    )  # fmt: skip
    return Product(
        draw_clusters(shown),
        f"Members of {len(shown)} globular clusters on the sky, in proper motion and in parallax",
        f"Cluster members between the inner (dotted) and outer radius and within the circle in proper motion, with "
        f"quality_flags < 8 and no confidence below 0.5, whose Gaia parallax error exceeds {MIN_RELATIVE_ERROR} of the "
        f"cluster's parallax (dotted line). {counts}."
        + (f" Fewer than {MIN_MEMBERS} members: {', '.join(gone)}." if gone else ""),
        {
            "": {
                "cluster": Series([m.cluster.name for m in shown], "", "globular cluster"),
                "n": Series([len(m) for m in shown], "", "members shown"),
                "central_parallax": Series([m.cluster.parallax for m in shown], "mas", "from the table of clusters"),
                "median_inferred": Series([np.median(m.columns["inferred"]) for m in shown], "mas", "of the members"),
                "scatter_inferred": Series([robust_scatter(m.columns["inferred"]) for m in shown], "mas", "robust"),
                "median_measured": Series([np.median(m.columns["measured"]) for m in shown], "mas", "Gaia"),
                "scatter_measured": Series([robust_scatter(m.columns["measured"]) for m in shown], "mas", "Gaia, robust"),
            },
            "members": {
                "cluster": Series(np.repeat([m.cluster.name for m in shown], [len(m) for m in shown]), "", ""),
                **{n: Series(np.concatenate([m.columns[n] for m in shown]), *about) for n, about in COLUMNS.items()},
            },
        },
    )  # fmt: skip


CLUSTERS = Analysis(
    "clusters", "Fig. 18", "Parallaxes in globular clusters", _start, ("catalogue", "stars", "clusters")
)  # fmt: skip
