"""How the compiler is asked to build the programs of a training.

XLA:GPU gives convolutions of three axes the channels-first layout, although medjax' arrays have
their channels last: cuDNN then transposes inside to reach the tensor cores, and every product
beside a convolution is transposed to and fro.
"""

from collections.abc import Mapping
from typing import Any

import jax

from medjax.errors import UsageError, did_you_mean

CONV_LAYOUTS = ("auto", "nhwc", "xla")
CUDA = ("cuda", "gpu")  # platforms, as jax calls them


def options(mesh: Any, conv_layout: str = "auto") -> Mapping[str, bool] | None:
    """`compiler_options` of `jax.jit` for programs on a mesh; None without any.

    Args:
      conv_layout: "auto" and "nhwc": convolutions with channels last, on NVIDIA cards (other
        devices have no such choice); "xla": as the compiler prefers.

    Raises: `UsageError` for another word.
    """
    if conv_layout not in CONV_LAYOUTS:
        raise UsageError(
            f"unknown train.conv_layout {conv_layout!r}",
            expected=" or ".join(CONV_LAYOUTS),
            fix=did_you_mean(conv_layout, CONV_LAYOUTS),
        )
    if conv_layout == "xla" or isinstance(mesh, jax.sharding.AbstractMesh):
        return None
    if mesh.devices.flat[0].platform not in CUDA:
        return None
    return {"xla_gpu_force_conv_nhwc": True}
