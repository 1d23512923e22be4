"""The two-way transformer: tokens of prompts and tokens of an image attend to each other.

Every layer: tokens among themselves, tokens to image, an MLP on the tokens, image to tokens; each
with a residual and a LayerNorm after it. The first layer's attention among tokens replaces them,
without residual and positions. Positions of the image's tokens are given; those of the prompts'
tokens are the tokens as they entered. Sources: Segment Anything (arXiv 2304.02643); SegVol (arXiv
2311.13385).

Arrays have two leading axes, samples and queries. An image with one query is that of all queries:
as long as it is the same, its projections are computed once.
"""

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from medjax.errors import ModelError
from medjax.models.parts.adapters import Dense
from medjax.models.parts.attention import attend, linear_init

EPSILON = 1e-5


class Attention(nn.Module):
    """Multi-head attention with biases; parameters `q`, `k`, `v`, `out`.

    Attributes:
      heads: must divide `inner`, the width of queries, keys and values together.
      initial: see `attention.linear_init`.
    """

    heads: int
    inner: int
    dtype: Any = jnp.float32
    initial: str = "torch"

    @nn.compact
    def __call__(
        self,
        q: Float[Array, "b q n c"],
        k: Float[Array, "b r m c"],
        v: Float[Array, "b r m c"],
        bias: Float[Array, "b s 1 1 m"] | None = None,
    ) -> Float[Array, "b t n c"]:
        """Queries of one side, keys and values of the other; r, q and s are 1 or t."""
        width = q.shape[-1]

        def split(x: Array, name: str) -> Array:
            x = Dense(self.inner, dtype=self.dtype, name=name, **linear_init(self.initial, width))(
                x
            )
            return jnp.moveaxis(x.reshape(*x.shape[:-1], self.heads, -1), -2, -3)

        found = attend(split(q, "q"), split(k, "k"), split(v, "v"), bias)
        init = linear_init(self.initial, self.inner)
        return Dense(width, dtype=self.dtype, name="out", **init)(found)


class Mlp(nn.Module):
    """Linear maps `<prefix><i>` with ReLU between them.

    Attributes:
      features: outputs of every map. first: number of the first name.
    """

    features: tuple[int, ...]
    prefix: str = "l"
    first: int = 0
    dtype: Any = jnp.float32
    initial: str = "torch"

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... d"]:
        for i, features in enumerate(self.features):
            init = linear_init(self.initial, x.shape[-1])
            name = f"{self.prefix}{self.first + i}"
            x = Dense(features, dtype=self.dtype, name=name, **init)(nn.relu(x) if i else x)
        return x


class Layer(nn.Module):
    """One layer; parameters `self`, `to_image`, `to_token`, `mlp/{lin1, lin2}`, `norm1` to `norm4`.

    Attributes:
      heads: of all attentions. hidden: width inside the MLP.
      first: the attention among tokens replaces them.
    """

    heads: int
    hidden: int
    first: bool = False
    dtype: Any = jnp.float32
    initial: str = "torch"

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "b q t c"],
        image: Float[Array, "b r n c"],
        entered: Float[Array, "b q t c"],
        positions: Float[Array, "n c"],
        bias: Float[Array, "b q 1 1 t"],
    ) -> tuple[Float[Array, "b q t c"], Float[Array, "b q n c"]]:
        """(tokens, image); `bias` hides tokens as keys."""
        width, shared = tokens.shape[-1], {"dtype": self.dtype, "initial": self.initial}
        norm = functools.partial(nn.LayerNorm, EPSILON, dtype=self.dtype, use_fast_variance=False)
        among = Attention(self.heads, width, name="self", **shared)
        if self.first:
            tokens = among(tokens, tokens, tokens, bias)
        else:
            placed = tokens + entered
            tokens = tokens + among(placed, placed, tokens, bias)
        tokens = norm(name="norm1")(tokens)
        there = image + positions
        seen = Attention(self.heads, width // 2, name="to_image", **shared)
        tokens = norm(name="norm2")(tokens + seen(tokens + entered, there, image))
        mlp = Mlp((self.hidden, width), "lin", 1, name="mlp", **shared)
        tokens = norm(name="norm3")(tokens + mlp(tokens))
        back = Attention(self.heads, width // 2, name="to_token", **shared)
        image = norm(name="norm4")(image + back(there, tokens + entered, tokens, bias))
        return tokens, image


def two_way(
    tokens: Float[Array, "b q t c"],
    image: Float[Array, "b r n c"],
    positions: Float[Array, "n c"],
    exists: Bool[Array, "b q t"],
    *,
    layers: int,
    heads: int,
    hidden: int,
    remat: str = "none",
    dtype: Any = jnp.float32,
    initial: str = "torch",
) -> tuple[Float[Array, "b q t c"], Float[Array, "b q n c"]]:
    """(tokens, image) after the layers and a last attention of the tokens to the image.

    Called within a compact method of its owner, which then has the parameters `layer<i>`, `final`
    and `norm_final`.

    Args:
      image: r is 1 or q. exists: tokens that are keys; the others change nothing else.
      remat: "none", or the layers are recomputed in the backward pass.

    Raises: `ModelError` for heads that do not divide the widths.
    """
    width = tokens.shape[-1]
    if width % 2 or (width // 2) % heads:
        raise ModelError(
            "heads do not divide half the width, the width of attention to the image",
            found=f"{heads} heads, width {width}",
            fix="change decoder_heads or width",
        )
    bias = jnp.where(exists, 0.0, jnp.finfo(jnp.float32).min)[:, :, None, None, :]
    shared, entered = {"dtype": dtype, "initial": initial}, tokens
    layer = Layer if remat == "none" else nn.remat(Layer)
    for i in range(layers):
        block = layer(heads, hidden, i == 0, name=f"layer{i}", **shared)
        tokens, image = block(tokens, image, entered, positions, bias)
    final = Attention(heads, width // 2, name="final", **shared)
    tokens = tokens + final(tokens + entered, image + positions, image)
    tokens = nn.LayerNorm(EPSILON, dtype=dtype, use_fast_variance=False, name="norm_final")(tokens)
    return tokens, jnp.broadcast_to(image, (*tokens.shape[:2], *image.shape[2:]))
