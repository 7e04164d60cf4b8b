import numpy as np
import pytest

from xpbayes.channels import Channels, xp_channels
from xpbayes.errors import InputError


def test_paper_set_has_66_channels_in_order():
    channels = xp_channels()
    assert len(channels) == 66 and channels.n_xp == 61
    assert channels.names[0] == "xp392" and channels.names[60] == "xp992"
    assert channels.band_names == ("J", "H", "Ks", "W1", "W2")
    assert np.all(np.diff(channels.wavelengths) > 0)


def test_json_round_trip_is_exact():
    channels = xp_channels(("J", "Ks"))
    assert Channels.from_json(channels.to_json()) == channels


def test_difference_is_named():
    with pytest.raises(
        InputError, match=r"stars\.parquet has 64 channels and the model has 66: 2 missing \(first: W1\)"
    ):
        xp_channels().require_same(xp_channels(("J", "H", "Ks")), "the model", "stars.parquet")


def test_reordered_channels_are_refused():
    channels = xp_channels(("J", "H"))
    swapped = Channels((*channels.names[:-2], "H", "J"), channels.wavelength_nm, 61)
    with pytest.raises(InputError, match="another order"):
        channels.require_same(swapped, "a", "b")


def test_unknown_band_is_refused():
    with pytest.raises(InputError, match="unknown band Z"):
        xp_channels(("Z",))
