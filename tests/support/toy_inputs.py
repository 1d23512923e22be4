"""A network with inputs of its own, which no part of medjax knows by name.

`installed(monkeypatch)` makes it `config.model.name = "toy_inputs"`. It reads the volume of a
voxel, derived from the spacing, or the task of a sample.
"""

import sys
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from medjax.models.context import TASK, Entry

VOLUME = Entry((), "float32", derive=lambda facts: facts["spacing_mm"].prod(-1))
READS = {"volume": {"voxel_mm3": VOLUME}, "task": {"task": TASK}}


class Toy(nn.Module):
    """A convolution; its features are shifted by what the network reads."""

    classes: int
    tasks: int
    which: str

    @property
    def reads(self) -> dict[str, Entry]:
        return READS[self.which]

    @nn.compact
    def __call__(self, image: Any, context: Any = None, train: bool = False) -> dict[str, Any]:
        assert set(context) == set(self.reads)
        x = nn.relu(nn.Conv(4, (3,) * (image.ndim - 2), name="conv")(image))
        if self.which == "volume":
            own = jnp.log(context["voxel_mm3"] + 1)[:, None]
            own = own * self.param("slope", nn.initializers.ones, (4,))
        else:
            own = self.param("table", nn.initializers.normal(), (self.tasks, 4))[context["task"]]
        x = x + jnp.expand_dims(own, tuple(range(1, image.ndim - 1)))
        return {"logits": nn.Dense(self.classes, name="head")(x)}


def make(classes: int, *, tasks: int = 1, which: str = "volume") -> Toy:
    """See the module."""
    return Toy(classes, tasks, which)


def installed(monkeypatch: Any) -> None:
    """Makes the network known under its name."""
    monkeypatch.setitem(sys.modules, "medjax.models.toy_inputs", sys.modules[__name__])
