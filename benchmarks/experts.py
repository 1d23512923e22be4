"""Gated experts as two matrix products over all of them, and as a `vmap` over stacked parameters.

    python -m benchmarks.experts [--tokens 1024] [--width 96] [--hidden 384] [--experts 3]

Both compute the same sum over experts (tests/models/test_moe.py). Times a value and its gradients,
in turns; prints one JSON object: medians in seconds, the median ratio of neighbouring runs by wall
and CPU time, and the bytes that each compiled program needs beside its arguments.
"""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from medjax.models.parts import moe


def main(argv: list[str] | None = None) -> dict:
    """Measures and prints; returns what it printed."""
    flags = {"tokens": 1024, "width": 96, "hidden": 384, "experts": 3, "rounds": 9}
    args = harness.parser(__doc__, **flags).parse_args(argv)
    rng = np.random.default_rng(0)
    e, c, h = args.experts, args.width, args.hidden
    shapes = {
        "x": (2, args.tokens, c),
        "w1": (e, c, h),
        "b1": (e, h),
        "w2": (e, h, c),
        "b2": (e, c),
    }
    x, *weights = (
        jnp.asarray(rng.normal(size=shape) * 0.1, jnp.float32) for shape in shapes.values()
    )
    share = jax.nn.softmax(jnp.asarray(rng.normal(size=(2, args.tokens, e)), jnp.float32), -1)

    def program(function):
        def value(x, weights, share):
            return jnp.square(function(x, *weights, share)).sum()

        return jax.jit(jax.grad(value, (0, 1, 2))).lower(x, weights, share).compile()

    programs = {"products": program(moe.mixture), "vmap": program(moe.mixture_by_vmap)}
    runs = {
        name: lambda compiled=compiled: jax.block_until_ready(compiled(x, weights, share))
        for name, compiled in programs.items()
    }
    turns = harness.in_turns(runs, args.rounds)
    found = {f"{name}_s": seconds for name, seconds in turns.median().items()}
    found |= {f"ratio_{kind}": turns.ratio("vmap", "products", kind, 3) for kind in ("wall", "cpu")}
    for name, compiled in programs.items():
        found[f"{name}_bytes"] = compiled.memory_analysis().temp_size_in_bytes
    harness.show(found)
    return found


if __name__ == "__main__":
    main()
