"""Mixtures of expert MLPs for the `mlp` socket of a transformer block.

In: tokens (b, *grid, c), already normalised, and the call's context. Out: tokens of the same shape,
and the gate weights. Experts are softly gated, or routed by modality. An expert is the MLP it
replaces (linear to the hidden width, exact GELU, linear back). All experts of a block are stored in
four arrays with a leading expert axis: `w1` (e, c, h), `b1` (e, h), `w2` (e, h, c), `b2` (e, c);
the gate is `gate/{kernel,bias}`.

A soft mixture is one wide MLP: the hidden units of all experts side by side, each block of them
weighted before the second product, so the experts' outputs are never materialised separately.
Source: M4oE (Jiang and Shen, MICCAI 2024), equations 2 and 3, and its released code.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from medjax.errors import ModelError, did_you_mean
from medjax.models.context import MODALITY, Spec, needed
from medjax.models.parts.adapters import Dense
from medjax.models.parts.attention import Context, Mlp, linear_init

ROUTINGS = ("dense", "gate", "channel_gate", "hard")
SCOPES = ("token", "image")
DISPATCHES = ("auto", "gather", "mask", "vmap")
# tokens x other experts: from here on computing them costs more than copying the weights of every
# sample's own
WORTH_GATHERING = 256


class MixtureOfExperts(nn.Module):
    """Several expert MLPs and the rule that mixes them.

    See the module docstring for the parameters.

      gate          y = sum over e of w_e expert_e(x),
                    w = softmax over e of (x gate + bias), in float32
      channel_gate  y = g * sum over e of expert_e(x),
                    g = softmax over the channels of (x gate + bias)   (M4oE's released code)
      hard          y = expert of the sample's modality                (context["modality"])

    Attributes:
      features: hidden width h of every expert.
      experts: number of experts.
      routing: one of `ROUTINGS` except "dense".
      gate_scope: "token": a weight per token; "image": the gate sees the mean over the tokens.
      expert_of: for "hard", the expert of every modality; None: modality m has expert m.
      dispatch: how "hard" computes: "gather" copies each sample's weights, "mask" computes all
        experts, "auto" chooses by size. "vmap", of all routings: one expert is mapped over the
        stacked parameters (`mixture_by_vmap`). The results agree.
      offers: return (y, {"gates": w (b, *grid, e)}) for "gate", with a grid of 1s for "image";
        (y, {}) for the others.
    """

    features: int
    experts: int
    routing: str = "gate"
    gate_scope: str = "token"
    expert_of: tuple[int, ...] | None = None
    dispatch: str = "auto"
    initial: str = "torch"
    dtype: Any = jnp.float32
    offers: bool = False
    contextual = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *grid c"], context: Context = None
    ) -> Float[Array, "b *grid c"] | tuple[Float[Array, "b *grid c"], dict[str, Array]]:
        self._check()
        width, x = x.shape[-1], x.astype(self.dtype)
        weights = self._weights(width)
        offered = {}
        mixed = mixture_by_vmap if self.dispatch == "vmap" else mixture
        if self.routing == "hard":
            y = self._hard(x, weights, context)
        elif self.routing == "gate":
            share = jax.nn.softmax(self._gate(x, self.experts), -1)
            y, offered = mixed(x, *weights, share), {"gates": share}
        else:
            everyone = jnp.ones((1,) * (x.ndim - 1) + (self.experts,), jnp.float32)
            y = mixed(x, *weights, everyone)
            y = (y * jax.nn.softmax(self._gate(x, width), -1)).astype(self.dtype)
        return (y, offered) if self.offers else y

    def _weights(self, width: int) -> tuple[Array, ...]:
        """w1, b1, w2, b2 in the compute type; every expert is drawn like a single MLP."""
        found = []
        for number, (inputs, outputs) in enumerate(
            ((width, self.features), (self.features, width)), 1
        ):
            init = linear_init(self.initial, inputs)
            for letter, kind, shape in (
                ("w", "kernel_init", (inputs, outputs)),
                ("b", "bias_init", (outputs,)),
            ):
                each = _each_expert(init[kind])
                found.append(
                    self.param(f"{letter}{number}", each, (self.experts, *shape)).astype(self.dtype)
                )
        return tuple(found)

    def _gate(self, x: Array, outputs: int) -> Array:
        """Scores in float32; for "image" of the mean token, with a grid of 1s."""
        x = x.astype(jnp.float32)
        if self.gate_scope == "image":
            x = x.mean(tuple(range(1, x.ndim - 1)), keepdims=True)
        return Dense(
            outputs, name="gate", dtype=jnp.float32, **linear_init(self.initial, x.shape[-1])
        )(x)

    def _hard(self, x: Array, weights: tuple[Array, ...], context: Context) -> Array:
        chosen = needed(context, "modality", "experts by modality")
        if self.expert_of is not None:
            chosen = jnp.asarray(self.expert_of)[chosen]
        tokens = x[0, ..., 0].size
        gather = self.dispatch == "gather" or (
            self.dispatch == "auto" and tokens * (self.experts - 1) >= WORTH_GATHERING
        )
        if self.experts == 1 or not gather:
            share = jax.nn.one_hot(chosen, self.experts, dtype=jnp.float32)
            mixed = mixture_by_vmap if self.dispatch == "vmap" else mixture
            return mixed(x, *weights, share.reshape(-1, *(1,) * (x.ndim - 2), self.experts))
        return routed(x, *weights, chosen)

    def _check(self) -> None:
        words = (
            ("routing", self.routing, ROUTINGS[1:]),
            ("gate_scope", self.gate_scope, SCOPES),
            ("dispatch", self.dispatch, DISPATCHES),
        )
        for name, word, known in words:
            if word not in known:
                raise ModelError(
                    f"unknown {name} {word!r} of experts", fix=did_you_mean(word, known)
                )
        if self.experts < 1 or max(self.expert_of or (0,)) >= self.experts:
            raise ModelError(
                "not enough experts",
                found=f"{self.experts}, expert_of={self.expert_of}",
                fix="raise experts",
            )


def mixture(
    x: Float[Array, "b *grid c"],
    w1: Float[Array, "e c h"],
    b1: Float[Array, "e h"],
    w2: Float[Array, "e h c"],
    b2: Float[Array, "e c"],
    share: Float[Array, "..."],
) -> Float[Array, "b *grid c"]:
    """sum over e of share_e (gelu(x w1_e + b1_e) w2_e + b2_e), as two matrix products.

    Args:
      share: weight of every expert, broadcast to (b, *grid, e), float32.
    """
    hidden = nn.gelu(jnp.einsum("...c,ech->...eh", x, w1) + b1, approximate=False)
    weighted = (hidden * share[..., None]).astype(x.dtype)
    y = jnp.einsum("...eh,ehc->...c", weighted, w2)
    return y + (share[..., None] * b2).sum(-2).astype(x.dtype)


def mixture_by_vmap(
    x: Float[Array, "b *grid c"],
    w1: Float[Array, "e c h"],
    b1: Float[Array, "e h"],
    w2: Float[Array, "e h c"],
    b2: Float[Array, "e c"],
    share: Float[Array, "..."],
) -> Float[Array, "b *grid c"]:
    """`mixture` as one expert mapped over the stacked parameters, the form of the equations.

    The outputs of all experts exist at once, which the products of `mixture` avoid; a training step
    takes about 1.1 times as long (benchmarks/experts.py), so `mixture` is the default.
    """

    def expert(w1: Array, b1: Array, w2: Array, b2: Array) -> Array:
        return nn.gelu(x @ w1 + b1, approximate=False) @ w2 + b2

    outputs = jax.vmap(expert)(w1, b1, w2, b2)
    return jnp.einsum("e...c,...e->...c", outputs, share.astype(x.dtype))


def routed(
    x: Float[Array, "b *grid c"],
    w1: Float[Array, "e c h"],
    b1: Float[Array, "e h"],
    w2: Float[Array, "e h c"],
    b2: Float[Array, "e c"],
    chosen: Int[Array, " b"],
) -> Float[Array, "b *grid c"]:
    """Every sample through its own expert, by copying that expert's weights to it."""
    flat = x.reshape(x.shape[0], -1, x.shape[-1])
    hidden = nn.gelu(
        jnp.einsum("bnc,bch->bnh", flat, w1[chosen]) + b1[chosen][:, None], approximate=False
    )
    return (jnp.einsum("bnh,bhc->bnc", hidden, w2[chosen]) + b2[chosen][:, None]).reshape(x.shape)


def socket(
    routing: str, experts: int = 1, gate_scope: str = "token", **more: Any
) -> Callable[..., nn.Module]:
    """The constructor for the `mlp` socket: "dense" is `Mlp`, other words of `ROUTINGS` mixtures.

    Args:
      more: further attributes of `MixtureOfExperts`.
    """
    if routing not in ROUTINGS:
        raise ModelError(
            f"unknown routing {routing!r} of experts", fix=did_you_mean(routing, ROUTINGS)
        )
    if routing == "dense":
        return Mlp
    return functools.partial(
        MixtureOfExperts,
        experts=experts,
        routing=routing,
        gate_scope=gate_scope,
        offers=True,
        **more,
    )


def reads(routing: str) -> Spec:
    """What the mlps of a routing read beside their tokens."""
    return {"modality": MODALITY} if routing == "hard" else {}


def _each_expert(init: Callable) -> Callable:
    """An initialiser that draws every slice of the leading axis separately."""

    def draw(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.vmap(lambda k: init(k, shape[1:], dtype))(jax.random.split(key, shape[0]))

    return draw
