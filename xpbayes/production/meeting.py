"""Whether a model, stars and a catalogue belong together: channels, instrument, data release.

Every run asks here before it lets two of them meet.
"""

from collections.abc import Mapping
from typing import Any

from xpbayes.channels import Channels
from xpbayes.data.spectra import Spectra
from xpbayes.instrument.instrument import InstrumentId, same_release
from xpbayes.production.model_file import TrainedModel
from xpbayes.schema import release_of


def require_fitting(model: TrainedModel, channels: Channels, instrument: InstrumentId, where: str) -> None:
    """Refuse stars that a model cannot take.

    Args:
        model: the model.
        channels: of the stars.
        instrument: of the stars; it does not matter where there are no XP samples.
        where: what the stars are called.

    Raises:
        InputError: they have other channels, or are of another instrument.
    """
    model.channels.require_same(channels, "the model", where)
    if model.channels.n_xp:
        model.instrument.require_same(instrument, "the model", where)


def stars_for(model: TrainedModel, table: Spectra, where: str) -> Spectra:
    """Stars as a model takes them; `require_fitting` says which it does not."""
    require_fitting(model, table.channels, table.instrument, where)
    return table


def require_same_stars(about: Mapping[str, Any], instrument: InstrumentId, catalogue: str, stars: str) -> None:
    """Refuse a catalogue and stars of different data releases: their source_ids are not the same."""
    same_release(instrument.release, release_of(about), stars, catalogue)
