"""Points, a box and a text become tokens; a mask of the round before becomes a map.

Every query has the same slots, [points | 1 pad | 2 corners of the box | 1 text]; slots without
content are masked, so that one program serves every combination of prompts. Source: Segment
Anything (arXiv 2304.02643), in three axes as in SegVol (arXiv 2311.13385).

Positions are random Fourier features of the coordinates in [0, 1]; a Gaussian matrix, drawn once,
is part of the weights and never trained. The published network disagrees with itself on the order
of the first two axes (`pe_order="release"`): points and corners are encoded as (z / side of y,
y / side of z, x / side of x), the cells of the grid as (y, z, x).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from medjax.models.parts.adapters import Dense
from medjax.models.parts.conv import Down

PE_ORDERS = ("consistent", "release")
MASK_CHANNELS = (4, 16)  # of the maps between a mask and the image's tokens
POSITIVE, NEGATIVE, PADDING, ABSENT = 1, 0, -1, -2  # kinds of points


def fourier(c: Float[Array, "*n 3"], matrix: Float[Array, "3 f"]) -> Float[Array, "*n c"]:
    """[sin, cos] of 2 pi (2c - 1) G for coordinates c in [0, 1]; c = 2f channels."""
    angle = 2 * jnp.pi * jnp.matmul(2 * c - 1, matrix, precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


def of_voxels(
    points: Float[Array, "*n 3"], frame: tuple[int, int, int], pe_order: str
) -> Float[Array, "*n 3"]:
    """Voxel indices (z, y, x) of a frame as coordinates for `fourier`."""
    z, y, x = ((points[..., axis] + 0.5) for axis in range(3))
    if pe_order == "release":
        return jnp.stack([z / frame[1], y / frame[0], x / frame[2]], -1)
    return jnp.stack([y / frame[1], z / frame[0], x / frame[2]], -1)


def of_cells(grid: tuple[int, int, int]) -> Float[Array, "z y x 3"]:
    """The centres of a grid's cells as coordinates for `fourier`, in the order (y, z, x)."""
    z, y, x = ((jnp.arange(side) + 0.5) / side for side in grid)
    return jnp.stack([a for i in (1, 0, 2) for a in (jnp.meshgrid(z, y, x, indexing="ij")[i],)], -1)


class PromptEncoder(nn.Module):
    """Tokens of prompts, positions of the grid, and the map that is added to the image.

    Parameters: `gaussian` (3, c / 2), `points` (4, c: negative, positive, first corner, last
    corner), `not_a_point` (c,), `no_mask` (c,), and with `mask_input` the maps `mask_down1`,
    `mask_norm1`, `mask_down2`, `mask_norm2`, `mask_out`.

    Attributes:
      width: c. frame: sides of the image in voxels. grid: sides of the image in tokens.
      pe_order: "consistent" or "release", see the module docstring.
      mask_input: reads masks.
    """

    width: int
    frame: tuple[int, int, int]
    grid: tuple[int, int, int]
    pe_order: str = "consistent"
    mask_input: bool = False
    dtype: Any = jnp.float32

    def setup(self):
        normal = nn.initializers.normal(1.0)
        self.gaussian = self.param("gaussian", normal, (3, self.width // 2), jnp.float32)
        self.points = self.param("points", normal, (4, self.width), jnp.float32)
        self.not_a_point = self.param("not_a_point", normal, (self.width,), jnp.float32)
        self.no_mask = self.param("no_mask", normal, (self.width,), jnp.float32)
        if self.mask_input:
            norm = {"epsilon": 1e-6, "use_fast_variance": False, "dtype": self.dtype}
            self.mask_down1 = Down(MASK_CHANNELS[0], (2, 2, 2), dtype=self.dtype)
            self.mask_norm1 = nn.LayerNorm(**norm)
            self.mask_down2 = Down(MASK_CHANNELS[1], (2, 2, 2), dtype=self.dtype)
            self.mask_norm2 = nn.LayerNorm(**norm)
            self.mask_out = Dense(self.width, dtype=self.dtype)

    def __call__(
        self,
        points: Float[Array, "b q p 3"],
        kind: Int[Array, "b q p"],
        box: Float[Array, "b q 6"],
        has: Bool[Array, "b q 3"],
        text: Float[Array, "b q c"],
        spoken: Bool[Array, "b q"],
    ) -> tuple[Float[Array, "b q s c"], Bool[Array, "b q s"]]:
        """(tokens, which of them exist), s = p + 4.

        Args:
          points: voxel indices (z, y, x) of the frame. kind: `POSITIVE`, `NEGATIVE`, `PADDING` (a
            token that takes part) or `ABSENT` (none).
          box: first and last corner, inclusive voxel indices.
          has: points, box, text; the last is not read, see `spoken`.
          text: the text's vector; spoken: whether there is one.
        """
        there, boxed = has[..., 0], has[..., 1]
        real = (kind == POSITIVE) | (kind == NEGATIVE)
        clicks = jnp.where(
            real[..., None],
            self._positions(points) + self.points[(kind == POSITIVE).astype(jnp.int32)],
            self.not_a_point,
        )
        pad = jnp.broadcast_to(self.not_a_point, (*kind.shape[:2], 1, self.width))
        corners = self._positions(box.reshape(*box.shape[:-1], 2, 3)) + self.points[2:]
        tokens = jnp.concatenate([clicks, pad, corners, text[..., None, :]], -2)
        exists = [
            there[..., None] & (kind != ABSENT),
            (there & ~boxed)[..., None],
            jnp.repeat(boxed[..., None], 2, -1),
            spoken[..., None],
        ]
        return tokens.astype(self.dtype), jnp.concatenate(exists, -1)

    def _positions(self, points: Array) -> Array:
        return fourier(
            of_voxels(points, self.frame, self.pe_order), jax.lax.stop_gradient(self.gaussian)
        )

    def cells(self) -> Float[Array, "z y x c"]:
        """Positions of the grid's cells."""
        found = fourier(of_cells(self.grid), jax.lax.stop_gradient(self.gaussian))
        return found.astype(self.dtype)

    def image_prompt(
        self, mask: Float[Array, "b q *low"] | None = None
    ) -> Float[Array, "b q *grid c"]:
        """What is added to the image: (1, 1, 1, 1, 1, c) without masks, else per query.

        Args:
          mask: logits, four values per token and axis; a query whose mask is zero everywhere has
            none.
        """
        nothing = self.no_mask.astype(self.dtype)[(None,) * 5]
        if mask is None or not self.mask_input:
            return nothing
        x = mask.reshape(-1, *mask.shape[2:], 1)
        x = nn.gelu(self.mask_norm1(self.mask_down1(x)), approximate=False)
        x = nn.gelu(self.mask_norm2(self.mask_down2(x)), approximate=False)
        x = self.mask_out(x).reshape(*mask.shape[:2], *self.grid, self.width)
        given = jnp.any(mask != 0, axis=tuple(range(2, mask.ndim)))
        return jnp.where(given[..., None, None, None, None], x, nothing)
