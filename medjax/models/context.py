"""What a network reads beside the image, declared once by the network.

A module lists it in an attribute `reads`: name -> `Entry`. Training takes the entries from the
batch, prediction from a request; exports, growth and rehearsals derive shapes from the declaration.
None of them names an entry.

An entry is present in every call, also when parameters are initialised (`initialise`). A network
without the attribute gets `DEFAULT`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from medjax.errors import ModelError, did_you_mean

MOVES = ("case", "window", "voxel")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One input beside the image.

    Attributes:
      shape: of one sample, without the batch axis. For "voxel" the axes behind those of the image.
      dtype: name of its type.
      moves: "case": the same for every window of a case. "window": voxel coordinates, last axis
        (z, y, x) or (y, x), relative to the first voxel of the window. "voxel": one value per voxel
        of the image, cut as the image is.
      derive: facts of the samples (name -> array with a leading batch axis) -> this entry, if
        nothing provides it under its own name. Traced by jax.
      block: of "voxel": one value per block of so many voxels, e.g. per token of a transformer;
        empty: per voxel.
    """

    shape: tuple[int, ...] = ()
    dtype: str = "int32"
    moves: str = "case"
    derive: Callable[[Mapping[str, Any]], Any] | None = None
    block: tuple[int, ...] = ()

    def __post_init__(self):
        if self.moves not in MOVES:
            raise ModelError(
                f"unknown movement {self.moves!r} of a network's input",
                fix=did_you_mean(self.moves, MOVES),
            )
        if self.block and self.moves != "voxel":
            raise ModelError(
                "an input with blocks of voxels moves with them",
                found=self.moves,
                expected="voxel",
            )

    def full_shape(self, patch: Sequence[int]) -> tuple[int, ...]:
        """The shape of one sample for an image of `patch` voxels."""
        return (*self.blocks(patch), *self.shape) if self.moves == "voxel" else tuple(self.shape)

    def blocks(self, sides: Sequence[int]) -> tuple[int, ...]:
        """Numbers of blocks along each axis of an image, or the block that starts at a voxel.

        Raises: `ModelError` unless sides are multiples of the block.
        """
        sizes = self.block or (1,) * len(sides)
        if len(sizes) != len(sides) or any(n % b for n, b in zip(sides, sizes, strict=False)):
            raise ModelError(
                "blocks of a network's input do not fill the image",
                found=tuple(sides),
                expected=f"multiples of {self.block}",
                fix="change the patch",
            )
        return tuple(n // b for n, b in zip(sides, sizes, strict=True))


Spec = Mapping[str, Entry]

CORPUS, MODALITY, TASK = Entry(), Entry(), Entry()
SPACING_MM = Entry((3,), "float32")
# the facts that every sample has; `task` is the corpus unless the config groups corpora
STANDARD: Spec = {
    "corpus": CORPUS,
    "modality": MODALITY,
    "task": TASK,
    "spacing_mm": SPACING_MM,
}
DEFAULT: Spec = {name: STANDARD[name] for name in ("corpus", "modality", "spacing_mm")}


def declared(module: Any) -> Spec:
    """What a module reads: its attribute `reads`, by default `DEFAULT`."""
    return getattr(module, "reads", DEFAULT)


def union(*specs: Spec) -> Spec:
    """The entries of all specs, hashable as attributes of modules must be.

    Raises: `ModelError` if two of them declare an entry of one name differently.
    """
    found: dict[str, Entry] = {}
    for name, entry in (item for spec in specs for item in spec.items()):
        if found.setdefault(name, entry) != entry:
            raise ModelError(
                f"two parts of a network read {name!r} differently", found=[found[name], entry]
            )
    return FrozenDict(found)


def sources(spec: Spec) -> Spec:
    """What must be given so that every entry can be derived; none of it is derived itself.

    Entries without `derive`, and the facts of `STANDARD` that the others are derived from.

    Raises: `ModelError` for an entry that is derived from anything else.
    """
    own = {name: entry for name, entry in spec.items() if entry.derive is None}
    facts, used = abstract(STANDARD, 1, ()), set()
    for name, entry in spec.items():
        if entry.derive is None:
            continue
        try:
            jax.eval_shape(lambda given, derive=entry.derive: derive(_Recorded(given, used)), facts)
        except KeyError as error:
            raise ModelError(
                f"the network's input {name!r} is derived from a fact that samples lack",
                found=str(error.args[0]),
                expected=", ".join(STANDARD),
            ) from error
    return own | {name: STANDARD[name] for name in STANDARD if name in used}


class _Recorded(dict):
    """Facts that remember which of them were read."""

    def __init__(self, facts: Mapping[str, Any], used: set[str]):
        super().__init__(facts)
        self.used = used

    def __getitem__(self, name: str) -> Any:
        found = super().__getitem__(name)
        self.used.add(name)
        return found

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default


def abstract(spec: Spec, batch: Any, patch: Sequence[int]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of the context of a batch; `batch` may be a symbolic size."""
    return {
        name: jax.ShapeDtypeStruct((batch, *entry.full_shape(patch)), jnp.dtype(entry.dtype))
        for name, entry in spec.items()
    }


def zeros(spec: Spec, batch: int, patch: Sequence[int]) -> dict[str, jax.Array]:
    """A context of zeros, for the initialisation of parameters."""
    return {name: jnp.zeros(s.shape, s.dtype) for name, s in abstract(spec, batch, patch).items()}


def initialise(module: Any, key: Any, image: Any) -> Any:
    """Fresh parameters of a network for images like `image` (b, *patch, m).

    Its context is zeros.
    """
    given = zeros(declared(module), image.shape[0], image.shape[1:-1])
    return module.init(key, image, given)["params"]


def needed(context: Mapping[str, Any] | None, name: str, who: str) -> Any:
    """An entry of a call's context.

    Args:
      who: reads it, in the plural; for the error.

    Raises: `ModelError` if the call does not give it.
    """
    if context is None or name not in context:
        raise ModelError(
            f"{who} need the {name} of every sample",
            fix=f'call the network with context={{"{name}": ...}}',
        )
    return context[name]


def of_batch(spec: Spec, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The context of a training batch: entries of the batch by name, or derived from its facts.

    Raises: `ModelError` for an entry that the batch neither holds nor allows to derive.
    """
    return {name: _entry(name, entry, batch, "the batch") for name, entry in spec.items()}


def of_request(spec: Spec, facts: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The context of one case, without a batch axis.

    Args:
      facts: name -> value of one sample: the standard facts of the case, and what the caller gives.
        A "voxel" entry has the axes of the whole image.

    Raises: `ModelError` for an entry that is neither given nor can be derived, or of another shape.
    """
    batch = {name: np.asarray(value)[None] for name, value in facts.items()}
    found = {}
    for name, entry in spec.items():
        value = np.asarray(_entry(name, entry, batch, "the request")[0], entry.dtype)
        axes = value.shape[value.ndim - len(entry.shape) :]
        if axes != entry.shape or (entry.moves != "voxel" and value.ndim != len(entry.shape)):
            raise ModelError(
                f"the network's input {name!r} has another shape",
                found=value.shape,
                expected=entry.shape,
            )
        found[name] = value
    return found


def moving(spec: Spec) -> tuple[str, ...]:
    """Names of the entries that differ between the windows of one case."""
    return tuple(name for name, entry in spec.items() if entry.moves != "case")


def for_window(
    spec: Spec, context: Mapping[str, np.ndarray], start: Sequence[int], window: Sequence[int]
) -> dict[str, np.ndarray]:
    """The moving entries of a case as seen from one window, without a batch axis.

    Args:
      context: of the whole case, see `of_request`. start: first voxel of the window. window: its
        size.
    """

    def cut(entry: Entry) -> tuple[slice, ...]:
        first, count = entry.blocks(start), entry.blocks(window)
        return tuple(slice(s, s + n) for s, n in zip(first, count, strict=True))

    return {
        name: context[name][cut(spec[name])]
        if spec[name].moves == "voxel"
        else context[name] - np.asarray(start, context[name].dtype)
        for name in moving(spec)
    }


def _entry(name: str, entry: Entry, given: Mapping[str, Any], where: str) -> Any:
    if name in given:
        return given[name]
    if entry.derive is None:
        raise ModelError(
            f"the network reads {name!r}, which {where} lacks",
            found=", ".join(given),
            fix="provide it under this name, or declare how it is derived",
        )
    return entry.derive(given)
