"""Options of the compiler, by the devices of a mesh."""

import dataclasses
import types

import numpy as np
import pytest

from medjax.errors import UsageError
from medjax.runs.settings import schema
from medjax.train import compiling, sharding


def _mesh(platform):
    return types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform=platform)]))


def test_channels_are_last_on_nvidia_cards_unless_xla_shall_choose():
    wanted = {"xla_gpu_force_conv_nhwc": True}
    assert compiling.options(_mesh("cuda")) == compiling.options(_mesh("gpu"), "nhwc") == wanted
    assert compiling.options(_mesh("cuda"), "xla") is None
    for other in (_mesh("cpu"), _mesh("tpu"), sharding.layout(2, 2).abstract_mesh()):
        assert compiling.options(other, "nhwc") is None
    with pytest.raises(UsageError, match=r"train.conv_layout 'nwhc'"):
        compiling.options(_mesh("cpu"), "nwhc")


def test_the_field_is_new_and_old_configs_read_as_its_default():
    assert "conv_layout" not in schema.listed()["train"]
    assert schema.resolve({"train": {"batch": 2}}).train.conv_layout == "auto"
    changed = schema.resolve({"train": {"conv_layout": "xla"}})
    assert changed.train.conv_layout == "xla"
    assert dataclasses.is_dataclass(changed)
