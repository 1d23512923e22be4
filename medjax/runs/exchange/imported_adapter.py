"""An adapter that came with an imported network, as a file beside the imported run.

In: the parameters of the base, the adapter's leaves, and the documents of the run. Out:
`NAME.adapter.safetensors`, bound to the base like every adapter file.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from medjax.labels import LabelSpace
from medjax.prepare.plan import Plan
from medjax.registry import plain
from medjax.weights import adapters
from medjax.weights.adapters import Adapters
from medjax.weights.formats import adapter as form

NAME = f"imported{form.SUFFIX}"


def write(
    out: Path,
    params: Any,
    leaves: Mapping[str, np.ndarray],
    rules: tuple,
    alpha: float,
    fields: Mapping[str, Any],
    space: LabelSpace,
    plan: Plan,
    facts: Mapping[str, Any],
) -> str:
    """Writes the file into a run folder; returns the line to print.

    Args:
      params: of the base. leaves: path -> array of the adapters. rules: of them, see
        `weights.adapters.Adapters`; leaves that they call "whole" are a part of the file, too.
      alpha: the scale is alpha / sqrt(rank); files do not hold it, published runs took the rank.
      fields: the run's config. facts: where it came from.
    """
    settings = Adapters(rules=rules, scaling="rslora", alpha=alpha)
    flat = traverse_util.flatten_dict(params, sep="/")
    values = {
        path: next(value for pattern, value in rules if re.search(pattern, path)) for path in flat
    }
    whole = {path: np.asarray(flat[path]) for path in flat if values[path] == adapters.WHOLE}
    kept = {path: leaf for path, leaf in flat.items() if path not in whole}
    expert = {
        "name": out.name,
        "modality": sorted({corpus.modality for corpus in space.corpora}),
        "corpus": sorted({corpus.store for corpus in space.corpora}),
        "task": sorted({corpus.name for corpus in space.corpora}),
    }
    own = {"rules": rules, "scaling": "rslora", "alpha": alpha}
    config = plain({**fields, "adapters": own, "init": {"source": str(out)}})
    made = form.Adapter(
        {**leaves, **whole},
        settings,
        {
            "sha256": adapters.digest(kept),
            "leaves": len(kept),
            "parameters": sum(int(np.prod(np.shape(leaf))) for leaf in kept.values()),
            "name": out.name,
        },
        (expert,),
        {"config": config, "labels": space.to_json(), "plan": plan.to_json()},
        {"provenance": dict(facts), "licences": {}},
    )
    size = form.write(out / NAME, made)
    return (
        f"adapter: {out / NAME}, {size:,} bytes, {len(leaves) // 2} kernels, alpha {alpha:g}; "
        f"medjax predict SCANS -m {out} --adapter {out / NAME} -o MASKS"
    )
