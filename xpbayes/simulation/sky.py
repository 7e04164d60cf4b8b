"""A known three-dimensional dust distribution - an exponential disc with clouds - and stars placed inside it.

In: parameters of the dust; for `dusty_sky`, a region of the sky and how bright each star would look. Out: E along any
line of sight, and a `Sky` for the simulator: what a dust map made from the simulated stars is compared with.
Positions are Galactic and Cartesian, Sun at the origin, x towards the Galactic centre, kpc.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from xpbayes.config import Recipe
from xpbayes.data.directions import unit_vectors
from xpbayes.data.json_file import read_json, write_json
from xpbayes.errors import InputError
from xpbayes.production.model_file import TrainedModel
from xpbayes.simulation.stars import BRIGHT_G, FAINT_G, MIN_EXTINCTION, Magnitude, Placement, Sky
from xpbayes.simulation.survey import simulate

SKY_FILE = "sky.json"
VERSION = 1
"""Of that file."""
SUN_RADIUS_KPC = 8.2
"""Distance of the Sun from the Galactic centre (GRAVITY Collaboration 2019: 8.178 +- 0.026 kpc)."""
DISC_NODES, DISC_WEIGHTS = np.polynomial.legendre.leggauss(24)
"""Along a line of sight through a midplane Sun |z| has no kink: 24 nodes give E of the disc to 1e-6."""
STAR_HEIGHT_KPC, STAR_LENGTH_KPC = 0.3, 2.6
"""Scale height and scale length of the stars."""
MIN_DISTANCE_KPC, MAX_DISTANCE_KPC = 0.03, 6.0
CANDIDATES = 16
"""Distances tried along a star's line of sight."""
MAX_ROUNDS = 30
"""Lines of sight tried for a star before it is taken to be invisible everywhere in the region."""
CLOUD_EDGE = 6.0
"""Beyond so many radii a cloud is nothing: 1e-8 of its depth."""
BLOCK = 20_000
"""Points handled at once: memory stays small."""


@dataclass(frozen=True)
class Dust:
    """Extinction density: a double-exponential disc plus spherical Gaussian clouds."""

    disc_density: float  # E per kpc in the midplane at the Sun [mag/kpc]
    disc_height: float  # scale height [kpc]
    disc_length: float  # scale length in Galactocentric radius [kpc]
    cloud_position: NDArray[np.float64]  # (cloud, 3) x, y, z [kpc]
    cloud_radius: NDArray[np.float64]  # (cloud,) standard deviation of the Gaussian [kpc]
    cloud_depth: NDArray[np.float64]  # (cloud,) E along the full line through the centre [mag]

    def extinction(
        self, longitude: NDArray[np.float64], latitude: NDArray[np.float64], distance: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """E in front of points at (point,) Galactic l and b [deg], distance [kpc]: the density's integral from the Sun."""
        towards = unit_vectors(np.asarray(longitude, np.float64), np.asarray(latitude, np.float64))
        r = np.asarray(distance, np.float64)
        blocks = [self._integral(towards[i : i + BLOCK], r[i : i + BLOCK]) for i in range(0, len(r), BLOCK)]
        return np.concatenate(blocks) if blocks else np.zeros(0)

    def _integral(self, towards: NDArray[np.float64], r: NDArray[np.float64]) -> NDArray[np.float64]:
        from scipy.special import erf

        out = np.zeros_like(r)
        for node, weight in zip(DISC_NODES, DISC_WEIGHTS, strict=True):
            radius, height = radius_and_height(towards, 0.5 * r * (1.0 + node))
            disc = np.exp(-(radius - SUN_RADIUS_KPC) / self.disc_length - height / self.disc_height)
            out += weight * 0.5 * r * (self.disc_density * disc)
        # Only clouds near the cone that holds all of these lines of sight can matter.
        axis = towards.mean(axis=0)
        axis /= max(np.linalg.norm(axis), 1e-12)
        opening = np.arccos(np.clip((towards @ axis).min(), -1.0, 1.0))
        far = np.linalg.norm(self.cloud_position, axis=1)
        reach = CLOUD_EDGE * self.cloud_radius
        off_axis = np.arccos(np.clip(self.cloud_position @ axis / far, -1.0, 1.0))
        inside = off_axis <= opening + np.arcsin(np.clip(reach / far, 0.0, 1.0))
        inside |= reach >= far
        position, radius, depth = self.cloud_position[inside], self.cloud_radius[inside], self.cloud_depth[inside]
        nearest = towards @ position.T  # (point, cloud) distance of closest approach to the centre
        miss2 = (position**2).sum(axis=1) - nearest**2
        point, cloud = np.nonzero(miss2 < (CLOUD_EDGE * radius) ** 2)
        closest, width = nearest[point, cloud], np.sqrt(2.0) * radius[cloud]
        column = erf((r[point] - closest) / width) + erf(closest / width)
        column *= 0.5 * depth[cloud] * np.exp(-0.5 * miss2[point, cloud] / radius[cloud] ** 2)
        return out + np.bincount(point, column, minlength=len(r))

    def write(self, path: Path) -> Path:
        """Write the parameters as JSON: with them the truth is known everywhere, not only at the stars."""
        about = {"kind": "dust", "version": VERSION, **{k: np.asarray(v).tolist() for k, v in asdict(self).items()}}
        write_json(about, path)
        return path

    @classmethod
    def read(cls, path: Path) -> "Dust":
        """Read what `write` wrote; InputError if it is something else."""
        advice = "name the sky.json of a simulated survey"
        kept = read_json(path, _KeptDust, advice, VERSION)
        clouds = {n: np.asarray(getattr(kept, n), np.float64) for n in ("cloud_radius", "cloud_depth")}
        position = np.asarray(kept.cloud_position, np.float64).reshape(-1, 3)
        if not len(position) == len(clouds["cloud_radius"]) == len(clouds["cloud_depth"]):
            raise InputError(f"{path}: is damaged (its clouds have no radius or depth each); {advice}")
        return cls(kept.disc_density, kept.disc_height, kept.disc_length, position, **clouds)


class _KeptDust(BaseModel):
    """A dust distribution as a file holds it."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    kind: Literal["dust"]
    version: int = VERSION
    disc_density: float
    disc_height: float
    disc_length: float
    cloud_position: list[tuple[float, float, float]]
    cloud_radius: list[float]
    cloud_depth: list[float]


def radius_and_height(
    towards: NDArray[np.float64], r: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Galactocentric radius and height over the midplane [kpc] at (...) distances in (..., 3) directions."""
    return np.hypot(SUN_RADIUS_KPC - towards[..., 0] * r, towards[..., 1] * r), np.abs(towards[..., 2] * r)


def disc_with_clouds(seed: int, n_clouds: int = 1500, reach_kpc: float = 5.0) -> Dust:
    """Draw a dust distribution that looks like the Solar neighbourhood, its clouds 0.1 kpc to `reach_kpc` from the Sun."""
    disc_height = 0.12  # [kpc]; clouds keep to half of it
    rng = np.random.default_rng(seed)
    radius = np.sqrt(rng.uniform(0.1**2, reach_kpc**2, n_clouds))
    angle = rng.uniform(0.0, 2.0 * np.pi, n_clouds)
    position = np.stack(
        [radius * np.cos(angle), radius * np.sin(angle), rng.normal(0.0, 0.5 * disc_height, n_clouds)], axis=1
    )
    return Dust(
        disc_density=0.15,
        disc_height=disc_height,
        disc_length=3.5,
        cloud_position=position,
        cloud_radius=np.exp(rng.uniform(np.log(0.01), np.log(0.05), n_clouds)),
        cloud_depth=rng.lognormal(np.log(0.2), 0.6, n_clouds),
    )


@dataclass(frozen=True)
class Region:
    """A round piece of the sky: Galactic l and b of its centre and radius [deg]; the whole sky has radius 180."""

    longitude: float = 0.0
    latitude: float = 0.0
    radius: float = 180.0

    def __post_init__(self) -> None:
        numbers = (self.longitude, self.latitude, self.radius)
        if not np.isfinite(numbers).all() or abs(self.latitude) > 90 or not 0 < self.radius <= 180:
            raise InputError(
                f"the region {self.longitude:g}, {self.latitude:g}, {self.radius:g} is none: it is l, b and a radius in "
                f"degrees, b within -90 ... 90 and the radius within 0 ... 180"
            )

    @classmethod
    def parse(cls, text: str) -> "Region":
        """Read "l,b,radius" in degrees."""
        try:
            longitude, latitude, radius = (float(part) for part in text.split(","))
        except ValueError as error:
            raise InputError(f"the region '{text}' is not 'l,b,radius' in degrees, such as 80,0,6") from error
        return cls(longitude, latitude, radius)

    def draw(self, n: int, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Draw n directions, uniform on the region: Galactic l and b [deg]."""
        cosine = rng.uniform(np.cos(np.radians(self.radius)), 1.0, n)
        sine, angle = np.sqrt(1.0 - cosine**2), rng.uniform(0.0, 2.0 * np.pi, n)
        about_pole = np.stack([sine * np.cos(angle), sine * np.sin(angle), cosine], axis=1)
        tilt, turn = np.radians(90.0 - self.latitude), np.radians(self.longitude)
        down = np.array([[np.cos(tilt), 0, np.sin(tilt)], [0, 1, 0], [-np.sin(tilt), 0, np.cos(tilt)]])
        around = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
        x, y, z = (around @ down @ about_pole.T).clip(-1.0, 1.0)
        return np.degrees(np.arctan2(y, x)) % 360.0, np.degrees(np.arcsin(z))


def dusty_sky(dust: Dust, region: Region) -> Sky:
    """Build a `Sky` whose stars stand in a Galactic disc and are dimmed by this dust.

    A star stands only where it would be bright enough for the survey behind the dust of that very place: stars behind
    clouds go missing as they do in reality.
    """

    def place(n: int, magnitude: Magnitude, rng: np.random.Generator) -> Placement:
        import astropy.units as u
        from astropy.coordinates import SkyCoord

        place = np.zeros((n, 3))
        extinction = np.full(n, MIN_EXTINCTION)
        homeless = np.arange(n)
        for last in range(MAX_ROUNDS + 1):
            m = len(homeless)
            lon, lat = (angle.reshape(m, CANDIDATES) for angle in region.draw(m * CANDIDATES, rng))
            r = np.exp(rng.uniform(np.log(MIN_DISTANCE_KPC), np.log(MAX_DISTANCE_KPC), (m, CANDIDATES)))
            e = np.maximum(dust.extinction(lon.ravel(), lat.ravel(), r.ravel()).reshape(r.shape), MIN_EXTINCTION)
            outside = _outside_limits(e, r, homeless, n, magnitude)
            radius, height = radius_and_height(unit_vectors(lon, lat), r)
            # Distances are drawn evenly in ln r, where the number of stars goes as r^3 times their density.
            weight = (outside == 0) * r**3 * np.exp(-radius / STAR_LENGTH_KPC - height / STAR_HEIGHT_KPC)
            total = weight.sum(axis=1)
            pick = (weight.cumsum(axis=1) < rng.random((m, 1)) * total[:, None]).sum(axis=1).clip(0, CANDIDATES - 1)
            settled = total > 0
            if last == MAX_ROUNDS:  # invisible anywhere in the region: where it misses the limits by least
                pick = np.where(settled, pick, outside.argmin(axis=1))
                settled[:] = True
            row, column = np.flatnonzero(settled), pick[settled]
            place[homeless[row]] = np.stack([a[row, column] for a in (lon, lat, r)], axis=1)
            extinction[homeless[row]] = e[row, column]
            homeless = homeless[~settled]
            if not len(homeless):
                break
        icrs = SkyCoord(l=place[:, 0] * u.deg, b=place[:, 1] * u.deg, frame="galactic").icrs
        return Placement(ra=icrs.ra.deg, dec=icrs.dec.deg, extinction=extinction, parallax=1.0 / place[:, 2])

    return place


def _outside_limits(
    e: NDArray[np.float64], r: NDArray[np.float64], which: NDArray[np.int64], n: int, magnitude: Magnitude
) -> NDArray[np.float64]:
    """(star, candidate) magnitudes by which stars `which` of n miss the survey's limits; 0 inside."""
    out = np.zeros(r.shape)
    everyone_e, everyone_parallax = np.full(n, MIN_EXTINCTION), np.ones(n)
    for k in range(r.shape[1]):
        everyone_e[which], everyone_parallax[which] = e[:, k], 1.0 / r[:, k]
        g = magnitude(everyone_e, everyone_parallax)[which]
        out[:, k] = np.maximum(BRIGHT_G - g, 0.0) + np.maximum(g - FAINT_G, 0.0)
    return out


def simulate_sky(
    model: TrainedModel | Path, n_stars: int, out: Path, recipe: Recipe, region: str | None = None
) -> list[Path]:
    """Simulate a survey, as `survey.simulate`, inside dust that its seed determines, which goes beside it as sky.json.

    The region is "l,b,radius" in degrees, the whole sky if None.
    """
    dust = disc_with_clouds(recipe.seed)
    sky = dusty_sky(dust, Region() if region is None else Region.parse(region))
    survey, truth, *files = simulate(model, n_stars, out, recipe, sky)
    return [survey, truth, dust.write(out / SKY_FILE), *files]
