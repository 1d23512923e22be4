"""medjax: train one segmentation model on partly annotated scans, predict masks, evaluate them.

From Python: `medjax.predict(image, model)` and `medjax.Predictor(model)`, see `medjax/api.py`; both
are imported on first use.
"""

import importlib

__version__ = "0.1.0"
__all__ = ["Predictor", "predict"]


def __getattr__(name: str):
    if name in __all__:
        return getattr(importlib.import_module("medjax.api"), name)
    raise AttributeError(f"module 'medjax' has no attribute {name!r}")
