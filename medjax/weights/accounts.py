"""Converts named tensors of another program to a parameter tree, by a table.

A family is a module with a table: rows of (pattern over source names, path in our tree, layout). To
add one, write the rows, the names that are ignored and why, and the parameters that no file of the
family holds and why; `convert` accounts for every tensor and parameter and refuses any that remain.
`read` reads PyTorch files (see `torch_file`), safetensors and npz.
"""

import dataclasses
import functools
import importlib
import math
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from flax.traverse_util import unflatten_dict

from medjax.errors import ModelError
from medjax.scans import zipped
from medjax.weights.formats import torch_file

WRAPPERS = (
    "module.",
    "_orig_mod.",
)  # of data-parallel training and torch.compile, before every name
SHOWN = 3
Tensors = Mapping[str, np.ndarray]


def _moved(a: np.ndarray) -> np.ndarray:
    return np.moveaxis(a, (0, 1), (-1, -2))


def _flat_heads(a: np.ndarray) -> np.ndarray:
    return a.reshape(*a.shape[:-2], -1)


# Conversions of PyTorch's layouts. Spatial axes keep their order.
LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "same": lambda a: a,
    "conv": _moved,  # (out, in, *k) -> (*k, in, out)
    "up": lambda a: np.moveaxis(
        a, (0, 1), (-2, -1)
    ),  # transposed convolution (in, out, *k) -> (*k, in, out), not flipped
    "linear": lambda a: a.T,  # (out, in) -> (in, out)
    "point": lambda a: (
        a.reshape(a.shape[:2]).T
    ),  # 1x1x1 convolution (out, in, 1, 1, 1) -> (in, out)
    "split": _flat_heads,  # (..., heads, width) -> (..., heads * width)
    "joined": lambda a: a.reshape(-1, a.shape[-1]),  # (heads, width, out) -> (heads * width, out)
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
      pattern: matches a whole source name.
      path: of the parameter, as text with \\1 or \\g<name> for groups, or a function of the match.
      layout: a key of `LAYOUTS`, or a function of the array.
    """

    pattern: str
    path: str | Callable[[re.Match], str]
    layout: str | Callable[[np.ndarray], np.ndarray] = "same"


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The network of medjax that a file belongs to.

    Attributes:
      model: name of the module in `medjax.models`.
      channels_out, channels_in: of the heads (a softmax counts the background) and of the image.
      arguments: of its `make`, beside `classes`.
      sides: of the smallest image it takes, to find the shapes of its parameters; empty: from
        `arguments["strides"]`.
    """

    model: str
    channels_out: int
    channels_in: int
    arguments: Mapping[str, Any]
    sides: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Account:
    """The account of all tensors and parameters.

    Attributes:
      matched: source name -> path. ignored: reason -> source names. absent: reason -> paths that
        the source does not have.
    """

    matched: Mapping[str, str]
    ignored: Mapping[str, tuple[str, ...]]
    absent: Mapping[str, tuple[str, ...]]

    def to_json(self) -> dict:
        """JSON-ready fields."""
        return {"matched": dict(self.matched)} | {
            k: {r: list(n) for r, n in getattr(self, k).items()} for k in ("ignored", "absent")
        }

    def text(self) -> str:
        """The printed report."""
        lines = [f"import: {len(self.matched)} tensors matched"]
        lines += [f"  ignored {some(names)}: {reason}" for reason, names in self.ignored.items()]
        lines += [
            f"  not in the file {some(paths)}: {reason}" for reason, paths in self.absent.items()
        ]
        return "\n".join(lines)


def read(path: str | Path) -> Any:
    """The contents of a weight file.

    The nested structure of a PyTorch file, or a flat mapping of arrays (safetensors, npz).

    Raises: `ModelError` for missing, damaged or unsafe files.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError("no such weight file", path=path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".npz" or _is_npz(path):
        return zipped.read_npz(path, error=ModelError)
    return torch_file.read(path)


def _is_npz(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipped.opened(path, error=ModelError) as archive:
        return all(name.endswith(".npy") for name in archive.namelist())


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        from safetensors.numpy import load_file
    except ImportError as error:
        raise ModelError(
            "reading safetensors needs the safetensors package",
            path=path,
            fix="pip install safetensors",
        ) from error
    try:
        return load_file(path)
    except Exception as error:
        raise ModelError(f"not a readable safetensors file: {error}", path=path) from error


def tensors_of(
    structure: Any, containers: Sequence[str] = ("network_weights", "state_dict", "model", "net")
) -> dict[str, np.ndarray]:
    """The named tensors within the result of `read`, as arrays and without wrappers' prefixes.

    Args:
      containers: keys under which files store the state dict; the first that exists is used, else
        the structure itself.

    Raises: `ModelError` if there is no tensor.
    """
    for key in containers:
        if isinstance(structure, Mapping) and isinstance(structure.get(key), Mapping):
            structure = structure[key]
            break
    items = structure.items() if isinstance(structure, Mapping) else ()
    found = {str(k): v for k, v in items if isinstance(v, torch_file.Tensor | np.ndarray)}
    if not found:
        keys = some([str(k) for k, _ in items])
        raise ModelError(
            "no tensors in the file",
            found=keys,
            expected=f"a state dict, bare or under one of {list(containers)}",
        )
    while any(all(name.startswith(w) for name in found) for w in WRAPPERS):
        wrapper = next(w for w in WRAPPERS if all(name.startswith(w) for name in found))
        found = {name[len(wrapper) :]: value for name, value in found.items()}
    return {
        name: value.array() if isinstance(value, torch_file.Tensor) else value
        for name, value in found.items()
    }


def convert(
    tensors: Tensors,
    table: Sequence[Row],
    target: Mapping[str, tuple[int, ...]] | Any,
    *,
    ignored: Sequence[tuple[str, str]] = (),
    absent: Sequence[tuple[str, str]] = (),
) -> tuple[dict, Account]:
    """The parameter tree of a file.

    Args:
      tensors: source name -> array.
      table: the first row whose pattern matches a whole name is used.
      target: abstract parameters of the network (leaves with shapes); every path must be one of its
        names.
      ignored: (pattern over source names, reason): tensors that are not used.
      absent: (pattern over paths, reason): parameters that the file may lack; they are left out of
        the tree.

    Returns: nested dictionaries of float32 arrays, and the account.
    Raises: `ModelError` listing source tensors without a row, paths without a source, shapes that
      differ, repeated paths, integers, and non-finite numbers.
    """
    wanted = shapes_of(target)
    found: dict[str, np.ndarray] = {}
    matched, left, problems = {}, {}, []
    for name, value in tensors.items():
        reason = next((r for p, r in ignored if re.fullmatch(p, name)), None)
        if reason is not None:
            left.setdefault(reason, []).append(name)
            continue
        row, match = next(
            ((row, m) for row in table if (m := re.fullmatch(row.pattern, name))), (None, None)
        )
        if row is None:
            problems.append(f"{name} {tuple(value.shape)} is not known to the family")
            continue
        path = row.path(match) if callable(row.path) else match.expand(row.path)
        try:
            array = (row.layout if callable(row.layout) else LAYOUTS[row.layout])(value)
        except (ValueError, IndexError) as error:  # a tensor of fewer axes than its row expects
            problems.append(f"{name} -> {path}: {value.shape} in the file ({error})")
            continue
        if path not in wanted:
            problems.append(f"{name} belongs to {path}, which the network does not have")
        elif path in found:
            problems.append(f"{name} and another tensor both belong to {path}")
        elif array.shape != wanted[path]:
            problems.append(
                f"{name} -> {path}: {array.shape} in the file, {wanted[path]} in the network"
            )
        elif problem := _unusable(name, array):
            problems.append(problem)
        else:
            found[path], matched[name] = np.ascontiguousarray(array, np.float32), path
    missing: dict[str, list[str]] = {}
    for path in wanted:
        if path in found:
            continue
        reason = next((r for p, r in absent if re.fullmatch(p, path)), None)
        if reason is None:
            problems.append(f"{path} {wanted[path]} has no tensor in the file")
        else:
            missing.setdefault(reason, []).append(path)
    if problems:
        raise ModelError(
            f"the file does not fit the network ({len(problems)} tensors)",
            found="; ".join(problems[:12]),
            fix="check --family and the arguments of the network",
        )
    if not found:
        raise ModelError("nothing in the file belongs to the network", found=some(list(tensors)))
    counted = ({r: tuple(n) for r, n in given.items()} for given in (left, missing))
    return nest(found), Account(matched, *counted)


def _unusable(name: str, array: np.ndarray) -> str:
    """What is wrong with the values of a parameter: not real numbers, or not finite as float32."""
    if array.dtype.kind != "f" and array.dtype != ml_dtypes.bfloat16:
        return f"{name} holds {array.dtype}, no real numbers"
    with np.errstate(over="ignore"):
        bad = int(np.count_nonzero(~np.isfinite(np.asarray(array, np.float32))))
    return f"{name} holds {bad:,} values that are not finite" if bad else ""


def sides_of(found: Architecture) -> tuple[int, ...]:
    """A small image that the network takes."""
    return found.sides or tuple(
        2 * math.prod(stride) for stride in zip(*found.arguments["strides"], strict=True)
    )


def abstract(found: Architecture) -> Any:
    """Shapes of the network's parameters; allocates nothing."""
    import jax

    from medjax.models.context import initialise

    network = importlib.import_module(f"medjax.models.{found.model}").make(
        found.channels_out, **found.arguments
    )
    image = jax.ShapeDtypeStruct((1, *sides_of(found), found.channels_in), np.float32)
    return jax.eval_shape(functools.partial(initialise, network), jax.random.key(0), image)


def shapes_of(target: Any, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Path -> shape of every leaf of nested dictionaries (paths are joined with "/")."""
    if not isinstance(target, Mapping):
        return {prefix: tuple(target.shape)}
    parts = (
        shapes_of(value, f"{prefix}/{name}" if prefix else str(name))
        for name, value in target.items()
    )
    return {path: shape for part in parts for path, shape in part.items()}


def nest(flat: Mapping[str, Any]) -> dict:
    """Values by path -> nested dictionaries."""
    return unflatten_dict(dict(flat), sep="/")


def relative_to_background(tree: Any, heads: str) -> Any:
    """Softmax heads with the background as channel 0 -> heads of the classes alone.

    Their logits are relative to the background's. A softmax depends on differences of logits only,
    so the probabilities are unchanged.

    Args:
      heads: pattern of the paths of head kernels (..., channels) and biases (channels,).
    """
    flat = {}
    for path in shapes_of(tree):
        value = tree
        for name in path.split("/"):
            value = value[name]
        flat[path] = value[..., 1:] - value[..., :1] if re.fullmatch(heads, path) else value
    return nest(flat)


def some(names: Sequence[str]) -> str:
    """The number of names, and the first ones."""
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return f"{len(names)} ({shown})" if names else "0"
