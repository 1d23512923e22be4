"""The last map of a network: features to one logit per class of the label space.

In: features (b, *vol, w), any number of axes, and, for heads by corpus, context["corpus"] (b,).
Out: logits (b, *vol, classes) float32.

A head is a socket, built like the others of `parts.attention`: `head(classes, use_bias=,
kernel_init=, bias_init=, dtype=, name=)` gives a module that `attention.call` applies. `socket`
turns the word of a config into such a constructor:

  "sigmoid"         independent channels, one linear map (`DenseHead`)
  "corpus_softmax"  every corpus has its own softmax over the background and the classes it
                    annotates (`CorpusHeads`)
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from medjax.errors import ModelError, did_you_mean
from medjax.models.context import CORPUS, Spec, needed
from medjax.models.parts.adapters import COLLECTION, beside, factors
from medjax.models.parts.attention import Context
from medjax.models.parts.products import wide_einsum

KINDS = ("sigmoid", "corpus_softmax")
SHARES = ("corpus", "channels")
Prior = float | int | tuple[float | int, ...]  # initial bias: of all outputs, or one per output


def checked_prior(prior: float | int | Sequence[float | int], use_bias: bool) -> Prior:
    """The initial bias of a network's heads, from its argument `prior`.

    Args:
      prior: one number, which a head without a bias ignores, or one per output of the head.
      use_bias: whether the heads have a bias.

    Raises: `ModelError` for numbers per output of heads without a bias.
    """
    if not isinstance(prior, Sequence):
        return prior
    if not use_bias:
        raise ModelError(
            "the heads of this network have no bias that could start at a number per class",
            found=f"{len(prior)} numbers",
            fix="set model.head_bias=True",
        )
    return tuple(prior)


def bias_init(prior: Prior) -> Callable:
    """The initialiser of a head's bias.

    Args:
      prior: one number for all outputs; or one per output: per class of the label space, and with
        "corpus_softmax" per column but the backgrounds' (see `columns`).

    Raises: `ModelError`, when it is called, for another number of outputs.
    """
    if not isinstance(prior, tuple):
        return nn.initializers.constant(prior)

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        if shape != (len(prior),):
            raise ModelError(
                "the prior does not fit the outputs of the head",
                found=f"{len(prior)} numbers",
                expected=f"one, or {shape[0]}",
            )
        return jnp.asarray(prior, dtype)

    return init


class DenseHead(nn.Module):
    """A 1x1 convolution as a linear map; parameters `kernel` (w, classes) and `bias`."""

    classes: int
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.lecun_normal()
    bias_init: Callable = nn.initializers.zeros
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *vol w"]) -> Float[Array, "b *vol c"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.classes))
        x = x.astype(self.dtype)
        y = wide_einsum("...w,wc->...c", x, kernel.astype(self.dtype))
        if self.use_bias:
            y = y + self.param("bias", self.bias_init, (self.classes,))
        return beside(self, x, y)


class CorpusHeads(nn.Module):
    """One linear map per corpus, kept in one kernel; every sample uses the columns of its corpus.

    Static shapes, no branch. Logits are relative to the background's, whose own logit is therefore
    0; classes that the sample's corpus does not annotate are -inf. (A softmax does not change if
    the same amount is added to all its logits.)

    Parameters: `kernel` (w, sum over heads of 1 + channels) and `bias`: head after head, the
    background first, then its channels in ascending order. Every column is used.

    Attributes:
      classes: c of the label space.
      corpus_channels: per corpus, the classes it annotates.
      heads: per corpus, the number of its head; a head that several corpora share has the classes
        of all of them. None: one head per corpus.
      bias_init: initialiser of the classes' biases; the background's start at 0.
    """

    classes: int
    corpus_channels: tuple[tuple[int, ...], ...]
    heads: tuple[int, ...] | None = None
    use_bias: bool = False
    kernel_init: Callable = nn.initializers.lecun_normal()
    bias_init: Callable = nn.initializers.zeros
    dtype: Any = jnp.float32
    contextual = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *vol w"], context: Context = None
    ) -> Float[Array, "b *vol c"]:
        heads = self.heads or tuple(range(len(self.corpus_channels)))
        table = columns(self.classes, self.corpus_channels, heads)
        mine = jnp.asarray(table)[needed(context, "corpus", "heads by corpus")]  # (b, 1 + c)
        total = int(table.max()) + 1
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], total))
        chosen = jnp.moveaxis(jnp.take(kernel, jnp.maximum(mine, 0), axis=1), 1, 0).astype(
            self.dtype
        )
        flat = x.astype(self.dtype).reshape(x.shape[0], -1, x.shape[-1])
        y = wide_einsum("bnw,bwk->bnk", flat, chosen)
        if self.has_variable(COLLECTION, "a"):
            hidden, second = factors(self, flat.astype(jnp.float32))
            own = jnp.moveaxis(jnp.take(second, jnp.maximum(mine, 0), axis=1), 1, 0)
            y = y + jnp.einsum("bnf,bfk->bnk", hidden, own)
        if self.use_bias:
            own = np.setdiff1d(np.arange(total), table[:, 0])

            def bias_init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
                return jnp.zeros(shape, dtype).at[own].set(self.bias_init(key, (len(own),), dtype))

            y = y + jnp.take(self.param("bias", bias_init, (total,)), jnp.maximum(mine, 0))[:, None]
        y = jnp.where(mine[:, None, 1:] < 0, -jnp.inf, y[..., 1:] - y[..., :1])
        return y.reshape(*x.shape[:-1], self.classes)


def columns(
    classes: int, corpus_channels: Sequence[Sequence[int]], heads: Sequence[int]
) -> np.ndarray:
    """(corpora, 1 + classes) int32: the kernel's column of the background and of every class.

    -1 if a corpus does not annotate the class. A head that several corpora share has the columns of
    all their classes; each corpus uses only its own.

    Raises: `ModelError` unless every corpus has a head and usable channels, and heads are numbered
      from 0 without gaps.
    """
    if (
        len(heads) != len(corpus_channels)
        or sorted(set(heads)) != list(range(max(heads, default=-1) + 1))
        or not heads
    ):
        expected = f"{len(corpus_channels)} numbers from 0 without gaps"
        raise ModelError(
            "heads do not fit the corpora",
            found=tuple(heads),
            expected=expected,
            fix="give every corpus a head",
        )
    members: dict[int, set[int]] = {}
    for corpus, (head, own) in enumerate(zip(heads, corpus_channels, strict=True)):
        if not own or min(own) < 0 or max(own) >= classes or len(set(own)) != len(own):
            raise ModelError(
                f"corpus {corpus} has no usable channels",
                found=tuple(own),
                expected=f"some of 0 to {classes - 1}",
            )
        members.setdefault(head, set()).update(own)
    channels = [sorted(members[head]) for head in range(len(members))]
    first = np.cumsum([0, *(1 + len(own) for own in channels)])
    table = np.full((len(heads), 1 + classes), -1, np.int32)
    for corpus, (head, own) in enumerate(zip(heads, corpus_channels, strict=True)):
        table[corpus, 0] = first[head]
        table[corpus, 1 + np.array(own)] = first[head] + 1 + np.searchsorted(channels[head], own)
    return table


def numbered(
    share: str | Sequence[int], corpus_channels: Sequence[Sequence[int]]
) -> tuple[int, ...]:
    """Head number of every corpus.

    Args:
      share: "corpus" gives each its own; "channels" gives those one head that annotate the same
        classes; or the numbers themselves (AMOS CT and AMOS MRI, which lacks two classes, share one
        in M4oE).
    """
    if not isinstance(share, str):
        return tuple(share)
    if share not in SHARES:
        raise ModelError(
            f"unknown rule {share!r} for sharing heads", fix=did_you_mean(share, SHARES)
        )
    if share == "corpus":
        return tuple(range(len(corpus_channels)))
    seen: dict[tuple[int, ...], int] = {}
    return tuple(
        seen.setdefault(tuple(sorted(channels)), len(seen)) for channels in corpus_channels
    )


def reads(kind: str) -> Spec:
    """What a kind of head reads beside the features."""
    return {"corpus": CORPUS} if kind == "corpus_softmax" else {}


def socket(
    kind: str = "sigmoid",
    corpus_channels: Sequence[Sequence[int]] | None = None,
    share: str | Sequence[int] = "corpus",
) -> Callable[..., nn.Module]:
    """The head constructor for a config's word.

    Args:
      kind: one of `KINDS`.
      corpus_channels: per corpus of the batch's index, the classes it annotates; needed for
        "corpus_softmax".
      share: see `numbered`.

    Raises: `ModelError` for unknown words or missing channels.
    """
    if kind not in KINDS:
        raise ModelError(f"unknown head {kind!r}", fix=did_you_mean(kind, KINDS))
    if kind == "sigmoid":
        return DenseHead
    if not corpus_channels:
        raise ModelError(
            "heads by corpus need to know what each corpus annotates", fix="give corpus_channels"
        )
    channels = tuple(tuple(int(c) for c in own) for own in corpus_channels)
    return functools.partial(CorpusHeads, corpus_channels=channels, heads=numbered(share, channels))
