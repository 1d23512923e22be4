"""Rearranges the experts of a source for `weights.transfer`, by modality name.

In: the source's parameters, the target's fresh ones, and the names of the experts on both sides.
Out: source parameters with the expert axis of the target. Experts are the stacked leaves
`.../mlp/{w1,b1,w2,b2}` (axis 0) and the columns of `.../mlp/gate/{kernel,bias}` (last axis), see
`models.parts.moe`. Leaves of other names pass through.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from medjax.errors import TrainError, UsageError
from medjax.train import rules as rule_lists
from medjax.weights.transfer import placed

EXPERT = re.compile(r"(.*/mlp)/(w1|b1|w2|b2)$")
GATE = re.compile(r"(.*/mlp)/gate/(kernel|bias)$")
DENSE = {"w1": "fc1/kernel", "b1": "fc1/bias", "w2": "fc2/kernel", "b2": "fc2/bias"}
SHARING = ("apart", "split")  # both rules need the expert to be a copy
GATES = (*SHARING, "closed", "fresh")
APART = 0.3  # shift of copies that share a gate column, as a share of the spread of `w2`
# added to the gate bias of a closed column: its share is 6e-6 of an open one's, and its gradient as
# small
CLOSED = -12.0

Flat = dict[str, Any]


def flat(params: Any) -> Flat:
    """Path -> leaf."""
    import jax

    return dict(zip(rule_lists.paths(params), jax.tree.leaves(params), strict=True))


def nested(leaves: Mapping[str, Any]) -> dict:
    """The inverse of `flat` for nested dictionaries."""
    return unflatten_dict(dict(leaves), sep="/")


def count(params: Any) -> int:
    """Number of experts of a tree (the same in every block), 0 without any."""
    numbers = {
        leaf.shape[0]
        for name, leaf in flat(params).items()
        if EXPERT.match(name) and name.endswith("/w1")
    }
    if len(numbers) > 1:
        raise TrainError("blocks have different numbers of experts", found=sorted(numbers))
    return numbers.pop() if numbers else 0


def origins(
    wanted: Sequence[str], known: Sequence[str], same: Mapping[str, str]
) -> tuple[int | None, ...]:
    """For every target expert the source's expert it starts from, None for a fresh one.

    Args:
      same: expert here -> expert of the source, if the names differ; "" starts fresh.

    Raises: `UsageError` for an expert that the source lacks and `same` does not mention, and for
      unknown names.
    """
    unknown = sorted(set(same) - set(wanted)) + sorted({v for v in same.values() if v} - set(known))
    if unknown:
        raise UsageError(
            f"config.init.experts names unknown experts {unknown}",
            expected=f"here: {list(wanted)}; source: {list(known)}",
        )
    named = [same.get(name, name) for name in wanted]
    if missing := [
        name for name, origin in zip(wanted, named, strict=True) if origin and origin not in known
    ]:
        raise UsageError(
            f"the source has no expert for {missing}",
            found=list(known),
            expected=list(wanted),
            fix=f'say where it begins: config.init.experts = {{"{missing[0]}": '
            f'"{known[0] if known else ""}"}}, or "" for a fresh one',
        )
    return tuple(list(known).index(name) if name else None for name in named)


def aligned(source: Any, fresh: Any, begin: Sequence[int | None], gate: str = "fresh") -> dict:
    """The source with the experts of `begin`; fresh ones have the target's initial values.

    Args:
      source, fresh: parameter trees; `fresh` may lack leaves of the source and vice versa.
      begin: see `origins`.
      gate: columns of experts that are fresh or a further copy of another expert: "fresh" takes the
        target's initial values, "closed" adds `CLOSED` to the bias so that the others' outputs are
        preserved, "split" shares the column among the copies of one expert, "apart" also shifts
        their `w2` by amounts that cancel. "split" and "apart" preserve the function exactly; copies
        that are trained together need "apart", because equal copies with equal shares get equal
        gradients and would stay equal.

    Raises: `UsageError` for an unknown word, or for "split" and "apart" if an expert is not a copy.
    """
    if gate not in GATES:
        raise UsageError(f"unknown rule {gate!r} for gate columns", expected=", ".join(GATES))
    if gate in SHARING and None in begin:
        raise UsageError(
            "a fresh expert has no gate column to share",
            found=f"gate {gate!r}",
            fix='copy an expert, or take gate "closed"',
        )
    old, new, out = flat(source), flat(fresh), {}
    for name, leaf in old.items():
        out[name] = leaf
        if match := EXPERT.match(name):
            out[name] = _rows(np.asarray(leaf), new.get(name), begin)
            if gate == "apart" and match[2] == "w2" and _gated(old, match[1]):
                out[name] = _apart(out[name], begin, name)
        elif (match := GATE.match(name)) and _gated(old, match[1]):
            out[name] = _columns(
                np.asarray(leaf), new.get(name), begin, gate, bias=match[2] == "bias"
            )
    return nested(out)


def _gated(leaves: Flat, mlp: str) -> bool:
    """Whether the block has experts with a column of the gate each."""
    names = (f"{mlp}/w1", f"{mlp}/gate/kernel")
    return (
        all(name in leaves for name in names)
        and leaves[names[1]].shape[-1] == leaves[names[0]].shape[0]
    )


def _apart(leaf: np.ndarray, begin: Sequence[int | None], name: str) -> np.ndarray:
    """The copies of one expert shifted apart, with the same mean; deterministic by name."""
    found = leaf.copy()
    noise = (
        np.random.default_rng(list(name.encode())).standard_normal(leaf.shape) * APART * leaf.std()
    )
    for origin in set(begin):
        copies = [e for e, other in enumerate(begin) if other == origin]
        if len(copies) > 1:
            found[copies] += (noise[copies] - noise[copies].mean(0)).astype(leaf.dtype)
    return found


def _rows(leaf: np.ndarray, new: Any, begin: Sequence[int | None]) -> Any:
    fits = new is not None and new.shape == (len(begin), *leaf.shape[1:])
    if None in begin and not fits:
        return leaf  # `transfer` reports what does not fit
    kept = {e: leaf[origin] for e, origin in enumerate(begin) if origin is not None}
    return placed(new, 0, kept) if None in begin else np.stack(list(kept.values()))


def _columns(leaf: np.ndarray, new: Any, begin: Sequence[int | None], gate: str, bias: bool) -> Any:
    first = {origin: begin.index(origin) for origin in begin if origin is not None}
    kept = {}
    for e, origin in enumerate(begin):
        if origin is not None and (first[origin] == e or gate in SHARING):
            column = leaf[..., origin]
            kept[e] = column - np.log(begin.count(origin)) if bias and gate in SHARING else column
    if len(kept) == len(begin):
        return np.stack(list(kept.values()), -1).astype(leaf.dtype)
    if new is None or new.shape != (*leaf.shape[:-1], len(begin)):
        return leaf
    return placed(new, -1, kept, CLOSED if bias and gate == "closed" else None)


def upcycled(source: Any, fresh: Any) -> dict:
    """The source with the MLP of every block copied to all experts of the target's block."""
    given, out = flat(source), flat(source)
    for name, leaf in flat(fresh).items():
        if match := EXPERT.match(name):
            dense = _dense(match, given)
            if name not in given and dense in given:
                out[name] = np.repeat(np.asarray(given[dense])[None], leaf.shape[0], 0)
                out.pop(dense, None)
    return nested(out)


def _dense(match: re.Match, given: Mapping[str, Any]) -> str:
    """The path of the plain MLP's leaf: `mlp/fc1/kernel`, in a ViT `fc1/kernel`."""
    inner = DENSE[match[2]]
    within = f"{match[1]}/{inner}"
    return within if within in given else f"{match[1].removesuffix('/mlp')}/{inner}"


def from_other(source: Any, other: Any, expert: int, origin: int) -> dict:
    """The source with one expert of another tree in place of its own `expert`th, in every block.

    The other tree's `origin`th expert, or its plain MLP.

    Raises: `TrainError` if the other tree has no MLP for any block with experts.
    """
    given, out, taken = flat(other), flat(source), 0
    for name, leaf in list(out.items()):
        if match := EXPERT.match(name):
            row = given[name][origin] if name in given else given.get(_dense(match, given))
            if row is not None:
                taken += 1
                out[name] = placed(leaf, 0, {expert: np.asarray(row)})
    if not taken:
        raise TrainError(
            "the other run has no MLP for any block with experts",
            fix="pre-train the same architecture",
        )
    return nested(out)


def copied(source: Any, rules: rule_lists.Rules) -> dict:
    """The source with some leaves copied to a second path.

    Args:
      rules: (regex, replacement) over paths, e.g. (r"^encoder/stage2/block", "up1/block"):
        Swin-Unet's decoder is initialised with its encoder.

    Raises: `UsageError` for a rule that matches nothing or a path that exists.
    """
    given = flat(source)
    out = dict(given)
    for pattern, replacement in rules:
        hits = {
            re.sub(pattern, replacement, name): leaf
            for name, leaf in given.items()
            if re.search(pattern, name)
        }
        if not hits:
            raise UsageError(
                f"config.init.copy: nothing matches {pattern!r}",
                found=sorted(given)[:6],
                fix="correct or remove the rule",
            )
        out = {
            k: v for k, v in out.items() if k not in hits
        } | hits  # leaves that exist are overwritten
    return nested(out)
