"""Image, prompt tokens and text vectors become one mask per query.

The two-way transformer; the image's tokens are laid out four times finer per axis; a small network
makes a filter of every mask token, and its product with the finer map, plus that of the text, is
the mask. Four masks exist, the first is used: neither the other three nor the head that rates them
(`iou`) were trained in the published network. Source: SegVol (arXiv 2311.13385).
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from medjax.models.parts.adapters import Dense
from medjax.models.parts.attention import linear_init
from medjax.models.parts.conv import Up
from medjax.models.parts.products import wide_einsum
from medjax.models.parts.two_way import EPSILON, Mlp, two_way

MASKS = 4
SELECT = ("first", "iou")
FINER = 4  # low-resolution voxels per token and axis


class MaskDecoder(nn.Module):
    """See the module docstring.

    Parameters: `tokens` (5, c: rating, four masks), `layer<i>`, `final`, `norm_final`, `up1`,
    `up_norm`, `up2`, `hyper<i>/{l0, l1, l2}`, `iou/{l0, l1, l2}`, `text`.

    Attributes:
      layers, heads, hidden: of the two-way transformer.
      select: "first", or the mask with the highest rating ("iou").
      all_masks: the outputs hold `masks` and `iou` as well.
      replaced: a prototype, if given, takes the place of the first mask's filter.
      remat: "none", or layers and finer maps are recomputed in the backward pass.
    """

    layers: int
    heads: int
    hidden: int
    select: str = "first"
    all_masks: bool = False
    replaced: bool = False
    remat: str = "none"
    dtype: Any = jnp.float32
    initial: str = "torch"

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "b r z y x c"],
        positions: Float[Array, "z y x c"],
        prompts: Float[Array, "b q s c"],
        exists: Bool[Array, "b q s"],
        text: Float[Array, "b q c"],
        spoken: Bool[Array, "b q"],
        posterior: Float[Array, "b p m c"] | None = None,
        prototype: Float[Array, "b p f"] | None = None,
    ) -> dict[str, Array]:
        """{"low": (b, q, *low) float32 logits}, four values per token and axis.

        Args:
          image: r is 1 or q. positions: of its tokens.
          prompts, exists: see `PromptEncoder`. text, spoken: the text's vector, and whether there
            is one.
          posterior: added to the mask tokens behind the transformer; p is 1 or q.
          prototype: added to the first mask's filter, or in its place (`replaced`); f = c / 8.
        """
        b, q, _, width = prompts.shape
        grid, shared = image.shape[2:-1], {"dtype": self.dtype, "initial": self.initial}
        own = self.param("tokens", nn.initializers.normal(1.0), (1 + MASKS, width), jnp.float32)
        own = jnp.broadcast_to(own.astype(self.dtype), (b, q, *own.shape))
        tokens, image = two_way(
            jnp.concatenate([own, prompts], -2),
            image.reshape(*image.shape[:2], -1, width),
            positions.reshape(-1, width),
            jnp.concatenate([jnp.ones((b, q, 1 + MASKS), bool), exists], -1),
            layers=self.layers,
            heads=self.heads,
            hidden=self.hidden,
            remat=self.remat,
            **shared,
        )
        masks = tokens[..., 1 : 1 + MASKS, :]
        if posterior is not None:
            masks = masks + posterior.astype(self.dtype)
        rate = self.select == "iou" or self.all_masks or self.is_initializing()
        sizes = (width, width, width // 8)
        filters = [
            Mlp(sizes, name=f"hyper{i}", **shared)(masks[..., i, :])
            for i in range(MASKS if rate else 1)
        ]
        if prototype is not None:
            first = prototype.astype(self.dtype)
            filters[0] = (0 if self.replaced else 1) * filters[0] + first
        words = Dense(width // 8, dtype=self.dtype, name="text", **linear_init(self.initial, width))
        words = jnp.where(spoken[..., None], words(text), 0)
        filters = jnp.stack(filters, -2) + words[..., None, :]

        def product(self: nn.Module, image: Array, filters: Array) -> Array:
            fine = self._finer(image.reshape(-1, *grid, width))
            fine = fine.reshape(b, q, *fine.shape[1:])
            return wide_einsum("bqzyxc,bqmc->bqmzyx", fine, filters)

        if self.remat != "none":
            product = nn.remat(product)
        low = product(self, image, filters)
        if not rate:
            return {"low": low[:, :, 0]}
        hidden = max(width // 3, 1)
        rating = Mlp((hidden, hidden, MASKS), name="iou", **shared)(tokens[..., 0, :])
        rating = rating.astype(jnp.float32)
        chosen = jnp.zeros((b, q), jnp.int32) if self.select == "first" else rating.argmax(-1)
        found = jnp.take_along_axis(low, chosen[:, :, None, None, None, None], 2)[:, :, 0]
        return {"low": found} | ({"masks": low, "iou": rating} if self.all_masks else {})

    def _finer(self, x: Array) -> Array:
        """(n, *grid, c) -> (n, *low, c / 8)."""
        width = x.shape[-1]
        x = Up(width // 4, (2, 2, 2), dtype=self.dtype, name="up1")(x)
        axes = tuple(range(1, x.ndim))  # one mean of the whole map, one scale per value
        x = nn.LayerNorm(
            EPSILON,
            dtype=self.dtype,
            use_fast_variance=False,
            reduction_axes=axes,
            feature_axes=axes,
            name="up_norm",
        )(x)
        x = Up(width // 8, (2, 2, 2), dtype=self.dtype, name="up2")(nn.gelu(x, approximate=False))
        return nn.gelu(x, approximate=False)
