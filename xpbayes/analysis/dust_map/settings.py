"""Settings of a dust map; the defaults are the paper's cuts (ZGR23 Section 5.4)."""

from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from xpbayes.config import FrozenSettings
from xpbayes.errors import InputError


class DustMapConfig(FrozenSettings):
    """Which stars make the map, on which pixels and distance bins, with which mean."""

    method: Literal["bins", "joint"] = Field(
        "bins",
        description="'bins': the paper's inverse-variance mean of the stars whose 1/parallax falls in a bin; 'joint': "
        "every star is shared between bins by its full (E, parallax) covariance",
    )
    remove_prior: bool = Field(
        True,
        description="undo the pull of the flat priors on E and parallax on the mode (+1 sigma for a dust-free star); "
        "false: the catalogue's values as they are, which is what the paper averaged",
    )
    nsides: tuple[int, ...] = Field((256, 128, 64), description="HEALPix resolutions, finest first")
    min_stars: int = Field(10, ge=2, description="stars that a pixel needs at a resolution")
    sky_edges: tuple[float, ...] = Field(
        (0.0, 0.5, 1.0, 2.0, 5.0), description="distance bins of the sky maps [kpc]; the paper does not print its four"
    )
    profile_bins: int = Field(40, ge=2, description="sinh-spaced bins of the profile and the bird's-eye view")
    profile_reach: float = Field(5.0, gt=0, description="far end of the last of them [kpc]")
    max_reduced_chi2: float = Field(5.0, gt=0, description="greatest chi2_opt / dof")
    max_extinction: float = Field(10.0, gt=0, description="greatest E [mag]")
    max_extinction_error: float = Field(0.04, gt=0, description="greatest error of E [mag]")
    sky_max_parallax_error: float = Field(0.1, gt=0, description="greatest sigma_plx / plx for the sky maps")
    profile_max_parallax_error: float = Field(0.33, gt=0, description="the same for the profile and bird's-eye view")
    max_height: float = Field(0.4, gt=0, description="the bird's-eye view integrates |z| up to this [kpc]")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.nsides or any(n < 1 or n & (n - 1) for n in self.nsides):
            raise ValueError("nsides must be powers of two")
        if list(self.nsides) != sorted(set(self.nsides), reverse=True) or self.nsides[0] > 4096:
            raise ValueError("nsides must fall from the finest, at most 4096, to the coarsest")
        edges = self.sky_edges
        if len(edges) < 2 or edges[0] < 0 or any(b <= a for a, b in zip(edges, edges[1:], strict=False)):
            raise ValueError("sky_edges must rise from a distance of 0 or more")
        return self

    @property
    def profile_edges(self) -> NDArray[np.float64]:
        """(bin + 1,) edges [kpc] of the fine bins: sinh(n arcsinh(reach) / bins), as under ZGR23 Eq. 30."""
        return np.sinh(np.arange(self.profile_bins + 1) * np.arcsinh(self.profile_reach) / self.profile_bins)


def dust_map_config(method: str, keep_prior: bool, edges: str | None, min_stars: int) -> DustMapConfig:
    """Settings from the command line's words; InputError for edges that are none."""
    values: dict[str, Any] = {"method": method, "remove_prior": not keep_prior, "min_stars": min_stars}
    if edges is not None:
        try:
            values["sky_edges"] = tuple(float(part) for part in edges.split(","))
        except ValueError as error:
            raise InputError(f"the edges '{edges}' are not distances in kpc such as 0,0.5,1,2,5") from error
    try:
        return DustMapConfig(**values)
    except ValidationError as error:
        raise InputError(f"the dust map's settings do not fit: {error.errors()[0]['msg']}") from error
