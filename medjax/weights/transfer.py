"""Copies parameters of another run (or an imported model) into a fresh tree, with a full account.

In: fresh parameters, source parameters by the same or renamable paths, and the allowed differences:
leaves with names along an axis (class heads, embeddings), position tables, input channels. Out: the
tree with leaves replaced, and a `Report` of every leaf on both sides. Any other difference is an
error.

Sources: MultiTalent (Ulrich et al., MICCAI 2023) sec. 3.3 copies all but the heads; STU-Net repeats
the first kernel over new input channels without dividing it.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medjax.errors import TrainError, UsageError, did_you_mean
from medjax.train import rules as rule_lists
from medjax.train.rules import Rules
from medjax.weights import adapters

NAMED = ("classes", "modalities", "tasks", "corpora")  # what an axis of a leaf can run over
INPUT_RULES = ("repeat", "average", "fresh")
SHOWN = 6  # names per line of the printed report


@dataclasses.dataclass(frozen=True)
class Report:
    """The account of every leaf, by path.

    Attributes:
      loaded: copied as they are.
      classes: path of a leaf with names along an axis -> the names whose entries were copied; the
        others are fresh.
      fresh: left as initialised (by rule, or heads without a class in common).
      resized: path -> how ("(7, 5, 6, 768) -> (4, 4, 4, 768) trilinear").
      input: path -> how the input channels were widened or averaged.
      skipped: source leaves (by their own path) that the target does not use.
      sizes: number of elements of every target leaf.
    """

    loaded: tuple[str, ...]
    classes: Mapping[str, tuple[str, ...]]
    fresh: tuple[str, ...]
    resized: Mapping[str, str]
    input: Mapping[str, str]
    skipped: tuple[str, ...]
    sizes: Mapping[str, int] = dataclasses.field(repr=False)

    @property
    def share(self) -> float:
        """Share of the target's elements from the source; partly copied heads count fully."""
        taken = sum(
            self.sizes[name] for name in (*self.loaded, *self.classes, *self.resized, *self.input)
        )
        return taken / max(sum(self.sizes.values()), 1)

    def to_json(self) -> dict:
        """JSON-ready fields."""
        named = ("loaded", "classes", "fresh", "resized", "input", "skipped")
        return {"share": round(self.share, 6)} | {
            name: _plain(getattr(self, name)) for name in named
        }

    def text(self) -> str:
        """The printed report: one line per kind, the first names of each."""
        lines = [f"transfer: {self.share:.1%} of the parameters come from the source"]
        lines.append(f"  loaded          {_some(self.loaded)}")
        for title, entries in (("resized", self.resized), ("input channels", self.input)):
            lines += [f"  {title:14}  {path}: {how}" for path, how in entries.items()]
        by_names: dict[tuple[str, ...], list[str]] = {}
        for path, names in self.classes.items():
            by_names.setdefault(names, []).append(path)
        lines += [
            f"  by class name   {_some(paths)}: {_some(names)}" for names, paths in by_names.items()
        ]
        lora = [name for name in self.fresh if re.search(adapters.TRAINED, name)]
        if lora:
            numbers = sum(self.sizes[name] for name in lora)
            lines.append(f"  adapters        {len(lora)} new leaves, {numbers:,} numbers")
        lines.append(
            f"  re-initialised  {_some([name for name in self.fresh if name not in lora])}"
        )
        lines.append(f"  skipped         {_some(self.skipped)}")
        return "\n".join(lines)


def transfer(
    target: Any,
    source: Any,
    *,
    rename: Rules = (),
    heads: Sequence[tuple] = (),
    source_classes: Sequence[str] = (),
    target_classes: Sequence[str] = (),
    named: Mapping[str, tuple[Sequence[str], Sequence[str]]] | None = None,
    same_class: Mapping[str, str] | None = None,
    resize: Rules = (),
    resizers: Mapping[str, Callable[[np.ndarray, tuple[int, ...]], np.ndarray]] | None = None,
    input_channels: tuple[int, int] | None = None,
    widen: str = "repeat",
    fresh: str = "",
    new: str = "",
) -> tuple[Any, Report]:
    """The target with leaves of the source.

    Each target leaf is, in this order: left as it is if `fresh` matches; treated as a head if
    `heads` matches; copied if the source has its path and shape; resized by the first rule of
    `resize` that matches; widened or averaged if its shape differs only in the number of input
    channels; left as it is if the source has none and `new` matches. Anything else is an error.

    Args:
      target: fresh parameters (arrays anywhere, also spread over processes).
      source: parameters as arrays.
      rename: (regex, replacement) applied to source paths: the first rule whose pattern is found
        replaces its first match (`re.sub`).
      heads: (regex over target paths, axis, what it runs over: a word of `NAMED`, by default
        "classes"); axis None re-initialises always.
      source_classes, target_classes: names along axes of classes; entries of equal names are
        copied.
      named: for the other words of `NAMED`: (names of the source, names of the target).
      same_class: target class -> source class, if the names differ ("" re-initialises a class in
        spite of its name).
      resize: (regex over target paths, name in `resizers`).
      resizers: name -> f(array, target shape) -> array.
      input_channels: of source and target images; leaves that read the raw image may differ in that
        axis.
      widen: "repeat": target channel j takes source channel j mod n, undivided; fewer target than
        source channels take their mean. "average": the mean over the source channels times n / m,
        which preserves the response to equal channels. "fresh": re-initialised.
      fresh: regex over target paths that stay as initialised; empty: none. new: the same, of those
        that the source has not.

    Returns: the new tree (copied leaves are numpy arrays, unless they are spread over processes),
      and the report.
    Raises: `TrainError` listing target leaves without a source and shapes that no rule allows, or
      if nothing matched; `UsageError` for unknown names, rules that match nothing and class lists
      that do not fit the heads.
    """
    if widen not in INPUT_RULES:
        raise UsageError(
            f"unknown rule {widen!r} for input channels", fix=did_you_mean(widen, INPUT_RULES)
        )
    resizers = resizers or {}
    if unknown := [name for _, name in resize if name not in resizers]:
        raise UsageError(f"unknown resizer {unknown[0]!r}", fix=did_you_mean(unknown[0], resizers))
    names, leaves = rule_lists.paths(target), jax.tree.leaves(target)
    given = _renamed(source, rename)
    _check_axes(heads)
    axes = {NAMED[0]: (source_classes, target_classes), **(named or {})}
    _all_used([rule[:2] for rule in heads], names, "heads of the transfer")
    loaded, kept, by_class, resized, widened, problems, values = [], [], {}, {}, {}, [], []
    for name, leaf in zip(names, leaves, strict=True):
        _, array = given.get(name, ("", None))
        head = next((rule for rule in heads if re.search(rule[0], name)), None)
        value, shape = leaf, tuple(leaf.shape)
        _, resizer = _first(resize, name)
        if fresh and re.search(fresh, name):
            kept.append(name)
        elif head:
            what = head[2] if len(head) > 2 else NAMED[0]
            value, copied = _by_name(
                name,
                leaf,
                array,
                head[1],
                what,
                *axes.get(what, ((), ())),
                (same_class or {}) if what == NAMED[0] else {},
            )
            kept += [] if copied else [name]
            by_class |= {name: copied} if copied else {}
        elif array is None and new and re.search(new, name):
            kept.append(name)
        elif array is None:
            problems.append(f"{name} is not in the source")
        elif array.shape == shape:
            loaded.append(name)
            value = np.asarray(array) if getattr(array, "is_fully_addressable", True) else array
        elif resizer:
            value = np.asarray(resizers[resizer](np.asarray(array), shape))
            resized[name] = f"{array.shape} -> {shape} {resizer}"
        elif (at := _input_axis(array.shape, shape, input_channels)) is not None:
            if widen == "fresh":
                kept.append(name)
            else:
                value, how = _widen(np.asarray(array), at, shape[at], widen)
                widened[name] = f"{array.shape[at]} -> {shape[at]} {how}"
        else:
            problems.append(f"{name}: {tuple(array.shape)} in the source, {shape} here")
        values.append(value)
    sizes = {name: int(np.prod(leaf.shape)) for name, leaf in zip(names, leaves, strict=True)}
    used = {*loaded, *by_class, *resized, *widened}
    skipped = tuple(sorted(own for path, (own, _) in given.items() if path not in used))
    if not (loaded or resized or widened):
        raise TrainError(
            "nothing of the source fits the model",
            found=_some([own for own, _ in given.values()]),
            expected=_some(names),
            fix="check that it is the same architecture, or give rename rules (config.init.rename)",
        )
    if problems:
        raise TrainError(
            f"the source does not fit the model ({len(problems)} leaves)",
            found="; ".join(problems[:12]),
            fix="config.init: `fresh` for leaves that stay as initialised, `new` for those that "
            "the source has not, `rename` or `resize` for the others",
        )
    report = Report(tuple(loaded), by_class, tuple(kept), resized, widened, skipped, sizes)
    return jax.tree.unflatten(jax.tree.structure(target), values), report


def _renamed(source: Any, rename: Rules) -> dict[str, tuple[str, Any]]:
    """Renamed path -> (own path, array)."""
    found: dict[str, tuple[str, Any]] = {}
    names = rule_lists.paths(source)
    _all_used(rename, names, "rename rules of the transfer")
    for name, leaf in zip(names, jax.tree.leaves(source), strict=True):
        pattern, replacement = _first(rename, name)
        new = re.sub(pattern, replacement, name, count=1) if pattern else name
        if new in found:
            raise UsageError(
                f"two source leaves are renamed to {new!r}",
                found=[found[new][0], name],
                fix="make the rename rules finer",
            )
        found[new] = (name, leaf)
    return found


def _first(rules: Rules, name: str) -> tuple[str, Any]:
    return next(
        ((pattern, value) for pattern, value in rules if re.search(pattern, name)), ("", None)
    )


def _all_used(rules: Rules, names: Sequence[str], what: str) -> None:
    unused = [
        pattern
        for pattern, _ in rules
        if pattern != rule_lists.CATCH_ALL and not any(re.search(pattern, n) for n in names)
    ]
    if unused:
        raise UsageError(
            f"{what}: nothing matches {unused}",
            expected=f"a match among {_some(names)}",
            fix="correct or remove the rule",
        )


def _check_axes(heads: Sequence[tuple]) -> None:
    for rule in heads:
        if len(rule) not in (2, 3) or (len(rule) == 3 and rule[2] not in NAMED):
            raise UsageError(
                "unusable rule in config.init.heads",
                found=rule,
                expected=f"(regex, axis) or (regex, axis, {' or '.join(NAMED)})",
                fix=did_you_mean(str(rule[2]), NAMED) if len(rule) == 3 else "correct the rule",
            )


def _by_name(
    name: str,
    leaf: Any,
    array: Any,
    axis: int | None,
    what: str,
    source_names: Sequence[str],
    target_names: Sequence[str],
    same: Mapping[str, str],
) -> tuple[Any, tuple[str, ...]]:
    """A leaf with the entries of equal names copied along an axis, and these names.

    The leaf itself if no name matches.
    """
    if array is None or axis is None:
        return leaf, ()
    shape, axis = tuple(leaf.shape), axis % leaf.ndim
    for where, length, names in (
        ("source", array.shape[axis], source_names),
        ("target", shape[axis], target_names),
    ):
        if length != len(names):
            raise UsageError(
                f"{name}: axis {axis} is not the axis of the {what} of the {where}",
                found=length,
                expected=f"{len(names)} {what}",
                fix="correct config.init.heads",
            )
    if {k: n for k, n in enumerate(array.shape) if k != axis} != {
        k: n for k, n in enumerate(shape) if k != axis
    }:
        return leaf, ()
    pairs = {
        i: list(source_names).index(same.get(c, c))
        for i, c in enumerate(target_names)
        if same.get(c, c) in source_names
    }
    if not pairs:
        return leaf, ()
    taken = np.take(np.asarray(array), list(pairs.values()), axis)
    rows = dict(zip(pairs, np.moveaxis(taken, axis, 0), strict=True))
    return placed(leaf, axis, rows), tuple(target_names[i] for i in pairs)


def with_entries(params: Any, entries: Mapping[str, Mapping[int, Any]]) -> Any:
    """The tree with some entries of the last axis replaced: path -> index -> value."""
    names, leaves = rule_lists.paths(params), jax.tree.leaves(params)
    changed = [
        placed(leaf, -1, entries[name]) if name in entries else leaf
        for name, leaf in zip(names, leaves, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), changed)


def placed(leaf: Any, axis: int, entries: Mapping[int, Any], shift: Any = None) -> Any:
    """A leaf with some entries along an axis replaced; under jit, as it may be spread over
    processes.

    Args:
      entries: index -> what takes its place. shift: added to the entries that stay.
    """
    shape, axis = tuple(leaf.shape), axis % len(leaf.shape)
    values, mask = (
        np.zeros(shape, leaf.dtype),
        np.zeros([shape[axis] if k == axis else 1 for k in range(len(shape))], bool),
    )
    for index, entry in entries.items():
        values[(slice(None),) * axis + (index,)] = entry
    mask[(slice(None),) * axis + (list(entries),)] = True

    def mix(old: Any) -> Any:
        return jnp.where(mask, values, old if shift is None else old + shift)

    return jax.jit(mix, out_shardings=getattr(leaf, "sharding", None))(leaf)


def _input_axis(
    old: tuple[int, ...], new: tuple[int, ...], channels: tuple[int, int] | None
) -> int | None:
    """The one axis in which two shapes differ as the images' channels do, else None."""
    if channels is None or len(old) != len(new):
        return None
    different = [k for k, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
    return (
        different[0]
        if len(different) == 1 and (old[different[0]], new[different[0]]) == tuple(channels)
        else None
    )


def _widen(array: np.ndarray, axis: int, wanted: int, rule: str) -> tuple[np.ndarray, str]:
    n = array.shape[axis]
    if rule == "repeat" and wanted > n:
        return np.take(array, np.arange(wanted) % n, axis), "repeated"
    mean = np.repeat(array.mean(axis, keepdims=True, dtype=np.float64), wanted, axis)
    scaled, how = (
        (mean, "averaged")
        if rule == "repeat"
        else (mean * n / wanted, f"averaged, times {n}/{wanted}")
    )
    return scaled.astype(array.dtype), how


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return f"{len(names)}" + (f" ({shown})" if names else "")


def _plain(value: Any) -> Any:
    return (
        {k: _plain(v) for k, v in value.items()}
        if isinstance(value, Mapping)
        else list(value)
        if isinstance(value, tuple)
        else value
    )
