"""A small promptable network with the contract of the real one: `encode`, `decode`, prompts as flat
entries of the context.

`installed(monkeypatch)` makes it `config.model.name = "toy_prompted"`. A convolution embeds the
image at half resolution; each query is a small perceptron over the embedding, maps of its box and
points, and the vector of its text. Absent prompts are masked.
"""

import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from medjax.models.context import DEFAULT, Entry, union
from medjax.prompts import types


class Toy(nn.Module):
    """See the module."""

    text_rows: int
    frame: tuple[int, ...]
    queries: int = 8
    width: int = 12
    mask_input: bool = True

    programs = ("encode", "decode")

    @property
    def low(self) -> tuple[int, ...]:
        """(z, y, x) of the embedding and of the logits before they are enlarged."""
        return tuple(n // 2 for n in self.frame)

    @property
    def reads(self) -> Any:
        mask = self.low if self.mask_input else ()
        leaves = types.leaves(self.queries, mask=mask)
        own = {name: Entry(leaf.shape, leaf.dtype) for name, leaf in leaves.items()}
        return union(DEFAULT, own)

    def setup(self):
        self.table = self.param("table", nn.initializers.normal(1.0), (self.text_rows, self.width))
        self.embed = nn.Conv(self.width, (2,) * 3, strides=(2,) * 3, name="embed")
        self.mix = nn.Conv(self.width, (3,) * 3, name="mix")
        self.first = nn.Dense(3 * self.width, name="first")
        self.second = nn.Dense(self.width, name="second")
        self.last = nn.Dense(1, name="last")

    def encode(self, image: Any, context: Any = None, train: bool = False) -> Any:
        """(b, *frame, m) -> (b, *frame / 2, width)."""
        return nn.gelu(self.mix(nn.gelu(self.embed(image))))

    def decode(self, embedding: Any, context: Any, train: bool = False) -> dict[str, Any]:
        """The logits of every query, from an embedding."""
        has = context[types.HAS]
        grid = jnp.stack(jnp.meshgrid(*map(jnp.arange, self.low), indexing="ij"), -1) * 2 + 0.5
        box = context[types.BOX]
        low, high = (part[:, :, None, None, None] for part in (box[..., :3], box[..., 3:]))
        maps = [jnp.all((grid >= low - 0.5) & (grid <= high + 0.5), -1) & _of(has[..., 1])]
        for kind in (types.POSITIVE, types.NEGATIVE):
            counts = (context[types.KIND] == kind) & has[..., :1]
            away = jnp.square(grid[..., None, :] - context[types.POINTS][:, :, None, None, None])
            near = jnp.exp(-away.sum(-1) / 8) * counts[:, :, None, None, None]
            maps.append(near.max(-1))
        maps.append(
            jnp.clip(context[types.MASK], -5, 5) if self.mask_input else jnp.zeros_like(maps[1])
        )
        maps += [jnp.broadcast_to(_of(has[..., k]), maps[1].shape) for k in range(3)]
        row = jnp.maximum(context[types.TEXT], 0)
        text = self.table[row] * has[..., 2:3]
        maps = jnp.stack([m.astype(jnp.float32) for m in maps], -1)
        shape = (*maps.shape[:-1], self.width)
        image = jnp.broadcast_to(embedding[:, None], shape)
        words = jnp.broadcast_to(_of(text), shape)
        x = jnp.concatenate([image, maps, image * words], -1)
        x = nn.gelu(self.second(nn.gelu(self.first(x))))
        logits = self.last(x)[..., 0]
        full = jax.image.resize(logits, (*logits.shape[:2], *self.frame), "trilinear")
        return {"logits": full, "low": logits}

    def __call__(self, image: Any, context: Any = None, train: bool = False) -> dict[str, Any]:
        return self.decode(self.encode(image, context, train), context, train)


def _of(values: Any) -> Any:
    """(b, q[, c]) -> with the axes of a volume behind q."""
    return jnp.expand_dims(values, (2, 3, 4))


def make(
    *,
    text_rows: int,
    patch: Any,
    queries: int = 8,
    width: int = 12,
    mask_input: bool = True,
) -> Toy:
    """See the module."""
    return Toy(text_rows, tuple(int(n) for n in np.asarray(patch)), queries, width, mask_input)


def installed(monkeypatch: Any) -> None:
    """Makes the network known under its name."""
    monkeypatch.setitem(sys.modules, "medjax.models.toy_prompted", sys.modules[__name__])
