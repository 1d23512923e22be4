"""Masked-image pre-training of SegVol's encoder: hidden tokens, predicted voxels.

In: image (b, *vol, m) and context["masked"] (b, *grid) bool, true where a token is hidden. Out:
  pixels    (b, *grid, d) float32, the predicted voxels of every patch; d runs over
            (offsets in the patch, channel)
  patches   (b, *grid, d) the true voxels
  masked    (b, *grid) the hidden tokens
All tokens pass the encoder, the hidden ones as one learned token before positions are added; the
decoder is a linear map. The encoder is `SegVol`'s, parameter by parameter (`encoder/...`). Source:
SimMIM (Xie et al., arXiv 2111.09886).
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict
from jaxtyping import Array, Float

from medjax.errors import ModelError
from medjax.models.context import Entry, Spec, needed
from medjax.models.parts.adapters import Dense
from medjax.models.parts.attention import Context, check_initial, linear_init
from medjax.models.parts.blocks import check_precision
from medjax.models.parts.patch import space_to_depth
from medjax.models.parts.vit import PatchedEncoder


class MaskedVit(nn.Module):
    """See the module docstring, and `make` for the attributes.

    Parameters: `encoder/...`, `mask_token` (c,), `pixels`.
    """

    encoder: PatchedEncoder
    initial: str = "torch"
    dtype: Any = jnp.float32
    reads: Spec = FrozenDict()

    @nn.compact
    def __call__(
        self, image: Float[Array, "b *vol m"], context: Context = None, train: bool = False
    ) -> dict[str, Array]:
        """See the module docstring."""
        width, size = self.encoder.width, self.encoder.patch
        if any(n % p for n, p in zip(image.shape[1:-1], size, strict=True)):
            raise ModelError(
                "the image is no whole number of patches",
                found=image.shape[1:-1],
                expected=f"multiples of {size}",
                fix="change train.patch or model.patch_size",
            )
        token = self.param(
            "mask_token", nn.initializers.truncated_normal(0.02), (width,), jnp.float32
        )
        patches = space_to_depth(image, size)
        masked = needed(context, "masked", "masked images")
        if masked.shape != patches.shape[:-1]:
            raise ModelError(
                "the mask does not fit the token grid",
                found=masked.shape,
                expected=patches.shape[:-1],
                fix="give one flag per token",
            )
        x = self.encoder(image.astype(self.dtype), context, train, (masked, token))
        linear = linear_init(self.initial, width)
        pixels = Dense(patches.shape[-1], dtype=self.dtype, name="pixels", **linear)(x)
        return {
            "pixels": pixels.astype(jnp.float32),
            "patches": patches.astype(jnp.float32),
            "masked": masked,
        }


def make(
    *,
    patch_size: Sequence[int] = (4, 16, 16),
    width: int = 768,
    layers: int = 12,
    heads: int = 12,
    hidden: int = 3072,
    dropout: float | int = 0.0,
    initial: str = "torch",
    scan: bool = True,
    remat: str = "none",
    dtype: str = "float32",
) -> MaskedVit:
    """Builds the network; the arguments have the meaning and, for the weights to fit, the values of
    those of `segvol.make`. The size of its images is that of the run's patch.

    Args:
      patch_size: voxels per token and axis. width: of the tokens.
      layers, heads, hidden: of the encoder; `hidden` is the width inside its MLPs.
      dropout: of positions and MLPs, in training.
      initial: how the linear maps start, a word of `parts.attention.INITIAL`.
      scan: one program for all layers. remat: "none" or "block".
      dtype: compute type, "float32" or "bfloat16"; parameters are float32.

    Raises: `ModelError` for arguments that describe no network.
    """
    check_precision(dtype, remat)
    if width % heads:
        raise ModelError(
            "heads do not divide the width",
            found=f"{heads} heads, width {width}",
            fix="change heads or width",
        )
    size, precision = tuple(int(n) for n in patch_size), jnp.dtype(dtype)
    encoder = PatchedEncoder(
        size,
        width,
        layers,
        heads,
        hidden,
        dropout,
        scan,
        remat,
        dtype=precision,
        initial=check_initial(initial),
    )
    reads = FrozenDict({"masked": Entry((), "bool", "voxel", block=size)})
    return MaskedVit(encoder, initial, precision, reads)
