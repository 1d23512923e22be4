"""Training: loop, state, update, checkpoints, log; and `medjax.train(config, workdir)`.

The package can be called, because it has the name of the function that a user looks for; see
`medjax.experiment.train`.
"""

import importlib
import sys
import types
from typing import Any


class _Callable(types.ModuleType):
    def __call__(self, config: Any, workdir: Any = "", **options: Any) -> Any:
        """See `medjax.experiment.train`."""
        return importlib.import_module("medjax.experiment").train(config, workdir, **options)


sys.modules[__name__].__class__ = _Callable
