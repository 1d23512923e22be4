"""SegVol: the published file of 475 tensors, and files of its encoder alone; both ways.

In: the named tensors (`pytorch_model.bin`: prefix "model."; SegVol_v1.pth: "module.";
`vit_pretrain.ckpt`: "model.encoder."). Out: our SegVol with its arguments, and the table of names.
Sizes follow from the shapes; patches are taken to be four times wider than deep, heads to have 64
channels in the encoder and 96 in the decoder, as published, unless the caller says otherwise.

Two parts of the file are no parameters of our network and are kept beside them (`extras`), so that
`export` gives the file back byte by byte: a branch for two-dimensional masks that cannot run on
volumes, and CLIP's text tower with its position numbers.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from medjax.errors import ModelError
from medjax.weights import accounts
from medjax.weights.accounts import Architecture, Row, Tensors
from medjax.weights.adapters import rules_of

HEADS = r"$^"  # no layer has an output per class
# Arguments of the network that belong to the weights: another value would compute something else.
BOUND: Mapping[str, Any] = {"pe_order": "release"}
FIELDS: Mapping[str, Any] = {"task": "prompted"}  # of the run's config
CLASSES_FROM_DATA = True  # the network has a text per class and no output of its own
KEPT = "kept in extras.safetensors for the way back"
EXTRAS = r"prompt_encoder\.mask_downscaling\..*|text_encoder\.clip_text_model\..*"
IGNORED = (
    (r"image_encoder\.blocks\.\d+\.(norm_)?cross_attn\..*", "extra keys of newer MONAI versions"),
    (r"prompt_encoder\.mask_downscaling\..*", f"masks in two dimensions, unused; {KEPT}"),
    (r"text_encoder\.clip_text_model\..*", f"CLIP's text tower; {KEPT}"),
)
ENCODER = ((r"(prompt|decoder|text)/.*", "not in a file of the encoder alone; starts fresh"),)
ABSENT = ((r"text/table", "a vector per class name, filled from texts"),)
TEXTS = "text/table"
# parameters beside adapters that were trained themselves, and are a part of an adapter
PROMPT_VECTORS = r"^prompt/(points|not_a_point|no_mask)"


def adapted_rules(rank: int) -> tuple[tuple[str, int | str], ...]:
    """The rules of an adapter of this rank in a file of the adaptation (`weights.peft`)."""
    return rules_of("segvol", rank, PROMPT_VECTORS)


def adapted_names(tensors: Tensors) -> dict[str, tuple[str, str]]:
    """`names` of a file's own layers, with its prefix."""
    arguments, prefix = architecture(tensors).arguments, prefix_of(tensors)
    found = names(arguments["layers"], arguments.get("decoder_layers", 0))
    return {f"{prefix}{name}": leaf for name, leaf in found.items()}


def unprefixed(tensors: Tensors) -> dict[str, np.ndarray]:
    """The tensors without the program's own prefix; an encoder alone as `image_encoder....`."""
    prefix = prefix_of(tensors)
    found = {name.removeprefix(prefix): value for name, value in tensors.items()}
    if found and all(name.startswith("encoder.") for name in found):
        return {f"image_{name}": value for name, value in found.items()}
    return found


def prefix_of(tensors: Tensors) -> str:
    """What stands before every name."""
    return "model." if tensors and all(name.startswith("model.") for name in tensors) else ""


def extras(tensors: Tensors) -> dict[str, np.ndarray]:
    """The tensors that are no parameters but belong to the file, without prefix."""
    found = unprefixed(tensors)
    return {name: value for name, value in found.items() if re.fullmatch(EXTRAS, name)}


def gathered(tensors: Tensors) -> dict[str, np.ndarray]:
    """Tensors that are one parameter here, joined under a name with "*" or "+".

    Raises: `ModelError` if one of them is missing.
    """
    found = unprefixed(tensors)
    for name, parts in JOINED.items():
        there = [part for part in parts if part in found]
        if there and len(there) < len(parts):
            missing = next(part for part in parts if part not in found)
            raise ModelError("one of a series of tensors is missing", found=there, expected=missing)
        if there:
            found[name] = np.concatenate([found.pop(part) for part in parts])
    return found


def architecture(tensors: Tensors) -> Architecture:
    """SegVol with the arguments that the shapes give, in the mode "release".

    Raises: `ModelError` for other networks, and for patches of another form.
    """
    found = unprefixed(tensors)
    shapes = {name: tuple(int(n) for n in value.shape) for name, value in found.items()}
    kernel = shapes.get("image_encoder.patch_embedding.patch_embeddings.1.weight")
    table = shapes.get("image_encoder.patch_embedding.position_embeddings")
    if kernel is None or table is None or not (layers := _count(found, r"image_encoder\.blocks")):
        raise ModelError(
            "no SegVol",
            found=sorted(tensors)[:6],
            expected="image_encoder.patch_embedding..., image_encoder.blocks...",
            fix="another --family",
        )
    width, voxels = kernel
    finer = shapes.get("mask_decoder.output_upscaling.1.weight")
    deep = round((table[1] / 4) ** (1 / 3))
    grid = tuple(n // 2 for n in finer[1:]) if finer else (deep, 2 * deep, 2 * deep)
    side = round((voxels / 16) ** (1 / 3))
    patch = (side, 4 * side, 4 * side)
    if 16 * side**3 != voxels or np.prod(grid) != table[1]:
        raise ModelError(
            "patches or grid of another form than SegVol's",
            found=f"{voxels} voxels per patch, {table[1]} tokens",
            expected="patches four times wider than deep, and a grid that the decoder confirms",
        )
    frame = tuple(n * p for n, p in zip(grid, patch, strict=True))
    arguments: dict[str, Any] = {
        "mode": "release",
        **BOUND,
        "frame": frame,
        "patch_size": patch,
        "width": width,
        "layers": layers,
        "heads": max(width // 64, 1),
        "hidden": shapes["image_encoder.blocks.0.mlp.linear1.weight"][0],
        "decoder_heads": max(width // 96, 1),
    }
    if finer:
        arguments |= {
            "decoder_layers": _count(found, r"mask_decoder\.transformer\.layers"),
            "decoder_hidden": shapes["mask_decoder.transformer.layers.0.mlp.lin1.weight"][0],
            "text_width": shapes["text_encoder.dim_align.weight"][1],
        }
    return Architecture("segvol", 1, 1, arguments, sides=frame)


def _count(tensors: Mapping[str, Any], pattern: str) -> int:
    """Number of layers whose names begin with the pattern."""
    return len({m[1] for name in tensors if (m := re.match(rf"{pattern}\.(\d+)\.", name))})


def absent(tensors: Tensors) -> tuple[tuple[str, str], ...]:
    """Parameters that the file may lack."""
    alone = all(name.startswith("image_encoder.") for name in unprefixed(tensors))
    return (*ABSENT, *ENCODER) if alone else ABSENT


def names(layers: int, decoder_layers: int) -> dict[str, tuple[str, str]]:
    """Tensor name -> (path in our tree, layout) of a network, joined tensors as one.

    Layouts are those of `accounts.LAYOUTS`, and "patch", "grid" and "map", which depend on sizes.
    """
    found: dict[str, tuple[str, str]] = {}

    def linear(name: str, path: str, bias: bool = True) -> None:
        found[f"{name}.weight"] = (f"{path}/kernel", "linear")
        if bias:
            found[f"{name}.bias"] = (f"{path}/bias", "same")

    def norm(name: str, path: str) -> None:
        found[f"{name}.weight"] = (f"{path}/scale", "same")
        found[f"{name}.bias"] = (f"{path}/bias", "same")

    patch = "image_encoder.patch_embedding.patch_embeddings.1"
    found[f"{patch}.weight"] = ("encoder/patch_embed/kernel", "patch")
    found[f"{patch}.bias"] = ("encoder/patch_embed/bias", "same")
    found["image_encoder.patch_embedding.position_embeddings"] = ("encoder/pos", "grid")
    for i in range(layers):
        block, ours = f"image_encoder.blocks.{i}", f"encoder/block{i}"
        norm(f"{block}.norm1", f"{ours}/ln1")
        norm(f"{block}.norm2", f"{ours}/ln2")
        linear(f"{block}.attn.qkv", f"{ours}/qkv", bias=False)
        linear(f"{block}.attn.out_proj", f"{ours}/out")
        linear(f"{block}.mlp.linear1", f"{ours}/fc1")
        linear(f"{block}.mlp.linear2", f"{ours}/fc2")
    norm("image_encoder.norm", "encoder/ln_f")
    matrix = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    found[matrix] = ("prompt/gaussian", "same")
    found[POINTS] = ("prompt/points", "same")
    for name in ("not_a_point", "no_mask"):
        found[f"prompt_encoder.{name}_embed.weight"] = (f"prompt/{name}", "row")
    found[TOKENS] = ("decoder/tokens", "same")
    attentions = {
        "self_attn": "self",
        "cross_attn_token_to_image": "to_image",
        "cross_attn_image_to_token": "to_token",
    }
    for i in range(decoder_layers):
        layer, ours = f"mask_decoder.transformer.layers.{i}", f"decoder/layer{i}"
        for theirs, mine in attentions.items():
            for part in ("q", "k", "v", "out"):
                linear(f"{layer}.{theirs}.{part}_proj", f"{ours}/{mine}/{part}")
        for j in (1, 2):
            linear(f"{layer}.mlp.lin{j}", f"{ours}/mlp/lin{j}")
        for j in (1, 2, 3, 4):
            norm(f"{layer}.norm{j}", f"{ours}/norm{j}")
    for part in ("q", "k", "v", "out"):
        last = f"mask_decoder.transformer.final_attn_token_to_image.{part}_proj"
        linear(last, f"decoder/final/{part}")
    norm("mask_decoder.transformer.norm_final_attn", "decoder/norm_final")
    for theirs, ours in ((0, "up1"), (3, "up2")):
        found[f"mask_decoder.output_upscaling.{theirs}.weight"] = (f"decoder/{ours}/kernel", "up")
        found[f"mask_decoder.output_upscaling.{theirs}.bias"] = (f"decoder/{ours}/bias", "same")
    for theirs, ours in (("weight", "scale"), ("bias", "bias")):
        found[f"mask_decoder.output_upscaling.1.{theirs}"] = (f"decoder/up_norm/{ours}", "map")
    for j in range(3):
        for i in range(4):
            mlp = f"mask_decoder.output_hypernetworks_mlps.{i}.layers.{j}"
            linear(mlp, f"decoder/hyper{i}/l{j}")
        linear(f"mask_decoder.iou_prediction_head.layers.{j}", f"decoder/iou/l{j}")
    linear("mask_decoder.txt_align_upscaled_embedding", "decoder/text")
    linear("text_encoder.dim_align", "text/align")
    return found


POINTS = "prompt_encoder.point_embeddings.*.weight"
TOKENS = "mask_decoder.iou_token+mask_tokens.weight"
JOINED: Mapping[str, tuple[str, ...]] = {
    POINTS: tuple(f"prompt_encoder.point_embeddings.{i}.weight" for i in range(4)),
    TOKENS: ("mask_decoder.iou_token.weight", "mask_decoder.mask_tokens.weight"),
}


def table(tensors: Tensors) -> tuple[Row, ...]:
    """The rows for the sizes of these tensors, see `gathered`."""
    arguments = architecture(tensors).arguments
    patch, frame = arguments["patch_size"], arguments["frame"]
    grid = tuple(n // p for n, p in zip(frame, patch, strict=True))
    own = {
        "patch": lambda a: a.T.reshape(*patch, 1, a.shape[0]),
        "grid": lambda a: a.reshape(*grid, a.shape[-1]),
        "map": lambda a: np.moveaxis(a, 0, -1),
        "row": lambda a: a[0],
    }
    wanted = names(arguments["layers"], arguments.get("decoder_layers", 0))
    return tuple(
        Row(re.escape(name), path, own.get(layout, layout))
        for name, (path, layout) in wanted.items()
    )


# the ways back of the layouts
_BACK = {
    "same": lambda a: a,
    "linear": lambda a: a.T,
    "up": lambda a: np.moveaxis(a, (-2, -1), (0, 1)),
    "patch": lambda a: a.reshape(-1, a.shape[-1]).T,
    "grid": lambda a: a.reshape(1, -1, a.shape[-1]),
    "map": lambda a: np.moveaxis(a, -1, 0),
    "row": lambda a: a[None],
}


def export(params: Any, kept: Tensors, prefix: str = "model.") -> dict[str, np.ndarray]:
    """The file's tensors of a parameter tree and the tensors kept at import; see `names`.

    The table of texts, `text/table`, is no part of the file.

    Raises: `ModelError` for parameters that the file has no place for (priors, adapters), and for
      a tree without some of its parts.
    """
    shapes = accounts.shapes_of(params)
    counts = [
        len({m[1] for path in shapes if (m := re.match(rf"{part}(\d+)/", path))})
        for part in ("encoder/block", "decoder/layer")
    ]
    wanted = names(*counts)
    paths = {path for path, _ in wanted.values()}
    more = sorted(set(shapes) - paths - {TEXTS})
    if more or paths - set(shapes):
        raise ModelError(
            "the parameters are not those of a SegVol file",
            found=f"more: {accounts.some(more)}; missing: "
            f"{accounts.some(sorted(paths - set(shapes)))}",
            fix="merge adapters first; priors and mask inputs have no place in the file",
        )
    found = {}
    for name, (path, layout) in wanted.items():
        value = params
        for key in path.split("/"):
            value = value[key]
        found[name] = np.ascontiguousarray(_BACK[layout](np.asarray(value)))
    for name, parts in JOINED.items():
        joined = found.pop(name)
        sizes = [1] * 4 if name == POINTS else [1, len(joined) - 1]
        found |= dict(zip(parts, np.split(joined, np.cumsum(sizes)[:-1]), strict=True))
    return {f"{prefix}{name}": value for name, value in (found | dict(kept)).items()}
