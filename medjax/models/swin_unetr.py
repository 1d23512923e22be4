"""SwinUNETR: a Swin transformer as encoder, residual convolution blocks as decoder (Hatamizadeh et al., arXiv 2201.01266; MONAI's network).

In: image (b, *vol, m) float32, three axes or two, sides divisible by 32. Out: {"logits": (b, *vol, classes) float32}, and with `features` the
named maps between. The function is MONAI's SwinUNETR to rounding, weights included: see `merging` and `weight_axes` for imported ones.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from medjax.errors import ModelError
from medjax.models.parts.attention import Context, Mlp, SwinBlock, linear_init
from medjax.models.parts.patch import MERGING, PatchEmbed, PatchMerging

STRIDE = 32  # patch embedding by 2, four mergings by 2
REMAT = ("none", "block", "all")
AXES = ("zyx", "xyz")


def whiten(x: Float[Array, "*b c"], epsilon: float = 1e-5) -> Float[Array, "*b c"]:
    """LayerNorm over the channels without parameters; statistics in float32."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, -1, keepdims=True)
    return (y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + epsilon)).astype(x.dtype)
