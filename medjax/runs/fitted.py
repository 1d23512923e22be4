"""Validates what a file says about a model: its config, and its arrays.

In: the config and arrays of a run folder or an archive. Out: nothing, or an error that names the
file and the field or arrays.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from medjax.decision import ACTIVATIONS, AVERAGES
from medjax.errors import MedjaxError, ModelError, shown
from medjax.infer.conflicts import RULES
from medjax.infer.model import PRECISIONS
from medjax.weights.formats.stablehlo import SIDE

EMA = ("auto", "off")
VOXELS, BATCH = 1 << 31, 1 << 12
SHOWN = 6


def check_config(config: Any, path: object, error: Callable[..., MedjaxError]) -> None:
    """Checks the fields that prediction needs: model, patch and prediction settings.

    Raises `error` naming the file, the field, the value found and the value expected.

    Args:
      path: the file of the config. error: the class to raise.
    """

    def refuse(field: str, found: Any, expected: str, what: str = "unusable") -> MedjaxError:
        return error(
            f"{what} config: {field}", path=path, found=shown(repr(found))[:120], expected=expected
        )

    if not isinstance(config, Mapping):
        raise refuse("it is no object", config, "{...}")
    for name in ("model", "train", "infer"):
        if not isinstance(config.get(name), Mapping):
            raise refuse(
                f"the field {name!r} is missing", sorted(map(str, config))[:8], f'"{name}": {{...}}'
            )
    for part, names in (
        ("model", ("name",)),
        ("train", ("patch",)),
        ("infer", ("overlap", "mirror_axes", "average", "batch_windows")),
    ):
        for name in names:
            if name not in config[part]:
                raise refuse(
                    f"the field '{part}.{name}' is missing",
                    sorted(map(str, config[part]))[:8],
                    name,
                )
    model, patch, infer = config["model"]["name"], config["train"]["patch"], config["infer"]
    if not isinstance(model, str) or not model.isidentifier():
        raise refuse("model.name", model, "a model of medjax")
    if not _whole(patch, SIDE) or len(patch) not in (2, 3) or math.prod(patch) > VOXELS:
        raise refuse("train.patch", patch, f"2 or 3 sizes from 1 to {SIDE}")
    overlap, axes, batch = infer["overlap"], infer["mirror_axes"], infer["batch_windows"]
    if isinstance(overlap, bool) or not isinstance(overlap, int | float) or not 0 <= overlap < 1:
        raise refuse("infer.overlap", overlap, "a number from 0 to below 1")
    if not isinstance(axes, list | tuple) or any(
        type(a) is not int or not 0 <= a < len(patch) for a in axes
    ):
        raise refuse("infer.mirror_axes", axes, f"axes from 0 to {len(patch) - 1}")
    if batch is not None and (type(batch) is not int or not 0 <= batch <= BATCH):
        raise refuse("infer.batch_windows", batch, f"a whole number up to {BATCH}")
    for name, known in (
        ("average", AVERAGES),
        ("activation", ACTIVATIONS),
        ("precision", PRECISIONS),
        ("conflicts", RULES),
    ):
        if infer.get(name, known[0]) not in known:
            raise refuse(f"infer.{name}", infer[name], " or ".join(filter(None, known)))
    if infer.get("ema", "auto") not in EMA:
        raise refuse("infer.ema", infer["ema"], " or ".join(EMA))
    if not isinstance(infer.get("postprocess") or {}, Mapping):
        raise refuse("infer.postprocess", infer["postprocess"], "{...}")
    for name in ("fast", "checkpoint"):
        if not isinstance(infer.get(name, ""), str | int):
            raise refuse(f"infer.{name}", infer[name], "text")


def _whole(values: Any, most: int) -> bool:
    return isinstance(values, list | tuple) and all(
        type(n) is int and 0 < n <= most for n in values
    )


def fitted(arrays: Mapping[str, np.ndarray], abstract: Any, path: object) -> Any:
    """Named arrays as the parameter tree of a network.

    Args:
      abstract: shapes and types of the parameters.

    Raises: `ModelError` listing every difference in names, shapes and types, or the arrays with
      non-finite numbers.
    """
    import jax

    from medjax.train import rules

    flat, structure = jax.tree_util.tree_flatten_with_path(abstract)
    wanted = {rules.path_name(keys): leaf for keys, leaf in flat}
    problems = [f"{name} is missing" for name in wanted if name not in arrays]
    problems += [f"{shown(name)[:80]} is unknown" for name in arrays if name not in wanted]
    for name, leaf in wanted.items():
        found = arrays.get(name)
        if found is not None and tuple(found.shape) != tuple(leaf.shape):
            problems.append(f"{name}: {found.shape} stored, {leaf.shape} wanted")
        elif found is not None and found.dtype != leaf.dtype:
            problems.append(f"{name}: {found.dtype} stored, {leaf.dtype} wanted")
    if problems:
        raise ModelError(
            f"the weights do not fit their config ({len(problems)} differences)",
            path=path,
            found="; ".join(problems[:12]),
        )
    tree = jax.tree.unflatten(structure, [arrays[name] for name in wanted])
    check_finite(tree, path)
    return jax.tree.map(jax.numpy.asarray, tree)


def check_finite(params: Any, path: object) -> Any:
    """The parameters, if all numbers are finite; `ModelError` naming the arrays with others."""
    import jax

    from medjax.train import rules

    bad = [
        rules.path_name(keys)
        for keys, leaf in jax.tree_util.tree_leaves_with_path(params)
        if not _is_finite(leaf)
    ]
    if bad:
        more = f", ... ({len(bad)} in all)" if len(bad) > SHOWN else ""
        raise ModelError(
            "the weights hold numbers that are not finite",
            path=path,
            found=", ".join(bad[:SHOWN]) + more,
            expected="finite numbers",
            fix="obtain the model again, or use an earlier checkpoint",
        )
    return params


def _is_finite(leaf: Any) -> bool:
    """Whether smallest and largest value are finite, without a temporary of the leaf's size.

    For arrays spread over processes: the local part.
    """
    shards = (
        [s.data for s in leaf.addressable_shards]
        if not getattr(leaf, "is_fully_addressable", True)
        else [leaf]
    )
    for shard in shards:
        if not np.issubdtype(shard.dtype, np.floating) and str(shard.dtype) != "bfloat16":
            continue
        values = np.asarray(shard)
        if values.size and not (np.isfinite(values.min()) and np.isfinite(values.max())):
            return False
    return True
