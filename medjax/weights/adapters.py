"""Low-rank adapters as leaves of a parameter tree: put in by rules, taken out, merged, routed.

Beside `.../kernel` (*k, i, o) stand `.../lora_a` (e, *k, i, r) and `.../lora_b` (e, r, o) for e
stored experts; and `.../lora_scale` (e,) if experts with their own scales were joined, which
replaces the scale of the settings. Checkpoints, rules, sharding and transfer see an ordinary tree.
`split` turns it into the base tree and the collection that a network reads
(`medjax.models.parts.adapters`); `merge` adds the products to the kernels, so that a plain network
computes the same.

With two or more experts the first one is the identity: its adapter is zero and not stored, and a
sample that is routed to it gets the base network's answer bit for bit.

Sources: LoRA (arXiv 2106.09685); rank-stabilised scale alpha / sqrt(r) (arXiv 2312.03732).
"""

import dataclasses
import hashlib
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float

from medjax.errors import ModelError, UsageError, did_you_mean
from medjax.models.parts.adapters import COLLECTION
from medjax.train.rules import Rules, assign

SCALINGS = ("rslora", "classic")
ROUTINGS = ("one", "modality", "corpus", "task", "image")
WORDS = ("modality", "corpus", "task")  # entries that can route
WHOLE = "whole"
# words for the kernels of a family of networks -> regex over parameter paths
KERNELS: Mapping[str, str] = {
    "every": r"(^|/)kernel$",
    "unet": r"/(conv\d*|skip_conv|short)/kernel$",
    "swin": r"/(qkv|proj|fc1|fc2)/kernel$",
    "vit": r"/(q|v|fc1|fc2)/kernel$",
    "segvol": r"^encoder/block\d+/(qkv|fc[12])/kernel$|"
    r"^decoder/(layer\d/(self|to_token)|final)/[qv]/kernel$",
}
A, B, SCALE = "lora_a", "lora_b", "lora_scale"
ROUTER = "adapter_router"
TRAINED = rf"(^|/)({A}|{B})$|^{ROUTER}/"
LEAF = rf"{TRAINED}|(^|/){SCALE}$"
PATCH_KERNEL = r"(^|/)patch_embed/kernel$"
MOST_RANK = 1 << 10


@dataclasses.dataclass(frozen=True)
class Adapters:
    """The settings of a run's adapters.

    Attributes:
      rules: (regex over parameter paths, rank | "whole" | 0): first match wins, every leaf must
        match. A rank puts adapters beside a kernel; "whole" trains the leaf itself, which then is
        part of the adapter; 0 freezes it.
      scaling: "rslora" alpha / sqrt(rank), "classic" alpha / rank.
      alpha: see `scaling`.
      experts: number of experts; from 2 on, the first is the identity.
      routing: which expert a sample goes to: "one" (the same for all), "modality", "corpus" or
        "task" (through `expert_of`), or "image": a learned gate over the mean token of the patch
        embedding, or over mean and deviation of the image channels for networks without one.
      expert_of: expert of every modality, corpus or task; empty: its index.
      expert: for "one" with several experts: the one that all samples use.
      top_k: of "image": experts that a sample uses.
      from_scratch: train adapters on an untrained base; otherwise a run with adapters needs
        `init.source`.

    Raises: `UsageError` for unknown words and numbers that do not fit.
    """

    rules: tuple[tuple[str, int | str], ...] = ()
    scaling: str = "rslora"
    alpha: float = 16.0
    experts: int = 1
    routing: str = "one"
    expert_of: tuple[int, ...] = ()
    expert: int = 0
    top_k: int = 1
    from_scratch: bool = False

    def __post_init__(self):
        for word, known, what in (
            (self.scaling, SCALINGS, "scaling"),
            (self.routing, ROUTINGS, "routing"),
        ):
            if word not in known:
                raise UsageError(
                    f"config.adapters: unknown {what} {word!r}", fix=did_you_mean(str(word), known)
                )
        for pattern, value in self.rules:
            number = isinstance(value, int) and not isinstance(value, bool)
            if value != WHOLE and not (number and 0 <= value <= MOST_RANK):
                raise UsageError(
                    f"config.adapters: unusable value of the rule {pattern!r}",
                    found=value,
                    expected=f'a rank from 0 to {MOST_RANK}, or "{WHOLE}"',
                )
        wrong = [e for e in (*self.expert_of, self.expert) if not 0 <= e < max(self.experts, 1)]
        if self.experts < 1 or wrong or not 1 <= self.top_k <= max(self.experts, 1):
            raise UsageError(
                "config.adapters: experts do not fit",
                found=f"experts={self.experts}, expert_of={self.expert_of}, "
                f"expert={self.expert}, top_k={self.top_k}",
                expected="experts from 1; numbers below it; top_k from 1 to experts",
            )

    @property
    def stored(self) -> int:
        """Number of experts that have leaves: all but the identity."""
        return max(self.experts - 1, 1)

    @property
    def grafts(self) -> bool:
        """Whether any kernel gets an adapter; otherwise only whole leaves are trained."""
        return any(value not in (WHOLE, 0) for _, value in self.rules)

    @property
    def reads(self) -> tuple[str, ...]:
        """Name of the context entry that routes a sample, if any."""
        return (self.routing,) if self.routing in ("modality", "corpus", "task") else ()

    def scale(self, rank: int) -> float:
        """The factor of the product a b."""
        return self.alpha / (math.sqrt(rank) if self.scaling == "rslora" else rank)

    def route(
        self, router: Mapping[str, Array], features: Array | None, context: Mapping, batch: int
    ) -> Float[Array, "b e"]:
        """Share of every stored expert in every sample, without the scale.

        Args:
          router, features: of the learned gate, see `image_features`. context: of the call, for
            routing by an entry of it.
        """
        if self.experts == 1:
            return jnp.ones((batch, 1), jnp.float32)
        if self.routing == "image":
            share = self._gate(router, features)
        else:
            chosen = jnp.full(batch, self.expert)
            if self.routing != "one":
                chosen = context[self.routing]
                chosen = jnp.asarray(self.expert_of)[chosen] if self.expert_of else chosen
            share = jax.nn.one_hot(chosen, self.experts, dtype=jnp.float32)
        return share[:, 1:]

    def _gate(self, router: Mapping[str, Array], features: Array) -> Array:
        share = _softened(router, features)
        if self.top_k == self.experts:
            return share
        least = jax.lax.top_k(share, self.top_k)[0][:, -1:]
        kept = jnp.where(share >= least, share, 0)
        hard = kept / kept.sum(-1, keepdims=True)
        return hard + share - jax.lax.stop_gradient(share)  # straight through


def rules_of(kernels: str, rank: int, whole: str = "") -> tuple[tuple[str, int | str], ...]:
    """Rules from a word: adapters of one rank beside a family's kernels, all else frozen.

    Args:
      kernels: a word of `KERNELS`. whole: regex over leaves that are trained themselves; empty:
        none.

    Raises: `UsageError` for an unknown word.
    """
    if kernels not in KERNELS:
        raise UsageError(
            f"config.adapters: unknown kernels {kernels!r}", fix=did_you_mean(kernels, KERNELS)
        )
    first = ((whole, WHOLE),) if whole else ()
    return (*first, (KERNELS[kernels], rank), (".*", 0))


def graft(params: Any, settings: Adapters, key: Array, *, channels: int = 1) -> dict:
    """The tree with `lora_a` (uniform within 1/sqrt(fan in)) and `lora_b` (zero) beside every
    kernel that a rule gives a rank; and the gate's leaves, if the image routes.

    The network computes exactly what it did.

    Args:
      params: a tree without adapters. channels: of the image, for the gate.

    Raises: `ModelError` for a tree that has adapters, or a rank for a leaf that is no kernel;
      `TrainError` for rules that match nothing.
    """
    flat = _flat(params)
    if any(re.search(LEAF, path) for path in flat):
        raise ModelError(
            "the network has adapters already", fix="merge them first (`medjax adapter merge`)"
        )
    ranks = _flat(assign(params, settings.rules, "config.adapters.rules"))
    found = dict(flat)
    for path, rank in ranks.items():
        if rank in (0, WHOLE):
            continue
        leaf = flat[path]
        if path.split("/")[-1] != "kernel" or leaf.ndim < 2:
            raise ModelError(
                f"{path} cannot take an adapter: it is no kernel of a linear map or convolution",
                found=f"shape {tuple(leaf.shape)}, rank {rank}",
                fix=f'give it "{WHOLE}" to train the leaf itself, or 0',
            )
        owner, inputs, outputs = path[: -len("kernel")], leaf.shape[:-1], leaf.shape[-1]
        bound = 1 / math.sqrt(math.prod(inputs))
        shape = (settings.stored, *inputs, rank)
        found[owner + A] = jax.random.uniform(
            jax.random.fold_in(key, zlib.crc32(path.encode())), shape, jnp.float32, -bound, bound
        )
        found[owner + B] = jnp.zeros((settings.stored, rank, outputs), jnp.float32)
    if settings.routing == "image" and settings.experts > 1:
        features = _feature_count(flat, channels)
        found[f"{ROUTER}/kernel"] = jnp.zeros((features, settings.experts), jnp.float32)
        found[f"{ROUTER}/bias"] = jnp.zeros((settings.experts,), jnp.float32)
    return _nested(found)


def trainable(settings: Adapters) -> Rules:
    """The `optim.trainable` rules of a run with adapters: their leaves and the whole ones."""
    whole = tuple((p, r == WHOLE) for p, r in settings.rules)
    return ((TRAINED, True), *whole) if settings.grafts else whole


def frozen(params: Any, settings: Adapters) -> set[str]:
    """Paths of the leaves of a tree with adapters that stay as they are."""
    on = assign(params, trainable(settings), "config.adapters.rules")
    return {path for path, trained in _flat(on).items() if not trained}


def split(params: Mapping) -> tuple[dict, dict, dict]:
    """(base tree, adapters, router): adapters is {owner: ... {"a", "b", "scale"?}} nested like the
    modules.

    All that is no adapter stays in the base tree, whole leaves too.
    """
    base, own, router = {}, {}, {}
    for path, leaf in _flat(params).items():
        *owner, name = path.split("/")
        if name in (A, B, SCALE):
            own["/".join((*owner, name.removeprefix("lora_")))] = leaf
        elif owner == [ROUTER]:
            router[name] = leaf
        else:
            base[path] = leaf
    return _nested(base), _nested(own), router


def variables(
    params: Mapping,
    settings: Adapters | None,
    image: Float[Array | np.ndarray, "b *vol m"],
    context: Mapping[str, Any],
) -> dict[str, Any]:
    """What a network is applied with: its parameters and, if the tree holds any, its adapters."""
    base, own, router = split(params)
    if not own:
        return {"params": base}
    settings = settings or Adapters()
    features = image_features(base, image) if router else None
    share = settings.route(router, features, context, image.shape[0])
    return {"params": base, COLLECTION: routed(own, share, settings)}


def balance(
    params: Mapping, image: Float[Array | np.ndarray, "b *vol m"]
) -> dict[str, Float[Array, "b e"]]:
    """What a loss needs to keep all experts of the learned gate in use (`losses.balance`): the
    share of every expert, the identity included, before the choice of the largest; empty without a
    gate.
    """
    base, _, router = split(params)
    return {"adapters": _softened(router, image_features(base, image))} if router else {}


def _softened(router: Mapping[str, Array], features: Array) -> Array:
    return jax.nn.softmax(features @ router["kernel"] + router["bias"], -1)


def routed(own: Mapping, share: Float[Array, "b e"], settings: Adapters) -> dict:
    """The adapters with `w` (b, e), share times scale, at every site."""
    found = {}
    for owner, site in _sites(own).items():
        found[owner + "a"], found[owner + "b"] = site["a"], site["b"]
        found[owner + "w"] = share * _scale(site, settings)
    return _nested(found)


def merge(
    params: Mapping, settings: Adapters, share: Sequence[float] | None = None, sign: int = 1
) -> dict:
    """The base tree with sum over experts e of share_e scale (a_e b_e) added to every kernel.

    In float32 at the highest precision; the result has no adapters.

    Args:
      share: of every stored expert; default: of the single one, 1. sign: -1 subtracts.

    Raises: `UsageError` for several experts without shares, or a number that does not fit.
    """
    share = [1.0] if share is None else list(share)
    base, own, _ = split(params)
    flat = _flat(base)
    for owner, site in _sites(own).items():
        a, b = jnp.asarray(site["a"]), jnp.asarray(site["b"])
        if len(share) != a.shape[0]:
            raise UsageError(
                "the adapter has several experts, which cannot be merged at once",
                found=f"{a.shape[0]} stored experts, {len(share)} shares",
                fix="name one: --expert NAME",
            )
        weights = jnp.asarray(share, jnp.float32) * _scale(site, settings)
        delta = jnp.einsum("e,e...r,ero->...o", weights, a, b, precision="highest")
        kernel = flat[owner + "kernel"]
        flat[owner + "kernel"] = (jnp.asarray(kernel) + sign * delta).astype(kernel.dtype)
    return _nested(flat)


def image_features(
    base: Mapping, image: Float[Array | np.ndarray, "b *vol m"]
) -> Float[Array, "b f"]:
    """What the learned gate sees of every sample.

    The mean token of the patch embedding, which is linear, so it equals the mean patch through its
    kernel, plus its bias and the mean position; without a patch embedding, mean and standard
    deviation of every channel.
    """
    flat, axes = _flat(base), tuple(range(1, image.ndim - 1))
    path = _patch_kernel(flat)
    image = jnp.asarray(image, jnp.float32)
    if path is None:
        return jnp.concatenate([image.mean(axes), image.std(axes)], -1)
    kernel = flat[path]
    size = kernel.shape[: image.ndim - 2]
    grid = [n // s for n, s in zip(image.shape[1:-1], size, strict=True)]
    cut = image[(slice(None), *(slice(n * s) for n, s in zip(grid, size, strict=True)))]
    interleaved = cut.reshape(
        image.shape[0], *(v for pair in zip(grid, size, strict=True) for v in pair), image.shape[-1]
    )
    patch = interleaved.mean(tuple(range(1, 2 * len(size), 2))).reshape(image.shape[0], -1)
    token = patch @ kernel.reshape(-1, kernel.shape[-1])
    owner = path[: -len("kernel")]
    token = token + flat.get(owner + "bias", 0)
    position = flat.get(owner[: -len("patch_embed/")] + "pos")
    return token if position is None else token + position.reshape(-1, token.shape[-1]).mean(0)


def digest(base: Any) -> str:
    """sha256 over path, shape, type and bytes of every leaf of a base tree, in path order."""
    found = hashlib.sha256()
    for path, leaf in sorted(_flat(base).items()):
        array = np.ascontiguousarray(np.asarray(leaf))
        found.update(f"{path} {array.shape} {array.dtype.str}\n".encode())
        found.update(memoryview(array).cast("B") if array.size else b"")
    return found.hexdigest()


def has_adapters(params: Mapping) -> bool:
    """Whether a tree holds adapters."""
    return any(re.search(LEAF, path) for path in _flat(params))


def _sites(own: Mapping) -> dict[str, dict[str, Any]]:
    """Owner path with a closing "/" -> its leaves by name."""
    found: dict[str, dict[str, Any]] = {}
    for path, leaf in _flat(own).items():
        *owner, name = path.split("/")
        found.setdefault("".join(part + "/" for part in owner), {})[name] = leaf
    return found


def _scale(site: Mapping[str, Any], settings: Adapters) -> Any:
    return site["scale"] if "scale" in site else settings.scale(site["a"].shape[-1])


def _patch_kernel(flat: Mapping[str, Any]) -> str | None:
    return next((path for path in sorted(flat) if re.search(PATCH_KERNEL, path)), None)


def _feature_count(flat: Mapping[str, Any], channels: int) -> int:
    path = _patch_kernel(flat)
    return 2 * channels if path is None else flat[path].shape[-1]


def _flat(tree: Mapping) -> dict[str, Any]:
    return traverse_util.flatten_dict(tree, sep="/")


def _nested(flat: Mapping[str, Any]) -> dict:
    return traverse_util.unflatten_dict(flat, sep="/")
