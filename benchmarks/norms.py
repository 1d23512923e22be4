"""Statistics of instance norms in two passes (the mean, then the variance about it, as
`medjax/models/parts/norm.py` takes them) and in one, in turns: CPU seconds and errors. Prints JSON.

    python -m benchmarks.norms [--shape 2 32 48 48 32] [--rounds 15] [--dtype bfloat16]

One pass is one `lax.reduce` of the sum and the sum of squares, of the values themselves or shifted
by the first voxel of each sample and channel; "two reductions" are the same sums as two plain
reductions, which a compiler may fuse. "step" is the forward and backward pass of norm and leaky
ReLU. Errors are the largest of the standard deviation, relative to float64, for data whose mean is
0, 10, 100 and 1000 standard deviations.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import harness
from medjax.models.parts import norm

EPSILON = 1e-5
OFFSETS = (0.0, 10.0, 100.0, 1000.0)


def two_passes(x: Any) -> tuple[Any, Any]:
    """(mean, biased variance), each (b, c), as the norm takes them."""
    flat = x.reshape(len(x), -1, x.shape[-1]).astype(jnp.float32)
    mean = flat.mean(1, keepdims=True)
    return mean[:, 0], jnp.square(flat - mean).mean(1)


def one_pass(x: Any, shifted: bool, together: bool) -> tuple[Any, Any]:
    """The same from the sum and the sum of squares."""
    flat = x.reshape(len(x), -1, x.shape[-1]).astype(jnp.float32)
    shift = flat[:, :1] if shifted else jnp.zeros_like(flat[:, :1])
    near = flat - shift if shifted else flat
    if together:

        def add(a: tuple, b: tuple) -> tuple:
            return a[0] + b[0], a[1] + b[1]

        zero = jnp.zeros((), jnp.float32)
        sums = lax.reduce((near, near * near), (zero, zero), add, (1,))
    else:
        sums = near.sum(1), (near * near).sum(1)
    first, second = (s / flat.shape[1] for s in sums)
    return first + shift[:, 0], jnp.maximum(second - first * first, 0.0)


WAYS: dict[str, Callable] = {
    "two passes": two_passes,
    "one pass": functools.partial(one_pass, shifted=False, together=True),
    "one pass, shifted": functools.partial(one_pass, shifted=True, together=True),
    "two reductions": functools.partial(one_pass, shifted=False, together=False),
    "two reductions, shifted": functools.partial(one_pass, shifted=True, together=False),
}


def errors(shape: tuple[int, ...]) -> dict[str, list[float]]:
    """Way -> the largest relative error of sqrt(variance + epsilon), per offset of `OFFSETS`."""
    rng, found = np.random.default_rng(0), {name: [] for name in WAYS}
    noise = rng.standard_normal(shape)
    for offset in OFFSETS:
        x = (noise + offset).astype(np.float32)
        exact = np.sqrt(x.astype(np.float64).var(tuple(range(1, x.ndim - 1))) + EPSILON)
        for name, way in WAYS.items():
            value = np.sqrt(np.asarray(jax.jit(way)(x)[1], np.float64) + EPSILON)
            found[name].append(float(f"{np.abs(value / exact - 1).max():.2g}"))
    return found


def timed(shape: tuple[int, ...], dtype: str, rounds: int) -> dict:
    """Seconds of every way in turns, beside those of the whole norm."""
    x = jnp.asarray(np.random.default_rng(1).standard_normal(shape), dtype)
    ones, zeros = jnp.ones(shape[-1]), jnp.zeros(shape[-1])

    def loss(x: Any) -> Any:
        return norm.norm_act(x, ones, zeros, EPSILON, norm.LEAK).astype(jnp.float32).sum()

    programs = {**{n: jax.jit(w) for n, w in WAYS.items()}, "step": jax.jit(jax.grad(loss))}

    def call(program: Callable) -> Callable:
        return lambda: jax.block_until_ready(program(x))

    found = harness.in_turns({n: call(p) for n, p in programs.items()}, rounds, warm=2)
    cpu = found.median("cpu", 6)
    over = {n: found.ratio(n, "two passes", "cpu") for n in WAYS}
    return {"cpu_s": cpu, "over two passes": over}


def main() -> None:
    """Measures and prints."""
    parser = harness.parser(__doc__, shape=(2, 32, 48, 48, 32), rounds=15, dtype="float32", out="")
    given = parser.parse_args()
    found = timed(given.shape, given.dtype, given.rounds)
    found |= {"errors": errors((1, 16, 32, 32, 8)), "offsets": OFFSETS}
    harness.show(harness.machine() | found, given.out)


if __name__ == "__main__":
    main()
