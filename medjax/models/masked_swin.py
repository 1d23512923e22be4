"""Masked-image pre-training of Swin-Unet's encoder: hidden tokens, predicted pixels.

Sources: Swin-MAE (Xu et al. 2022); M4oE's first phase.

In: image (b, *vol, m), context["masked"] (b, *grid) bool, true where a token is hidden, and
context["modality"] (b,) for experts by modality. Out, beside what the sockets offer:
  pixels    (b, *grid, d) float32, the predicted pixels of every patch; d runs over
            (offsets in the patch, channel)
  patches   (b, *grid, d) the true pixels
  masked    (b, *grid) the hidden tokens
The encoder is `SwinUNet`'s, parameter by parameter (`encoder/...`); the decoder, without skips and
experts, is discarded after pre-training.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, Float

from medjax.errors import ModelError
from medjax.models.context import Entry, Spec, needed, union
from medjax.models.parts import sockets
from medjax.models.parts.adapters import Dense
from medjax.models.parts.attention import Context, Mlp, linear_init
from medjax.models.parts.patch import PatchExpanding, space_to_depth
from medjax.models.parts.sockets import Socket, Words
from medjax.models.parts.swin_tower import SwinTower, check, check_image, tower_and_decoder


class MaskedSwin(nn.Module):
    """The network with a decoder for pixels.

    Parameters: `encoder/...`, `mask_token` (w,), `expand0`, `up{k}/block{i}`, `expand{k}` (not the
    last), `dec_norm`, `pixels`.

    Attributes:
      encoder: the tower. up: one `SwinStage` constructor per decoder stage, deepest first.
      bottleneck, conditioning: sockets on the deepest tokens; `conditioning` is the socket
        `context`.
      reads: `masked`, and what the sockets read.
      Others: see `make`.
    """

    encoder: SwinTower
    up: tuple[Callable, ...]
    window: tuple[int, ...]
    in_channels: int
    initial: str = "xavier"
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    bottleneck: Socket | None = None
    conditioning: Socket | None = None
    reads: Spec = FrozenDict()

    @nn.compact
    def __call__(
        self, image: Float[Array, "b *vol m"], context: Context = None, train: bool = False
    ) -> dict[str, Any]:
        """See the module docstring."""
        dims, patch = len(self.window), self.encoder.patch
        check_image(image.shape, self.in_channels, self.encoder, self.window)
        token = self.param("mask_token", nn.initializers.normal(0.02), (self.encoder.width,))
        patches = space_to_depth(
            jnp.repeat(image, self.encoder.repeat, -1) if self.in_channels == 1 else image, patch
        )
        masked = self._masked(context, patches.shape[:-1])
        _, x, inside = self.encoder(image, context, train, (masked, token))
        x, below = sockets.deepest(
            x, self.conditioning, self.bottleneck, context, train, dtype=self.dtype
        )
        offered = sockets.together(sockets.of_blocks("encoder", inside), below)
        for k, stage in enumerate(self.up, 1):
            kernel_init = linear_init(self.initial, x.shape[-1])["kernel_init"]
            shared = {"epsilon": self.epsilon, "dtype": self.dtype, "kernel_init": kernel_init}
            x = PatchExpanding(x.shape[-1] // 2, (2,) * dims, name=f"expand{k - 1}", **shared)(x)
            x = stage(name=f"up{k}")(x, context, train)
        x = nn.LayerNorm(self.epsilon, dtype=self.dtype, use_fast_variance=False, name="dec_norm")(
            x
        )
        linear = linear_init(self.initial, x.shape[-1])
        pixels = Dense(patches.shape[-1], dtype=self.dtype, name="pixels", **linear)(x)
        return {
            "pixels": pixels.astype(jnp.float32),
            "patches": patches.astype(jnp.float32),
            "masked": masked,
        } | offered

    def _masked(self, context: Context, shape: tuple[int, ...]) -> Array:
        masked = needed(context, "masked", "masked images")
        if masked.shape != shape:
            raise ModelError(
                "the mask does not fit the token grid",
                found=masked.shape,
                expected=shape,
                fix="give one flag per token",
            )
        return masked


def make(
    *,
    in_channels: int = 1,
    modalities: int = 1,
    width: int = 96,
    depths: Sequence[int] = (2, 2, 2, 2),
    heads: Sequence[int] = (3, 6, 12, 24),
    window: int = 7,
    patch_size: int = 4,
    dims: int = 2,
    mlp_ratio: float | int = 4.0,
    experts_in: str | None = None,
    experts: int | None = None,
    expert_of: Sequence[int] | None = None,
    dispatch: str = "auto",
    mlp: Socket | Words | None = None,
    bottleneck: Socket | Words | None = None,
    context: Socket | Words | None = None,
    drop_path: float | int = 0.1,
    keep_shift: bool = False,
    epsilon: float = 1e-5,
    initial: str = "xavier",
    dtype: str = "float32",
    remat: str = "none",
) -> MaskedSwin:
    """Builds the network.

    The arguments shared with `swin_unet.make` have the same meaning and must have the same values
    for the weights to fit.

    Args:
      experts_in: "encoder" (every modality trains its own experts, and all of them the rest) or
        "none" (plain Swin-MAE); by default "encoder", or what `mlp` says.
      mlp, bottleneck, context: sockets, as in `swin_unet.make`; `mlp` in the encoder only.
      keep_shift, epsilon: true and 1e-6 in Swin-MAE; by default as in Swin-Unet, so that the
        encoder's features are the same in both phases.
      initial: how the linear maps start, a word of `parts.attention.INITIAL`. Fine-tuning that
        is compared with training from scratch gives `swin_unet.make` the same word.

    Raises: `ModelError` for arguments that describe no network, or (at call time) an image whose
      grids windows cannot fill.
    """
    mlp = sockets.filled(mlp, "mlp", {"modalities": modalities})
    bottleneck = sockets.filled(bottleneck, "bottleneck")
    context = sockets.filled(context, "context", {"modalities": modalities})
    owner, count = "the masked-image network", experts if experts is not None else modalities
    chosen = tuple(expert_of) if expert_of is not None else None
    place = experts_in or ("encoder" if mlp is None else "none")
    enough = place == "none" or (len(chosen) if chosen else count) >= modalities
    check(
        owner,
        [
            ("experts_in", place, place in ("none", "encoder"), "none or encoder"),
            ("experts", count, enough, f"one for each of {modalities} modalities"),
        ],
    )
    if place != "none":
        if mlp is not None:
            raise ModelError(
                "the MLPs of the blocks are described twice",
                found=f"model.mlp and experts_in {experts_in!r}",
                fix="leave out one of them",
            )
        mlp = sockets.experts(
            modalities=modalities,
            experts=count,
            routing="hard",
            expert_of=chosen,
            dispatch=dispatch,
            place="encoder",
        )
    mlp = sockets.only_encoder(mlp, owner)
    tower, up = tower_and_decoder(
        owner,
        width=width,
        depths=depths,
        heads=heads,
        window=window,
        patch_size=patch_size,
        dims=dims,
        drop_path=drop_path,
        inside=sockets.mlp_at(mlp, "encoder"),
        outside=Mlp,
        dtype=dtype,
        remat=remat,
        initial=initial,
        epsilon=epsilon,
        mlp_ratio=mlp_ratio,
        keep_shift=keep_shift,
    )
    masked = Entry((), "bool", "voxel", block=(patch_size,) * dims)
    return MaskedSwin(
        tower,
        up,
        (window,) * dims,
        in_channels,
        initial,
        epsilon,
        jnp.dtype(dtype),
        bottleneck,
        context,
        union({"masked": masked}, sockets.reads(mlp, bottleneck, context)),
    )
