"""Directions on the sky."""

import numpy as np
from numpy.typing import NDArray


def unit_vectors(longitude: NDArray[np.floating], latitude: NDArray[np.floating]) -> NDArray[np.float64]:
    """(..., 3) Cartesian directions of (...) longitudes and latitudes [deg], of whatever system."""
    lon, lat = np.radians(longitude), np.radians(latitude)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)
