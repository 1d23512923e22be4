"""Swin-Unet: Swin blocks down and up, with skips; with experts in its blocks, M4oE.

Sources: Cao et al., arXiv 2105.05537; Jiang and Shen, 2024.

In: image (b, *vol, m), and context["corpus"] (b,) for heads by corpus, context["modality"] (b,) for
hard routing. Out:
  logits    (b, *vol, classes) float32; with heads by corpus relative to the background's
            and -inf for absent classes
  features  {"stage0".."stage3"} tokens after each encoder stage and the following merging
  gates     {"encoder/stage0/block0": weights (b, *grid, experts), ...} for blocks with a soft
            mixture; likewise what other sockets offer (`parts.sockets`)
Experts are in the blocks' `mlp` socket (`parts.moe`), in the encoder, the decoder, both or neither:
the seven rows of M4oE's Table 4.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, Float

from medjax.errors import ModelError
from medjax.models.context import Spec
from medjax.models.parts import moe, sockets
from medjax.models.parts.adapters import Dense
from medjax.models.parts.attention import Context, call, linear_init
from medjax.models.parts.heads import Prior, bias_init, checked_prior
from medjax.models.parts.patch import PatchExpanding
from medjax.models.parts.sockets import Socket, Words
from medjax.models.parts.swin_tower import SwinTower, check, check_image, tower_and_decoder

PLACES = ("none", "encoder", "decoder", "both")


class SwinUNet(nn.Module):
    """The network.

    Parameters: `encoder/...` (`SwinTower`), `enc_norm`; `expand0`, and for k = 1, 2, 3 `skip{k}`,
    `up{k}/block{i}`, `expand{k}` (not the last); `dec_norm`, `final`, `head`. k counts from the
    deepest decoder stage, so `up{k}` has the width of `encoder/stage{3-k}`.

    Attributes:
      classes: channels of the logits.
      encoder: the tower. up: one `SwinStage` constructor per decoder stage, deepest first.
      head: constructor, see `parts.heads`. bottleneck, conditioning: sockets on the deepest tokens,
        before `enc_norm`; `conditioning` is the socket `context`.
      reads: what the sockets read.
      Others: see `make`.
    """

    classes: int
    encoder: SwinTower
    up: tuple[Callable, ...]
    head: Callable
    window: tuple[int, ...]
    in_channels: int
    initial: str = "swin"
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    bottleneck: Socket | None = None
    conditioning: Socket | None = None
    reads: Spec = FrozenDict()
    head_bias: bool = False
    prior: Prior = 0.0

    @nn.compact
    def __call__(
        self, image: Float[Array, "b *vol m"], context: Context = None, train: bool = False
    ) -> dict[str, Any]:
        """See the module docstring."""
        check_image(image.shape, self.in_channels, self.encoder, self.window)
        entering, x, inside = self.encoder(image, context, train)
        features = {f"stage{s}": y for s, y in enumerate([*entering[1:], x])}
        x, below = sockets.deepest(
            x, self.conditioning, self.bottleneck, context, train, dtype=self.dtype
        )
        y, outside = self._decode(x, entering, context, train)
        width = self.encoder.width
        head = self.head(
            self.classes,
            use_bias=self.head_bias,
            bias_init=bias_init(self.prior),
            dtype=self.dtype,
            name="head",
            **_kernel_only("torch", width),
        )
        offered = sockets.together(
            sockets.of_blocks("encoder", inside), sockets.of_blocks("decoder", outside), below
        )
        logits = call(head, y, sockets.seen(context, offered), train)
        return {"logits": logits, "features": features} | offered

    def _decode(
        self, x: Array, entering: Sequence[Array], context: Context, train: bool
    ) -> tuple[Array, dict]:
        """Features (b, *vol, w) before the head, and what the decoder's mlps offer."""
        dims, levels, offered = x.ndim - 2, len(self.up), {}

        def expand(features: int, size: tuple[int, ...], name: str, x: Array) -> Array:
            kernel = _kernel_only(self.initial, x.shape[-1])
            shared = {"epsilon": self.epsilon, "dtype": self.dtype, "name": name, **kernel}
            return PatchExpanding(features, size, **shared)(x)

        def norm(name: str) -> nn.Module:
            return nn.LayerNorm(self.epsilon, dtype=self.dtype, use_fast_variance=False, name=name)

        x = norm("enc_norm")(x)
        x = expand(x.shape[-1] // 2, (2,) * dims, "expand0", x)
        for k, stage in enumerate(self.up, 1):
            skip = entering[levels - k]
            dense = Dense(
                x.shape[-1],
                dtype=self.dtype,
                name=f"skip{k}",
                **linear_init(self.initial, 2 * x.shape[-1]),
            )
            x = dense(jnp.concatenate([x, skip], -1))
            x, offered[f"up{k}"] = stage(name=f"up{k}", offers=True)(x, context, train)
            if k < levels:
                x = expand(x.shape[-1] // 2, (2,) * dims, f"expand{k}", x)
        x = norm("dec_norm")(x)
        return expand(x.shape[-1], self.encoder.patch, "final", x), offered


def _kernel_only(kind: str, inputs: int) -> Mapping[str, Callable]:
    return {"kernel_init": linear_init(kind, inputs)["kernel_init"]}


def make(
    classes: int,
    *,
    in_channels: int = 1,
    corpus_channels: Sequence[Sequence[int]] | None = None,
    modalities: int = 1,
    width: int = 96,
    depths: Sequence[int] = (2, 2, 2, 2),
    heads: Sequence[int] = (3, 6, 12, 24),
    window: int = 7,
    patch_size: int = 4,
    dims: int = 2,
    mlp_ratio: float | int = 4.0,
    experts_in: str = "none",
    routing: str = "gate",
    gate_scope: str = "token",
    experts: int | None = None,
    expert_of: Sequence[int] | None = None,
    dispatch: str = "auto",
    head: Socket | Words = "corpus_softmax",
    share_heads: str | Sequence[int] = "corpus",
    mlp: Socket | Words | None = None,
    bottleneck: Socket | Words | None = None,
    context: Socket | Words | None = None,
    drop_path: float | int = 0.2,
    keep_shift: bool = False,
    epsilon: float = 1e-5,
    initial: str = "swin",
    dtype: str = "float32",
    remat: str = "none",
    head_bias: bool = False,
    prior: float | int | Sequence[float | int] = 0.0,
) -> SwinUNet:
    """Builds the network; the defaults are Swin-Unet's at 224 x 224.

    Args:
      classes, in_channels: of the label space and the image; a one-channel image is repeated to
        three.
      corpus_channels: per corpus, the classes it annotates (for head "corpus_softmax").
      modalities: how many the label space knows: the number of experts unless `experts` says
        otherwise.
      width, depths, heads: tokens of the first stage; blocks and attention heads of each encoder
        stage. Decoder stages repeat those of equal width.
      window, patch_size: tokens per window and voxels per token, per axis.
      dims: 2 or 3 axes.
      mlp_ratio: hidden width of the MLPs over that of the tokens.
      experts_in: blocks whose MLP becomes a mixture: one of `PLACES`.
      routing: "gate" (soft mixture, one weight per expert), "channel_gate" (M4oE's released gate),
        "hard" (by modality).
      gate_scope: "token" or "image".
      experts, expert_of, dispatch: see `parts.moe`.
      head, share_heads: "corpus_softmax" or "sigmoid"; which corpora share a head
        (`parts.heads.numbered`).
      mlp: the MLPs of the blocks, a socket (`parts.sockets`) in place of `experts_in`, `routing`
        and what follows them. bottleneck, context: sockets on the deepest tokens.
      drop_path: highest rate; needs the rng "dropout" in training.
      keep_shift, epsilon: Swin-MAE shifts the windows of the deepest stage too and has LayerNorm
        epsilon 1e-6.
      initial: how the linear maps of blocks, mergings, expansions and skips start, a word of
        `parts.attention.INITIAL`: "swin" (Swin's, for widths of 96 and more), "xavier" or "torch".
        Token embedding and head start as in PyTorch.
      dtype: of the computation, "float32" or "bfloat16". remat: "none" or "block" (recomputed in
        the backward pass).
      head_bias: bias in the head. prior: its start: of all outputs, or one number per output
        (`parts.heads.bias_init`).

    Raises: `ModelError` for arguments that describe no network, or (at call time) an image whose
      grids windows cannot fill.
    """
    mlp = sockets.filled(mlp, "mlp", {"modalities": modalities})
    bottleneck = sockets.filled(bottleneck, "bottleneck")
    context = sockets.filled(context, "context", {"modalities": modalities})
    owner, count = "Swin-Unet", experts if experts is not None else modalities
    chosen = tuple(expert_of) if expert_of is not None else None
    check(
        owner,
        [
            ("experts_in", experts_in, experts_in in PLACES, " or ".join(PLACES)),
            ("routing", routing, routing in moe.ROUTINGS[1:], " or ".join(moe.ROUTINGS[1:])),
            ("gate_scope", gate_scope, gate_scope in moe.SCOPES, " or ".join(moe.SCOPES)),
            ("experts", count, count > 0, "at least 1"),
        ],
    )
    if mlp is None and experts_in != "none":
        mlp = sockets.experts(
            modalities=modalities,
            experts=count,
            routing=routing,
            gate_scope=gate_scope,
            expert_of=chosen,
            dispatch=dispatch,
            place="all" if experts_in == "both" else experts_in,
        )
    elif experts_in != "none":
        raise ModelError(
            "the MLPs of the blocks are described twice",
            found=f"model.mlp and experts_in {experts_in!r}",
            fix="leave out one of them",
        )
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
        outside=sockets.mlp_at(mlp, "decoder"),
        dtype=dtype,
        remat=remat,
        initial=initial,
        epsilon=epsilon,
        mlp_ratio=mlp_ratio,
        keep_shift=keep_shift,
    )
    head = sockets.head(head, corpus_channels, share_heads)
    return SwinUNet(
        classes,
        tower,
        up,
        head.make,
        (window,) * dims,
        in_channels,
        initial=initial,
        epsilon=epsilon,
        dtype=jnp.dtype(dtype),
        bottleneck=bottleneck,
        conditioning=context,
        reads=sockets.reads(mlp, head, bottleneck, context),
        head_bias=head_bias,
        prior=checked_prior(prior, head_bias),
    )
