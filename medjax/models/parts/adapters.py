"""Low-rank adapters as seen by a network: the listener that every owner of a kernel asks.

An adapter of a kernel K is a pair a, b; the kernel then acts as K + sum over experts e of
w_e (a_e b_e), with weights w per sample. In the parameter tree they are leaves beside the kernel
(see `medjax.weights.adapters`); at apply time they come as the Flax collection `COLLECTION`, under
the path of the kernel's owner: `a` (e, *k, i, r), `b` (e, r, o), `w` (batch, e). A module without
entries there computes what it always did. No module knows ranks, routes or rules.

Source: LoRA (arXiv 2106.09685), section 4; for convolutions the first factor has the kernel's size.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

COLLECTION = "adapters"


def beside(
    module: nn.Module,
    x: Float[Array, "..."],
    y: Float[Array, "..."],
    project: Callable[[Array, Array], Array] = jnp.matmul,
) -> Float[Array, "..."]:
    """y plus what the module's adapters make of x; y itself, unchanged, if it has none.

    Args:
      x: input of the kernel, samples (or neighbouring windows of a sample) along axis 0.
      y: what the kernel made of it, (n, ..., o).
      project: (x, kernel (*k, i, f)) -> (n, ..., f): the map of the module with another kernel.
    """
    if not module.has_variable(COLLECTION, "a"):
        return y
    hidden, second = factors(module, x.astype(y.dtype), project)
    return y + hidden @ second


def factors(
    module: nn.Module,
    x: Float[Array, "..."],
    project: Callable[[Array, Array], Array] = jnp.matmul,
) -> tuple[Float[Array, "..."], Float[Array, "f o"]]:
    """The two factors of what a module's adapters add: x through all first ones, weighted per
    sample, (n, ..., f), and the second ones (f, o), f = experts times rank.

    See `beside`.
    """
    a, b, w = (module.get_variable(COLLECTION, name) for name in ("a", "b", "w"))
    experts, rank = a.shape[0], a.shape[-1]
    joined = jnp.moveaxis(a, 0, -2).reshape(*a.shape[1:-1], experts * rank)
    hidden = project(x, joined.astype(x.dtype))
    share = jnp.repeat(jnp.repeat(w, rank, -1), hidden.shape[0] // w.shape[0], 0)
    share = share.reshape(hidden.shape[0], *(1,) * (hidden.ndim - 2), experts * rank)
    return hidden * share.astype(hidden.dtype), b.reshape(experts * rank, -1).astype(x.dtype)


class Dense(nn.Module):
    """A linear map over the last axis that listens; parameters, start and numbers of
    `flax.linen.Dense`.

    Attributes:
      features: o. dtype: compute type, default that of input and parameters together; parameters
        are float32.
    """

    features: int
    use_bias: bool = True
    dtype: Any = None
    kernel_init: Callable = nn.initializers.lecun_normal()
    bias_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Float[Array, "*any i"]) -> Float[Array, "*any o"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        bias = self.use_bias and self.param("bias", self.bias_init, (self.features,), jnp.float32)
        dtype = self.dtype or jnp.result_type(x, kernel)
        x = x.astype(dtype)
        y = _matmul(x, kernel.astype(dtype))
        if self.use_bias:
            y = y + bias.astype(dtype)
        return beside(self, x, y, _matmul)


def _matmul(x: Array, kernel: Array) -> Array:
    return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
