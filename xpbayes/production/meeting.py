"""Whether a model, stars and a catalogue belong together: channels, instrument, data release.

Every run asks here before it lets two of them meet. Stars of another release than the model's are refused, or brought to
the model's instrument by its transfer, with a warning.
"""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from xpbayes.channels import Channels
from xpbayes.data.spectra import Spectra
from xpbayes.instrument.instrument import InstrumentId, same_release
from xpbayes.instrument.transfer import Transfer, transferred
from xpbayes.production.model_file import TrainedModel
from xpbayes.schema import release_of

log = logging.getLogger(__name__)


def require_fitting(model: TrainedModel, channels: Channels, instrument: InstrumentId, where: str) -> None:
    """Refuse stars that a model cannot take; `where` is what they are called.

    Raises:
        InputError: they have other XP samples or a band at another wavelength, or XP samples of another instrument from
            which the model has no transfer.
    """
    model.channels.require_same_spectra(channels, "the model", where)
    if model.channels.n_xp and (model.transfer is None or model.transfer.source != instrument):
        model.instrument.require_same(instrument, "the model", where)


def warn_of_transfer(model: TrainedModel, instrument: InstrumentId, where: str) -> None:
    """Say, once a run, that stars are not of the release that the model was trained on."""
    about = model.card.get("confidence") or {}
    learned = InstrumentId.from_json(about["instrument"]) if about.get("instrument") else model.instrument
    if model.confidence is not None and learned.release != instrument.release:
        log.warning(
            f"{where}: is of {instrument.title}, and the confidence classifiers were learned on stars of {learned.title}; "
            f"train them again with 'xpbayes confidence' on stars of {instrument.title}"
        )
    if model.transfer is not None and model.transfer.source == instrument != model.instrument:
        log.warning(
            f"{where}: is of {instrument.title} and the model of {model.instrument.title}; stars are brought there by a "
            f"transfer learned from {model.transfer.n_pairs} pairs, until a model is trained on {instrument.title}"
        )


def say_what_is_null(model: TrainedModel) -> None:
    """Say, once a run, which columns a model cannot fill."""
    if model.trust is None:
        log.info("p_outside_model and reliability are null: the model was trained without them; train it again")


def stars_for(model: TrainedModel, table: Spectra, where: str, *, quiet: bool = False) -> Spectra:
    """Stars as a model takes them, on its bands and instrument; `require_fitting` says which it does not.

    `quiet`: say nothing of a transfer, as whoever reads many tables says it once.
    """
    require_fitting(model, table.channels, table.instrument, where)
    table = table.on(model.channels)
    if not quiet:
        warn_of_transfer(model, table.instrument, where)
    if model.transfer is None or not model.channels.n_xp:
        return table
    moved, n_outside = moved_by(model.transfer, table)
    if n_outside:
        log.log(
            logging.DEBUG if quiet else logging.WARNING,
            f"{where}: {n_outside} of {len(table)} stars are outside of the colours and magnitudes of the transfer's pairs",
        )
    return moved


def moved_by(transfer: Transfer, table: Spectra) -> tuple[Spectra, int]:
    """Stars on the transfer's target instrument, and how many lie outside of its pairs; unchanged if not of its source."""
    if table.instrument != transfer.source:
        return table, 0
    n = table.channels.n_xp
    flux, whitening, n_outside = transferred(transfer, table.flux[:, :n], table.xp_whitening)
    together = np.concatenate([flux, table.flux[:, n:]], axis=1)
    return table.replace(flux=together, xp_whitening=whitening, instrument=transfer.target), n_outside


def require_same_stars(about: Mapping[str, Any], instrument: InstrumentId, catalogue: str, stars: str) -> None:
    """Refuse a catalogue and stars of different data releases: their source_ids are not the same."""
    same_release(instrument.release, release_of(about), stars, catalogue)
