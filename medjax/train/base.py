"""The frozen parameters of a run: written once beside its checkpoints, named by their content.

    checkpoints/base/<number>/  a folder as that of a step; its facts hold `hash`

In: a tree of frozen parameters, or a folder of checkpoints. Out: the hash of the tree, which does
not depend on devices, processes or sharding, and the number under which it is or will be stored.
Another content gets another number: nothing is replaced.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medjax import files
from medjax.errors import TrainError
from medjax.train import hashes, storage
from medjax.train.stepfolder import BASE, TEMPORARY, facts_of, steps


def digest(tree: Any) -> str:
    """The hash of names, types, shapes and values of all leaves.

    Every process must call it; one leaf at a time is copied to the host.
    """
    found = {}
    for name, leaf in storage.flat(tree).items():
        value = np.ascontiguousarray(_on_host(leaf))
        content = files.checksum(value.reshape(-1).view(np.uint8))
        found[name] = [str(value.dtype), list(leaf.shape), content]
    return hashes.of_json(found)


def place(folder: Path, digest: str) -> tuple[int, bool]:
    """The number of the base with this hash, and whether it is stored already, undamaged.

    The same on every process; decided by the first one.
    """
    number, there = _place(folder / BASE, digest) if jax.process_index() == 0 else (0, False)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        agreed = multihost_utils.broadcast_one_to_all(np.asarray([number, there], np.int32))
        number, there = int(agreed[0]), bool(agreed[1])
    return number, there


def _place(folder: Path, digest: str) -> tuple[int, bool]:
    for number in steps(folder):
        try:
            facts = facts_of(folder / str(number))
            if facts.get("hash") == digest:
                hashes.check(folder / str(number), facts)
                return number, True
        except TrainError:
            continue  # damaged: it is left there, and another number is taken
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    first = [name.split(".")[0] for name in names if not name.endswith(TEMPORARY)]
    taken = [int(name) for name in first if name.isdecimal()]
    return max(taken, default=-1) + 1, False


def _on_host(leaf: Any) -> np.ndarray:
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf)
    if leaf.is_fully_addressable or leaf.is_fully_replicated:
        return jax.device_get(jnp.copy(leaf))  # the leaf itself would keep its copy on the host
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(leaf, tiled=True)
