"""`medjax import`: the weight file of another program becomes a run folder.

In: a weight file, its family, and facts that the file lacks (plan and classes). Out: config.json,
labels.json, plan.json, a checkpoint and import.json, the account of every tensor. If the facts do
not suffice for prediction, the folder can still be used as `config.init.source`.
"""

import contextlib
import dataclasses
import importlib
import os
import pkgutil
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medjax.corpora.dataset_json import describe
from medjax.errors import MedjaxError, ModelError, UsageError, did_you_mean
from medjax.files import check_name, read_json
from medjax.labels import Corpus, LabelSpace, merge
from medjax.prepare import plan_json
from medjax.prepare.plan import Plan
from medjax.registry import plain
from medjax.runs import adapt, folder
from medjax.runs.exchange import foreign, imported_adapter
from medjax.runs.settings import schema
from medjax.weights import accounts, peft
from medjax.weights.foreign_plans import description
from medjax.weights.foreign_plans.description import Description
from medjax.weights.formats import torch_file

ACCOUNT = "import.json"


def families() -> list[str]:
    """The modules of `medjax.weights.families` that describe a family."""
    package = importlib.import_module("medjax.weights.families")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def import_weights(
    path: Path,
    family: str,
    out: Path,
    *,
    plan: Path | None = None,
    dataset: Path | Sequence[Path] | None = None,
    configuration: str = "3d_fullres",
    name: str = "",
    patch: Sequence[int] = (),
    model: Mapping[str, Any] | None = None,
) -> str:
    """Creates the run folder `out`.

    Args:
      path: the weight file. family: see `families`.
      plan: plan.json of a run, plans.json of nnU-Net v2 or plans.pkl of v1; not needed if the
        checkpoint contains its plans.
      dataset: dataset.json with the classes; likewise. For networks with heads by corpus: one per
        head, in order.
      configuration: of plans given as a file. name: of the corpus. patch: (z, y, x) of the
        training, if no file contains it.
      model: arguments of our network that the file does not contain, e.g. {"merging": "fixed"}.

    Returns: the report to print.
    Raises: `UsageError` for an unknown family or an occupied folder; `ModelError` for a file that
      does not fit, listing every tensor.
    """
    import jax.numpy as jnp

    from medjax.train.checkpoint import Checkpoints

    if family not in families():
        raise UsageError(f"unknown family {family!r}", fix=did_you_mean(family, families()))
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(
            "exists already" if not out.is_dir() else "the folder is not empty",
            path=out,
            fix="give another -o",
        )
    module = importlib.import_module(f"medjax.weights.families.{family}")
    structure = accounts.read(path)
    datasets = (dataset,) if isinstance(dataset, Path) else tuple(dataset or ())
    with _understood(path, family):
        described = _describe(structure, path, plan, datasets, configuration, name)
        tensors = description.in_image_order(accounts.tensors_of(structure), described.backward)
        tensors, pairs = peft.split(tensors) if hasattr(module, "adapted_rules") else (tensors, {})
        if pairs and (described.space is None or described.plan is None):
            raise UsageError(
                "an adapter needs the classes and the preparation it was trained with",
                path=path,
                fix="give --dataset and --plan",
            )
        found = module.architecture(tensors)
        _check_bound(module, model or {}, family)
        if getattr(module, "CLASSES_FROM_DATA", False) and described.space is not None:
            found = dataclasses.replace(found, channels_out=len(described.space.classes))
        extras = module.extras(tensors) if hasattr(module, "extras") else {}
        prefix = module.prefix_of(tensors) if extras else ""
        leaves, rank = peft.leaves(pairs, module.adapted_names(tensors)) if pairs else ({}, 0)
        ignored, absent = (_rules(module, word, tensors) for word in ("ignored", "absent"))
        tensors = getattr(module, "gathered", dict)(tensors)
        found = dataclasses.replace(found, arguments={**found.arguments, **(model or {})})
        params, account = accounts.convert(
            tensors, module.table(tensors), accounts.abstract(found), ignored=ignored, absent=absent
        )
        heads = found.arguments.get(
            "corpus_channels"
        )  # softmax heads by corpus, which our network keeps unchanged
        meaning = _by_corpus if heads else _meaning
        space, activation = meaning(described.space, found, name or path.stem)
        if found.channels_out > len(space.classes) and not heads:  # with a background channel
            params = accounts.relative_to_background(params, module.HEADS)
        for corpus in space.corpora:
            check_name(corpus.name, "corpus name", path=path, error=ModelError)
        if described.plan is not None:
            plan_json.check(described.plan.to_json(), plan or path)
        if described.space is not None and hasattr(module, "TEXTS") and extras:
            params, account = _with_texts(params, account, module.TEXTS, extras, space.classes)
    whole = described.plan is not None and described.space is not None and not account.absent
    patch = tuple(patch) or described.patch or accounts.sides_of(found)
    fields = {
        "name": f"imported_{family}",
        "model": {"name": found.model, **_without_data(found.arguments)},
        "train": {"patch": patch, "batch": described.batch, "steps": 0},
        "infer": {
            "checkpoint": "last",
            "overlap": 0.5,
            "mirror_axes": () if heads else described.mirror_axes,
            "average": "prob" if heads else described.average,
            "batch_windows": 2 if len(patch) == 3 else 16,
            "activation": activation,
        },
    }
    fields |= getattr(module, "FIELDS", {})
    out.mkdir(parents=True, exist_ok=True)
    folder.write_json(out / folder.CONFIG, plain(fields))
    if extras:
        foreign.keep(out, family, prefix, extras)
    folder.write_json(out / folder.LABELS, space.to_json())
    if described.plan is not None:
        folder.write_json(out / folder.PLAN, described.plan.to_json())
    facts = {"source": str(path), "family": family}
    folder.write_json(out / ACCOUNT, facts | account.to_json())
    with Checkpoints(out / "checkpoints") as checkpoints:
        checkpoints.save(0, {"params": params, "step": jnp.zeros((), jnp.int32)}, facts)
        checkpoints.wait()
    lines = [
        account.text(),
        f"network: {found.model}, {_count(params):,} parameters, {len(space.classes)} classes "
        f"({activation})",
    ]
    if count := found.arguments.get("experts", 0):
        names = adapt.expert_names(schema.resolve(fields), space, count)
        lines.append(f"experts by modality: {', '.join(names)}")
    if leaves:
        rules = module.adapted_rules(rank)
        lines.append(
            imported_adapter.write(
                out, params, leaves, rules, float(rank), fields, space, described.plan, facts
            )
        )
    lines += [f"note: {note}" for note in described.notes]
    if whole:
        lines.append(f"{out} predicts: medjax predict SCANS -m {out} -o MASKS")
    else:
        missing = [
            w
            for w, there in (
                ("a plan (--plan)", described.plan),
                ("classes (--dataset)", described.space),
            )
            if there is None
        ]
        missing += ["the layers listed above"] * bool(account.absent)
        lines.append(
            f"{out} cannot predict without {' and '.join(missing)}; it can be a beginning: "
            f"--config.init.source={out}"
        )
        if account.absent:
            lines.append(f"  with --config.init.fresh='{_fresh(params)}'")
    return "\n".join(lines)


def _check_bound(module: Any, given: Mapping[str, Any], family: str) -> None:
    """`UsageError` for an argument that contradicts what the weights were trained with."""
    for name, value in getattr(module, "BOUND", {}).items():
        if given.get(name, value) != value:
            raise UsageError(
                f"weights of {family} compute something else with another {name}",
                found=f"--model {name}={given[name]}",
                expected=value,
                fix=f"leave out {name}",
            )


def _with_texts(
    params: dict, account: accounts.Account, path: str, extras: Mapping, names: Sequence[str]
) -> tuple[dict, accounts.Account]:
    """The parameters with the vectors of class names by the file's own text tower."""
    from medjax.prompts.texts import TEMPLATE, filled
    from medjax.runs.prompted.texts import encoded

    owner, leaf = path.split("/")
    rows = encoded(extras, names, filled(TEMPLATE, names)).vectors
    left = {r: tuple(p for p in paths if p != path) for r, paths in account.absent.items()}
    account = dataclasses.replace(account, absent={r: paths for r, paths in left.items() if paths})
    return {**params, owner: {**params[owner], leaf: rows}}, account


@contextlib.contextmanager
def _understood(path: Path, family: str) -> Iterator[None]:
    """Converts any error about the contents of a file to an error that names the file."""
    try:
        yield
    except MedjaxError as error:
        if error.path:
            raise
        raise type(error)(
            error.message, path=path, found=error.found, expected=error.expected, fix=error.fix
        ) from error
    except (
        Exception
    ) as error:  # fields that are missing or of another kind, shapes that no network has
        reason = (
            f"the field {error} is missing"
            if isinstance(error, KeyError)
            else f"{type(error).__name__}: {str(error)[:200]}"
        )
        raise ModelError(
            f"the file cannot be understood as one of the family {family} ({reason})",
            path=path,
            fix="check --family, --plan and --dataset",
        ) from error


def _rules(module: Any, word: str, tensors: Mapping) -> tuple:
    """A family's rules: constants (`IGNORED`, `ABSENT`) or functions (`ignored`, `absent`)."""
    return (
        getattr(module, word)(tensors)
        if hasattr(module, word)
        else getattr(module, word.upper(), ())
    )


def _describe(
    structure: Any,
    path: Path,
    plan: Path | None,
    datasets: Sequence[Path],
    configuration: str,
    name: str,
) -> Description:
    """The description from the given files, else from the checkpoint, else empty."""
    dataset = datasets[0] if datasets else None
    carried = structure.get("init_args") if isinstance(structure, Mapping) else None
    if plan is None and isinstance(carried, Mapping) and "plans" in carried:
        mirrored = structure.get("inference_allowed_mirroring_axes")
        return description.from_v2(
            carried["plans"],
            carried.get("configuration", configuration),
            _json(dataset) if dataset else carried["dataset_json"],
            name,
            () if mirrored is None else mirrored,
        )
    if plan is None and dataset is None:
        return Description(notes=("the file contains neither classes nor preparation of scans",))
    labels = _json(dataset) if dataset else {}
    own = plan is not None and plan.suffix != ".pkl" and "spacing_mm" in _json(plan)
    if len(datasets) > 1:
        if plan is not None and not own:
            raise UsageError(
                "several data sets need a plan of medjax",
                path=plan,
                fix="give the plan.json of a run",
            )
        space = merge([describe(one)[0] for one in datasets], "per_corpus")
        return Description(space, _own_plan(plan, space) if plan else None)
    if plan is None or own:
        space = _one_corpus(dataset, name) if dataset else None
        return Description(space, _own_plan(plan, space) if plan else None)
    name = name or description.dataset_name(dataset or path)
    if plan.suffix == ".pkl":
        return description.from_v1(
            torch_file.read_plain(plan), _needed(labels, "a plan of nnU-Net v1"), name
        )
    return description.from_v2(
        _json(plan), configuration, _needed(labels, "plans of nnU-Net v2"), name
    )


def _one_corpus(dataset: Path, name: str) -> LabelSpace:
    """The classes of a dataset.json in the order of the file's channels.

    Named and described as in a training on that data set.
    """
    corpus, spec, _ = describe(dataset)
    return description.label_space(
        spec["labels"], corpus.channels, name or corpus.name, corpus.modality
    )


def _own_plan(path: Path, space: LabelSpace | None) -> Plan:
    """A run's plan for the corpora of the space.

    A plan with a single spacing applies it to every corpus, whatever name it is stored under.
    """
    plan = Plan.from_json(_json(path), path)
    if space is None:
        return plan
    common = set(plan.spacing_mm.values())
    for corpus in space.corpora:
        for channel in corpus.channels:
            plan.intensity_of(channel)
    return dataclasses.replace(
        plan,
        spacing_mm={
            c.name: next(iter(common)) if len(common) == 1 else plan.spacing_of(c.name)
            for c in space.corpora
        },
    )


def _meaning(
    space: LabelSpace | None, found: accounts.Architecture, name: str
) -> tuple[LabelSpace, str]:
    """The label space, and whether channels are exclusive; by default numbered classes."""
    if space is None:
        rows = tuple((i, (f"class_{i}",)) for i in range(1, found.channels_out + 1))
        corpus = Corpus(
            name,
            rows,
            channels=tuple(f"channel_{i}" for i in range(found.channels_in)),
            modality="unknown",
        )
        return merge([corpus]), "sigmoid"
    if len(space.corpora) > 1:
        raise UsageError(
            "the network has one set of heads",
            found=f"{len(space.corpora)} data sets",
            fix="give one --dataset",
        )
    if found.channels_out not in (len(space.classes), len(space.classes) + 1):
        raise ModelError(
            "the classes do not fit the network's heads",
            found=f"{found.channels_out} channels, {len(space.classes)} classes",
            expected="as many channels as classes, or one more for the background",
            fix="give the right --dataset",
        )
    return space, "sigmoid" if found.channels_out == len(space.classes) else "softmax"


def _by_corpus(
    space: LabelSpace | None, found: accounts.Architecture, name: str
) -> tuple[LabelSpace, str]:
    """The label space of softmax heads by corpus, in the order of the heads.

    Without a description: a corpus of numbered classes for each.
    """
    wanted = tuple(tuple(channels) for channels in found.arguments["corpus_channels"])
    if space is None:
        names = [name] if len(wanted) == 1 else [f"{name}_{k}" for k in range(len(wanted))]
        rows = [tuple((i, (f"class_{i}",)) for i in range(1, len(own) + 1)) for own in wanted]
        numbered = [
            Corpus(n, r, channels=("channel_0",), modality="unknown")
            for n, r in zip(names, rows, strict=True)
        ]
        return merge(numbered, "per_corpus"), "softmax"
    given = tuple(tuple(np.flatnonzero(row).tolist()) for row in space.known)
    if given != wanted:
        raise ModelError(
            "the classes do not fit the network's heads",
            found=f"data sets of {[len(own) for own in given]} classes",
            expected=f"heads of {[len(own) for own in wanted]}, the background left out",
            fix="give one --dataset for each head, in order",
        )
    if (channels := max(len(corpus.channels) for corpus in space.corpora)) not in (
        1,
        found.channels_in,
    ):
        raise ModelError(
            "the channels do not fit the network",
            found=channels,
            expected=f"1 (repeated) or {found.channels_in}",
        )
    return space, "softmax"


def _without_data(arguments: Mapping[str, Any]) -> dict:
    """The arguments that belong in a config; those that follow from the data are left out."""
    return {
        k: v
        for k, v in arguments.items()
        if k not in ("classes", "in_channels", "corpus_channels", "modalities")
    }


def _fresh(params: Any) -> str:
    """A pattern of the parameters that the tree does not contain."""
    held = sorted(
        {
            re.sub(r"\d+", r"\\d+", "/".join(path.split("/")[:2]))
            for path in accounts.shapes_of(params)
        }
    )
    return f"^(?!({'|'.join(held)})/)"


def _count(tree: Any) -> int:
    return sum(int(np.prod(shape)) for shape in accounts.shapes_of(tree).values())


def _json(path: Path) -> dict:
    found = read_json(path)
    if not isinstance(found, dict):
        raise UsageError(
            "a JSON file that is no object", path=path, found=type(found).__name__, expected="{...}"
        )
    return found


def _needed(labels: dict, what: str) -> dict:
    if not labels:
        raise UsageError(f"{what} needs the classes as well", fix="give --dataset dataset.json")
    return labels
