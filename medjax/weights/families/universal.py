"""Files of the CLIP-Driven Universal Model with SwinUNETR (CC BY-NC-ND: for whoever holds one).

In: the named tensors of a checkpoint. Out: our `universal` with its arguments, and the table of
names. The published file has the backbone's names without a prefix, files of its own trainer have
`backbone.` before them. Its text vectors are a part of the file. All were trained with the merging
order "legacy" on (x, y, z) arrays.
"""

import dataclasses

from medjax.errors import ModelError
from medjax.weights.accounts import Architecture, Row, Tensors
from medjax.weights.families import swin_unetr

_PREFIX = r"(?:backbone\.)?"
_HEAD = (
    Row(r"GAP\.0\.weight", "gap_norm/scale"),
    Row(r"GAP\.0\.bias", "gap_norm/bias"),
    Row(r"GAP\.3\.weight", "gap/kernel", "point"),
    Row(r"GAP\.3\.bias", "gap/bias"),
    Row(r"precls_conv\.0\.weight", "precls/norm/scale"),
    Row(r"precls_conv\.0\.bias", "precls/norm/bias"),
    Row(r"precls_conv\.2\.weight", "precls/conv/kernel", "point"),
    Row(r"precls_conv\.2\.bias", "precls/conv/bias"),
    Row(r"controller\.weight", "controller/kernel", "point"),
    Row(r"controller\.bias", "controller/bias"),
    Row(r"text_to_vision\.weight", "text_to_vision/kernel", "linear"),
    Row(r"text_to_vision\.bias", "text_to_vision/bias"),
    Row(r"organ_embedding(\.weight)?", "text/table"),
)
TABLE = (
    *(
        dataclasses.replace(row, pattern=_PREFIX + row.pattern, path=f"backbone/{row.path}")
        for row in swin_unetr.TABLE
        if not row.path.startswith("out/")
    ),
    *_HEAD,
)
HEADS = r"(?!)"  # outputs are made from texts: no layer has a row per class
IGNORED = ((r".*\.relative_position_index", "a buffer, made again from the window"),)
ABSENT = ()


def architecture(tensors: Tensors) -> Architecture:
    """The Universal Model with the arguments that the shapes give.

    Raises: `ModelError` for other networks.
    """
    plain = {name.removeprefix("backbone."): value for name, value in tensors.items()}
    table = plain.get("organ_embedding", plain.get("organ_embedding.weight"))
    if "controller.weight" not in plain or table is None:
        raise ModelError(
            "no Universal Model",
            found=sorted(tensors)[:6],
            expected="swinViT..., controller.weight and organ_embedding",
            fix="another --family",
        )
    found = swin_unetr.architecture(plain)
    encoding = "word" if "text_to_vision.weight" in plain else "rand"
    return dataclasses.replace(
        found,
        model="universal",
        channels_out=int(table.shape[0]),
        arguments={**found.arguments, "encoding": encoding},
    )


def table(tensors: Tensors) -> tuple[Row, ...]:
    """The rows; the same for every size."""
    return TABLE
