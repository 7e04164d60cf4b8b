"""xpbayes: stellar parameters with honest uncertainties from Gaia XP spectra.

The verbs of the command line are functions here; they are imported when first used, so that ``import xpbayes`` is
quick.

>>> import xpbayes
>>> xpbayes.__version__
'0.1.0'
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
logging.getLogger(__name__).addHandler(logging.NullHandler())  # nothing is said to who does not listen

__all__ = [
    "Fit",
    "InferenceConfig",
    "InputError",
    "Model",
    "QualityFlag",
    "Spectra",
    "TrainedModel",
    "TrainingConfig",
    "__version__",
    "adapt",
    "analyse",
    "bundled_stars",
    "catalogue_about",
    "check",
    "compare",
    "confidence",
    "demo",
    "doctor",
    "dust_map",
    "export",
    "fetch_apogee",
    "fit",
    "flat_table",
    "infer",
    "infer_parts",
    "load",
    "load_model",
    "predict_flux",
    "predict_fluxes",
    "prepare",
    "progress_shown",
    "read_catalogue",
    "read_star_table",
    "report",
    "sample",
    "save_model",
    "simulate",
    "star",
    "train",
    "transfer",
    "uncertainty",
    "verify",
    "write_star_table",
]

_MODULES = {
    "api.fit": ("Fit",),
    "api.model": ("Model", "adapt", "load", "load_model", "train"),
    "api.spectra": ("Spectra",),
    "archive.prepare": ("prepare",),
    "config": ("InferenceConfig", "TrainingConfig"),
    "data.spectra_file": ("read_star_table", "write_star_table"),
    "errors": ("InputError",),
    "production.flat": ("flat_table",),
    "production.model_file": ("TrainedModel", "save_model"),
    "production.table": ("catalogue_about", "read_catalogue"),
    "progress": ("progress_shown",),
    "runs.fetch": ("bundled_stars", "fetch_apogee"),
    "runs.predict": ("predict_flux", "predict_fluxes"),
    "schema": ("QualityFlag",),
    "simulation.survey": ("simulate",),
}
_WHERE = {name: f"runs.{name}" for name in __all__} | {name: at for at, names in _MODULES.items() for name in names}
"""Where a name comes from: most verbs are of the module in `runs` that is called like them."""

if TYPE_CHECKING:
    from xpbayes.api.fit import Fit
    from xpbayes.api.model import Model, adapt, load, load_model, train
    from xpbayes.api.spectra import Spectra
    from xpbayes.archive.prepare import prepare
    from xpbayes.config import InferenceConfig, TrainingConfig
    from xpbayes.data.spectra_file import read_star_table, write_star_table
    from xpbayes.errors import InputError
    from xpbayes.production.flat import flat_table
    from xpbayes.production.model_file import TrainedModel, save_model
    from xpbayes.production.table import catalogue_about, read_catalogue
    from xpbayes.progress import progress_shown
    from xpbayes.runs.analyse import analyse
    from xpbayes.runs.check import check
    from xpbayes.runs.compare import compare
    from xpbayes.runs.confidence import confidence
    from xpbayes.runs.demo import demo
    from xpbayes.runs.doctor import doctor
    from xpbayes.runs.dust_map import dust_map
    from xpbayes.runs.export import export
    from xpbayes.runs.fetch import bundled_stars, fetch_apogee
    from xpbayes.runs.fit import fit
    from xpbayes.runs.infer import infer
    from xpbayes.runs.infer_parts import infer_parts
    from xpbayes.runs.predict import predict_flux, predict_fluxes
    from xpbayes.runs.report import report
    from xpbayes.runs.sample import sample
    from xpbayes.runs.star import star
    from xpbayes.runs.transfer import transfer
    from xpbayes.runs.uncertainty import uncertainty
    from xpbayes.runs.verify import verify
    from xpbayes.schema import QualityFlag
    from xpbayes.simulation.survey import simulate


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"xpbayes.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'xpbayes' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
