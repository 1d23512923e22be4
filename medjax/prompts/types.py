"""What guides a promptable network, as arrays of fixed shapes: names, shapes, values of kinds.

A prompted network reads these arrays as flat entries of its context (`models/context.py`), each
with a leading axis of q queries: q objects under one set of prompts each. All arrays are present in
every call; `prompt_has` says which of them count, so one compiled program serves every combination.

    prompt_points (q, 21, 3) f32      voxel indices (z, y, x) in the network's frame
    prompt_point_kind (q, 21) i32     1 positive, 0 negative, -1 padding, -2 absent
    prompt_box (q, 6) f32             z0 y0 x0 z1 y1 x1, inclusive voxel indices
    prompt_has (q, 3) bool            points, box, text
    prompt_text (q,) i32              row of the network's table of texts; -1 none, -2 see vector
    prompt_vector (q, width) f32      a text that is no row; only if the network reads it
    prompt_mask (q, *low) f32         logits of the round before, all 0: none; only with mask input
    prompt_task (q,) i32              row of the pool of priors, -1 unknown; only with priors

Here the names are declared once; the module knows no network and no accelerator library.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medjax.errors import UsageError, did_you_mean

PREFIX = "prompt_"
POINTS, KIND, BOX, HAS, TEXT, VECTOR, MASK, TASK = (
    PREFIX + name
    for name in ("points", "point_kind", "box", "has", "text", "vector", "mask", "task")
)
SLOTS = 21  # points of a query: one and twice up to ten
POSITIVE, NEGATIVE = 1, 0
PADDING = -1  # a token that takes part in attention, SegVol's `not_a_point`
ABSENT = -2  # no token
NO_TEXT, FREE_TEXT = -1, -2
UNKNOWN_TASK = -1
KINDS = ("points", "box", "text")  # in the order of `prompt_has`
SETS = ("points+text", "box+text", "text", "box", "points", "box+points")  # SegVol's six


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of the prompts of a sample.

    Attributes:
      shape: with the axis of queries first. dtype: name of its type. absent: its value where there
        is no such prompt.
    """

    shape: tuple[int, ...]
    dtype: str
    absent: float | int | bool

    def empty(self, *leading: int) -> np.ndarray:
        """An array (*leading, *shape) without a prompt."""
        return np.full((*leading, *self.shape), self.absent, self.dtype)


def leaves(
    queries: int, *, vector: int = 0, mask: Sequence[int] = (), task: bool = False
) -> dict[str, Leaf]:
    """The arrays of q queries by name.

    Args:
      queries: q. vector: width of the vector of a free text; 0: the network reads none. mask: shape
        of the logits of the round before (z, y, x); empty: the network reads none. task: whether it
        reads the task of a query.
    """
    found = {
        POINTS: Leaf((queries, SLOTS, 3), "float32", -1.0),
        KIND: Leaf((queries, SLOTS), "int32", ABSENT),
        BOX: Leaf((queries, 6), "float32", -1.0),
        HAS: Leaf((queries, len(KINDS)), "bool", False),
        TEXT: Leaf((queries,), "int32", NO_TEXT),
    }
    if vector:
        found[VECTOR] = Leaf((queries, vector), "float32", 0.0)
    if mask:
        found[MASK] = Leaf((queries, *mask), "float32", 0.0)
    if task:
        found[TASK] = Leaf((queries,), "int32", UNKNOWN_TASK)
    return found


def of_spec(reads: Mapping[str, Any]) -> dict[str, Leaf]:
    """The arrays of prompts that a network reads, from its declaration; empty if it reads none.

    Args:
      reads: name -> entry with a shape and a dtype (`models.context.Entry`).

    Raises: `UsageError` for an entry with the prefix of prompts that is none of them.
    """
    own = {name: entry for name, entry in reads.items() if name.startswith(PREFIX)}
    if not own:
        return {}
    queries = int(own[HAS].shape[0]) if HAS in own else 0
    width = int(own[VECTOR].shape[-1]) if VECTOR in own else 0
    low = tuple(own[MASK].shape[1:]) if MASK in own else ()
    expected = leaves(queries, vector=width, mask=low, task=TASK in own)
    found = {name: (tuple(entry.shape), entry.dtype) for name, entry in own.items()}
    wanted = {name: (leaf.shape, leaf.dtype) for name, leaf in expected.items()}
    if not queries or found != wanted:
        name = next(iter(set(found.items()) ^ set(wanted.items())), ("", ()))[0]
        raise UsageError(
            "the network reads other prompts than there are",
            found=f"{name} {found.get(name, 'missing')}",
            expected=f"{wanted.get(name, ', '.join(wanted))}",
            fix="declare them as medjax.prompts.types.leaves says",
        )
    return expected


def kinds_of(name: str) -> tuple[bool, bool, bool]:
    """Which of points, box and text a set of prompts holds, from its name like "box+text".

    >>> kinds_of("points+text")
    (True, False, True)

    Raises: `UsageError` for an unknown word.
    """
    words = name.split("+")
    for word in words:
        if word not in KINDS:
            raise UsageError(f"unknown prompt {word!r} in {name!r}", fix=did_you_mean(word, KINDS))
    return tuple(kind in words for kind in KINDS)
