"""The networks that `benchmarks/networks.py` times, and a training step of each: ours, and
PyTorch's on the same device.

A step: forward, backward, clipping to norm 12, SGD with Nesterov momentum and coupled weight decay;
sigmoid cross-entropy and soft Dice at every resolution with nnU-Net's weights.
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

    from benchmarks import torch_networks as peers

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


class Ours:
    """medjax on the default device: `compile()` once, then `step()`."""

    def __init__(self, entry, dtype):
        import jax
        import jax.numpy as jnp
        import numpy as np

        from medjax.losses import cross_entropy, dice
        from medjax.losses.parts import deep
        from medjax.train import optim

        self.jax, classes, batch, patch = jax, entry["classes"], entry["batch"], entry["patch"]
        net = build(entry, dtype)
        image = jax.ShapeDtypeStruct((batch, *patch, 1), jnp.float32)
        shapes = jax.eval_shape(net.init, jax.random.key(0), image)["params"]
        self.parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
        forward = jax.make_jaxpr(
            lambda p, x: (lambda o: (o["logits"], o.get("deep", [])))(net.apply({"params": p}, x))
        )(shapes, image)
        self.forward_macs = multiply_adds(forward.jaxpr)
        rng = np.random.default_rng(0)

        def fill(
            leaf,
        ):  # fan-in scaled numbers; norms' scales and biases alike, which costs nothing here
            fan = math.prod(leaf.shape[:-1]) or 1
            return (
                jax.random.normal(
                    jax.random.key(int(rng.integers(1 << 30))), leaf.shape, leaf.dtype
                )
                * (2 / fan) ** 0.5
            )

        params = (
            jax.tree.map(fill, shapes)
            if jax.default_backend() != "cpu"
            else jax.tree.map(
                lambda leaf: jnp.asarray(
                    rng.normal(size=leaf.shape) * (2 / (math.prod(leaf.shape[:-1]) or 1)) ** 0.5,
                    jnp.float32,
                ),
                shapes,
            )
        )
        optimizer = optim.make(steps=1000)
        self.state = {"params": params, "opt": jax.jit(optimizer.tx.init)(params)}
        table = np.eye(classes + 1, classes, -1, dtype=bool)[None].repeat(batch, 0)
        self.data = {
            "image": jnp.asarray(rng.normal(size=image.shape), jnp.float32),
            "label": jnp.asarray(rng.integers(0, classes + 1, (batch, *patch)), jnp.int32),
            "table": jnp.asarray(table),
            "known": jnp.ones((batch, classes), bool),
        }
        losses = [("cross_entropy", 1.0, cross_entropy.make()), ("dice", 1.0, dice.make())]

        def step(state, data):
            def loss(p):
                return deep.total(
                    losses, net.apply({"params": p}, data["image"], None, True), data
                )[0]

            value, gradients = jax.value_and_grad(loss)(state["params"])
            updates, opt = optimizer.tx.update(gradients, state["opt"], state["params"])
            return {"params": jax.tree.map(jnp.add, state["params"], updates), "opt": opt}, value

        self.function = jax.jit(step, donate_argnums=0)

    def compile(self):
        lowered = self.function.lower(self.state, self.data)
        self.function = lowered.compile()
        sizes = self.function.memory_analysis()
        self.planned = (
            None if sizes is None else sizes.temp_size_in_bytes + sizes.argument_size_in_bytes
        )
        self.step()

    def step(self):
        self.state, value = self.function(self.state, self.data)
        self.loss = float(value)

    def memory(self):
        """GiB at the peak: what the allocator saw, and what the compiled program plans (arguments
        and temporaries).
        """
        stats = self.jax.devices()[0].memory_stats() or {}
        seen = stats.get("peak_bytes_in_use")
        return {
            k: v and round(v / 2**30, 2) for k, v in (("seen", seen), ("planned", self.planned))
        }

    def close(self):
        self.state = self.data = self.function = None
        self.jax.clear_caches()


class Theirs:
    """The peer: torch.compile on a GPU, eager on a CPU."""

    def __init__(self, entry, dtype):
        import torch

        from medjax.losses.parts import deep

        self.torch, self.device = torch, "cuda" if torch.cuda.is_available() else "cpu"
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
        patch, batch, classes = entry["patch"], entry["batch"], entry["classes"]
        self.net = build_peer(entry, self.device).train()
        self.parameters = sum(p.numel() for p in self.net.parameters())
        self.optimizer = torch.optim.SGD(
            self.net.parameters(), 0.01, momentum=0.99, nesterov=True, weight_decay=3e-5
        )
        self.image = torch.randn(batch, 1, *patch, device=self.device)
        self.label = torch.randint(0, classes + 1, (batch, *patch), device=self.device)
        half = dtype == "bfloat16"

        def loss(image, label):
            with torch.autocast(self.device, torch.bfloat16, enabled=half):
                outputs = self.net(image)
            total = 0.0
            for weight, logits in zip(deep.weights(len(outputs)), outputs, strict=True):
                if weight:
                    logits = logits.float()
                    stride = [n // k for n, k in zip(patch, logits.shape[2:], strict=True)]
                    small = label[
                        :,
                        stride[0] // 2 :: stride[0],
                        stride[1] // 2 :: stride[1],
                        stride[2] // 2 :: stride[2],
                    ]
                    target = (
                        small[:, None]
                        == torch.arange(1, classes + 1, device=label.device)[
                            None, :, None, None, None
                        ]
                    ).float()
                    p = torch.sigmoid(logits)
                    overlap, volume = (
                        (p * target).sum((0, 2, 3, 4)),
                        p.sum((0, 2, 3, 4)) + target.sum((0, 2, 3, 4)),
                    )
                    entropy = (
                        torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
                        * classes
                    )
                    total = total + weight * (
                        entropy - (2 * overlap / volume.clamp(min=1e-7)).sum()
                    )
            return total

        self.loss_of = torch.compile(loss) if self.device == "cuda" else loss

    def compile(self):
        self.step()
        if self.device == "cuda":
            self.torch.cuda.reset_peak_memory_stats()
        self.step()

    def step(self):
        self.optimizer.zero_grad(set_to_none=True)
        value = self.loss_of(self.image, self.label)
        value.backward()
        self.torch.nn.utils.clip_grad_norm_(self.net.parameters(), 12)
        self.optimizer.step()
        self.loss = float(value.detach())  # waits for the device

    def memory(self):
        seen = self.torch.cuda.max_memory_allocated() if self.device == "cuda" else None
        return {"seen": seen and round(seen / 2**30, 2)}

    def close(self):
        self.net = self.optimizer = self.loss_of = self.image = self.label = None
        if self.device == "cuda":
            self.torch.cuda.empty_cache()


SIDES = {"medjax": Ours, "torch": Theirs}
