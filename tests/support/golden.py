"""What every network computes, stored: statistics, some voxels and the gradients of tiny networks.

    python -m tests.support.golden                 # deviations from tests/golden/networks.json
    python -m tests.support.golden --write [NAME]  # replace them; only for intended changes

Parameters, images and the scalar whose gradient is taken are numpy's and depend on nothing but
names and shapes. No parameter has a value at which a path falls silent: biases, position tables
and gates are not zero, norm scales not one.
"""

import dataclasses
import functools
import importlib
import json
import os
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from medjax.registry import build

STORED = Path(__file__).parent.parent / "golden" / "networks.json"
VOXELS = 6  # stored numbers per output
OUTPUT = 1e-4  # tolerance, in standard deviations of the output
GRADIENT = 1e-3  # tolerance, in norms of the gradient of the module


@dataclasses.dataclass(frozen=True)
class Case:
    """A tiny network and what goes in.

    Attributes:
      model: a module of `medjax.models`. arguments: of its `make`.
      image: (b, *patch, m). corpus, modality, task: of every sample. masked: grid of the hidden
        tokens.
      prompts: of every sample, a name for each of its queries, see `prompts`.
      slack: factor on the tolerance of gradients, for networks whose norms amplify rounding.
    """

    model: str
    arguments: Mapping[str, Any]
    image: tuple[int, ...]
    corpus: tuple[int, ...] = ()
    modality: tuple[int, ...] = ()
    masked: tuple[int, ...] = ()
    task: tuple[int, ...] = ()
    prompts: tuple[str, ...] = ()
    slack: float = 1.0


SIDES = {
    "features": (3, 4, 5),
    "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2)),
    "kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3)),
}
PLANE = {
    "features": (3, 4, 5),
    "strides": ((1, 1), (2, 1), (2, 2)),
    "kernels": ((3, 3), (1, 3), (3, 3)),
}
TWO_CORPORA = {"head": "corpus_softmax", "corpus_channels": ((0, 2), (1, 2))}
SHARED = {"corpus_channels": ((0, 2), (1, 2), (3,)), "share_heads": (0, 1, 1)}
BLOCK, FLAT = (2, 4, 8, 12), (2, 16, 12)  # batch and sides
TRANSFORMER = {
    "variant": "t",
    "channels": (3, 4, 6),
    "strides": ((2, 2, 2), (1, 2, 2)),
    "vit_width": 12,
    "vit_layers": 2,
    "vit_heads": 3,
    "vit_mlp_ratio": 2,
}
TRUNK = {"channels": (3, 4, 6), "strides": ((2, 2, 2), (1, 2, 2)), "variant": "stunet_s"}
UNETR = {"feature_size": 6, "depths": (2, 1, 1, 1), "heads": (1, 2, 3, 6), "window": 3}
TOKENS = {"width": 6, "window": 3, "patch_size": 2, "mlp_ratio": 2.0}
DEEP = {**TOKENS, "depths": (2, 1, 1), "heads": (1, 2, 3)}
SWIN = {**TOKENS, "depths": (2, 1), "heads": (1, 2)}
SPACE = {"width": 6, "depths": (2, 1), "heads": (1, 2), "window": 2, "patch_size": 2, "dims": 3}
THREE = {"experts_in": "both", "modalities": 3}
TWO_TASKS = {**UNETR, "classes": 1, "dims": 2, "in_channels": 2, "tasks": 2, "fusion_width": 12}
LOW_RANK = {"kind": "dynamic_low_rank", "rank": 2, "k2": 3}
VOLUME = {
    "patch_size": (2, 4, 4),
    "width": 16,
    "layers": 2,
    "heads": 2,
    "hidden": 24,
}
PROMPTED = {
    **VOLUME,
    "frame": (4, 8, 8),
    "decoder_heads": 2,
    "decoder_hidden": 12,
    "text_width": 6,
    "all_masks": True,
}
QUERIES = ("points+text", "box", "text", "points")
SLICES = (3, 24, 48)  # of the two-stage ones the deeper grid is 6 x 12, of the others 3 x 6

CASES = {
    "unet": Case("unet", {"classes": 3, **SIDES}, (*BLOCK, 2)),
    "unet_2d_multitalent": Case(
        "unet", {"classes": 3, **PLANE, "up_bias": False, "head_bias": False}, (*FLAT, 1)
    ),
    "unet_corpus_heads": Case(
        "unet", {"classes": 3, **SIDES, **TWO_CORPORA}, (*BLOCK, 1), corpus=(1, 0)
    ),
    "resenc": Case("resenc", {"classes": 3, **SIDES, "blocks": (1, 2)}, (*BLOCK, 2)),
    "resenc_2d": Case("resenc", {"classes": 3, **PLANE, "blocks": (1, 2)}, (*FLAT, 1)),
    "resenc_multitalent": Case(
        "resenc",
        {"classes": 3, "preset": "multitalent", **SIDES, "blocks": (1, 2), **TWO_CORPORA},
        (*BLOCK, 1),
        corpus=(1, 0),
    ),
    "tsfm": Case("tsfm", {"classes": 3, **TRANSFORMER, "proj_kernel": (3, 3)}, (*BLOCK, 1)),
    "tsfm_bare": Case(
        "tsfm",
        {
            "classes": 3,
            **TRANSFORMER,
            "stem": "conv_bare",
            "shortcut_from": "activated",
            "final_norm": False,
            "position": "sincos",
            "bottleneck_residual": True,
            "scan": "none",
            **TWO_CORPORA,
        },
        (*BLOCK, 2),
        corpus=(1, 0),
    ),
    "tsfm_2d": Case("tsfm", {"classes": 3, **TRANSFORMER, "strides": ((2, 2), (2, 1))}, (*FLAT, 1)),
    "tsfm_without_transformer": Case(
        "tsfm", {"classes": 3, **TRANSFORMER, "vit": False}, (*BLOCK, 1)
    ),
    "stunet": Case("tsfm", {"classes": 3, **TRUNK, "blocks": 2}, (*BLOCK, 1)),
    "swin_unetr": Case("swin_unetr", {"classes": 3, **UNETR}, (1, 32, 64, 64, 1)),
    "swin_unetr_legacy_xyz": Case(
        "swin_unetr",
        {"classes": 3, **UNETR, "merging": "legacy", "weight_axes": "xyz", "window": (2, 3, 4)},
        (1, 64, 32, 64, 1),
    ),
    "swin_unetr_2d": Case(
        "swin_unetr", {"classes": 3, **UNETR, "dims": 2, "in_channels": 2}, (2, 64, 96, 2)
    ),
    "swin_unetr_v2": Case(
        "swin_unetr",
        {
            "classes": 3,
            **UNETR,
            "dims": 2,
            "use_v2": True,
            "norm": "instance_affine",
            "normalise": False,
            "bias_index": "geometric",
            **TWO_CORPORA,
        },
        (2, 64, 128, 1),
        corpus=(1, 0),
    ),
    "mast_pro": Case(
        "mast_pro",
        {**TWO_TASKS, "mlp": LOW_RANK, "theta_hidden": 10},
        (2, 64, 32, 2),
        task=(1, 0),
    ),
    "universal": Case(
        "universal", {"classes": 3, **UNETR, "dims": 2, "merging": "legacy"}, (2, 64, 96, 1)
    ),
    "swin_unet": Case("swin_unet", {"classes": 3, **DEEP, "head": "sigmoid"}, (*SLICES, 1)),
    "swin_unet_heads": Case(
        "swin_unet",
        {"classes": 4, **DEEP, **SHARED, "in_channels": 2},
        (*SLICES, 2),
        corpus=(2, 0, 1),
    ),
    "swin_unet_heads_by_channels": Case(
        "swin_unet",
        {
            "classes": 4,
            **SWIN,
            "share_heads": "channels",
            "corpus_channels": ((0, 2), (1, 3), (2, 0)),
        },
        (*SLICES, 1),
        corpus=(2, 0, 1),
    ),
    "swin_unet_gate": Case(
        "swin_unet", {"classes": 3, **SWIN, **THREE, "head": "sigmoid"}, (*SLICES, 1)
    ),
    "swin_unet_gate_image": Case(
        "swin_unet",
        {
            "classes": 3,
            **SWIN,
            "experts_in": "encoder",
            "experts": 2,
            "gate_scope": "image",
            "head": "sigmoid",
        },
        (*SLICES, 1),
    ),
    "swin_unet_channel_gate": Case(
        "swin_unet",
        {"classes": 3, **SWIN, **THREE, "routing": "channel_gate", "head": "sigmoid"},
        (*SLICES, 1),
    ),
    "swin_unet_hard_gather": Case(
        "swin_unet",
        {
            "classes": 3,
            **SWIN,
            **THREE,
            "routing": "hard",
            "dispatch": "gather",
            "head": "sigmoid",
        },
        (*SLICES, 1),
        modality=(2, 0, 1),
    ),
    "swin_unet_hard_mask": Case(
        "swin_unet",
        {
            "classes": 3,
            **SWIN,
            "modalities": 3,
            "experts_in": "decoder",
            "routing": "hard",
            "dispatch": "mask",
            "expert_of": (1, 0, 1),
            "head": "sigmoid",
        },
        (*SLICES, 1),
        modality=(2, 0, 1),
    ),
    "swin_unet_3d": Case(
        "swin_unet", {"classes": 3, **SPACE, **THREE, "head": "sigmoid"}, (2, 8, 16, 8, 1)
    ),
    "masked_swin": Case(
        "masked_swin", {**DEEP, "experts_in": "none"}, (*SLICES, 1), masked=(12, 24)
    ),
    "masked_swin_experts": Case(
        "masked_swin",
        {
            **SWIN,
            "depths": (1, 2),
            "window": 6,
            "modalities": 3,
            "keep_shift": True,
            "epsilon": 1e-6,
            "in_channels": 2,
        },
        (*SLICES, 2),
        modality=(2, 0, 1),
        masked=(12, 24),
    ),
    "masked_swin_3d": Case(
        "masked_swin", {**SPACE, "experts_in": "none"}, (2, 8, 16, 8, 1), masked=(4, 8, 4)
    ),
    "hermes": Case(
        "hermes",
        {
            "classes": 3,
            "base": 4,
            "blocks": (1, 1, 1, 1, 1),
            "modality_tokens": 2,
            "modalities": 2,
            "corpus_channels": ((0, 2), (0, 1, 2)),
        },
        (2, 48, 64, 1),
        corpus=(1, 0),
        modality=(0, -1),
        slack=20.0,
    ),
    "masked_vit": Case("masked_vit", VOLUME, (2, 4, 8, 8, 1), masked=(2, 2, 2)),
    "segvol": Case("segvol", {"classes": 3, **PROMPTED}, (2, 4, 8, 8, 1), prompts=QUERIES),
    "segvol_release_with_masks": Case(
        "segvol",
        {"classes": 3, **PROMPTED, "mode": "release", "mask_input": True, "free_text": True},
        (2, 4, 8, 8, 1),
        prompts=QUERIES,
    ),
    "segvol_priors": Case(
        "segvol",
        {"classes": 3, **PROMPTED, "prior": "additive_token", "modalities": 2},
        (2, 4, 8, 8, 1),
        modality=(1, 0),
        prompts=QUERIES,
    ),
    "segvol_prototypes": Case(
        "segvol",
        {"classes": 3, **PROMPTED, "prior": "inner_product", "modalities": 2},
        (2, 4, 8, 8, 1),
        modality=(1, -1),
        prompts=QUERIES,
    ),
}
ONE_OF_A_KIND = (  # the first one of every network, and those with gradients
    "unet",
    "unet_2d_multitalent",
    "resenc_2d",
    "stunet",
    "tsfm",
    "tsfm_2d",
    "swin_unet",
    "swin_unet_gate",
    "swin_unetr_2d",
    "masked_swin",
    "masked_swin_3d",
    "universal",
    "mast_pro",
    "hermes",
    "segvol",
    "masked_vit",
)


def random(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float32 numbers that depend on the name and the shape."""
    return np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape).astype(np.float32)


def parameters(abstract: Any) -> Any:
    """Arrays for a tree of shapes: kernels of gain 1, scales about 1, all else far from 0."""

    def fill(keys: Any, leaf: Any) -> np.ndarray:
        name = path_of(keys)
        noise = random(name, leaf.shape)
        if name.endswith("scale"):
            return 1 + 0.3 * noise
        if name.endswith("gate/kernel"):
            return 2 * noise / np.sqrt(leaf.shape[0])
        if name.endswith(("bias", "token", "pos", "b1", "b2")):  # rel_bias too
            return 0.4 * noise
        fan = leaf.shape[-2] if name.endswith(("w1", "w2")) else np.prod(leaf.shape[:-1])
        return 1.4 * noise / np.sqrt(fan)

    return jax.tree_util.tree_map_with_path(fill, abstract)


def path_of(keys: Any) -> str:
    """Key path -> "encoder_0/conv_0/norm/scale"."""
    return "/".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in keys)


def inputs(case: Case) -> tuple[jax.Array, dict[str, jax.Array] | None]:
    """(image, context)."""
    context = {"corpus": case.corpus, "modality": case.modality, "task": case.task}
    context = {name: jnp.array(given, jnp.int32) for name, given in context.items() if given}
    if case.masked:
        context["masked"] = jnp.asarray(random("masked", (case.image[0], *case.masked)) > 0.3)
    if case.prompts:
        context |= prompts(case)
    return jnp.asarray(random("image", case.image)), context or None


def prompts(case: Case) -> dict[str, jax.Array]:
    """A query for every name of prompts ("points+text"); what is not named is there and unused."""
    b, q, sides = case.image[0], len(case.prompts), np.array(case.image[1:-1])
    has = np.array([[k in name for k in ("points", "box", "text")] for name in case.prompts])
    kind = np.tile([1, 0, -1, 1, *[-2] * 17], (b, q, 1))
    first = np.abs(random("box", (b, q, 3))) % 2
    grid = sides // case.arguments["patch_size"]
    found = {
        "points": np.abs(random("points", (b, q, 21, 3))) * sides / 3,
        "point_kind": kind.astype(np.int32),
        "box": np.concatenate([first, first + 2], -1),
        "has": np.tile(has, (b, 1, 1)),
        "text": np.tile(np.array([0, -1, 2, 1], np.int32), (b, 1)),
    }
    if case.arguments.get("free_text"):
        found["text"][0, 2] = -2
        found["vector"] = random("vector", (b, q, case.arguments["text_width"]))
    if case.arguments.get("mask_input"):
        found["mask"] = random("mask", (b, q, *(4 * n for n in grid)))
        found["mask"][:, 0] = 0  # no mask
    if case.arguments.get("prior"):
        found["task"] = np.tile(np.array([0, 2, -1, 1], np.int32), (b, 1))
    wide = {np.dtype("float64"): np.float32}
    return {
        f"prompt_{name}": jnp.asarray(value.astype(wide.get(value.dtype, value.dtype)))
        for name, value in found.items()
    }


def run(
    case: Case, *, gradients: bool = True
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """({output: array}, {parameter: gradient of the scalar}); {} without gradients."""
    scalar, params = _scalar(case)
    f = jax.value_and_grad(scalar, has_aux=True) if gradients else lambda p: (scalar(p), {})
    (_, outputs), grads = jax.jit(f, compiler_options=_quick())(params)
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    return jax.tree.map(np.asarray, (outputs, {path_of(keys): g for keys, g in leaves}))


def both_modes(case: Case) -> tuple[float, float, float]:
    """Change of the scalar along a direction: forward mode, reverse mode, and the size of its
    parts.
    """
    scalar, params = _scalar(case)
    moved = jax.tree.map(lambda p: jnp.asarray(random("moved", p.shape), p.dtype), params)

    def f(params: Any, moved: Any) -> tuple[Any, Any, Any]:
        change = jax.jvp(lambda p: scalar(p)[0], (params,), (moved,))[1]
        gradients = jax.grad(lambda p: scalar(p)[0])(params)
        parts = [
            (g * m).sum() for g, m in zip(*map(jax.tree.leaves, (gradients, moved)), strict=True)
        ]
        sizes = [jnp.linalg.norm(jnp.ravel(g)) for g in jax.tree.leaves(gradients)]
        return change, sum(parts), jnp.stack(sizes).max()

    found = jax.jit(f, compiler_options=_quick())(params, moved)
    return tuple(float(v) for v in found)


def _scalar(case: Case) -> tuple[Any, Any]:
    """(parameters -> (scalar, outputs), parameters)."""
    module = build("models", case.model, **case.arguments)
    image, context = inputs(case)
    initialise = importlib.import_module("medjax.models.context").initialise  # of a mutant as well
    params = parameters(
        jax.eval_shape(lambda key: initialise(module, key, image), jax.random.key(0))
    )

    def scalar(params: Any) -> tuple[Any, dict[str, Any]]:
        found = module.apply({"params": params}, image, context)
        leaves = jax.tree_util.tree_leaves_with_path(found)
        outputs = {path_of(keys): y for keys, y in leaves if y.dtype != bool}
        total = 0.0
        for name, y in outputs.items():
            total += (jnp.where(jnp.isfinite(y), y, 0) * random(name, y.shape)).sum() / y.size**0.5
        return total, outputs

    return scalar, params


@functools.cache
def _quick() -> dict[str, bool]:
    """XLA:CPU compiles these programs in half the time without its newer fusions, where it can."""
    options = {"xla_cpu_use_fusion_emitters": False}
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(jnp.negative, compiler_options=options)(0.0)
    except jax.errors.JaxRuntimeError:  # a version that no longer knows the option
        return {}
    return options


def fingerprint(outputs: Mapping[str, np.ndarray], gradients: Mapping[str, np.ndarray]) -> dict:
    """What is stored.

    Returns: {"outputs": {name: {"shape", "mean", "std", "values"}}, "gradients": {module: [norm,
      dot]}}. Statistics leave -inf out, which stands as null among the values; `dot` is the product
      with fixed numbers, so that signs count.
    """
    shown = {}
    for name, y in outputs.items():
        finite = y[np.isfinite(y)].astype(np.float64)
        places = np.random.default_rng(zlib.crc32(name.encode())).integers(0, y.size, VOXELS)
        values = [float(v) if np.isfinite(v) else None for v in y.reshape(-1)[places]]
        mean, std = float(finite.mean()), float(finite.std())
        shown[name] = {"shape": list(y.shape), "mean": mean, "std": std, "values": values}
    sums: dict[str, list[float]] = {}
    for name, g in gradients.items():
        norm, dot = sums.setdefault(name.split("/")[0], [0.0, 0.0])
        g = g.astype(np.float64)
        sums[name.split("/")[0]] = [norm + (g**2).sum(), dot + (g * random(name, g.shape)).sum()]
    return {
        "outputs": shown,
        "gradients": {name: [float(norm**0.5), float(dot)] for name, (norm, dot) in sums.items()},
    }


def deviations(found: Mapping, stored: Mapping) -> dict[str, float]:
    """{what: deviation in tolerances}; more than 1 is wrong. What one of the two lacks is inf.

    Only what `found` has: gradients are not missed where none were taken.
    """
    wrong = {}
    for name in {*found["outputs"], *stored["outputs"]}:
        wrong[name] = _output(found["outputs"].get(name), stored["outputs"].get(name))
    for name in {*found["gradients"], *stored["gradients"]} if found["gradients"] else ():
        a, b = found["gradients"].get(name), stored["gradients"].get(name)
        unit = GRADIENT * (b[0] if b else 0.0)
        wrong[f"gradient of {name}"] = _worst(a, b, unit) if a and b else np.inf
    return wrong


def _output(a: Mapping | None, b: Mapping | None) -> float:
    if a is None or b is None or a["shape"] != b["shape"]:
        return np.inf
    numbers = [[x["mean"], x["std"], *x["values"]] for x in (a, b)]
    if [v is None for v in numbers[0]] != [v is None for v in numbers[1]]:
        return np.inf
    return _worst(*([v for v in row if v is not None] for row in numbers), OUTPUT * b["std"])


def _worst(a: list[float], b: list[float], unit: float) -> float:
    worst = np.abs(np.subtract(a, b)).max() / max(unit, 1e-12)
    return float(worst) if np.isfinite(worst) else np.inf


@functools.cache
def stored() -> dict[str, dict]:
    """Name of the case -> its fingerprint in the file."""
    return json.loads(STORED.read_text()) if STORED.is_file() else {}


def _text(found: Mapping[str, Mapping]) -> str:
    """JSON with one line per output and module; seven digits."""

    def lines() -> Iterator[str]:
        for name, case in found.items():
            yield f"{json.dumps(name)}: {{"
            for part, entries in case.items():
                body = ",\n".join(f"   {json.dumps(k)}: {_short(v)}" for k, v in entries.items())
                yield f"  {json.dumps(part)}: {{\n{body}\n  }}" + ("," if part == "outputs" else "")
            yield "}" + ("," if name != list(found)[-1] else "")

    return "{\n" + "\n".join(lines()) + "\n}\n"


def _short(value: Any) -> str:
    rounded = json.loads(
        json.dumps(value), parse_float=lambda digits: float(f"{float(digits):.7g}")
    )
    return json.dumps(rounded)


def main(arguments: list[str]) -> int:
    """See the module's docstring."""
    names = [name for name in arguments if name != "--write"] or list(CASES)
    found = dict(stored())
    for name in names:
        new = fingerprint(*run(CASES[name]))
        if name in found:
            what, worst = max(deviations(new, found[name]).items(), key=lambda item: item[1])
            print(f"{name:30} {worst:10.4f} tolerances, {what}")
        else:
            print(f"{name:30} new")
        found[name] = new
    if "--write" in arguments:
        STORED.write_text(_text({name: found[name] for name in CASES if name in found}))
        print(f"wrote {STORED}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
