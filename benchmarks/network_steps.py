"""The networks that `benchmarks/networks.py` times, and a training step of each: ours, and
PyTorch's on the same device (see `benchmarks/training_step.py`).
"""

import math

PAPER, TSFM = (96, 192, 192), (112, 160, 192)
RESENC = {
    "features": (30, 60, 120, 240, 320, 320),
    "strides": ((1, 1, 1), (1, 2, 2)) + ((2, 2, 2),) * 4,
    "kernels": ((1, 3, 3),) + ((3, 3, 3),) * 5,
    "blocks": (1, 2, 3, 4, 4, 4),
    "stem_kernel": (3, 3, 3),
}
UNET = {
    "features": RESENC["features"],
    "strides": ((1, 1, 1),) + ((2, 2, 2),) * 4 + ((1, 2, 2),),
    "kernels": ((3, 3, 3),) * 6,
}
SMALL = {
    "features": (8, 16, 32),
    "strides": ((1, 1, 1),) + ((2, 2, 2),) * 2,
    "kernels": ((3, 3, 3),) * 3,
}
FORK_HEADS = {"up_bias": False, "head_bias": False}
FORK = {"conv_bias": False, "up_bias": False, "skip": "strided_conv"}


def trunk(variant, strides, **given):
    return {
        "model": "tsfm",
        "arguments": {"variant": variant, "strides": strides, "vit_dropout": 0.0, **given},
    }


# Name -> patch, batch, classes, our model and its arguments. The peer is built from the same
# numbers.
NETWORKS = {
    "unet": {
        "patch": PAPER,
        "batch": 4,
        "classes": 47,
        "model": "unet",
        "arguments": {**UNET, **FORK_HEADS},
    },
    "resenc": {
        "patch": PAPER,
        "batch": 4,
        "classes": 47,
        "model": "resenc",
        "arguments": {**RESENC, **FORK},
    },
    "swin": {
        "patch": PAPER,
        "batch": 2,
        "classes": 47,
        "model": "swin_unetr",
        "arguments": {"feature_size": 48, "remat": "block"},
    },
    "tsfm_l": {
        "patch": TSFM,
        "batch": 2,
        "classes": 31,
        **trunk("l", ((2, 2, 2),) * 4 + ((1, 2, 2),), remat="block"),
    },
    "tsfm_h": {
        "patch": TSFM,
        "batch": 2,
        "classes": 31,
        **trunk("h", ((2, 2, 2),) * 4 + ((1, 2, 2),), remat="block"),
    },
    "unet_small": {
        "patch": (40, 56, 40),
        "batch": 2,
        "classes": 3,
        "model": "unet",  # configs/multitalent.py:unet_small
        "arguments": {
            **FORK_HEADS,
            "features": (16, 32, 64, 128),
            "strides": ((1, 1, 1),) + ((2, 2, 2),) * 3,
            "kernels": ((3, 3, 3),) * 4,
        },
    },
    "resenc_small": {
        "patch": (16, 32, 32),
        "batch": 2,
        "classes": 3,
        "model": "resenc",
        "arguments": {**SMALL, **FORK, "blocks": (1, 2, 2), "stem_kernel": (3, 3, 3)},
    },
    "swin_small": {
        "patch": (32, 32, 64),
        "batch": 1,
        "classes": 3,
        "model": "swin_unetr",
        "arguments": {"feature_size": 12},
    },
    "tsfm_t": {
        "patch": (40, 64, 64),
        "batch": 4,
        "classes": 4,  # configs/tsfm.py:t_small
        **trunk("t", ((2, 2, 2),) * 3 + ((1, 2, 2), (1, 1, 1))),
    },
    "tsfm_tiny": {
        "patch": (16, 16, 32),
        "batch": 1,
        "classes": 2,
        **trunk("t", ((2, 2, 2),) * 3 + ((1, 1, 1),) * 2),
    },
}


def build(entry, dtype):
    """Our network."""
    import importlib

    return importlib.import_module(f"medjax.models.{entry['model']}").make(
        entry["classes"], dtype=dtype, **entry["arguments"]
    )


def build_peer(entry, device):
    """The same network in PyTorch."""
    import torch

    from benchmarks.peers import torch_networks as peers

    torch.manual_seed(0)
    given, classes = entry["arguments"], entry["classes"]
    if entry["model"] == "unet":
        net = peers.UNet(
            classes, given["features"], given["strides"], given["kernels"], head_bias=False
        )
    elif entry["model"] == "resenc":
        shape = {k: given[k] for k in ("features", "strides", "kernels", "blocks", "stem_kernel")}
        net = peers.UNet(classes, conv_bias=False, **shape)
    elif entry["model"] == "swin_unetr":
        net = peers.SwinUNETR(
            classes, entry["patch"], given["feature_size"], save=given.get("remat") == "block"
        )
    else:
        from medjax.models.tsfm import DEFAULTS, VARIANTS

        chosen = DEFAULTS | VARIANTS[given["variant"]]
        grid = [
            n // math.prod(s[a] for s in given["strides"]) for a, n in enumerate(entry["patch"])
        ]
        vit = (
            chosen["vit_width"],
            chosen["vit_layers"],
            chosen["vit_heads"],
            chosen["proj_kernel"],
        )
        save = given.get("remat", "none") != "none"
        net = peers.Trunk(
            classes, chosen["channels"], given["strides"], chosen["blocks"], "pre", vit, grid, save
        )
    return net.to(device)


def multiply_adds(jaxpr):
    """Of convolutions and products, where a convolution depends on the platform as on any but a
    CPU; scanned layers count each.
    """
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            total += math.prod(equation.outvars[0].aval.shape) * math.prod(
                equation.invars[0].aval.shape[a] for a in contracted
            )
        elif name == "conv_general_dilated":
            kernel, numbers = equation.invars[1].aval.shape, params["dimension_numbers"]
            total += (
                math.prod(equation.outvars[0].aval.shape)
                * math.prod(kernel)
                // kernel[numbers.rhs_spec[0]]
            )
        elif name == "cond":
            total += multiply_adds(params["branches"][-1].jaxpr)
        else:
            times = params.get("length", 1) if name == "scan" else 1
            inner = [
                getattr(v, "jaxpr", v)
                for v in params.values()
                if hasattr(v, "eqns") or hasattr(getattr(v, "jaxpr", None), "eqns")
            ]
            total += times * sum(multiply_adds(j) for j in inner[:1])
    return total


def ours(entry, dtype):
    """Our step, with the multiply-adds of the forward pass as `forward_macs`."""
    import jax
    import jax.numpy as jnp

    from benchmarks import training_step

    net = build(entry, dtype)
    image = jax.ShapeDtypeStruct((entry["batch"], *entry["patch"], 1), jnp.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), image)["params"]
    forward = jax.make_jaxpr(
        lambda p, x: (lambda o: (o["logits"], o.get("deep", [])))(net.apply({"params": p}, x))
    )(shapes, image)
    step = training_step.supervised(
        net, entry["patch"], entry["batch"], entry["classes"], training_step.filled(shapes)
    )
    step.forward_macs = multiply_adds(forward.jaxpr)
    return step


def theirs(entry, dtype):
    """The peer's step."""
    import torch

    from benchmarks import training_step

    net = build_peer(entry, "cuda" if torch.cuda.is_available() else "cpu")
    return training_step.supervised_peer(
        net, entry["patch"], entry["batch"], entry["classes"], dtype
    )


SIDES = {"medjax": ours, "torch": theirs}
