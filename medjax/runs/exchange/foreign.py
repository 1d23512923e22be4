"""The way back: a run becomes the weight file of the program that its weights came from.

In: a run made by `medjax import` from a family that knows its way back, or trained from one, and
the tensors kept at the import. Out: a safetensors file whose tensors have the names, shapes and
bytes of the other program.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from medjax import files
from medjax.errors import ModelError, UsageError
from medjax.train import checkpoint as checkpoints
from medjax.weights import accounts

EXTRAS = "extras.safetensors"  # in a run folder: tensors that are no parameters of the network


def keep(out: Path, family: str, prefix: str, extras: Mapping[str, np.ndarray]) -> None:
    """Writes the tensors that the network does not use, and what stood before their names."""
    from safetensors.numpy import save

    arrays = {name: np.ascontiguousarray(value) for name, value in extras.items()}
    facts = {"family": family, "prefix": prefix}
    files.write_bytes(out / EXTRAS, save(arrays, facts))


def kept(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(tensors, facts) of `keep`.

    Raises: `ModelError` for a damaged file; `UsageError` if there is none.
    """
    from safetensors import safe_open

    if not path.is_file():
        raise UsageError(
            "the tensors kept at the import are missing",
            path=path,
            fix=f"give --extras RUN/{EXTRAS} of the run that `medjax import` made",
        )
    try:
        with safe_open(path, "np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except Exception as error:
        raise ModelError(f"not a readable safetensors file: {error}", path=path) from error


def families() -> list[str]:
    """The families that know their way back."""
    every = importlib.import_module("medjax.weights.families")
    names = sorted(module.name for module in pkgutil.iter_modules(every.__path__))
    return [n for n in names if hasattr(importlib.import_module(f"{every.__name__}.{n}"), "export")]


def export(
    run: Path,
    out: Path,
    family: str,
    *,
    extras: Path | None = None,
    checkpoint: str = "",
    overwrite: bool = False,
) -> str:
    """Writes a run's weights as a file of `family`; returns the text to print.

    Args:
      extras: file of the tensors kept at the import; default: that of the run.

    Raises: `UsageError` for families without a way back, names that cannot be used and missing
      tensors; `ModelError` for parameters that the file has no place for.
    """
    from safetensors.numpy import save

    if family not in families():
        raise UsageError(f"no way back to the family {family!r}", expected=", ".join(families()))
    if out.suffix != ".safetensors" or (out.exists() and not overwrite):
        raise UsageError(
            "unusable name",
            path=out,
            expected="a new name that ends in .safetensors",
            fix="choose another name, or add --overwrite",
        )
    tensors, facts = kept(extras or run / EXTRAS)
    params = checkpoints.read_params(run, checkpoint or "last")
    module = importlib.import_module(f"medjax.weights.families.{family}")
    found = module.export(params, tensors, facts.get("prefix", ""))
    files.write_bytes(out, save(found, {"format": "pt"}))
    values = sum(array.size for array in found.values())
    return f"{out}  {len(found)} tensors, {values:,} values ({accounts.some(sorted(found))})"
