"""Rematerialisation: policies for the backward pass, and names that mark what can be kept."""

from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

CONV, UNIT = "conv", "unit"
KEPT = {"convs": (CONV,), "units": (UNIT,), "block": ()}
REMAT = ("none", *KEPT)


def mark(x: Float[Array, "..."], name: str) -> Float[Array, "..."]:
    """x, marked as the result of a convolution (`CONV`) or of a whole unit (`UNIT`).

    A unit is convolution, norm and activation.
    """
    return checkpoint_name(x, name)


def policy(remat: str) -> Callable:
    """What a block keeps besides its input, for `jax.checkpoint` and `nn.remat`.

    `remat` is one of `REMAT` except "none". "convs" keeps the results of convolutions: norms and
    activations are recomputed. "units" keeps the results of units of convolution, norm and
    activation: a third less for blocks that end in a norm, for a second run of every convolution.
    "block" keeps nothing more.
    """
    return jax.checkpoint_policies.save_only_these_names(*KEPT[remat])
