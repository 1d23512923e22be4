"""Keeps all experts of learned gates in use: the squared coefficient of variation of importance.

    I_e = sum over samples (or tokens) of the share of expert e
    L = mean over gates of var(I) / mean(I)^2

0 if all experts are used alike, (number of experts - 1) if one of them takes everything. Source:
Shazeer et al. 2017 (arXiv 1701.06538), section 4 and equation 6.
"""

from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from medjax.errors import UsageError
from medjax.losses.parts import separable

EPSILON = 1e-10


def make(of: Sequence[str] = ("balance",)) -> Callable[[Mapping, Mapping], Float[Array, ""]]:
    """The loss f(outputs, batch) -> scalar >= 0.

    outputs: by default `balance`, gate -> (*n, e), shares of the experts in every sample or token,
    from adapters with routing "image".

    Args:
      of: the outputs that hold gates, such as ("task_gates", "generic_gates") of low-rank experts
        (`models.parts.dmoe`) or ("gates",) of expert MLPs.

    Raises: `UsageError`, when it is called, for outputs without a gate.
    """

    def balance(outputs: Mapping, batch: Mapping) -> Float[Array, ""]:
        if not (gates := [gate for name in of for gate in (outputs.get(name) or {}).values()]):
            raise UsageError(
                "the loss balance needs a learned gate, and this network has none",
                found=f"outputs {', '.join(sorted(outputs))}",
                fix="leave config.losses.balance out, name its gates in config.losses.balance.of, "
                "or set config.adapters.routing=image",
            )
        return sum(map(_varied, gates)) / len(gates)

    return separable.marked(balance, lambda complete, weighted: separable.BATCH)


def _varied(share: Float[Array, "*n e"]) -> Float[Array, ""]:
    importance = share.astype(jnp.float32).sum(tuple(range(share.ndim - 1)))
    return importance.var() / (jnp.square(importance.mean()) + EPSILON)
