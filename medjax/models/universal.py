"""The Universal Model: SwinUNETR whose last layers for a class are made from the class's name.

In: image (b, *vol, m) float32. Out: {"logits": (b, *vol, classes) float32}. The vector of the
class's name and the mean of the deepest map give 153 numbers, which are three linear maps on 8
channels that all classes share (`parts.dynamic_head`); a class never reads another one's output, so
partial labels fit.

Source: Liu et al., CLIP-Driven Universal Model (ICCV 2023). Its repository is CC BY-NC-ND: this is
written from the facts of the paper and of its file layout, and no weights are shipped.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, Float

from medjax.errors import ModelError, did_you_mean
from medjax.models import swin_unetr
from medjax.models.context import Spec
from medjax.models.parts import dynamic_head
from medjax.models.parts.adapters import Dense
from medjax.models.parts.attention import Context, linear_init
from medjax.models.parts.texts import TEXT_WIDTH, TextTable
from medjax.models.swin_unetr import SwinUNETR, check_sides, reverse_axes

ENCODINGS = ("word", "rand")
WIDTH = 256  # of image and text before they are joined


class Universal(nn.Module):
    """The network.

    Parameters: `backbone/...` (a SwinUNETR without `out`), `gap_norm`, `gap`, `text/table`,
    `text_to_vision` (of "word"), `controller`, `precls/{norm,conv}`.

    Attributes: see `make`.
    """

    backbone: SwinUNETR
    classes: int
    encoding: str
    weight_axes: str
    dtype: Any
    reads: Spec = FrozenDict()
    text_rows = "classes"

    @nn.compact
    def __call__(
        self, image: Float[Array, "b *vol m"], context: Context = None, train: bool = False
    ) -> dict[str, Any]:
        """See the module docstring."""
        backbone = self.backbone
        if len(image.shape) != backbone.dims + 2 or image.shape[-1] != backbone.in_channels:
            raise ModelError(
                "the image does not fit the network",
                found=image.shape,
                expected=f"(batch, {backbone.dims} sides, {backbone.in_channels} channels)",
                fix="set dims and in_channels",
            )
        check_sides(image.shape[1:-1])
        flip = (lambda a: a) if self.weight_axes == "zyx" else reverse_axes
        maps = backbone.encode(flip(image), context, train)
        numbers = self._controlled(maps["deepest"])
        reduced = dynamic_head.Reduced(self.dtype, name="precls")(backbone.decode(maps))
        logits = dynamic_head.dynamic(reduced, numbers)
        return {"logits": flip(logits.astype(jnp.float32))}

    def _controlled(self, deepest: Array) -> Array:
        """(b, classes, 153) from the deepest map and the classes' texts."""

        def dense(features: int, name: str, x: Array) -> Array:
            init = linear_init("torch", x.shape[-1])
            return Dense(features, dtype=self.dtype, name=name, **init)(x)

        x = nn.relu(dynamic_head.group_norm(deepest.shape[-1], self.dtype, "gap_norm")(deepest))
        seen = dense(WIDTH, "gap", x.mean(tuple(range(1, x.ndim - 1))))
        width = TEXT_WIDTH if self.encoding == "word" else WIDTH
        text = TextTable(self.classes, width, name="text")()
        text = jnp.broadcast_to(text, (seen.shape[0], *text.shape))  # adapters need the samples
        if self.encoding == "word":
            text = nn.relu(dense(WIDTH, "text_to_vision", text))
        joined = [jnp.broadcast_to(seen[:, None], text.shape), text]
        given = jnp.concatenate([part.astype(self.dtype) for part in joined], -1)
        return dense(dynamic_head.NUMBERS, "controller", given)


def make(
    classes: int,
    in_channels: int = 1,
    feature_size: int = 48,
    *,
    encoding: str = "word",
    depths: Sequence[int] = (2, 2, 2, 2),
    heads: Sequence[int] = (3, 6, 12, 24),
    window: int | Sequence[int] = 7,
    merging: str = "fixed",
    weight_axes: str = "zyx",
    dims: int = 3,
    use_v2: bool = False,
    mlp_ratio: float = 4.0,
    drop_path: float = 0.0,
    bias_index: str = "corner",
    initial: str = "torch",
    dtype: str = "float32",
    remat: str = "none",
) -> Universal:
    """Builds the network.

    Args:
      classes: of the label space; each has a text vector (`config.text`).
      encoding: "word": vectors of texts (512 numbers) and a linear map; "rand": 256 learned numbers
        per class.
      in_channels: of the image.
      feature_size, depths, heads, window, mlp_ratio, use_v2: size of the backbone, see
        `swin_unetr.make`.
      merging, weight_axes: see `swin_unetr.make`; published weights are "legacy" and "xyz".
      dims: 2 or 3 axes.
      drop_path, bias_index, initial, dtype, remat: of the backbone, see `swin_unetr.make`.

    Raises: `ModelError` for arguments that describe no network.
    """
    if encoding not in ENCODINGS:
        raise ModelError(f"unknown encoding {encoding!r}", fix=did_you_mean(encoding, ENCODINGS))
    backbone = swin_unetr.make(
        1,
        in_channels,
        feature_size,
        depths,
        heads,
        window,
        merging,
        use_v2,
        dims,
        mlp_ratio=mlp_ratio,
        drop_path=drop_path,
        bias_index=bias_index,
        initial=initial,
        dtype=dtype,
        remat=remat,
    )
    return Universal(backbone, classes, encoding, weight_axes, jnp.dtype(dtype))
