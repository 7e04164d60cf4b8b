"""xpbayes: stellar parameters with honest uncertainties from Gaia XP spectra.

The verbs of the command line are functions here; they are imported when first used, so that ``import xpbayes`` is
quick.

>>> import xpbayes
>>> xpbayes.__version__
'0.1.0'
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "train": "xpbayes.pipeline",
    "infer": "xpbayes.pipeline",
    "infer_parts": "xpbayes.pipeline",
    "verify": "xpbayes.pipeline",
    "analyse": "xpbayes.analysis.pages.gallery",
    "sample": "xpbayes.pipeline_posterior",
    "compare": "xpbayes.pipeline_posterior",
    "check": "xpbayes.pipeline_posterior",
    "uncertainty": "xpbayes.pipeline_posterior",
    "export": "xpbayes.pipeline",
    "confidence": "xpbayes.pipeline",
    "fit": "xpbayes.pipeline",
    "dust_map": "xpbayes.pipeline",
    "predict_flux": "xpbayes.pipeline",
    "report": "xpbayes.pipeline",
    "demo": "xpbayes.pipeline",
    "fetch_apogee": "xpbayes.pipeline",
    "bundled_stars": "xpbayes.pipeline",
    "TrainedModel": "xpbayes.production.model_file",
    "load_model": "xpbayes.production.model_file",
    "save_model": "xpbayes.production.model_file",
    "Spectra": "xpbayes.data.spectra",
    "read_star_table": "xpbayes.data.spectra",
    "write_star_table": "xpbayes.data.spectra",
    "read_catalogue": "xpbayes.production.table",
    "TrainingConfig": "xpbayes.config",
    "InferenceConfig": "xpbayes.config",
    "InputError": "xpbayes.errors",
    "QualityFlag": "xpbayes.schema",
}

__all__ = [
    "InferenceConfig",
    "InputError",
    "QualityFlag",
    "Spectra",
    "TrainedModel",
    "TrainingConfig",
    "__version__",
    "analyse",
    "bundled_stars",
    "check",
    "compare",
    "confidence",
    "demo",
    "dust_map",
    "export",
    "fetch_apogee",
    "fit",
    "infer",
    "infer_parts",
    "load_model",
    "predict_flux",
    "read_catalogue",
    "read_star_table",
    "report",
    "sample",
    "save_model",
    "train",
    "uncertainty",
    "verify",
    "write_star_table",
]

if TYPE_CHECKING:
    from xpbayes.analysis.pages.gallery import analyse
    from xpbayes.config import InferenceConfig, TrainingConfig
    from xpbayes.data.spectra import Spectra, read_star_table, write_star_table
    from xpbayes.errors import InputError
    from xpbayes.pipeline import (
        bundled_stars,
        confidence,
        demo,
        dust_map,
        export,
        fetch_apogee,
        fit,
        infer,
        infer_parts,
        predict_flux,
        report,
        train,
        verify,
    )
    from xpbayes.pipeline_posterior import check, compare, sample, uncertainty
    from xpbayes.production.model_file import TrainedModel, load_model, save_model
    from xpbayes.production.table import read_catalogue
    from xpbayes.schema import QualityFlag


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'xpbayes' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
