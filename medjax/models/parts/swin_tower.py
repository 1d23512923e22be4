"""The encoder shared by Swin-Unet, M4oE and their masked-image pre-training.

In: image (b, *vol, m). Out: the tokens that enter every stage, those that leave the last one, and
what the mlps offer. One module with one parameter tree.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from medjax.errors import ModelError
from medjax.models.parts.attention import (
    Context,
    SwinBlock,
    SwinStage,
    check_initial,
    drop_path_rates,
    linear_init,
    rematerialised,
)
from medjax.models.parts.patch import PatchEmbed, PatchMerging

REMAT, DTYPES = ("none", "block"), ("float32", "bfloat16")


class SwinTower(nn.Module):
    """Patch embedding with LayerNorm, Swin stages at widths w, 2w, ..., merging between.

    Parameters: `patch_embed/{kernel,bias}`, `patch_norm`, `stage{s}/block{i}`, `merge{s}`; s counts
    from 0.

    Attributes:
      width: w. patch: voxels per token and axis.
      stages: one `SwinStage` constructor per stage.
      repeat: a one-channel image is repeated to that many channels (ImageNet's three).
      initial, epsilon: see `parts.attention`.
    """

    width: int
    patch: tuple[int, ...]
    stages: tuple[Callable, ...]
    repeat: int = 3
    initial: str = "swin"
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "b *vol m"],
        context: Context = None,
        train: bool = False,
        masked: tuple[Bool[Array, "b *grid"], Float[Array, " w"]] | None = None,
    ) -> tuple[list[Array], Float[Array, "b *low d"], dict[str, dict]]:
        """(tokens entering each stage, tokens leaving the last, offers of the mlps).

        Offers are {"stage{s}": {"block{i}": what its mlp offers}}.

        Args:
          masked: where tokens are replaced, and by what, after the patch embedding.
        """
        x = jnp.repeat(image, self.repeat, -1) if image.shape[-1] == 1 else image
        init = linear_init("torch", x.shape[-1] * self.patch[0] ** len(self.patch))
        x = PatchEmbed(self.width, self.patch, dtype=self.dtype, name="patch_embed", **init)(x)
        x = nn.LayerNorm(
            self.epsilon, dtype=self.dtype, use_fast_variance=False, name="patch_norm"
        )(x)
        if masked is not None:
            x = jnp.where(masked[0][..., None], masked[1].astype(x.dtype), x)
        entering, offered = [], {}
        for number, stage in enumerate(self.stages):
            entering.append(x)
            x, offered[f"stage{number}"] = stage(name=f"stage{number}", offers=True)(
                x, context, train
            )
            if number + 1 < len(self.stages):
                init = linear_init(self.initial, 2 ** len(self.patch) * x.shape[-1])["kernel_init"]
                x = PatchMerging(
                    epsilon=self.epsilon, kernel_init=init, dtype=self.dtype, name=f"merge{number}"
                )(x)
        return entering, x, offered


def stages(
    heads: Sequence[int],
    depths: Sequence[int],
    window: tuple[int, ...],
    drop_path: float,
    *,
    remat: str = "none",
    **shared: Any,
) -> tuple[Callable, ...]:
    """One `SwinStage` constructor per stage; drop-path rates grow linearly over all blocks.

    `shared`: attributes of every block.
    """
    block = SwinBlock if remat == "none" else rematerialised()
    rates = drop_path_rates(drop_path, depths)
    return tuple(
        functools.partial(SwinStage, h, window, r, block, **shared)
        for h, r in zip(heads, rates, strict=True)
    )


def tower_and_decoder(
    owner: str,
    *,
    width: int,
    depths: Sequence[int],
    heads: Sequence[int],
    window: int,
    patch_size: int,
    dims: int,
    drop_path: float,
    inside: Callable,
    outside: Callable,
    dtype: str,
    remat: str,
    initial: str,
    epsilon: float,
    **shared: Any,
) -> tuple[SwinTower, tuple[Callable, ...]]:
    """The encoder, and one `SwinStage` constructor per decoder stage, deepest first.

    Each decoder stage is built like the encoder stage of its width.

    Args:
      owner: the network, for errors. inside, outside: the `mlp` sockets of encoder and decoder.
      shared: further attributes of every block. Others: see `models.swin_unet.make`.

    Raises: `ModelError` for numbers that describe no network.
    """
    fitting = len(heads) == len(depths) and all(width * 2**i % h == 0 for i, h in enumerate(heads))
    check(
        owner,
        [
            ("dims", dims, dims in (2, 3), "2 or 3"),
            ("depths", depths, len(depths) > 1 and min(depths) > 0, "two or more positive numbers"),
            ("heads", heads, fitting, f"one per stage, divisors of {width} x (1, 2, 4, ...)"),
            ("dtype", dtype, dtype in DTYPES, " or ".join(DTYPES)),
            ("remat", remat, remat in REMAT, " or ".join(REMAT)),
        ],
    )
    alike = {"initial": check_initial(initial), "epsilon": epsilon, "dtype": jnp.dtype(dtype)}
    down, up = (
        stages(heads, depths, (window,) * dims, drop_path, mlp=mlp, remat=remat, **alike, **shared)
        for mlp in (inside, outside)
    )
    return SwinTower(width, (patch_size,) * dims, down, **alike), up[-2::-1]


def check_image(
    shape: Sequence[int], in_channels: int, tower: SwinTower, window: Sequence[int]
) -> None:
    """Raises `ModelError` unless an image (b, *vol, m) fits the network.

    Axes and channels must be those of the network, and windows must fill the sides.
    """
    dims = len(window)
    if len(shape) != dims + 2 or shape[-1] != in_channels:
        expected = f"(batch, {dims} sides, {in_channels} channels)"
        raise ModelError(
            "the image does not fit the network",
            found=tuple(shape),
            expected=expected,
            fix="set dims and in_channels",
        )
    check_grids(shape[1:-1], tower.patch, len(tower.stages), window)


def check_grids(
    sides: Sequence[int], patch: Sequence[int], count: int, window: Sequence[int]
) -> None:
    """Raises `ModelError` unless sides hold whole patches, merged grids are even, and windows fit.

    Windows fit a grid if it is a multiple of the window or no longer than it (then it is one
    window).
    """
    for side, p, w in zip(sides, patch, window, strict=True):
        total = p * 2 ** (count - 1)
        grids = [side // p // 2**s for s in range(count)]
        if side % total or any(g % w and g > w for g in grids):
            fitting = [
                n
                for n in range(total, side + 8 * total, total)
                if all(g % w == 0 or g <= w for g in _grids(n, p, count))
            ]
            near = min(fitting, key=lambda n: abs(n - side), default=total)
            raise ModelError(
                "windows do not fill the token grids",
                found=f"side {side}, grids {grids}, window {w}",
                expected=f"sides like {near}, every grid a multiple of the window or not longer",
                fix="change the patch or the window",
            )


def check(owner: str, table: Sequence[tuple[str, Any, bool, str]]) -> None:
    """Raises `ModelError` for the first (name, found, good, expected) that is not good."""
    for name, found, good, expected in table:
        if not good:
            raise ModelError(
                f"{owner} cannot be built with this {name}",
                found=found,
                expected=expected,
                fix=f"change {name}",
            )


def _grids(side: int, patch: int, count: int) -> list[int]:
    return [side // patch // 2**s for s in range(count)]
