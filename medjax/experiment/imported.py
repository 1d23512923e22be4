"""`medjax import`: a weight file of another program becomes a run folder that predicts, and that other runs can begin from.

In: a weight file, its family, and what the file does not say (plan and classes, where it has none). Out: config.json, labels.json,
plan.json, a checkpoint and import.json, the account of every tensor. Files that say too little to predict make a folder that
`config.init.source` takes all the same.
"""

import dataclasses
import importlib
import json
import pkgutil
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medjax.build import plain
from medjax.data.plan import Plan
from medjax.errors import ModelError, UsageError, did_you_mean
from medjax.experiment import runfolder
from medjax.labels import Corpus, LabelSpace
from medjax.port import core, nnunet_plan, torch_file
from medjax.port.nnunet_plan import Description

ACCOUNT = "import.json"
TOOLS = ("core", "torch_file", "nnunet_plan", "plans_v1")  # modules of the port room that are no family


def families() -> list[str]:
    """The modules of `medjax.port` that describe a family."""
    return sorted(m.name for m in pkgutil.iter_modules(importlib.import_module("medjax.port").__path__) if m.name not in TOOLS)


def import_weights(
    path: Path, family: str, out: Path, *, plan: Path | None = None, dataset: Path | None = None, configuration: str = "3d_fullres",
    name: str = "", patch: Sequence[int] = (), model: Mapping[str, Any] | None = None,
) -> str:  # fmt: skip
    """Makes the run folder `out`.

    Args:
      path: the weight file. family: see `families`.
      plan: plan.json of a run, plans.json of nnU-Net v2 or plans.pkl of v1; not needed where the checkpoint carries its plans.
      dataset: dataset.json with the classes; likewise.
      configuration: of plans given as a file. name: of the corpus. patch: (z, y, x) that the network was trained on, if nothing says it.
      model: arguments of our network that the file does not tell, e.g. {"merging": "fixed"}.

    Returns: the report for the person who asked.
    Raises: `UsageError` for an unknown family or an occupied folder; `ModelError` for a file that does not fit, listing every tensor.
    """
    import jax.numpy as jnp

    from medjax.train.checkpoint import Checkpoints

    if family not in families():
        raise UsageError(f"unknown family {family!r}", fix=did_you_mean(family, families()))
    if out.exists() and any(out.iterdir()):
        raise UsageError("the folder is not empty", path=out, fix="give another -o")
    module = importlib.import_module(f"medjax.port.{family}")
    structure = core.read(path)
    described = _describe(structure, path, plan, dataset, configuration, name)
    tensors = nnunet_plan.in_image_order(core.tensors_of(structure), described.backward)
    found = module.architecture(tensors)
    ignored, absent = (_rules(module, word, tensors) for word in ("ignored", "absent"))
    tensors = getattr(module, "gathered", dict)(tensors)
    found = dataclasses.replace(found, arguments={**found.arguments, **(model or {})})
    params, account = core.convert(tensors, module.table(tensors), core.abstract(found), ignored=ignored, absent=absent)
    space, activation = _meaning(described.space, found.channels_out, found.channels_in, name or path.stem)
    if activation == "softmax":
        params = core.relative_to_background(params, module.HEADS)
    whole = described.plan is not None and described.space is not None and not account.absent
    patch = tuple(patch) or described.patch or core.sides_of(found)
    fields = {
        "name": f"imported_{family}",
        "model": {"name": found.model, **_without_data(found.arguments)},
        "train": {"patch": patch, "batch": described.batch, "steps": 0},
        "infer": {
            "checkpoint": "last", "overlap": 0.5, "mirror_axes": described.mirror_axes, "average": described.average, "batch_windows": 2,
            "activation": activation,
        },
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    runfolder.write_json(out / runfolder.CONFIG, plain(fields))
    runfolder.write_json(out / runfolder.LABELS, space.to_json())
    if described.plan is not None:
        runfolder.write_json(out / runfolder.PLAN, described.plan.to_json())
    facts = {"source": str(path), "family": family}
    runfolder.write_json(out / ACCOUNT, facts | account.to_json())
    with Checkpoints(out / "checkpoints") as checkpoints:
        checkpoints.save(0, {"params": params, "step": jnp.zeros((), jnp.int32)}, facts)
        checkpoints.wait()
    lines = [account.text(), f"network: {found.model}, {_count(params):,} parameters, {len(space.classes)} classes ({activation})"]
    lines += [f"note: {note}" for note in described.notes]
    if whole:
        lines.append(f"{out} predicts: medjax predict SCANS -m {out} -o MASKS")
    else:
        missing = [w for w, there in (("a plan (--plan)", described.plan), ("classes (--dataset)", described.space)) if there is None]
        missing += ["the layers listed above"] * bool(account.absent)
        lines.append(f"{out} cannot predict without {' and '.join(missing)}; it can be a beginning: --config.init.source={out}")
        if account.absent:
            lines.append(f"  with --config.init.fresh='{_fresh(params)}'")
    return "\n".join(lines)


def _rules(module: Any, word: str, tensors: Mapping) -> tuple:
    """A family's rules, which may depend on the file: a function `ignored` or `absent`, or a constant of that name."""
    return getattr(module, word)(tensors) if hasattr(module, word) else getattr(module, word.upper(), ())


def _describe(structure: Any, path: Path, plan: Path | None, dataset: Path | None, configuration: str, name: str) -> Description:
    """From the files given, else from what the checkpoint carries, else nothing."""
    carried = structure.get("init_args") if isinstance(structure, Mapping) else None
    if plan is None and isinstance(carried, Mapping) and "plans" in carried:
        mirrored = structure.get("inference_allowed_mirroring_axes")
        return nnunet_plan.from_v2(
            carried["plans"], carried.get("configuration", configuration), _json(dataset) if dataset else carried["dataset_json"], name,
            () if mirrored is None else mirrored,
        )  # fmt: skip
    if plan is None and dataset is None:
        return Description(notes=("the file says neither classes nor preparation of scans",))
    labels = _json(dataset) if dataset else {}
    name = name or nnunet_plan.dataset_name(dataset or path)
    if plan is None:
        return Description(nnunet_plan.label_space(labels["labels"], _channel_names(labels), name))
    if plan.suffix == ".pkl":
        return nnunet_plan.from_v1(torch_file.read_plain(plan), _needed(labels, "a plan of nnU-Net v1"), name)
    read = _json(plan)
    if "configurations" in read:
        return nnunet_plan.from_v2(read, configuration, _needed(labels, "plans of nnU-Net v2"), name)
    own = Plan.from_json(read)
    space = nnunet_plan.label_space(labels["labels"], _channel_names(labels), next(iter(own.spacing_mm))) if labels else None
    return Description(space, own)


def _meaning(space: LabelSpace | None, channels_out: int, channels_in: int, name: str) -> tuple[LabelSpace, str]:
    """The label space, and whether the channels are exclusive; without one, classes are numbered."""
    if space is None:
        rows = tuple((i, (f"class_{i}",)) for i in range(1, channels_out + 1))
        corpus = Corpus(name, rows, channels=tuple(f"channel_{i}" for i in range(channels_in)), modality="unknown")
        return LabelSpace(corpus.classes, (corpus,), (tuple((c, c) for c in corpus.classes),), corpus.classes), "sigmoid"
    if channels_out not in (len(space.classes), len(space.classes) + 1):
        raise ModelError(
            "the classes do not fit the network's heads", found=f"{channels_out} channels, {len(space.classes)} classes",
            expected="as many channels as classes, or one more for the background", fix="give the right --dataset",
        )  # fmt: skip
    return space, "sigmoid" if channels_out == len(space.classes) else "softmax"


def _without_data(arguments: Mapping[str, Any]) -> dict:
    """Arguments that belong into a config: what the data decides is offered to the network anyway."""
    return {k: v for k, v in arguments.items() if k not in ("classes", "in_channels")}


def _fresh(params: Any) -> str:
    """A pattern over the parameters that the tree does not hold."""
    held = sorted({re.sub(r"\d+", r"\\d+", "/".join(path.split("/")[:2])) for path in core.shapes_of(params)})
    return f"^(?!({'|'.join(held)})/)"


def _count(tree: Any) -> int:
    return sum(int(np.prod(shape)) for shape in core.shapes_of(tree).values())


def _json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"not a readable JSON file: {error}", path=path) from error


def _channel_names(dataset: Mapping) -> tuple[str, ...]:
    named = dataset.get("channel_names") or dataset.get("modality") or {"0": "CT"}
    return tuple(str(named[key]) for key in sorted(named, key=int))


def _needed(labels: dict, what: str) -> dict:
    if not labels:
        raise UsageError(f"{what} needs the classes as well", fix="give --dataset dataset.json")
    return labels
