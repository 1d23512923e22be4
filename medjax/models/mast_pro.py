"""MAST-Pro: a SwinUNETR that is told, in words and by the mask of an organ, what to segment.

In: image (b, *vol, m) float32, of which the first `image_channels` are intensities and the next, if
there is one, is a mask of the host organ; the task of every sample. Out: {"logits": (b, *vol, 1)
float32, one class, whatever the task; "category": (b, tasks), which task the prompts are recognised
as; "task_gates", "generic_gates": of the low-rank experts}.

A frozen SwinUNETR has low-rank experts beside its MLPs (`parts.dmoe`). The deepest map attends to
the prompts: the vector of the task's sentence and the organ mask as a second, frozen Swin encoder
sees it (`parts.fusion`). The attended prompts become a kernel theta, and the mask is its product
with the last decoder map. Everything can be left out, which gives the ablation rows of the paper.

Source: MAST-Pro (MICCAI 2025), of which no code was released. Equations are the paper's; what it
leaves open is decided in docs/mast_pro.md.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, Float

from medjax.errors import ModelError, did_you_mean
from medjax.models import swin_unetr
from medjax.models.context import TASK, Spec, needed
from medjax.models.parts import dynamic_head, sockets
from medjax.models.parts.adapters import Dense
from medjax.models.parts.attention import Context, linear_init
from medjax.models.parts.fusion import OUT_INITS, QUERIES, PromptFusion
from medjax.models.parts.products import wide_einsum
from medjax.models.parts.sockets import Socket, Words
from medjax.models.parts.texts import TextTable
from medjax.models.swin_unetr import SwinEncoder, SwinUNETR, check_sides, reverse_axes

THETAS = ("kernel48", "dynamic_head", "off")
LEVELS = ("bottleneck", "multi")
# maps that attend to prompts with fusion_levels "multi", the organ encoder's map on the same grid,
# and by how much narrower than the deepest they are
FURTHER = {"x3": (3, 2), "enc3": (2, 4)}


class Theta(nn.Module):
    """The mean attended prompt and the text -> the numbers of a head: `fc1`, ReLU, `fc2`."""

    hidden: int
    numbers: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, pooled: Float[Array, "*b c"], text: Float[Array, "*b w"] | None = None
    ) -> Float[Array, "*b n"]:
        x = pooled if text is None else jnp.concatenate([pooled, text.astype(pooled.dtype)], -1)

        def dense(features: int, name: str, x: Array) -> Array:
            init = linear_init("torch", x.shape[-1])
            return Dense(features, dtype=self.dtype, name=name, **init)(x)

        return dense(self.numbers, "fc2", nn.relu(dense(self.hidden, "fc1", x)))


class MastPro(nn.Module):
    """The network.

    Parameters: `backbone/...` (a SwinUNETR without `out`), `anatomy/...` (a Swin encoder),
    `text/table`, `fusion/...` (`fusion_x3`, `fusion_enc3`), `theta/...`, `category/...`, `precls`
    (of "dynamic_head"), `out/...` (of "off").

    Attributes: see `make`.
    """

    backbone: SwinUNETR
    anatomy: SwinEncoder | None
    tasks: int
    image_channels: int
    with_text: bool
    fusion_makers: Mapping[str, Callable[..., nn.Module]]
    theta: str
    theta_hidden: int
    theta_all: bool
    weight_axes: str
    dtype: Any
    reads: Spec = FrozenDict({"task": TASK})

    @property
    def text_rows(self) -> str:
        """What the rows of its text table stand for; empty without one."""
        return "tasks" if self.with_text else ""

    @nn.compact
    def __call__(
        self, image: Float[Array, "b *vol m"], context: Context = None, train: bool = False
    ) -> dict[str, Any]:
        """See the module docstring."""
        self._check(image.shape)
        task = needed(context, "task", "networks of tasks")
        flip = (lambda a: a) if self.weight_axes == "zyx" else reverse_axes
        image = flip(image)
        maps, inside = self.backbone.encode_offering(
            image[..., : self.image_channels], context, train
        )
        offered = sockets.of_blocks("backbone/swin", inside)
        table = TextTable(self.tasks, name="text")() if self.with_text else None
        text = None if table is None else jnp.take(table, task, 0)
        maps, pooled = self._fused(maps, self._organ(image, train), text)
        decoded = self.backbone.decode(maps)
        logits, category = self._headed(decoded, pooled, text, table, task)
        offered |= {} if category is None else {"category": category.astype(jnp.float32)}
        turned = jax.tree.map(lambda a: flip(a) if a.ndim == image.ndim else a, offered)
        return {"logits": flip(logits.astype(jnp.float32))} | turned

    def _organ(self, image: Array, train: bool) -> tuple[Array, ...] | None:
        """The organ encoder's maps; of an image without an organ channel those of no organ."""
        if self.anatomy is None:
            return None
        if image.shape[-1] > self.image_channels:
            mask = (image[..., self.image_channels :][..., :1] > 0.5).astype(self.dtype)
        else:
            mask = jnp.zeros((*image.shape[:-1], 1), self.dtype)
        return self.anatomy(mask, None, train)[0]

    def _fused(
        self, maps: dict[str, Array], organ: tuple[Array, ...] | None, text: Array | None
    ) -> tuple[dict[str, Array], Array | None]:
        """The maps with what the prompts add, and the mean attended prompt."""
        pooled = None
        for name, make in self.fusion_makers.items():
            level = FURTHER.get(name, (4,))[0]
            module = make(name="fusion" if name == "deepest" else f"fusion_{name}")
            added, mean = module(maps[name], None if organ is None else organ[level], text)
            maps = {**maps, name: maps[name] + added}
            pooled = mean if name == "deepest" else pooled
        return maps, pooled

    def _headed(
        self,
        decoded: Array,
        pooled: Array | None,
        text: Array | None,
        table: Array | None,
        task: Array,
    ) -> tuple[Array, Array | None]:
        """(logits (b, *vol, 1), scores of the tasks (b, tasks) or None)."""
        features = decoded.shape[-1]
        if self.theta == "off":
            init = linear_init("torch", features)
            every = Dense(self.tasks, dtype=self.dtype, name="out", **init)(decoded)
            index = task.reshape(-1, *(1,) * (every.ndim - 1))
            return jnp.take_along_axis(every, index, -1), None
        numbers = features if self.theta == "kernel48" else dynamic_head.NUMBERS
        make = Theta(self.theta_hidden, numbers, self.dtype, name="theta")
        classify = Dense(
            self.tasks, dtype=jnp.float32, name="category", **linear_init("torch", numbers)
        )
        if self.theta_all:
            rows = jnp.broadcast_to(table, (decoded.shape[0], *table.shape))
            means = jnp.broadcast_to(pooled[:, None], (*rows.shape[:2], pooled.shape[-1]))
            every = make(means, rows)  # (b, tasks, numbers), of the sentence of every task
            category = jnp.einsum("btt->bt", classify(every))
            theta = jnp.take_along_axis(every, task[:, None, None], 1)[:, 0]
        else:
            theta = make(pooled, text)
            category = classify(theta)
        if self.theta == "kernel48":
            flat = decoded.reshape(decoded.shape[0], -1, features)
            logits = wide_einsum("bvc,bc->bv", flat, theta.astype(flat.dtype))
            return logits.reshape(*decoded.shape[:-1], 1), category
        reduced = dynamic_head.Reduced(self.dtype, name="precls")(decoded)
        return dynamic_head.dynamic(reduced, theta[:, None]), category

    def _check(self, shape: tuple[int, ...]) -> None:
        fitting = (self.image_channels, self.image_channels + 1)
        if len(shape) != self.backbone.dims + 2 or shape[-1] not in fitting:
            raise ModelError(
                "the image does not fit the network",
                found=shape,
                expected=f"(batch, {self.backbone.dims} sides, {fitting[0]} channels), with an "
                f"organ mask {fitting[1]}",
                fix="set model.image_channels and model.dims",
            )
        check_sides(shape[1:-1])


def make(
    classes: int,
    in_channels: int = 1,
    tasks: int = 1,
    feature_size: int = 48,
    *,
    image_channels: int = 1,
    mlp: Socket | Words | None = None,
    text: bool = True,
    anatomy: bool = True,
    query: str = "feature_concat",
    fusion_heads: int = 1,
    fusion_width: int = 768,
    fusion_levels: str = "bottleneck",
    attn_out_init: str = "torch",
    theta: str = "",
    theta_hidden: int = 768,
    theta_all: bool = False,
    depths: Sequence[int] = (2, 2, 2, 2),
    heads: Sequence[int] = (3, 6, 12, 24),
    window: int | Sequence[int] = 7,
    merging: str = "fixed",
    weight_axes: str = "zyx",
    dims: int = 3,
    drop_path: float = 0.0,
    bias_index: str = "corner",
    initial: str = "torch",
    dtype: str = "float32",
    remat: str = "none",
) -> MastPro:
    """Builds the network.

    Args:
      classes: of the label space; must be 1, the tumours of all tasks are one class.
      in_channels: of the image. image_channels: those with intensities, before the organ mask; a
        data set without organ masks has no further one, which counts as no organ.
      tasks: how many there are (`config.data.tasks`).
      mlp: socket (`parts.sockets`): {"kind": "dynamic_low_rank"} for the experts; None: plain MLPs.
      text, anatomy: whether sentences and organ masks are prompts. Without both, theta is "off".
      query, fusion_heads, fusion_width, attn_out_init: of the cross-attention, see
        `parts.fusion.PromptFusion`.
      fusion_levels: "bottleneck", or "multi": also the two next finer levels, each with its own
        projections of half and a quarter of the width.
      theta: "kernel48": a kernel of `feature_size` numbers, "dynamic_head": the Universal Model's
        153 numbers, "off": one linear output per task. Empty: "kernel48" where there is a prompt.
      theta_hidden: width inside the map from prompts to theta.
      theta_all: theta is also made of the sentences of all other tasks, and the score of a task is
        taken from its own theta, so that the sentence does not give the answer away.
      feature_size, depths, heads, window: of backbone and organ encoder, see `swin_unetr.make`.
      merging, weight_axes: how imported weights were trained, see `swin_unetr.make`.
      dims: 2 or 3 axes.
      drop_path, bias_index, initial, dtype, remat: of the backbone, see `swin_unetr.make`.

    Raises: `ModelError` for arguments that describe no network.
    """
    theta = theta or ("kernel48" if text or anatomy else "off")
    for name, word, known in (
        ("theta", theta, THETAS),
        ("query", query, QUERIES),
        ("fusion_levels", fusion_levels, LEVELS),
        ("attn_out_init", attn_out_init, OUT_INITS),
    ):
        if word not in known:
            raise ModelError(f"unknown {name} {word!r} of MAST-Pro", fix=did_you_mean(word, known))
    for wrong, message, found, fix in (
        (
            classes != 1,
            "MAST-Pro has one class, the tumour of every task",
            f"{classes} classes",
            'give all tumours one name: config.data.rename = {"CORPUS/CLASS": "tumour"}',
        ),
        (
            theta != "off" and not (text or anatomy),
            "a kernel of prompts needs a prompt",
            f"theta {theta}, text and anatomy off",
            "set model.theta to off",
        ),
        (
            theta_all and not (text and theta != "off"),
            "theta_all compares sentences, and this network reads none",
            f"text {text}, theta {theta}",
            "set model.theta_all to False",
        ),
        (
            fusion_width < 1 or fusion_width % (4 * fusion_heads),
            "the heads of the fusion do not divide its width",
            f"{fusion_heads} heads, width {fusion_width}",
            "make fusion_width a multiple of 4 times fusion_heads",
        ),
        (
            in_channels not in (image_channels, image_channels + 1),
            "the channels of the data do not fit the network",
            f"{in_channels} channels, image_channels {image_channels}",
            "set model.image_channels to the number of channels before the organ mask",
        ),
    ):
        if wrong:
            raise ModelError(message, found=found, fix=fix)
    shared = {
        "feature_size": feature_size,
        "depths": depths,
        "heads": heads,
        "window": window,
        "merging": merging,
        "dims": dims,
        "bias_index": bias_index,
        "initial": initial,
        "dtype": dtype,
    }
    mlp = sockets.filled(mlp, "mlp", {"tasks": tasks})
    backbone = swin_unetr.make(
        1, image_channels, **shared, drop_path=drop_path, mlp=mlp, remat=remat
    )
    kind = jnp.dtype(dtype)

    def fusion(narrower: int) -> Callable[..., nn.Module]:
        def built(name: str) -> nn.Module:
            width = fusion_width // narrower
            return PromptFusion(width, fusion_heads, query, attn_out_init, kind, name=name)

        return built

    makers: dict[str, Callable[..., nn.Module]] = {}
    if text or anatomy:
        makers["deepest"] = fusion(1)
        further = FURTHER if fusion_levels == "multi" else {}
        makers |= {name: fusion(narrower) for name, (_, narrower) in further.items()}
    return MastPro(
        backbone,
        swin_unetr.make(1, 1, **shared).swin if anatomy else None,
        tasks,
        image_channels,
        text,
        FrozenDict(makers),
        theta,
        theta_hidden,
        theta_all,
        weight_axes,
        kind,
    )
