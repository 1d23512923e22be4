"""MONAI's SwinUNETR state dict -> our parameter tree: (regex over the key, path, layout), with every key and every leaf accounted for."""

import re

import jax
import numpy as np

# Layouts: "conv" (out, in, *k) -> (*k, in, out); "up", a transposed convolution whose stride is its kernel, (in, out, *k) -> (*k, in, out) without
# a flip; "linear" (out, in) -> (in, out); "same".
TABLE = (
    (r"swinViT\.patch_embed\.proj\.weight", r"swin/patch_embed/kernel", "conv"),
    (r"swinViT\.patch_embed\.proj\.bias", r"swin/patch_embed/bias", "same"),
    (r"swinViT\.layers(\d)\.0\.blocks\.(\d)\.norm([12])\.weight", r"swin/stage\1/block\2/norm\3/scale", "same"),
    (r"swinViT\.layers(\d)\.0\.blocks\.(\d)\.norm([12])\.bias", r"swin/stage\1/block\2/norm\3/bias", "same"),
    (r"swinViT\.layers(\d)\.0\.blocks\.(\d)\.attn\.relative_position_bias_table", r"swin/stage\1/block\2/attn/rel_bias", "same"),
    (r"swinViT\.layers(\d)\.0\.blocks\.(\d)\.attn\.(qkv|proj)\.weight", r"swin/stage\1/block\2/attn/\3/kernel", "linear"),
    (r"swinViT\.layers(\d)\.0\.blocks\.(\d)\.attn\.(qkv|proj)\.bias", r"swin/stage\1/block\2/attn/\3/bias", "same"),
    (r"swinViT\.layers(\d)\.0\.blocks\.(\d)\.mlp\.linear([12])\.weight", r"swin/stage\1/block\2/mlp/fc\3/kernel", "linear"),
    (r"swinViT\.layers(\d)\.0\.blocks\.(\d)\.mlp\.linear([12])\.bias", r"swin/stage\1/block\2/mlp/fc\3/bias", "same"),
    (r"swinViT\.layers(\d)\.0\.downsample\.norm\.weight", r"swin/merge\1/norm/scale", "same"),
    (r"swinViT\.layers(\d)\.0\.downsample\.norm\.bias", r"swin/merge\1/norm/bias", "same"),
    (r"swinViT\.layers(\d)\.0\.downsample\.reduction\.weight", r"swin/merge\1/reduction/kernel", "linear"),
    (r"swinViT\.layers(\d)c\.0\.layer\.conv([123])\.conv\.weight", r"swin/conv\1/conv\2/kernel", "conv"),
    (r"encoder(\d+)\.layer\.conv([123])\.conv\.weight", r"encoder\1/conv\2/kernel", "conv"),
    (r"decoder(\d)\.transp_conv\.conv\.weight", r"decoder\1/up/kernel", "up"),
    (r"decoder(\d)\.conv_block\.conv([123])\.conv\.weight", r"decoder\1/block/conv\2/kernel", "conv"),
    (r"out\.conv\.conv\.weight", r"out/kernel", "conv"),
    (r"out\.conv\.conv\.bias", r"out/bias", "same"),
)
DROPPED = (r".*\.relative_position_index",)  # buffers, made again from the window


def permutation(layout: str, ndim: int) -> tuple[int, ...]:
    """Axes of the PyTorch tensor in our order."""
    spatial = tuple(range(2, ndim))
    return {"conv": (*spatial, 1, 0), "up": (*spatial, 0, 1), "linear": (1, 0), "same": tuple(range(ndim))}[layout]


def place(key: str) -> tuple[str, str] | None:
    """(path, layout) of a key, None for dropped ones; KeyError unless exactly one row fits."""
    rows = [(re.fullmatch(pattern, key), path, layout) for pattern, path, layout in TABLE]
    found = [(match.expand(path), layout) for match, path, layout in rows if match]
    if not found and any(re.fullmatch(pattern, key) for pattern in DROPPED):
        return None
    if len(found) != 1:
        raise KeyError(f"{key}: {len(found)} rows of the table fit")
    return found[0]


def convert(state: dict[str, np.ndarray], shapes) -> dict:
    """The state dict as parameters of the given (abstract) tree; KeyError for keys, leaves or shapes that do not meet."""
    leaves = {"/".join(k.key for k in path): leaf for path, leaf in jax.tree.leaves_with_path(shapes)}
    filled = {}
    for key, value in state.items():
        where = place(key)
        if where is None:
            continue
        path, layout = where
        array = np.transpose(value, permutation(layout, value.ndim))
        if path not in leaves or path in filled or array.shape != leaves[path].shape:
            raise KeyError(f"{key} {value.shape} -> {path}: {leaves.get(path)}, {'filled twice' if path in filled else 'does not fit'}")
        filled[path] = array.astype(leaves[path].dtype)
    if missing := set(leaves) - set(filled):
        raise KeyError(f"not filled: {sorted(missing)}")
    return jax.tree.map_with_path(lambda path, _: filled["/".join(k.key for k in path)], shapes)
