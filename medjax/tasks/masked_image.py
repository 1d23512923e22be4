"""The masked-image task: hides most tokens of an image, and the network predicts their pixels.

Labels are not used. In: the sampler's batch on the device, as for `tasks.supervised`. Out: the loss
over the hidden patches; in validation, per modality. The network gets context["masked"] (b, *grid),
true where a token is hidden, beside corpus and modality. Source: Swin-MAE (Xu et al. 2022): whole
blocks of tokens are hidden, the same share in every sample, a separate choice for every sample.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from medjax.errors import UsageError
from medjax.losses import masked_pixels
from medjax.models.parts.patch import space_to_depth
from medjax.tasks import supervised

HELD_OUT = 0  # seed of the masks in validation, fixed so that its losses are comparable


def block_mask(
    key: Array, samples: int, grid: tuple[int, ...], block: int, ratio: float
) -> Bool[Array, "b *grid"]:
    """True on randomly chosen blocks of `block` tokens per axis.

    The same number of blocks, at least a share `ratio` of them, in every sample.

    Raises: `UsageError` if blocks do not fill the grid, or if none or all of them would be hidden.
    """
    if any(g % block for g in grid):
        raise UsageError(
            "blocks do not fill the token grid",
            found=grid,
            expected=f"multiples of {block}",
            fix="change task_options.block",
        )
    blocks = tuple(g // block for g in grid)
    count = math.prod(blocks)
    kept = int(count * (1 - ratio))
    if not 0 < kept < count:
        raise UsageError(
            "nothing to guess, or to guess from",
            found=f"ratio {ratio} of {count} blocks",
            fix="change task_options.ratio",
        )
    place = jnp.argsort(jnp.argsort(jax.random.uniform(key, (samples, count)), -1), -1)
    mask = (place >= kept).reshape(samples, *blocks)
    for axis in range(1, mask.ndim):
        mask = jnp.repeat(mask, block, axis)
    return mask


@dataclasses.dataclass(frozen=True)
class MaskedImage:
    """See `make`."""

    batches: supervised.Supervised
    grid: tuple[int, ...]
    block: int
    ratio: float
    names: tuple[str, ...]

    def loss(
        self, params: Any, batch: Mapping[str, Any], key: Array
    ) -> tuple[Array, dict[str, Array]]:
        """The loss of one batch, and each loss as "loss/<name>" (before its weight)."""
        return self.prepared_loss(params, self.prepare(batch, key), key)

    def prepare(self, batch: Mapping[str, Any], key: Array) -> dict[str, Any]:
        """The batch as `Supervised.prepare` returns it, with the tokens that are hidden, and
        `inside` (b, *grid, pixels): which pixels of a token lie within the image.
        """
        prepared = self._prepared(batch, key)
        count = prepared["image"].shape[0]
        masked = block_mask(jax.random.fold_in(key, 2), count, self.grid, self.block, self.ratio)
        return prepared | {"masked": masked}

    def _prepared(self, batch: Mapping[str, Any], key: Array | None) -> dict[str, Any]:
        prepared = self.batches.prepare(batch, key)
        inside = jnp.asarray(prepared["inside"])[..., None]
        size = [n // g for n, g in zip(inside.shape[1:-1], self.grid, strict=True)]
        return prepared | {"inside": space_to_depth(inside, size)}

    def prepared_loss(
        self,
        params: Any,
        prepared: Mapping[str, Any],
        key: Array,
        part: Array | None = None,
        parts: int = 1,
    ) -> tuple[Array, dict[str, Array]]:
        """See `Supervised.prepared_loss`."""
        outputs = self.batches.outputs(params, prepared, key, part)
        losses = self.batches.losses_of_part(parts)
        found = {name: f(outputs, prepared) for name, _, f in losses}
        total = sum((weight * found[name] for name, weight, _ in losses), start=jnp.zeros(()))
        return total, {f"loss/{name}": one for name, one in found.items()}

    def batch_losses(self) -> tuple[str, ...]:
        """See `Supervised.batch_losses`."""
        return self.batches.batch_losses()

    def validate(self, params: Any, batch: Mapping[str, Any]) -> dict[str, Array]:
        """The loss without augmentation under fixed masks.

        Its sum `error` (n,) over the samples of each modality that have a hidden token within the
        image, and their number `weight` (n,).
        """
        prepared = self._prepared(batch, None)
        masked = block_mask(
            jax.random.key(HELD_OUT), prepared["image"].shape[0], self.grid, self.block, self.ratio
        )
        outputs = self.batches.apply(
            params, prepared["image"], self.batches.context(batch | {"masked": masked}), False, None
        )

        def of_sample(*arrays: Any) -> Array:
            alone = jax.tree.map(lambda a: a[None], arrays)
            return sum(
                (weight * f(*alone) for _, weight, f in self.batches.losses), start=jnp.zeros(())
            )

        errors = jax.vmap(of_sample)(outputs, prepared)
        _, counted = masked_pixels.per_sample(outputs, prepared["inside"])
        own = batch["modality"][:, None] == jnp.arange(len(self.names))
        own = own & (counted > 0)[:, None]
        return {"error": jnp.sum(jnp.where(own, errors[:, None], 0), 0), "weight": jnp.sum(own, 0)}


def make(
    apply: Callable,
    losses: Sequence[tuple],
    *,
    patch: Sequence[int],
    modalities: Sequence[str],
    ratio: float = 0.75,
    block: int = 4,
    patch_size: int | Sequence[int] = 4,
    **batches: Any,
) -> MaskedImage:
    """Builds the task.

    Args:
      apply: (params, image, context, train, key) -> outputs with what the losses read.
      losses: (name, weight, f(outputs, batch) -> scalar) entries.
      patch: spatial shape of the images.
      modalities: their names, which become the task's `names`: validation reports a loss for each.
      ratio: share of hidden blocks.
      block: tokens per block and axis.
      patch_size: voxels per token, of every axis or one number for all, as in the network.
      batches: the other arguments of `supervised.make` (label space, augmentation): batches are
        prepared the same way.

    Raises: `UsageError` for a patch that tokens or blocks do not fill.
    """
    size = (patch_size,) * len(patch) if isinstance(patch_size, int) else tuple(patch_size)
    if len(size) != len(patch) or any(side % n for side, n in zip(patch, size, strict=True)):
        raise UsageError(
            "tokens do not fill the patch",
            found=tuple(patch),
            expected=f"multiples of {patch_size}",
            fix="change train.patch",
        )
    grid = tuple(side // n for side, n in zip(patch, size, strict=True))
    jax.eval_shape(lambda key: block_mask(key, 1, grid, block, ratio), jax.random.key(0))
    return MaskedImage(
        dataclasses.replace(
            supervised.make(apply, losses, patch=patch, **batches), with_inside=True
        ),
        grid,
        block,
        float(ratio),
        tuple(modalities),
    )
