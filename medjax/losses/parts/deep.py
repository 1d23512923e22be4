"""Deep supervision: the same losses at every resolution of a network, with weights.

In: outputs with `logits` and `deep` (lower-resolution logits, finest first), the batch, and named
weighted losses. Out: one scalar and its parts. Each resolution uses label and voxel weight by
nearest neighbour; a resolution with weight 0 is skipped.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from medjax.errors import UsageError, did_you_mean
from medjax.losses.parts import sums, targets

RULES = ("halving", "halving_all")


def weights(resolutions: int, rule: str | Sequence[float | int] = "halving") -> tuple[float, ...]:
    """Weight of each resolution, finest first.

    Args:
      resolutions: how many outputs the network has, the full resolution included.
      rule: explicit numbers, used as they are; "halving": 1, 1/2, 1/4, ... with the last one off,
        normalised to sum 1 (nnU-Net; a single output has weight 1); "halving_all": the same with
        the last one on.

    Raises: `UsageError` for an unknown rule or a wrong number of weights.
    """
    if not isinstance(rule, str):
        if len(rule) != resolutions:
            raise UsageError(
                "wrong number of deep supervision weights",
                found=len(rule),
                expected=f"{resolutions}, one per network output",
            )
        return tuple(float(w) for w in rule)
    if rule not in RULES:
        raise UsageError(f"unknown deep supervision rule {rule!r}", fix=did_you_mean(rule, RULES))
    raw = [0.5**i for i in range(resolutions)]
    if rule == "halving" and resolutions > 1:
        raw[-1] = 0.0
    return tuple(w / sum(raw) for w in raw)


def levels(outputs: Mapping, batch: Mapping) -> Iterator[tuple[Mapping, Mapping]]:
    """(outputs, batch) of every resolution, finest first.

    `logits`, `label` and `weight` are replaced; all other entries are passed on.
    """
    yield outputs, batch
    for logits in outputs.get("deep", ()):
        small = {
            k: targets.downsample(batch[k], logits.shape[1:-1])
            for k in ("label", "weight")
            if batch.get(k) is not None
        }
        yield {**outputs, "logits": logits}, {**batch, **small}


def total(
    losses: Sequence[tuple[str, float, Callable]],
    outputs: Mapping,
    batch: Mapping,
    rule: str | Sequence[float | int] = "halving",
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """sum over losses and resolutions of loss weight x resolution weight x f(outputs, batch).

    Args:
      losses: (name, weight, f) entries.
      rule: see `weights`.

    Returns: the scalar, and by loss name its part before the loss weight (resolutions already
      combined).
    """
    scale = weights(1 + len(outputs.get("deep", ())), rule)
    parts = {name: jnp.zeros(()) for name, _, _ in losses}
    for s, (level_outputs, level_batch) in zip(scale, levels(outputs, batch), strict=True):
        if s:
            level_outputs = sums.together(level_outputs, level_batch)
            for name, _, f in losses:
                parts[name] = parts[name] + s * f(level_outputs, level_batch)
    return sum((weight * parts[name] for name, weight, _ in losses), start=jnp.zeros(())), parts
