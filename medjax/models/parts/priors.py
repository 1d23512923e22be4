"""Context priors: tokens of tasks and modalities that change the image and the masks.

A pool holds one token per task and modality, zero at first. The image's tokens, the modality's and
the task's attend to each other once, in one transformer layer; the image is changed by its result,
and the task's token becomes what is added to the mask tokens (additive form), or to the filter of
the first mask (inner product). With a gate, both start without effect: the network then equals the
one without priors bit for bit. Sources: Hermes (arXiv 2306.02416) for priors and prototypes; the
additive form, one attention over all tokens, is SegEVOLution's.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from medjax.errors import ModelError
from medjax.models.parts.adapters import Dense
from medjax.models.parts.attention import attend, linear_init, split_heads
from medjax.models.parts.mask_decoder import MASKS
from medjax.models.parts.two_way import EPSILON

PRIORS = ("none", "additive_token", "inner_product")
POSTERIORS = {
    "additive_token": ("additive", "learned", "off"),
    "inner_product": ("additive", "replace", "off"),
}


class Priors(nn.Module):
    """See the module docstring.

    Parameters: `task` (tasks, c), `modality` (modalities, c), `unknown` (2, c: task, modality);
    `group` (3, c: image, modality, task), `qkv`, `out`, `norm1`, `ffn1`, `ffn2`, `norm2`;
    `gate` (2,: image, masks); `posterior1`, `posterior2` or `prototype1`, `prototype2`; `scale` ().

    Attributes:
      tasks, modalities: rows of the pools. unknown: there are tokens of the unknown, which are zero
        otherwise.
      unknown_drop: in training, the share of known tasks and modalities that are hidden.
      heads: must divide the width. gate: see the module docstring.
      kind: "additive_token" or "inner_product".
      posterior: "additive" (times `factor`), "learned" (the factor is trained), "off"; of
        "inner_product" "additive" (added to the filter), "replace" (instead of it), "off".
      factor: of what is added to the mask tokens.
    """

    tasks: int
    modalities: int
    unknown: bool = True
    unknown_drop: float = 0.0
    heads: int = 4
    gate: bool = True
    kind: str = "additive_token"
    posterior: str = "additive"
    factor: float = 0.1
    dtype: Any = jnp.float32
    initial: str = "torch"

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "b z y x c"],
        task: Int[Array, "b g"],
        modality: Int[Array, " b"],
        train: bool = False,
    ) -> tuple[
        Float[Array, "b g z y x c"], Float[Array, "b g m c"] | None, Float[Array, "b g f"] | None
    ]:
        """(image of every task, what is added to the mask tokens or None, the first mask's
        prototype or None).

        Args:
          task, modality: rows of the pools; negative ones and others that are not there: unknown.
        """
        b, g = task.shape
        *grid, width = image.shape[1:]
        if width % self.heads:
            raise ModelError(
                "heads do not divide the width",
                found=f"{self.heads} heads, width {width}",
                fix="change prior_heads or width",
            )
        unknown = jnp.zeros((2, width))
        if self.unknown:
            unknown = self.param("unknown", nn.initializers.zeros, (2, width), jnp.float32)
        words = self._row("task", self.tasks, task, unknown[0], train)
        kinds = self._row("modality", self.modalities, modality, unknown[1], train)
        group = self.param("group", nn.initializers.zeros, (3, width), jnp.float32)
        tokens = image.reshape(b, 1, -1, width) + group[0].astype(self.dtype)
        count = tokens.shape[2]
        sequence = jnp.concatenate(
            [
                jnp.broadcast_to(tokens, (b, g, count, width)),
                jnp.broadcast_to((kinds + group[1])[:, None, None], (b, g, 1, width)),
                (words + group[2])[:, :, None],
            ],
            2,
        ).astype(self.dtype)

        def dense(features: int, name: str, inputs: int = width) -> nn.Module:
            init = linear_init(self.initial, inputs)
            return Dense(features, dtype=self.dtype, name=name, **init)

        norm = functools.partial(nn.LayerNorm, EPSILON, dtype=self.dtype, use_fast_variance=False)
        mixed = attend(*split_heads(dense(3 * width, "qkv")(sequence), self.heads))
        y = norm(name="norm1")(sequence + dense(width, "out")(mixed))
        narrow = width // 4
        y = norm(name="norm2")(y + dense(width, "ffn2", narrow)(nn.relu(dense(narrow, "ffn1")(y))))
        gate = jnp.ones(2)
        if self.gate:
            gate = self.param("gate", nn.initializers.zeros, (2,), jnp.float32)
        changed = y[:, :, :count].reshape(b, g, *grid, width)
        changed = image[:, None] + gate[0].astype(self.dtype) * changed
        added, prototype = self._posterior(y[:, :, -1], gate[1].astype(self.dtype), dense)
        return changed, added, prototype

    def _row(
        self, name: str, rows: int, index: Array, unknown: Array, train: bool
    ) -> Float[Array, "... c"]:
        """The tokens of a pool; `unknown` (c,) is that of unknown ones."""
        shape = (rows, len(unknown))
        pool = self.param(name, nn.initializers.zeros, shape, jnp.float32)
        pool = jnp.concatenate([pool, unknown[None]])
        known = (index >= 0) & (index < rows)
        if train and self.unknown_drop:
            drop = jax.random.bernoulli(self.make_rng("dropout"), self.unknown_drop, index.shape)
            known = known & ~drop
        return pool[jnp.where(known, index, rows)]

    def _posterior(
        self, task: Array, gate: Array, dense: Callable[..., nn.Module]
    ) -> tuple[Array | None, Array | None]:
        """What is added to the mask tokens, and the prototype, of the task's token (b, g, c)."""
        width = task.shape[-1]
        if self.posterior == "off":
            return None, None
        if self.kind == "inner_product":
            hidden = nn.gelu(dense(width, "prototype1")(task), approximate=False)
            found = dense(width // 8, "prototype2")(hidden)
            return None, found if self.posterior == "replace" else gate * found
        narrow = max(width // 16, 1)
        found = dense(MASKS * width, "posterior2", narrow)(
            nn.relu(dense(narrow, "posterior1")(task))
        )
        factor = jnp.asarray(self.factor)
        if self.posterior == "learned":
            start = nn.initializers.constant(self.factor)
            factor = self.param("scale", start, (), jnp.float32)
        found = found.reshape(*found.shape[:-1], MASKS, width)
        return gate * factor.astype(self.dtype) * found, None
