"""medjax: train one segmentation model on partly annotated scans, predict masks, evaluate them.

From Python: `medjax.predict(image, model)` and `medjax.Predictor(model)`, see `medjax/api.py`;
`medjax.config`, `train`, `load` and `stream`, see `medjax/experiment.py`. All are imported
on first use.
"""

import importlib

__version__ = "0.1.0"
__all__ = ["Predictor", "config", "load", "predict", "stream", "train"]

_PLACES = {"Predictor": "medjax.api", "predict": "medjax.api"}


def __getattr__(name: str):
    if name == "train":  # the package of the loop, which can be called
        return importlib.import_module("medjax.train")
    if name in __all__:
        return getattr(importlib.import_module(_PLACES.get(name, "medjax.experiment")), name)
    raise AttributeError(f"module 'medjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
