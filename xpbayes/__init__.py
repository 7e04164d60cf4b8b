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

_WHERE = {
    "train": "xpbayes.api.model",
    "adapt": "xpbayes.api.model",
    "infer": "xpbayes.runs.infer",
    "infer_parts": "xpbayes.runs.infer_parts",
    "verify": "xpbayes.runs.verify",
    "analyse": "xpbayes.runs.analyse",
    "sample": "xpbayes.runs.sample",
    "compare": "xpbayes.runs.compare",
    "check": "xpbayes.runs.check",
    "uncertainty": "xpbayes.runs.uncertainty",
    "transfer": "xpbayes.runs.transfer",
    "doctor": "xpbayes.runs.doctor",
    "export": "xpbayes.runs.export",
    "confidence": "xpbayes.runs.confidence",
    "fit": "xpbayes.runs.fit",
    "star": "xpbayes.runs.star",
    "dust_map": "xpbayes.runs.dust_map",
    "predict_flux": "xpbayes.runs.predict",
    "report": "xpbayes.runs.report",
    "demo": "xpbayes.runs.demo",
    "fetch_apogee": "xpbayes.runs.fetch",
    "bundled_stars": "xpbayes.runs.fetch",
    "load": "xpbayes.api.model",
    "Model": "xpbayes.api.model",
    "Fit": "xpbayes.api.fit",
    "predict_fluxes": "xpbayes.runs.predict",
    "prepare": "xpbayes.archive.prepare",
    "simulate": "xpbayes.simulation.survey",
    "TrainedModel": "xpbayes.production.model_file",
    "load_model": "xpbayes.api.model",
    "save_model": "xpbayes.production.model_file",
    "Spectra": "xpbayes.api.spectra",
    "read_star_table": "xpbayes.data.spectra_file",
    "write_star_table": "xpbayes.data.spectra_file",
    "read_catalogue": "xpbayes.production.table",
    "catalogue_about": "xpbayes.production.table",
    "flat_table": "xpbayes.production.flat",
    "TrainingConfig": "xpbayes.config",
    "InferenceConfig": "xpbayes.config",
    "InputError": "xpbayes.errors",
    "QualityFlag": "xpbayes.schema",
    "progress_shown": "xpbayes.progress",
}

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

if TYPE_CHECKING:
    from xpbayes.api.fit import Fit
    from xpbayes.api.model import Model, adapt, load, load_model, train
    from xpbayes.archive.prepare import prepare
    from xpbayes.config import InferenceConfig, TrainingConfig
    from xpbayes.data.spectra import Spectra
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
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'xpbayes' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
