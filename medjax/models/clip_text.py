"""CLIP's text tower: token numbers of texts to vectors. It describes class names; it segments
nothing, so it is no network of a config.

In: (n, length) int32, padded with the last token (`medjax.prompts.bpe.padded`). Out: {"pooled": (n,
width), "projected": (n, projection)}; pooled is the last layer's state at the first end token,
projected its image in the space that CLIP shares with images. Source: Radford et al. (arXiv
2103.00020), ViT-B/32; activation x sigmoid(1.702 x), epsilon 1e-5.

Parameters: `token` (vocabulary, width), `pos` (length, width), `layer<i>` as in `parts.vit.Layer`,
`ln_f`, `projection/kernel` (width, projection).
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from medjax.models.parts.repeat import repeat
from medjax.models.parts.vit import Layer

EPSILON = 1e-5


class ClipText(nn.Module):
    """See the module docstring; the defaults are the sizes of ViT-B/32.

    Attributes:
      length: most tokens of a text. hidden: width inside the MLPs.
      projection: width of the projected vectors; 0: there are none.
      scan: one program for all layers.
    """

    vocabulary: int = 49_408
    length: int = 77
    width: int = 512
    layers: int = 12
    heads: int = 8
    hidden: int = 2048
    projection: int = 512
    scan: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Int[Array, "n t"]) -> dict[str, Float[Array, "n d"]]:
        start = nn.initializers.normal(0.02)
        table = self.param("token", start, (self.vocabulary, self.width), jnp.float32)
        positions = self.param("pos", start, (self.length, self.width), jnp.float32)
        x = (table[tokens] + positions[: tokens.shape[1]]).astype(self.dtype)
        layer = Layer(
            self.heads,
            self.hidden,
            0.0,
            self.dtype,
            epsilon=EPSILON,
            activation="quick_gelu",
            causal=True,
            offers=True,
            parent=None,
        )
        names = [f"layer{i}" for i in range(self.layers)]
        x, _ = repeat(self, layer, names, x, None, False, scan=self.scan)
        x = nn.LayerNorm(EPSILON, dtype=self.dtype, use_fast_variance=False, name="ln_f")(x)
        # the end token has the highest number
        pooled = jnp.take_along_axis(x, tokens.argmax(-1)[:, None, None], 1)[:, 0]
        found = {"pooled": pooled.astype(jnp.float32)}
        if self.projection:
            kernel = nn.Dense(self.projection, use_bias=False, name="projection")
            found["projected"] = kernel(found["pooled"])
        return found
