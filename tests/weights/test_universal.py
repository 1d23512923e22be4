"""Files of the Universal Model, from synthetic tensors with the names and shapes of the published
file.
"""

import jax
import numpy as np
import pytest

from medjax.errors import ModelError
from medjax.weights import accounts
from medjax.weights.families import swin_unetr, universal
from tests.weights.test_families import _converted, _swin_tensors

RNG = np.random.default_rng(5)
HEAD = {  # at feature size 12: 192 channels in the deepest map
    "GAP.0.weight": (192,),
    "GAP.0.bias": (192,),
    "GAP.3.weight": (256, 192, 1, 1, 1),
    "GAP.3.bias": (256,),
    "precls_conv.0.weight": (12,),
    "precls_conv.0.bias": (12,),
    "precls_conv.2.weight": (8, 12, 1, 1, 1),
    "precls_conv.2.bias": (8,),
    "controller.weight": (153, 512, 1, 1, 1),
    "controller.bias": (153,),
    "text_to_vision.weight": (256, 512),
    "text_to_vision.bias": (256,),
    "organ_embedding": (32, 512),
}


def _file(prefix="", **changed):
    body = {f"{prefix}{k}": v for k, v in _swin_tensors().items() if not k.startswith("out.")}
    buffers = {
        k.replace("bias_table", "index"): np.zeros((343, 343)) for k in body if "bias_table" in k
    }
    shapes = {k: s for k, s in (HEAD | changed).items() if s}
    head = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return body | buffers | head


@pytest.mark.parametrize("prefix", ["", "backbone."], ids=["published", "own trainer"])
def test_every_tensor_has_its_place(prefix):
    given = _file(prefix)
    tensors = accounts.tensors_of({"net": {f"module.{k}": v for k, v in given.items()}})
    assert len(tensors) == 170  # spec 5: 157 of the backbone with 8 buffers, and 13
    found, tree, account = _converted(universal, tensors)
    assert (found.model, found.channels_out) == ("universal", 32)
    assert found.arguments["merging"] == "legacy" and found.arguments["weight_axes"] == "xyz"
    assert len(account.matched) == 162 and not account.absent
    controller = given["controller.weight"][..., 0, 0, 0]
    np.testing.assert_array_equal(tree["controller"]["kernel"], controller.T)
    np.testing.assert_array_equal(tree["text"]["table"], given["organ_embedding"])
    plain = {k.removeprefix(prefix): v for k, v in given.items()}
    plain = {k: v for k, v in plain.items() if k not in HEAD} | {
        "out.conv.conv.weight": np.zeros((1, 12, 1, 1, 1), np.float32),
        "out.conv.conv.bias": np.zeros(1, np.float32),
    }
    backbone = _converted(swin_unetr, plain)[1]
    del backbone["out"]
    jax.tree.map(np.testing.assert_array_equal, tree["backbone"], backbone)


def test_the_variant_with_learned_names_and_what_is_refused():
    changed = {"text_to_vision.weight": (), "text_to_vision.bias": (), "organ_embedding": ()}
    found, tree, _ = _converted(universal, _file(**changed, **{"organ_embedding.weight": (7, 256)}))
    assert found.arguments["encoding"] == "rand" and found.channels_out == 7
    assert tree["text"]["table"].shape == (7, 256)
    with pytest.raises(ModelError, match="another --family"):
        universal.architecture(_swin_tensors())
