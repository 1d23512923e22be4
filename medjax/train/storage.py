"""Arrays of one checkpoint folder on disk: read strictly, compared by name and shape.

With `checkpoint.py` the only file that uses orbax. In: the folder of a step and abstract arrays.
Out: arrays, or one error that lists every difference; also the reasons of a failed write in words.
"""

import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from medjax.errors import MedjaxError, TrainError
from medjax.train import rules as rule_lists

FULL = {
    "No space left on device": "the disk is full: ",
    "Disk quota exceeded": "the quota is used up: ",
    "File too large": "files may not grow that large here: ",
}


def load(folder: Path, target: Any, *, partial: bool = False) -> Any:
    """The named trees of a step folder, in types and shardings of `target`.

    Args:
      target: part ("params", "train", ...) -> tree of `jax.ShapeDtypeStruct` with shardings.
      partial: whether the folder may hold more leaves than the target.

    Raises: `TrainError` if they cannot be read.
    """
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    context.pytree.loading.partial_load = partial
    try:
        with context:
            loaded = ocp.load_checkpointables(str(folder.absolute()), target)
    except Exception as error:  # the storage layer raises many types for damaged files
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise TrainError(
            "the arrays cannot be read",
            path=folder,
            found=reason[:300],
            fix="use another checkpoint",
        ) from error
    if abstract := [
        rule_lists.path_name(k)
        for k, v in jax.tree_util.tree_leaves_with_path(loaded)
        if not isinstance(v, jax.Array)
    ]:
        raise TrainError(
            "leaves were not restored", path=folder, found=abstract[:12]
        )  # orbax hands missing ones back as they came in
    return loaded


def compare(folder: Path, wanted: Mapping[str, tuple], stored: Mapping[str, tuple]) -> None:
    """Raises `TrainError` unless names and shapes agree, listing every difference."""
    problems = [f"{name} is not in the checkpoint" for name in wanted if name not in stored]
    problems += [f"{name} is not in the model" for name in stored if name not in wanted]
    problems += [
        f"{name}: {stored[name]} stored, {wanted[name]} wanted"
        for name in wanted
        if name in stored and stored[name] != wanted[name]
    ]
    if problems:
        raise TrainError(
            f"the checkpoint does not fit ({len(problems)} differences)",
            path=folder,
            found="; ".join(problems[:12]),
            fix="use the model of the checkpoint, or keep the leaves that differ by pattern",
        )


def nest(flat: Mapping[str, Any]) -> dict:
    """{"a/b": x} -> {"a": {"b": x}}; parameters are nested dictionaries."""
    return unflatten_dict(dict(flat), sep="/")


def flat(tree: Any) -> dict[str, Any]:
    """Path -> leaf, the inverse of `nest`."""
    return dict(zip(rule_lists.paths(tree), jax.tree.leaves(tree), strict=True))


def shapes(tree: Any) -> dict[str, list[int]]:
    """Path -> shape, JSON-ready."""
    return {
        name: list(leaf.shape)
        for name, leaf in zip(rule_lists.paths(tree), jax.tree.leaves(tree), strict=True)
    }


def placed(leaf: Any) -> jax.ShapeDtypeStruct:
    """An abstract array like `leaf`, on the default device if the leaf has no sharding."""
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(
        jax.local_devices()[0]
    )
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def everywhere(ok: bool) -> bool:
    """Whether all processes agree that it went well (also a barrier)."""
    if jax.process_count() == 1:
        return ok
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.asarray(ok)).all())


def remove(folder: Path) -> None:
    """Removes a half-written step; threads of the writer may add files to it for a moment more."""
    for _ in range(40):
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)
        if not folder.exists():
            return


def reason(error: BaseException) -> str:
    """The innermost line with the storage layer's reason."""
    if isinstance(error, MedjaxError):
        return error.message
    text = str(error)
    known = next((why for sign, why in FULL.items() if sign in text), "")
    return known + f"{type(error).__name__}: {text}".splitlines()[0][:300]


class Unheard(logging.Filter):
    """Drops orbax' log records of a failure that is also raised with its traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        """False for a traceback from orbax."""
        return not (record.exc_info and "orbax" in record.pathname)
