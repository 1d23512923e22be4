"""A finished run folder without a training: resolved config, label space, plan and a checkpoint of
random parameters.

make_run(tmp_path / "run", corpora=[Corpus(...)], seed=1) -> folder
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs.base import base_config
from medjax.labels import Corpus, merge
from medjax.prepare.plan import Intensity, Plan
from medjax.registry import plain
from medjax.runs import build
from medjax.runs import folder as runfolder
from medjax.train.checkpoint import Checkpoints
from tests.support.configs import typed


def small_unet(dims: int) -> dict:
    """A U-Net that compiles in a second: two stages of one convolution."""
    sides = {"strides": ((1,) * dims, (2,) * dims), "kernels": ((1,) * dims, (3,) * dims)}
    return {
        "features": (2, 3),
        **sides,
        "convs_per_stage": 1,
        "convs_per_stage_decoder": 1,
        "deep_supervision": False,
    }


ORGANS = Corpus("Organs", ((1, ("organ",)), (2, ("organ", "tumour"))), channels=("CT",))


def make_run(
    folder: Path,
    corpora: Sequence[Corpus] = (ORGANS,),
    *,
    patch: tuple[int, ...] = (8, 8, 8),
    seed: int = 5,
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    model: Mapping | None = None,
    infer: Mapping | None = None,
    data: Mapping | None = None,
    augment: Mapping | None = None,
) -> Path:
    """Writes the run.

    Args:
      patch: of the network, (z, y, x) or (y, x). seed: of the parameters. spacing_mm: target
        spacing of every corpus.
      model, infer, data, augment: fields of the config to set.

    Returns: the folder.
    """
    fields = plain(base_config())
    fields["model"] = {"name": "unet", **(small_unet(len(patch)) if model is None else model)}
    fields["train"]["patch"] = tuple(patch)
    fields["infer"] |= infer or {}
    fields["data"] |= data or {}
    fields["augment"] |= augment or {}
    space = merge(corpora)
    channels = {c for corpus in corpora for c in corpus.channels}
    clip = Intensity("ct", (-200.0, 300.0), 50.0, 100.0)
    plan = Plan(
        {c.store: spacing_mm for c in corpora},
        {c: clip if c == "CT" else Intensity("zscore") for c in channels},
    )
    runfolder.write_json(folder / runfolder.CONFIG, fields)
    runfolder.write_json(folder / runfolder.LABELS, space.to_json())
    runfolder.write_json(folder / runfolder.PLAN, plan.to_json())
    params = random_params(build.make_network(typed(fields), space, spacing_mm).abstract(), seed)
    with Checkpoints(folder / "checkpoints") as target:
        target.save(7, {"params": params}, {"recipe": {}})
    return folder


def random_params(abstract: Any, seed: int) -> Any:
    """Arrays for a tree of shapes, without compiling the network's own initialiser: He-scaled
    kernels, norm scales near 1, small biases.
    """
    rng = np.random.default_rng(seed)

    def fill(keys: Any, leaf: Any) -> jax.Array:
        name = jax.tree_util.keystr(keys)
        noise = rng.normal(size=leaf.shape)
        values = (
            1 + 0.1 * noise
            if "scale" in name
            else 0.1 * noise
            if leaf.ndim == 1
            else noise * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        )
        return jax.numpy.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, abstract)
