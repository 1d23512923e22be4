"""SegVol: a promptable network of volumes; one binary mask per query.

In: image (b, *frame, m) of one fixed size, and in the context, with q queries per sample (any
number; `queries` is that of fresh parameters, of exports and of rehearsals):

  prompt_points      (b, q, 21, 3) voxel indices (z, y, x) of the frame
  prompt_point_kind  (b, q, 21)    1 positive, 0 negative, -1 padding, -2 absent
  prompt_box         (b, q, 6)     first and last corner, inclusive
  prompt_has         (b, q, 3)     points, box, text are given
  prompt_text        (b, q)        row of `text/table`; -1 none, -2 `prompt_vector`
  prompt_vector      (b, q, t)     a text that has no row, with `free_text`
  prompt_mask        (b, q, *low)  logits of the round before, with `mask_input`; all 0: none
  prompt_task        (b, q)        row of the prior pool, -1 unknown, with `prior`; one value for
                                   every q / g neighbouring queries, (b, g), serves as well
  modality           (b,)          with `prior`

Out: {"logits": (b, q, *frame), "low": (b, q, *low)}, float32; low has four values per token and
axis. `programs` names the two halves of the network: `encode` turns the image into an embedding (b,
*grid, c), `decode` the embedding and the context into the outputs. An image is encoded once for all
queries.

Sources: SegVol (Du et al., arXiv 2311.13385); the published code and weights differ from the text
in places, which `MODES["release"]` reproduces.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict
from jaxtyping import Array, Bool, Float

from medjax.errors import ModelError, did_you_mean
from medjax.models.context import MODALITY, Entry, Spec, needed
from medjax.models.parts.adapters import Dense
from medjax.models.parts.attention import Context, check_initial, linear_init
from medjax.models.parts.blocks import check_precision, check_word
from medjax.models.parts.mask_decoder import FINER, SELECT, MaskDecoder
from medjax.models.parts.priors import POSTERIORS, PRIORS, Priors
from medjax.models.parts.prompt_encoder import PE_ORDERS, PromptEncoder
from medjax.models.parts.vit import PatchedEncoder

POINTS, QUERIES = 21, 8
FRAME = (32, 256, 256)  # of the published network
OWN_VECTOR = -2  # in the place of a row: the text is given as a vector
# arguments that the published weights need; each can be given on its own
MODES: Mapping[str, Mapping[str, Any]] = {
    "default": {
        "pe_order": "consistent",
        "prior_gate": True,
        "unknown_task": True,
        "unknown_drop": 0.1,
    },
    "release": {
        "pe_order": "release",
        "prior_gate": False,
        "unknown_task": False,
        "unknown_drop": 0.0,
    },
}


class Texts(nn.Module):
    """Vectors of texts, and their map to the width of the network.

    Parameters: `table` (rows, t), `align`.
    """

    rows: int
    inputs: int
    width: int
    dtype: Any = jnp.float32
    initial: str = "torch"

    @nn.compact
    def __call__(
        self, row: Array, vector: Float[Array, "b q t"] | None
    ) -> tuple[Float[Array, "b q c"], Bool[Array, "b q"]]:
        """(the texts' vectors, which exist) of rows (b, q), see `medjax.models.segvol`."""
        # the norm of CLIP's vectors is about 9
        start = nn.initializers.normal(9 / self.inputs**0.5)
        table = self.param("table", start, (self.rows, self.inputs), jnp.float32)
        spoken = (row >= 0) & (row < self.rows)
        found = table[jnp.where(spoken, row, 0)]
        if vector is not None:
            given = row == OWN_VECTOR
            found = jnp.where(given[..., None], vector.astype(jnp.float32), found)
            spoken = spoken | given
        init = linear_init(self.initial, self.inputs)
        return Dense(self.width, dtype=self.dtype, name="align", **init)(found), spoken


class SegVol(nn.Module):
    """See the module docstring for inputs and outputs, and `make` for the attributes.

    Parameters: `encoder/{patch_embed, pos, block<i>, ln_f}`, `prompt/...` (`PromptEncoder`),
    `decoder/...` (`MaskDecoder`), `text/{table, align}`, `prior/...` (`Priors`).
    """

    frame: tuple[int, int, int]
    patch: tuple[int, int, int]
    encoder: PatchedEncoder
    prompt: PromptEncoder
    text: Texts
    decoder: MaskDecoder
    prior: Priors | None
    reads: Spec
    dtype: Any = jnp.float32
    programs = ("encode", "decode")

    @property
    def pe_order(self) -> str:
        """Which the weights are bound to, see `PromptEncoder`."""
        return self.prompt.pe_order

    def __call__(
        self, image: Float[Array, "b z y x m"], context: Context = None, train: bool = False
    ) -> dict[str, Array]:
        """See the module docstring."""
        return self.decode(self.encode(image, context, train), context, train)

    def encode(
        self, image: Float[Array, "b z y x m"], context: Context = None, train: bool = False
    ) -> Float[Array, "b d h w c"]:
        """The embedding of an image; nothing of the context is read.

        Raises: `ModelError` for an image of another size than the frame.
        """
        if image.shape[1:-1] != self.frame:
            raise ModelError(
                "the image does not have the size of the network's frame",
                found=image.shape[1:-1],
                expected=self.frame,
                fix="resize or cut the image, or set model.frame",
            )
        return self.encoder(image.astype(self.dtype), context, train)

    def decode(
        self, embedding: Float[Array, "b d h w c"], context: Context = None, train: bool = False
    ) -> dict[str, Array]:
        """The outputs of the queries in the context.

        Raises: `ModelError` for entries that the context lacks.
        """
        given = {name: needed(context, name, "prompted networks") for name in self.reads}
        has = jnp.asarray(given["prompt_has"])
        row = jnp.where(has[..., 2], given["prompt_text"], -1)
        text, spoken = self.text(row, given.get("prompt_vector"))
        tokens, exists = self.prompt(
            given["prompt_points"],
            given["prompt_point_kind"],
            given["prompt_box"],
            has,
            text,
            spoken,
        )
        image, added, prototype = embedding[:, None], None, None
        if self.prior is not None:
            found = self.prior(embedding, given["prompt_task"], given["modality"], train)
            image, added, prototype = (self._per_query(x, row.shape[1]) for x in found)
        image = image + self.prompt.image_prompt(given.get("prompt_mask"))
        outputs = self.decoder(
            image, self.prompt.cells(), tokens, exists, text, spoken, added, prototype
        )
        shape = (*outputs["low"].shape[:2], *self.frame)
        logits = jax.image.resize(outputs["low"], shape, "linear", antialias=False)
        return {"logits": logits} | outputs

    def _per_query(self, x: Array | None, queries: int) -> Array | None:
        """What was computed once for every group of neighbouring queries, for every query.

        One group stays one: it is broadcast where queries meet it.
        """
        if x is None or x.shape[1] == 1:
            return x
        if queries % x.shape[1]:
            raise ModelError(
                "the tasks do not fit the queries",
                found=f"{x.shape[1]} tasks, {queries} queries",
                expected="one task for equally many neighbouring queries",
            )
        return jnp.repeat(x, queries // x.shape[1], 1)


def make(
    classes: int,
    *,
    modalities: int = 1,
    patch: Sequence[int] | None = None,
    frame: Sequence[int] | None = None,
    patch_size: Sequence[int] = (4, 16, 16),
    width: int = 768,
    layers: int = 12,
    heads: int = 12,
    hidden: int = 3072,
    decoder_layers: int = 2,
    decoder_heads: int = 8,
    decoder_hidden: int = 2048,
    mode: str = "default",
    pe_order: str | None = None,
    mask_select: str = "first",
    rated: bool = False,
    all_masks: bool = False,
    mask_input: bool = False,
    free_text: bool = False,
    text_rows: int = 0,
    text_width: int = 512,
    prior: str = "none",
    prior_tasks: int = 0,
    prior_gate: bool | None = None,
    prior_heads: int = 4,
    prior_scale: float = 0.1,
    posterior: str = "additive",
    unknown_task: bool | None = None,
    unknown_drop: float | None = None,
    queries: int = QUERIES,
    dropout: float | int = 0.0,
    initial: str = "torch",
    scan: bool = True,
    remat: str = "none",
    dtype: str = "float32",
) -> SegVol:
    """Builds the network; the defaults are the published sizes.

    Args:
      classes: of the label space.
      modalities: rows of the prior pool of modalities.
      patch: size of the images of a run. frame: the size of images, (z, y, x); by default `patch`,
        without it that of the published network. Position table and decoder are made for it.
      patch_size: voxels per token and axis.
      width: of all tokens. layers, heads, hidden: of the encoder; `hidden` is the width inside its
        MLPs. decoder_layers, decoder_heads, decoder_hidden: of the two-way transformer.
      mode: "default", or "release" for the published weights and numbers: the arguments of `MODES`
        that are not given.
      pe_order: positions of prompts and image agree ("consistent"), or as published ("release").
      mask_select: "first" of the four masks, or the one with the highest rating ("iou").
      rated: the head that rates masks was trained; "iou" needs it.
      all_masks: the outputs also have all four, `masks` (b, q, 4, *low), and their ratings `iou`.
      mask_input: reads the mask of the round before, for corrections by clicks.
      free_text: reads texts that have no row, as vectors.
      text_rows: rows of the table of texts; by default one per class. text_width: of its vectors.
      prior: context priors: "none", "additive_token" (added to the mask tokens) or
        "inner_product" (added to the mask's filter). See `parts.priors`.
      prior_tasks: rows of the pool of tasks; by default one per class.
      prior_gate: priors start without effect. prior_heads: of their attention.
      prior_scale: factor of what is added to the mask tokens.
      posterior: "additive", "learned" (a trained factor), "off"; of "inner_product" also "replace".
      unknown_task: there are learned tokens of unknown tasks and modalities.
      unknown_drop: in training, the share of known ones that are taken for unknown.
      queries: number of queries for which parameters are made; the network takes any number.
      dropout: of the encoder's positions and MLPs, in training.
      initial: how the linear maps start, a word of `parts.attention.INITIAL`.
      scan: one program for all layers of the encoder.
      remat: "none", or "block": layers and masks are recomputed in the backward pass.
      dtype: compute type, "float32" or "bfloat16"; parameters are float32.

    Raises: `ModelError` for arguments that describe no network.
    """
    if mode not in MODES:
        raise ModelError(f"unknown mode {mode!r}", fix=did_you_mean(mode, MODES))
    own = MODES[mode]
    pe_order = own["pe_order"] if pe_order is None else pe_order
    prior_gate = own["prior_gate"] if prior_gate is None else prior_gate
    unknown_task = own["unknown_task"] if unknown_task is None else unknown_task
    unknown_drop = own["unknown_drop"] if unknown_drop is None else unknown_drop
    check_precision(dtype, remat)
    check_word("pe_order", pe_order, PE_ORDERS)
    check_word("mask_select", mask_select, SELECT)
    check_word("prior", prior, PRIORS)
    check_initial(initial)
    if prior != "none":
        check_word("posterior", posterior, POSTERIORS[prior])
    if mask_select == "iou" and not rated:
        raise ModelError(
            "the head that rates masks was not trained",
            found='mask_select="iou"',
            fix='set mask_select="first", or rated=True for weights whose head was trained',
        )
    sides, grid = _sizes(frame or patch or FRAME, patch_size, width, heads)
    size = tuple(int(n) for n in patch_size)
    shared: dict[str, Any] = {"dtype": jnp.dtype(dtype), "initial": initial}
    text_rows, prior_tasks = text_rows or classes, prior_tasks or classes
    decoder = MaskDecoder(
        decoder_layers,
        decoder_heads,
        decoder_hidden,
        mask_select,
        all_masks,
        posterior == "replace" and prior != "none",
        remat,
        **shared,
    )
    priors = Priors(
        prior_tasks,
        modalities,
        unknown_task,
        unknown_drop,
        prior_heads,
        prior_gate,
        prior,
        posterior,
        prior_scale,
        **shared,
    )
    return SegVol(
        sides,
        size,
        PatchedEncoder(size, width, layers, heads, hidden, dropout, scan, remat, **shared),
        PromptEncoder(width, sides, grid, pe_order, mask_input, shared["dtype"]),
        Texts(text_rows, text_width, width, **shared),
        decoder,
        None if prior == "none" else priors,
        _reads(queries, grid, text_width if free_text else 0, mask_input, prior != "none"),
        shared["dtype"],
    )


def _sizes(
    frame: Sequence[int], patch_size: Sequence[int], width: int, heads: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(frame, grid of tokens); `ModelError` for sizes that do not fit."""
    fits = len(frame) == len(patch_size) == 3
    if not fits or any(n % p or not n for n, p in zip(frame, patch_size, strict=True)):
        raise ModelError(
            "the frame is no whole number of patches along its three axes",
            found=f"frame {tuple(frame)}, patch_size {tuple(patch_size)}",
            fix="change model.frame or model.patch_size",
        )
    if width % heads or width % 8:
        raise ModelError(
            "the width fits neither heads nor filters",
            found=f"width {width}, {heads} heads",
            expected="a multiple of 8 and of heads",
            fix="change width or heads",
        )
    sides = tuple(int(n) for n in frame)
    return sides, tuple(n // p for n, p in zip(sides, patch_size, strict=True))


def _reads(queries: int, grid: Sequence[int], vector: int, mask: bool, prior: bool) -> Spec:
    """The entries of the context."""
    entries = {
        "prompt_points": Entry((queries, POINTS, 3), "float32"),
        "prompt_point_kind": Entry((queries, POINTS)),
        "prompt_box": Entry((queries, 6), "float32"),
        "prompt_has": Entry((queries, 3), "bool"),
        "prompt_text": Entry((queries,)),
    }
    if vector:
        entries["prompt_vector"] = Entry((queries, vector), "float32")
    if mask:
        entries["prompt_mask"] = Entry((queries, *(FINER * n for n in grid)), "float32")
    if prior:
        entries |= {"prompt_task": Entry((queries,)), "modality": MODALITY}
    return FrozenDict(entries)
