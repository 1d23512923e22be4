"""Adapters of runs: taken out as a small file, joined to a base, merged into it, stacked.

In: run folders, archives and adapter files. Out: files, a model to predict with, and texts to
print. The mathematics is in `weights/adapters.py`, the file in `weights/formats/adapter.py`.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from medjax.errors import ModelError, UsageError
from medjax.labels import LabelSpace
from medjax.prepare.plan import Plan
from medjax.registry import plain
from medjax.runs import build, fitted
from medjax.runs.config import with_merged_adapter
from medjax.runs.exchange import export
from medjax.runs.folder import config_of
from medjax.runs.settings.schema import Config
from medjax.runs.trained import Adapted, Trained, read_model
from medjax.train.rules import assign
from medjax.weights import adapters
from medjax.weights.adapters import Adapters
from medjax.weights.formats import adapter as form

TEXTS = "text/table"  # has a row for every class or task, so it goes with what was trained


def extract(
    run: Path,
    out: Path,
    *,
    name: str = "",
    checkpoint: str = "",
    licences: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> str:
    """Writes the adapter of a run as a file; returns the text to print.

    Args:
      run: run folder or archive that was trained with `config.adapters`, or of which
        `optim.trainable` froze a part: all that was trained is then taken whole, for example what
        a further task added. out: NAME.adapter.safetensors. name: of its expert, by default that
        of the experiment.

    Raises: `UsageError` for a run that trained everything; what `read_model` and `form.write`
      raise.
    """
    trained = read_model(run)
    settings = build.adapter_settings(trained.config) or _of_trained(trained.config)
    if settings is None:
        raise UsageError(
            "this run has no adapters and trained everything",
            path=run,
            fix="train one with config.adapters (docs/adapters.md), or use `medjax export`",
        )
    params = trained.params(checkpoint)
    values = assign(params, adapters.trainable(settings), "config.adapters.rules")
    on = traverse_util.flatten_dict(values, sep="/")
    flat = traverse_util.flatten_dict(params, sep="/")
    taken = {path for path in flat if on[path] or path == TEXTS}
    arrays = {path: np.asarray(leaf) for path, leaf in flat.items() if path in taken}
    kept = {path: leaf for path, leaf in flat.items() if path not in taken}
    documents = export.describe(trained, licences or {})
    facts = {
        "licences": documents.pop("licences"),
        "provenance": export.provenance(trained, checkpoint),
    }
    base = {
        "sha256": adapters.digest(kept),
        "leaves": len(kept),
        "parameters": sum(int(np.prod(leaf.shape)) for leaf in kept.values()),
        "name": Path(trained.config.init.source or "").name,
    }
    made = form.Adapter(
        arrays,
        settings,
        base,
        _experts(trained, settings, name or trained.config.name),
        {key: documents[key] for key in form.DOCUMENTS},
        facts,
    )
    size = form.write(out, made, overwrite=overwrite)
    return f"{out}  {size:,} bytes, {made.numbers:,} numbers beside {base['parameters']:,}"


def _of_trained(config: Config) -> Adapters | None:
    """Every trained leaf as a whole one; None if all are trained."""
    rules = config.optim.trainable
    if all(on for _, on in rules):
        return None
    return Adapters(tuple((pattern, adapters.WHOLE if on else 0) for pattern, on in rules))


def _experts(trained: Trained, settings: Adapters, name: str) -> tuple[dict, ...]:
    """What every stored expert was trained on."""
    space = trained.space
    tasks, words = build.tasks(trained.config, space)
    found = []
    for number in range(settings.stored):
        own = []
        for k, corpus in enumerate(space.corpora):
            index = {
                "modality": space.modalities.index(corpus.modality),
                "corpus": k,
                "task": tasks[k],
            }.get(settings.routing)
            expert = number + 1
            if settings.experts > 1 and index is not None:
                expert = settings.expert_of[index] if settings.expert_of else index
            if expert == number + 1:
                own.append(k)
        several = settings.stored > 1
        found.append(
            {
                "name": f"{name}.{number + 1}" if several else name,
                "modality": sorted({space.corpora[k].modality for k in own}),
                "corpus": sorted({space.corpora[k].store for k in own}),
                "task": sorted({words[tasks[k]] for k in own}),
            }
        )
    return tuple(found)


def attach(
    base: Trained | Path | str,
    file: Path | str | form.Adapter,
    *,
    expert: str = "",
    force: bool = False,
) -> Trained:
    """A base with an adapter file, as a model to predict with.

    Label space, preparation and config are those of the adapter.

    Args:
      file: its path, or its contents as `form.read` returns them.
      expert: name of the expert that all cases go through; empty: as the file routes. force: accept
        another base than the one it was trained on.

    Raises: `ModelError` for a file or base that does not fit, when the parameters are read.
    """
    base = base if isinstance(base, Trained) else read_model(base)
    if base.adapted:
        raise UsageError("one model takes one adapter", fix="stack them: `medjax adapter stack`")
    found = file if isinstance(file, form.Adapter) else form.read(file)
    settings, path = found.settings, Path(found.path)
    fields = plain(found.documents["config"])
    fitted.check_config(fields, path, ModelError)
    config = config_of(fields, path)
    space, plan = (
        LabelSpace.from_json(found.documents["labels"]),
        Plan.from_json(found.documents["plan"]),
    )
    if expert:
        number = found.expert(expert) + 1
        if settings.experts > 1:
            settings = dataclasses.replace(settings, routing="one", expert=number, expert_of=())
    elif settings.reads and not settings.expert_of:
        settings = dataclasses.replace(settings, expert_of=_by_name(found, config, space))

    def joined(params: Any, abstract: Any) -> Any:
        tree = form.join(params, found, force=force)
        flat = traverse_util.flatten_dict(adapters.split(tree)[0], sep="/")
        arrays = {path: np.asarray(leaf) for path, leaf in flat.items()}
        fitted.fitted(arrays, abstract, path)
        return jax.tree.map(jnp.asarray, tree)

    how = Adapted(base, settings, found.checksum, joined)
    return Trained(base.path, config, space, plan, None, None, how)


def _by_name(found: form.Adapter, config: Config, space: LabelSpace) -> tuple[int, ...]:
    """The expert of every modality, corpus or task of a label space."""
    word = found.settings.routing
    names = {
        "modality": space.modalities,
        "corpus": tuple(corpus.store for corpus in space.corpora),
        "task": build.tasks(config, space)[1],
    }[word]
    return form.expert_of(found, names)


def merge(
    base: Path,
    file: Path,
    out: Path,
    *,
    expert: str = "",
    force: bool = False,
    overwrite: bool = False,
) -> str:
    """Writes the base with an adapter added to its kernels; returns the text to print.

    Args:
      out: NAME.medjax, or a folder for a run folder. expert: see `attach`; needed for a file with
        several.

    Raises: `UsageError` for a base that contains an adapter already.
    """
    kind = "weights" if out.suffix == ".medjax" else "orbax"
    export.check_output(out, kind, overwrite=overwrite)
    trained = read_model(base)
    merged = tuple(trained.config.adapters.merged)
    if merged:
        raise UsageError(
            "an adapter was merged into this model before",
            path=base,
            found=", ".join(merged),
            fix="take the model it was merged into",
        )
    found = form.read(file)
    one = attach(trained, found, expert=expert, force=force)
    settings = one.adapted.settings
    share = None
    if settings.experts > 1:
        if not expert:
            raise UsageError(
                "this adapter has several experts, which cannot be merged at once",
                path=file,
                found=", ".join(str(e["name"]) for e in found.experts),
                fix="name one: --expert NAME",
            )
        share = [float(k == settings.expert - 1) for k in range(settings.stored)]
    params = adapters.merge(one.params(), settings, share)
    config = with_merged_adapter(one.config, f"{Path(file).name} {one.adapted.identity}")
    documents = dict(found.documents) | {"config": export.without_paths(config)}
    facts = {
        "provenance": {"base": dict(found.base)} | dict(found.facts.get("provenance", {})),
        "licences": dict(found.facts.get("licences", {})),
    }
    return export.write_model(params, out, kind, documents, facts, overwrite=overwrite)


def stack(given: Sequence[Path], route: str, out: Path, *, overwrite: bool = False) -> str:
    """Writes several adapters of one base as experts of one; returns the text to print."""
    found = [form.read(path) for path in given]
    made = form.stack(found, route, _together(found))
    size = form.write(out, made, overwrite=overwrite)
    return f"{out}  {size:,} bytes, experts {', '.join(str(e['name']) for e in made.experts)}"


def _together(given: Sequence[form.Adapter]) -> dict[str, Any]:
    """Config, labels and plan of several adapters: the corpora of all, for the same classes.

    Raises: `UsageError` for other classes, or a corpus or channel that is prepared in two ways.
    """
    labels, plan = (json.loads(json.dumps(given[0].documents[k])) for k in ("labels", "plan"))
    told = dict(zip((c["name"] for c in labels["corpora"]), labels["names"], strict=True))
    known = {corpus["name"]: corpus for corpus in labels["corpora"]}

    def refuse(other: form.Adapter, what: str) -> UsageError:
        return UsageError(
            f"these adapters differ in {what} and cannot be stacked",
            path=other.path,
            found=f"not as in {given[0].path}",
        )

    for other in given[1:]:
        theirs, prepared = other.documents["labels"], other.documents["plan"]
        if (theirs["classes"], theirs["precedence"]) != (labels["classes"], labels["precedence"]):
            raise refuse(other, "their classes")
        for corpus, names in zip(theirs["corpora"], theirs["names"], strict=True):
            if known.setdefault(corpus["name"], corpus) != corpus:
                raise refuse(other, f"the corpus {corpus['name']!r}")
            told.setdefault(corpus["name"], names)
        for part in ("spacing_mm", "intensity"):
            for name, value in prepared[part].items():
                if plan[part].setdefault(name, value) != value:
                    raise refuse(other, f"{part} of {name!r}")
        apart = {"spacing_mm", "intensity", "guard", "configurations"}
        for part in {*plan, *prepared} - apart:
            if plan.get(part) != prepared.get(part):
                raise refuse(other, f"the plan's {part}")
        if plan.get("guard") != prepared.get("guard"):  # what scans looked like: neither's alone
            plan.pop("guard", None)
    labels |= {"corpora": list(known.values()), "names": [told[name] for name in known]}
    return {"config": given[0].documents["config"], "labels": labels, "plan": plan}


def about(file: Path) -> str:
    """The facts of an adapter file as text."""
    found = form.read(file)
    settings = found.settings
    sites = sum(path.endswith(f"/{adapters.A}") for path in found.arrays)
    ranks = sorted(
        {a.shape[-1] for path, a in found.arrays.items() if path.endswith(f"/{adapters.A}")}
    )
    names = (adapters.A, adapters.B, adapters.SCALE)
    whole = [
        path
        for path in found.arrays
        if path.split("/")[-1] not in names and not path.startswith(adapters.ROUTER)
    ]
    lines = [
        f"adapter    {file}: {found.numbers:,} numbers, {sites} kernels, "
        f"rank {', '.join(map(str, ranks)) or 'none'}, {settings.scaling} alpha {settings.alpha:g}",
        f"base       {found.base.get('name') or 'unnamed'}: {found.base['parameters']:,} "
        f"parameters, sha256 {found.base['sha256']}",
        f"whole      {', '.join(whole) or 'none'}",
        f"routing    {settings.routing}",
    ]
    for number, expert in enumerate(found.experts, 1):
        own = {word: ", ".join(expert.get(word) or ["-"]) for word in adapters.WORDS}
        told = "; ".join(f"{word} {names}" for word, names in own.items())
        lines.append(f"expert {number}   {expert['name']}: {told}")
    classes = LabelSpace.from_json(found.documents["labels"]).classes
    lines.append(f"classes    {', '.join(classes)}")
    for name, licence in dict(found.facts.get("licences", {})).items():
        lines.append(f"licence    {name}: {licence}")
    return "\n".join(lines)
