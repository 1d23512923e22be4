"""Adds a modality (expert, gate column, head) or a corpus of a known modality (head) to a run.

In: a run folder and the folders of the new corpora. Out: the config of a new run that starts from
the old parameters with the new parts, the check that the old outputs are unchanged, and a list of
the additions. The new run is an ordinary run: it can be trained, resumed, extended and used for
prediction.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medjax.corpora.splits import make_splits
from medjax.errors import TrainError, UsageError
from medjax.labels import LabelSpace
from medjax.models import context as contexts
from medjax.models.parts import sockets
from medjax.runs import adapt, build, fitted, folder, initial
from medjax.runs.config import with_field
from medjax.runs.open import open_data
from medjax.runs.settings.schema import Config, Init
from medjax.train import checkpoint
from medjax.weights import experts

UNCHANGED = (
    1e-4  # largest change of an old logit that counts as none (float32 sums in another order)
)
PARTS = {
    "experts": r"/mlp/(w1|b1|w2|b2)$",
    "gate": r"/mlp/gate/",
    "heads": r"^(head|out)_?\d*/",
    "context": r"^context/table$",
}


@dataclasses.dataclass(frozen=True)
class Growth:
    """What was added to a run.

    Attributes:
      modalities, corpora: names of the new ones.
      before, after: numbers of parameters. added: by part ("experts", "gate", "heads").
      change: largest change of an old corpus' logits before any training.
    """

    modalities: tuple[str, ...]
    corpora: tuple[str, ...]
    before: int
    after: int
    added: Mapping[str, int]
    change: float

    def to_json(self) -> dict:
        """JSON-ready fields."""
        return dataclasses.asdict(self) | {"added_in_all": self.after - self.before}

    def text(self) -> str:
        """The text to print."""
        what = (
            f"new modalities: {', '.join(self.modalities) or 'none'}; new corpora: "
            f"{', '.join(self.corpora)}"
        )
        parts = ", ".join(f"{name} {n:,}" for name, n in self.added.items())
        return (
            f"{what}\nparameters: {self.before:,} + {self.after - self.before:,} = {self.after:,} "
            f"({parts})\n"
            f"largest change of an old corpus' logits before training: {self.change:.2g}"
        )


def grown_config(
    run: Path,
    folders: Sequence[str],
    workdir: Path,
    *,
    begin: str = "copy",
    source: str = "",
    gate: str = "",
    freeze: bool = False,
    **changes: Any,
) -> Config:
    """The config of the new run.

    Args:
      run: the trained run. folders: raw folders of the new corpora. workdir: of the new run; its
        splits are written there.
      begin: initialisation of new experts: "fresh", "copy" (of the expert `source`), or a run
        folder with masked pre-training on the new modality (blocks that it lacks are copied from
        `source`).
      source: an expert of the run; required only if it has several.
      gate: a word of `weights.experts.GATES`; default "apart" for a copy ("split" with `freeze`,
        where the original does not change), otherwise "closed".
      freeze: train the new expert, its gate columns and the new head only.
      changes: "train.steps" and other dotted fields with their values.

    Raises: `UsageError` for a run that has no experts to add to, unknown names and words.
    """
    old, space = folder.read_config(run), folder.read_space(run)
    known = old.data.folders
    named = [*([known] if known else []), *(str(Path(f).expanduser().resolve()) for f in folders)]
    config = with_field(old, "data.folders", ",".join(named))
    for path, value in changes.items():
        config = with_field(config, path, value)
    store = old.data.store or str((run / "store").resolve())
    config = with_field(with_field(config, "data.store", store), "data.split.file", "")
    config, new, added = _new_parts(config, run, space, workdir)
    count = experts.count(_abstract(old, space))
    names = adapt.expert_names(old, space, count)
    model = old.model.to_json()
    grows, mlp = bool(added and count), sockets.words(model, "mlp")
    if grows and mlp.get("expert_of") is not None:
        raise UsageError(
            "expert_of fixes which modality has which expert",
            found=mlp["expert_of"],
            fix="add to it by hand",
        )
    if grows and mlp.get("experts") is not None:
        place = "model.mlp.experts" if "mlp" in model else "model.experts"
        config = with_field(config, place, count + len(added))
    wanted = adapt.expert_names(config, new, count + len(added)) if grows else ()
    begun = _begin(names, wanted, added, begin, source, gate or _gate(begin, freeze))
    begun |= {"source": str(run.resolve()), "heads": begun["heads"] + _embedded(model)}
    config = dataclasses.replace(config, init=Init.from_fields(begun, "config.init"))
    if not freeze:
        return config
    mine = tuple(wanted.index(name) for name in added) if grows else ()
    frozen = _frozen(config, new, old, space, mine)
    return dataclasses.replace(config, optim=dataclasses.replace(config.optim, **frozen))


def check(run: Path, config: Config, space: LabelSpace) -> Growth:
    """Builds both networks and compares them on random images of every old corpus.

    Args:
      run: the old run. config, space: of the new one.

    Raises: `TrainError` if an old logit changed although the gate columns should preserve it
      (`UNCHANGED`).
    """
    old_config, old_space = folder.read_config(run), folder.read_space(run)
    spacing = folder.read_plan(run).mean_spacing()
    before, after = (
        build.make_network(_exact(f), s, spacing)
        for f, s in ((old_config, old_space), (config, space))
    )
    old = fitted.check_finite(
        checkpoint.load_params(
            run / "checkpoints", before.abstract(), which=config.init.checkpoint
        ),
        run,
    )
    new = initial.borrower(config, space, after, Path("."), report=False)(
        jax.jit(after.init)(jax.random.key(config.seed))
    )
    image = jax.random.normal(jax.random.key(0), (1, *before.patch, before.channels))
    apply_old, apply_new = (jax.jit(_highest(net.apply)) for net in (before, after))
    change = 0.0
    for k, corpus in enumerate(old_space.corpora):
        there = space.corpus_index(corpus.name)
        modalities = [s.modalities.index(corpus.modality) for s in (old_space, space)]
        given = [
            _context(net, {"corpus": c, "modality": m, "task": net.tasks[c]}, spacing)
            for net, c, m in zip((before, after), (k, there), modalities, strict=True)
        ]
        one, two = (
            apply_old(old, image, given[0])["logits"],
            apply_new(new, image, given[1])["logits"],
        )
        own = [
            name for name, known in zip(old_space.classes, old_space.known[k], strict=True) if known
        ]
        one, two = (
            np.asarray(x)[..., [s.class_index(n) for n in own]]
            for x, s in ((one, old_space), (two, space))
        )
        change = max(change, float(np.abs(one - two).max()))
    if change > UNCHANGED and config.init.gate != "fresh":
        raise TrainError(
            "the grown network changes the outputs for old corpora",
            found=f"{change:.2g}",
            expected=f"at most {UNCHANGED:g}",
        )
    sizes = [_sizes(net.abstract()) for net in (before, after)]
    added = {part: sizes[1][part] - sizes[0].get(part, 0) for part in PARTS if part in sizes[1]}
    return Growth(
        tuple(m for m in space.modalities if m not in old_space.modalities),
        tuple(c.name for c in space.corpora if c.name not in [o.name for o in old_space.corpora]),
        *(build.count(net.abstract()) for net in (before, after)),
        added,
        change,
    )


def _highest(apply: Callable) -> Callable:
    """`apply` with products in float32, which accelerators round by default."""

    def exact(*arguments: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return apply(*arguments)

    return exact


def _context(net: build.Network, facts: Mapping[str, int], spacing: Sequence[float]) -> dict:
    """The context of one sample; zeros for what no corpus decides."""
    known = {name: jnp.full(1, value, jnp.int32) for name, value in facts.items()}
    known["spacing_mm"] = jnp.asarray([spacing], jnp.float32)
    free = {
        name: entry
        for name, entry in net.reads.items()
        if name not in known and entry.derive is None
    }
    return contexts.of_batch(net.reads, known | contexts.zeros(free, 1, net.patch))


def _exact(config: Config) -> Config:
    """The same network in float32, so that rounding neither hides nor causes a change."""
    known = build.accepted(config.model.name)
    return with_field(config, "model.dtype", "float32") if "dtype" in known else config


def _gate(begin: str, freeze: bool) -> str:
    return "closed" if begin != "copy" else "split" if freeze else "apart"


def _embedded(model: Mapping) -> tuple[tuple, ...]:
    """The rule for vectors by corpus, modality or task: new ones start at zero."""
    given = sockets.words(model, "context")
    if given["kind"] != "embedding":
        return ()
    return ((PARTS["context"], 0, sockets.EMBEDDED[given.get("of", "modality")]),)


def _begin(
    names: Sequence[str],
    wanted: Sequence[str],
    added: Sequence[str],
    begin: str,
    source: str,
    word: str,
) -> dict:
    """`config.init` of the new run."""
    init = {
        "checkpoint": "last",
        "rename": (),
        "heads": ((PARTS["heads"], -1),),
        "classes": {},
        "resize": (),
        "widen": "repeat",
        "fresh": "",
        "copy": (),
        "upcycle": False,
        "experts": {},
        "experts_from": {},
        "gate": "fresh",
    }
    if not wanted:
        return init
    if source and source not in names:
        raise UsageError(f"the run has no expert {source!r}", expected=", ".join(names))
    if begin != "fresh" and not source and len(names) > 1:
        raise UsageError(
            "which expert is to be copied?", expected=", ".join(names), fix="name it with --expert"
        )
    if word not in experts.GATES:
        raise UsageError(
            f"unknown rule {word!r} for gate columns", expected=", ".join(experts.GATES)
        )
    if word in experts.SHARING and begin != "copy":
        raise UsageError(
            "only a copy can share a gate column",
            found=f"begin {begin!r}",
            fix='take gate "closed" or "fresh"',
        )
    origin = "" if begin == "fresh" else source or names[0]
    other = (
        {}
        if begin in ("fresh", "copy")
        else {name: str(Path(begin).expanduser().resolve()) for name in added}
    )
    unnamed = iter(
        name for name in names if name not in wanted
    )  # experts without a modality are named by position, which may change
    begins = {
        name: origin if name in added else next(unnamed) for name in wanted if name not in names
    }
    return init | {"experts": begins, "experts_from": other, "gate": word}


def _new_parts(
    config: Config, run: Path, space: LabelSpace, workdir: Path
) -> tuple[Config, LabelSpace, tuple[str, ...]]:
    """The config with the splits extended to the new cases, the label space of the new run, and
    the modalities that are new to it.
    """
    data = open_data(config.data, run)
    new, given = data.space, config.data.split
    lost = [c.name for c in space.corpora if c.name not in [n.name for n in new.corpora]]
    if lost:
        raise UsageError(
            "corpora of the run are not found again",
            found=lost,
            fix="put their folders back, or correct data.folders of the run",
        )
    if len(new.corpora) == len(space.corpora):
        raise UsageError(
            "the run already knows these corpora",
            found=[c.name for c in new.corpora],
            fix="name the folder of a new one",
        )
    splits = extended_splits(
        folder.read_json(run, folder.SPLITS), data.cases, given.folds, given.seed
    )
    folder.write_json(workdir / "grown_splits.json", splits)
    file = str((workdir / "grown_splits.json").resolve())
    config = with_field(config, "data.split.file", file)
    return config, new, tuple(m for m in new.modalities if m not in space.modalities)


def extended_splits(
    old: Sequence[Mapping], cases: Mapping[str, Sequence[Any]], folds: int, seed: int
) -> list[dict]:
    """The old folds with the cases of new corpora added.

    Known patients stay on their side; new patients are assigned to folds.

    Args:
      old: folds of "corpus/case" names. cases: corpus -> its cases, old and new. folds, seed: for
        new patients.
    """
    known = {name.split("/")[0] for split in old for name in (*split["train"], *split["val"])}
    patient = {
        f"{corpus}/{c.name}": c.patient for corpus, members in cases.items() for c in members
    }
    fresh = {corpus: members for corpus, members in cases.items() if corpus not in known}
    folds = max(folds, len(old))
    dealt = (
        make_splits(fresh, folds, seed)
        if len({c.patient for m in fresh.values() for c in m}) >= folds
        else None
    )
    out = []
    for fold, split in enumerate(old):
        held, trained = (
            {patient[n] for n in split[side] if n in patient} for side in ("val", "train")
        )
        new = {"train": list(split["train"]), "val": list(split["val"])}
        for corpus, members in fresh.items():
            for case in members:
                name = f"{corpus}/{case.name}"
                chance = dealt is not None and name in dealt[fold]["val"]
                new[
                    "val"
                    if case.patient in held or (chance and case.patient not in trained)
                    else "train"
                ].append(name)
        out.append(new)
    return out


def _frozen(
    config: Config, new: LabelSpace, old: Config, space: LabelSpace, added: tuple[int, ...]
) -> dict:
    """`config.optim`: everything frozen except the new expert, its gate column and head columns."""
    here, there = adapt.channel_names((config, new), (old, space))
    columns = tuple(i for i, name in enumerate(here) if name not in there)
    trainable, only = [(PARTS["heads"], True)], [(PARTS["heads"], (-1, columns))]
    for pattern, axis, what in _embedded(old.model.to_json()):
        known, wanted = adapt.axis_names((config, new), (old, space))[what]
        rows = tuple(i for i, name in enumerate(wanted) if name not in known)
        trainable += [(pattern, True)] if rows else []
        only += [(pattern, (axis, rows))] if rows else []
    if added:
        trainable += [(PARTS["experts"], True)]
        only += [(PARTS["experts"], (0, added))]
        if sockets.words(old.model.to_json(), "mlp").get("routing", "gate") == "gate":
            trainable += [(PARTS["gate"], True)]
            only += [(PARTS["gate"], (-1, added))]
    return {"trainable": (*trainable, (".*", False)), "only": tuple(only)}


def _abstract(config: Config, space: LabelSpace) -> Any:
    return build.make_network(config, space, (1.0, 1.0, 1.0)).abstract()


def _sizes(abstract: Any) -> dict[str, int]:
    import re

    flat = experts.flat(abstract)
    found = {
        part: sum(int(np.prod(v.shape)) for k, v in flat.items() if re.search(pattern, k))
        for part, pattern in PARTS.items()
    }
    return {part: n for part, n in found.items() if n or part != "context"}
