"""A dynamic mixture of low-rank experts beside the MLP of a transformer block (D-MoE).

In: tokens (b, *grid, c), already normalised, and the call's context with the task of every sample.
Out: tokens of the same shape, and the gate weights.

    E_i(x) = scale (act(x A_i + a_i) B_i + b_i)                        c -> r -> c
    y      = sum over the pool of R_t,i(x) E_i(x) + sum over the generic ones of G_i(x) E_i(x)
    R_t(x) = softmax(keep the k largest of x W_t),  G(x) = softmax(keep the k largest of x W)

The pool of a task t are its own k1 experts, then the k2 generic ones that all tasks share. B and b
start at zero, so a fresh mixture adds exactly nothing. Nothing is dispatched: experts and routers
of all tasks are stacked arrays, every sample takes the rows of its task, and all k1 + k2 experts of
it are computed, so that shapes are static and a batch may mix tasks.

Sources: MAST-Pro (MICCAI 2025), equations 3 to 5; what it leaves open follows MoE-Adapters4CL
(parallel to a frozen MLP, k1 experts per task) and MLoRE (linear experts with biases).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from medjax.errors import ModelError, did_you_mean
from medjax.models.context import needed
from medjax.models.parts.attention import Context, two_layers

PLACEMENTS = ("parallel", "replace", "after_mlp", "qkv_lora")
INPUTS = ("ln2", "residual")
SPECIFIC = ("per_task", "pooled", "none")
ROUTERS = ("token", "sample")
ACTIVATIONS: dict[str, Callable] = {"none": lambda x: x, "relu": nn.relu}
SMALLEST_NOISE = 0.01  # standard deviation added to that of the learned noise
ROUTER_INIT = nn.initializers.normal(0.02)
Low = tuple[Array, Array, Array, Array]  # A, a, B, b


class DynamicExperts(nn.Module):
    """The MLP it takes the place of, and the experts of the module docstring.

    Parameters: `fc1`, `fc2` as `attention.Mlp` has them (not with placement "replace");
    `generic/{A,a,B,b}` with a leading axis of k2; `specific/{A,a,B,b}` with leading axes (tasks,
    k1), or (k1,) if they are pooled; `router_generic` (c, k2); `router_task` (tasks, c, pool); with
    noise `noise_generic` and `noise_task` of the routers' shapes.

    Attributes:
      features: hidden width of the MLP.
      tasks: how many there are. k1, k2: experts of a task, and of all. rank: r.
      top_k: experts kept of the pool, and at most of the generic ones.
      placement: "parallel": MLP(x) + y(x); "replace": y(x); "after_mlp": MLP(x) + y(MLP(x));
        "qkv_lora": MLP(x), and y, with 3 c outputs, is added to queries, keys and values
        (`beside_qkv`).
      expert_input: "ln2": what the MLP reads; "residual": the block's tokens before that norm.
      specific: "per_task", "pooled" (k1 experts that all tasks share, each with its own router) or
        "none".
      generic_path: whether the generic experts have their own router G besides R.
      router: "token", or "sample": the mean token decides for all.
      router_noise: in training, logits get noise of a learned size, softplus(x N) + 0.01.
      activation: "none" or "relu". scale: of the experts' outputs. expert_dropout: of their hidden
        values, in training.
    """

    features: int
    tasks: int = 1
    k1: int = 2
    k2: int = 2
    top_k: int = 2
    rank: int = 32
    placement: str = "parallel"
    expert_input: str = "ln2"
    specific: str = "per_task"
    generic_path: bool = True
    router: str = "token"
    router_noise: bool = False
    activation: str = "none"
    scale: float = 1.0
    expert_dropout: float = 0.0
    initial: str = "torch"
    dtype: Any = jnp.float32
    contextual = True
    offers = True

    @property
    def stochastic(self) -> bool:
        """Whether training needs the rng "dropout"."""
        return self.router_noise or self.expert_dropout > 0

    @property
    def in_attention(self) -> bool:
        """Whether the block has to add `beside_qkv` to queries, keys and values."""
        return self.placement == "qkv_lora"

    @property
    def wants_residual(self) -> bool:
        """Whether the block has to give its tokens before the norm as context["residual"]."""
        return self.expert_input == "residual"

    def __call__(
        self, x: Float[Array, "b *grid c"], context: Context = None, train: bool = False
    ) -> tuple[Float[Array, "b *grid c"], dict[str, Float[Array, "b *any e"]]]:
        """(y, {"task_gates": R, "generic_gates": G}), gates (b, *grid, e) float32, with a grid of
        1s for the router "sample".
        """
        return self._run(x, context, train, False)

    def beside_qkv(
        self, x: Float[Array, "b *grid c"], context: Context = None, train: bool = False
    ) -> tuple[Float[Array, "b *grid d"], dict[str, Float[Array, "b *any e"]]]:
        """What is added to queries, keys and values, d = 3 c, and the gates."""
        return self._run(x, context, train, True)

    @nn.compact
    def _run(self, x: Array, context: Context, train: bool, attention: bool) -> Any:
        x = x.astype(self.dtype)
        if self.in_attention and not attention:
            return two_layers(x, self.features, self.initial, self.dtype), {}
        if attention:
            return self._mixture(x, context, train, 3 * x.shape[-1])
        y = None
        if self.placement != "replace":
            y = two_layers(x, self.features, self.initial, self.dtype)
        read = y if self.placement == "after_mlp" else x
        if self.wants_residual:
            read = needed(context, "residual", "experts with expert_input residual")
            read = read.astype(self.dtype)
        found, gates = self._mixture(read, context, train, x.shape[-1])
        return (found if y is None else y + found), gates

    def _mixture(
        self, x: Array, context: Context, train: bool, outputs: int
    ) -> tuple[Array, dict[str, Array]]:
        task = needed(context, "task", "experts of tasks")
        flat = x.reshape(x.shape[0], -1, x.shape[-1])
        own = self.k1 if self.specific != "none" else 0
        lead = {"per_task": (self.tasks, own), "pooled": (own,)}.get(self.specific, ())
        shared = _LowRank((self.k2,), self.rank, outputs, name="generic") if self.k2 else None
        parts: list[tuple[Low, bool]] = []  # with whether every sample has its own
        if own:
            low = _LowRank(lead, self.rank, outputs, name="specific")(x.shape[-1], self.dtype)
            each = self.specific == "per_task"
            parts.append((tuple(jnp.take(p, task, 0) for p in low) if each else low, each))
        if shared is not None:
            parts.append((shared(x.shape[-1], self.dtype), False))
        seen = flat.mean(1, keepdims=True, dtype=jnp.float32) if self.router == "sample" else flat
        share = self._gates(seen, "task", own + self.k2, task, train)
        gates = {"task_gates": share}
        if self.generic_path and self.k2:
            generic = self._gates(seen, "generic", self.k2, None, train)
            gates["generic_gates"] = generic
            share = share.at[..., own:].add(generic)
        y, first = 0.0, 0
        for low, each in parts:
            count = low[0].shape[-3]
            y = y + self._experts(flat, low, each, share[..., first : first + count], train)
            first += count
        grid = x.shape[1:-1] if self.router == "token" else (1,) * (x.ndim - 2)
        shaped = {name: g.reshape(x.shape[0], *grid, -1) for name, g in gates.items()}
        return (self.scale * y).astype(self.dtype).reshape(*x.shape[:-1], outputs), shaped

    def _gates(self, x: Array, of: str, count: int, task: Array | None, train: bool) -> Array:
        """Weights (b, n, count) float32 that sum to 1, at most `top_k` of them above 0."""
        width = x.shape[-1]
        shape = (width, count) if task is None else (self.tasks, width, count)

        def logits(name: str, init: Callable) -> Array:
            kernel = self.param(f"{name}_{of}", init, shape)
            kernel = (kernel if task is None else jnp.take(kernel, task, 0)).astype(x.dtype)
            how = "bnc,ce->bne" if task is None else "bnc,bce->bne"
            return jnp.einsum(how, x, kernel, preferred_element_type=jnp.float32)

        found = logits("router", ROUTER_INIT)
        if self.router_noise:
            spread = nn.softplus(logits("noise", nn.initializers.zeros)) + SMALLEST_NOISE
            if train:
                drawn = jax.random.normal(self.make_rng("dropout"), found.shape)
                found = found + spread * drawn
        return jax.nn.softmax(keep_top_k(found, min(self.top_k, count)), -1)

    def _experts(self, x: Array, low: Low, each: bool, share: Array, train: bool) -> Array:
        """sum over the experts of share (act(x A + a) B + b), as two products; (b, n, outputs)."""
        k = "bk" if each else "k"
        first, inner, second, outer = low
        hidden = jnp.einsum(f"bnc,{k}cr->bnkr", x, first)
        hidden = ACTIVATIONS[self.activation](hidden + (inner[:, None] if each else inner))
        if self.expert_dropout:
            hidden = nn.Dropout(self.expert_dropout, deterministic=not train)(hidden)
        weighted = (hidden * share[..., None]).astype(self.dtype)
        y = jnp.einsum(f"bnkr,{k}ro->bno", weighted, second)
        return y + (share[..., None] * (outer[:, None] if each else outer)).sum(-2)


class _LowRank(nn.Module):
    """The numbers of some experts: A (*lead, c, r), a (*lead, r), B (*lead, r, o), b (*lead, o)."""

    lead: tuple[int, ...]
    rank: int
    outputs: int

    @nn.compact
    def __call__(self, width: int, dtype: Any) -> Low:
        bound, zeros = 1 / math.sqrt(width), nn.initializers.zeros

        def uniform(key: Array, shape: tuple[int, ...], kind: Any = jnp.float32) -> Array:
            return jax.random.uniform(key, shape, kind, -bound, bound)

        shapes = {"A": (width, self.rank), "a": (self.rank,)}
        shapes |= {"B": (self.rank, self.outputs), "b": (self.outputs,)}
        return tuple(
            self.param(name, uniform if name == "A" else zeros, (*self.lead, *shape)).astype(dtype)
            for name, shape in shapes.items()
        )


def keep_top_k(logits: Float[Array, "*b e"], k: int) -> Float[Array, "*b e"]:
    """The k largest logits, the others -inf; of equal ones the first are kept.

    Equation 5. No gradient reaches those that are not kept.

    >>> weights = jax.nn.softmax(keep_top_k(jnp.array([1.0, 2.0, 0.5, 2.5]), 2))
    >>> [round(float(w), 6) for w in weights]
    [0.0, 0.377541, 0.0, 0.622459]
    """
    count = logits.shape[-1]
    if k >= count:
        return logits
    _, kept = jax.lax.top_k(logits, k)
    mask = jnp.any(kept[..., None] == jnp.arange(count), -2)
    return jnp.where(mask, logits, -jnp.inf)


def socket(tasks: int, **given: Any) -> Callable[..., nn.Module]:
    """The constructor for the socket `mlp`, with arguments of `DynamicExperts`.

    Raises: `ModelError` for unknown words and numbers that describe no mixture.
    """
    words = {
        "placement": PLACEMENTS,
        "expert_input": INPUTS,
        "specific": SPECIFIC,
        "router": ROUTERS,
        "activation": tuple(ACTIVATIONS),
    }
    for name, known in words.items():
        if (word := given.get(name, known[0])) not in known:
            raise ModelError(
                f"unknown {name} {word!r} of low-rank experts", fix=did_you_mean(str(word), known)
            )
    own = 0 if given.get("specific") == "none" else given.get("k1", DynamicExperts.k1)
    shared, kept = given.get("k2", DynamicExperts.k2), given.get("top_k", DynamicExperts.top_k)
    if min(own, shared) < 0 or not 1 <= kept <= own + shared or given.get("rank", 1) < 1:
        raise ModelError(
            "numbers that describe no mixture of low-rank experts",
            found=f"k1 {own}, k2 {shared}, top_k {kept}, rank {given.get('rank', 1)}",
            expected="top_k from 1 to k1 + k2, and a rank of 1 or more",
            fix="change model.mlp",
        )
    if given.get("expert_input") == "residual" and given.get("placement") in PLACEMENTS[2:]:
        raise ModelError(
            f"placement {given['placement']!r} says what the experts read",
            found="expert_input residual",
            fix="leave expert_input out",
        )
    if not 0 <= given.get("expert_dropout", 0) < 1:
        raise ModelError("expert_dropout is no share", found=given["expert_dropout"])
    return functools.partial(DynamicExperts, tasks=tasks, **given)
