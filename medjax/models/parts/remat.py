"""The words for what the backward pass recomputes in place of keeping, and the names by which
blocks mark what can be kept.
"""

from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

CONV, UNIT = "conv", "unit"
KEPT = {"convs": (CONV,), "units": (UNIT,), "block": ()}
REMAT = ("none", *KEPT)


def mark(x: Float[Array, "..."], name: str) -> Float[Array, "..."]:
    """x, as the result of a convolution (`CONV`) or as what lies between two units of convolution,
    norm and activation (`UNIT`).
    """
    return checkpoint_name(x, name)


def policy(remat: str) -> Callable:
    """What a block keeps besides its input, for `jax.checkpoint` and `nn.remat`; `remat` is one of
    `REMAT` but "none".

    "convs" keeps the results of convolutions: norms and activations are recomputed. "units" keeps
    what lies between units of convolution, norm and activation: a third less for blocks that end in
    a norm, for a second run of every convolution. "block" keeps nothing more.
    """
    return jax.checkpoint_policies.save_only_these_names(*KEPT[remat])
