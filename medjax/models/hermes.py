"""Hermes-R: a residual U-Net whose features and learned context priors inform each other.

In: image (b, *vol, m), context["corpus"] and context["modality"] (b,); modality -1 is unknown. Out:
{"logits": (b, *vol, classes), "modality": (b, modalities + 1)}, float32.

A prior is a token: one per class (task) and ten per modality, in a bank of each of five places
(encoder scales 2 to 4, decoder scales 5 and 6). There the tokens first attend to the features, then
the features to the tokens. The class tokens of all places together make a prototype per class; its
product with the last features is the class's logit. The modality tokens predict the modality
(`losses.modality`). Classes that a sample's corpus does not annotate are hidden as keys; one token
of no class always takes part. Source: Gao et al. (arXiv 2306.02416); the published code has no
licence and was read for facts only.

Parameters: `stem/{conv, block}`, `down<i>/block<j>`, `up<i>/block<j>` / {conv1, conv2, short},
`prior<k>/{task, modality, layer<j>}`, `prototype`, `modality_head`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core import FrozenDict
from jaxtyping import Array, Bool, Float, Int

from medjax.errors import ModelError
from medjax.models.context import CORPUS, MODALITY, Spec, needed
from medjax.models.parts.attention import Context
from medjax.models.parts.blocks import check_precision
from medjax.models.parts.context_priors import Exchange, Perceptron, heads_of
from medjax.models.parts.conv import Conv
from medjax.models.parts.norm import InstanceNorm
from medjax.models.parts.products import wide_einsum

WIDTHS = (1, 2, 4, 8, 10)  # of the scales, in bases
PLACES = (2, 3, 4, 5, 6)  # numbers of the places with priors: down2 to down4, up1, up2


def corners(inputs: int, outputs: int) -> Float[np.ndarray, "o i"]:
    """The matrix of linear interpolation of a line whose first and last points stay in place."""
    place = np.linspace(0, inputs - 1, outputs)
    low = np.minimum(np.floor(place).astype(int), max(inputs - 2, 0))
    matrix = np.zeros((outputs, inputs), np.float32)
    rows = np.arange(outputs)
    np.add.at(matrix, (rows, low), 1 - (place - low))
    np.add.at(matrix, (rows, np.minimum(low + 1, inputs - 1)), place - low)
    return matrix


def enlarged(x: Float[Array, "b *vol c"], sides: Sequence[int]) -> Float[Array, "b *out c"]:
    """Linear interpolation along every axis, corners on corners (PyTorch's align_corners)."""
    for axis, side in enumerate(sides, 1):
        matrix = jnp.asarray(corners(x.shape[axis], side), x.dtype)
        x = jnp.moveaxis(jnp.tensordot(x, matrix, ((axis,), (1,))), -1, axis)
    return x


class Block(nn.Module):
    """Twice norm, ReLU and convolution, plus the input; where channels change, the shortcut is a
    norm, ReLU and convolution of its own. Norms have no parameters, convolutions no biases.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *vol i"]) -> Float[Array, "b *vol o"]:
        norm = functools.partial(
            InstanceNorm, affine=False, epsilon=1e-4, leak=0.0, dtype=self.dtype
        )
        kernel = (3,) * (x.ndim - 2)
        conv = functools.partial(Conv, self.features, kernel, use_bias=False, dtype=self.dtype)
        y = conv(name="conv1")(norm()(x))
        y = conv(name="conv2")(norm()(y))
        short = x if x.shape[-1] == self.features else conv(name="short")(norm()(x))
        return y + short


class Stage(nn.Module):
    """Blocks `block0`, `block1`."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *vol i"]) -> Float[Array, "b *vol o"]:
        for i in range(2):
            x = Block(self.features, self.dtype, name=f"block{i}")(x)
        return x


class Prior(nn.Module):
    """Banks of tokens, and layers in which they and the features attend to each other.

    Parameters: `task` (classes + null_rows, c), `modality` (modalities + 1, tokens, c), `layer<j>`.
    """

    classes: int
    null_rows: int
    modalities: int
    tokens: int
    layers: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b *vol c"],
        modality: Int[Array, " b"],
        exists: Bool[Array, "b t"],
    ) -> tuple[Float[Array, "b *vol c"], Float[Array, "b k c"], Float[Array, "b m c"]]:
        """(features, tokens of the classes, tokens of the modality)."""
        width, start = x.shape[-1], nn.initializers.xavier_uniform()
        rows = self.classes + self.null_rows
        task = self.param("task", start, (rows, width), jnp.float32)
        bank = self.param("modality", start, (self.modalities + 1, self.tokens, width), jnp.float32)
        known = (modality >= 0) & (modality < self.modalities)
        own = bank[jnp.where(known, modality, self.modalities)]
        chosen = jnp.concatenate([task[: self.classes], task[-1:]])
        chosen = jnp.broadcast_to(chosen, (x.shape[0], *chosen.shape))
        priors = jnp.concatenate([chosen, own], 1).astype(self.dtype)
        flat = x.reshape(x.shape[0], -1, width)
        for j in range(self.layers):
            flat, priors = Exchange(heads_of(width), self.dtype, name=f"layer{j}")(
                flat, priors, exists
            )
        return flat.reshape(x.shape), priors[:, : self.classes], priors[:, -self.tokens :]


class Hermes(nn.Module):
    """See the module docstring, and `make` for the attributes.

    Attributes:
      known: per corpus, which classes it annotates; empty: all.
    """

    classes: int
    modalities: int
    known: tuple[tuple[bool, ...], ...]
    base: int
    blocks: tuple[int, ...]
    tokens: int
    null_rows: int
    remat: str
    dtype: Any
    reads: Spec = FrozenDict({"corpus": CORPUS, "modality": MODALITY})

    @nn.compact
    def __call__(
        self, image: Float[Array, "b *vol m"], context: Context = None, train: bool = False
    ) -> dict[str, Array]:
        """See the module docstring."""
        if any(n % 16 for n in image.shape[1:-1]):
            raise ModelError(
                "the image cannot be halved four times",
                found=image.shape[1:-1],
                expected="multiples of 16",
                fix="change the patch",
            )
        modality = needed(context, "modality", "context priors")
        exists = self._exists(needed(context, "corpus", "context priors"))
        widths = [self.base * n for n in WIDTHS]
        stage = Stage if self.remat == "none" else nn.remat(Stage)
        found: list[tuple[Array, Array]] = []

        def informed(x: Array) -> Array:
            k = len(found)
            prior = Prior(
                self.classes,
                self.null_rows,
                self.modalities,
                self.tokens,
                self.blocks[k],
                self.dtype,
                name=f"prior{PLACES[k]}",
            )
            x, classes, kinds = prior(x, modality, exists)
            found.append((classes, kinds))
            return x

        axes = image.ndim - 2
        x = Stem(self.base, self.dtype, name="stem")(image.astype(self.dtype))
        skips = [x]
        for i in range(1, 5):
            x = nn.max_pool(x, (2,) * axes, (2,) * axes)
            x = stage(widths[i], self.dtype, name=f"down{i}")(x)
            x = informed(x) if i > 1 else x
            skips.append(x)
        for i in range(1, 5):
            skip = skips[4 - i]
            x = jnp.concatenate([skip, enlarged(x, skip.shape[1:-1])], -1)
            x = stage(widths[4 - i], self.dtype, name=f"up{i}")(x)
            x = informed(x) if i < 3 else x
        classes, kinds = (jnp.concatenate(parts, -1) for parts in zip(*found, strict=True))
        prototypes = Prototypes(self.base, self.dtype, name="prototype")(classes)
        logits = wide_einsum("b...c,bkc->b...k", x, prototypes)
        head = ModalityHead(self.modalities + 1, self.dtype, name="modality_head")
        return {"logits": logits, "modality": head(kinds)}

    def _exists(self, corpus: Array) -> Array:
        """Which tokens are keys, (b, classes + 1 + tokens)."""
        known = np.asarray(self.known or ((True,) * self.classes,), bool)
        own = jnp.asarray(known)[jnp.clip(corpus, 0, len(known) - 1)]
        more = jnp.ones((len(own), 1 + self.tokens), bool)
        return jnp.concatenate([own, more], 1)


class Stem(nn.Module):
    """A convolution without bias and a block."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *vol m"]) -> Float[Array, "b *vol c"]:
        kernel = (3,) * (x.ndim - 2)
        x = Conv(self.features, kernel, use_bias=False, dtype=self.dtype, name="conv")(x)
        return Block(self.features, self.dtype, name="block")(x)


class Prototypes(nn.Module):
    """Tokens of all places -> a vector per class; parameters `norm`, `mlp0`, `mlp1`."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b k c"]) -> Float[Array, "b k d"]:
        width = x.shape[-1]
        x = nn.LayerNorm(1e-5, dtype=self.dtype, use_fast_variance=False, name="norm")(x)
        x = Perceptron(width, self.features, self.dtype, name="mlp0")(x)
        return Perceptron(self.features, self.features, self.dtype, name="mlp1")(x)


class ModalityHead(nn.Module):
    """Tokens of all places -> logits of the modalities; parameters `norm`, `mlp`."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b m c"]) -> Float[Array, "b d"]:
        x = nn.LayerNorm(1e-5, dtype=self.dtype, use_fast_variance=False, name="norm")(x)
        x = Perceptron(x.shape[-1], self.features, self.dtype, name="mlp")(x.mean(1))
        return x.astype(jnp.float32)


def make(
    classes: int,
    *,
    modalities: int = 1,
    corpus_channels: Sequence[Sequence[int]] | None = None,
    base: int = 32,
    blocks: Sequence[int] = (2, 2, 4, 2, 2),
    modality_tokens: int = 10,
    null_rows: int = 1,
    remat: str = "none",
    dtype: str = "float32",
) -> Hermes:
    """Builds the network; the defaults are the published sizes.

    Args:
      classes: of the label space, one task each. modalities: known ones.
      corpus_channels: per corpus, the classes that it annotates; without them all take part.
      base: channels of the finest scale; the others have 2, 4, 8 and 10 times as many.
      blocks: layers of attention at the five places, encoder first.
      modality_tokens: tokens per modality.
      null_rows: rows of the banks for no class; the published code has 2 and uses the last.
      remat: "none", or "block": the stages are recomputed in the backward pass.
      dtype: compute type, "float32" or "bfloat16"; parameters are float32.

    Raises: `ModelError` for arguments that describe no network.
    """
    check_precision(dtype, remat)
    if len(blocks) != len(PLACES) or min(blocks) < 1 or null_rows < 1 or modality_tokens < 1:
        raise ModelError(
            "priors need layers at five places, and a row and a token at least",
            found=f"blocks {tuple(blocks)}, null_rows {null_rows}, "
            f"modality_tokens {modality_tokens}",
            fix="change blocks, null_rows or modality_tokens",
        )
    known = tuple(tuple(k in own for k in range(classes)) for own in corpus_channels or ())
    return Hermes(
        classes,
        modalities,
        known,
        base,
        tuple(blocks),
        modality_tokens,
        null_rows,
        remat,
        jnp.dtype(dtype),
    )
