"""One training step of nnU-Net's plain U-Net: here and in PyTorch, interleaved in one run. Prints
JSON.

    python -m benchmarks.step [--patch 40 56 40] [--batch 2] [--base 32] [--runs 5]

Both sides: forward, backward, clipping to norm 12, SGD with Nesterov momentum and coupled weight
decay; sigmoid cross-entropy and soft Dice at every resolution with nnU-Net's weights. Times are
wall and process CPU seconds; quote the ratio, machines differ. Needs the `parity` extra.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from medjax.losses import cross_entropy, dice
from medjax.losses.parts import deep
from medjax.models import unet
from medjax.train import optim


def ours(patch, batch, base, classes=3):
    """() -> None running one step on the default device."""
    net = unet.make(classes, patch=patch, spacing_mm=(1.0,) * len(patch), base_features=base)
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.normal(size=(batch, *patch, 1)), jnp.float32)
    label = jnp.asarray(rng.integers(0, classes + 1, (batch, *patch)), jnp.int32)
    table = jnp.asarray(np.eye(classes + 1, classes, -1, dtype=bool)[None].repeat(batch, 0))
    data = {"label": label, "table": table, "known": jnp.ones((batch, classes), bool)}
    losses = [("cross_entropy", 1.0, cross_entropy.make()), ("dice", 1.0, dice.make())]
    optimizer = optim.make(steps=1000)
    params = net.init(jax.random.key(0), image)["params"]
    state = {"params": params, "opt": optimizer.tx.init(params)}

    @jax.jit
    def step(state):
        def loss(p):
            return deep.total(losses, net.apply({"params": p}, image, None, True), data)[0]

        gradients = jax.grad(loss)(state["params"])
        updates, opt = optimizer.tx.update(gradients, state["opt"], state["params"])
        return {"params": jax.tree.map(jnp.add, state["params"], updates), "opt": opt}

    held = {"state": state}

    def run():
        held["state"] = jax.block_until_ready(step(held["state"]))

    return run


def theirs(patch, batch, base, classes=3):
    """The same step of PyTorch's PlainConvUNet on the CPU."""
    import torch
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    from medjax.models.topology import features_per_stage, topology

    found = topology((1.0,) * len(patch), patch)
    torch.manual_seed(0)
    net = PlainConvUNet(
        1,
        len(found.strides),
        features_per_stage(len(found.strides), base),
        torch.nn.Conv3d,
        found.kernels,
        found.strides,
        2,
        classes,
        2,
        conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )
    optimizer = torch.optim.SGD(
        net.parameters(), 0.01, momentum=0.99, nesterov=True, weight_decay=3e-5
    )
    image, label = torch.randn(batch, 1, *patch), torch.randint(0, classes + 1, (batch, *patch))
    weights = deep.weights(len(found.strides) - 1)

    def run():
        optimizer.zero_grad()
        total = 0.0
        for weight, logits in zip(weights, net(image), strict=True):
            if weight:
                stride = [n // k for n, k in zip(patch, logits.shape[2:], strict=True)]
                small = label[
                    :,
                    stride[0] // 2 :: stride[0],
                    stride[1] // 2 :: stride[1],
                    stride[2] // 2 :: stride[2],
                ]
                target = (
                    torch.nn.functional.one_hot(small, classes + 1)[..., 1:]
                    .permute(0, 4, 1, 2, 3)
                    .float()
                )
                p = torch.sigmoid(logits)
                overlap, volume = (
                    (p * target).sum((0, 2, 3, 4)),
                    p.sum((0, 2, 3, 4)) + target.sum((0, 2, 3, 4)),
                )
                entropy = (
                    torch.nn.functional.binary_cross_entropy_with_logits(logits, target) * classes
                )
                total = total + weight * (entropy - (2 * overlap / volume).sum())
        total.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 12)
        optimizer.step()

    return run


def main():
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patch", nargs=3, type=int, default=(40, 56, 40))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--base", type=int, default=32)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    sides = {
        "medjax": ours(tuple(given.patch), given.batch, given.base),
        "torch": theirs(tuple(given.patch), given.batch, given.base),
    }
    seconds = {name: {"wall": [], "cpu": []} for name in sides}
    for i in range(given.runs + 1):  # the first round compiles and warms up
        for name, run in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            if i:
                seconds[name]["wall"].append(time.perf_counter() - wall)
                seconds[name]["cpu"].append(time.process_time() - cpu)
    medians = {
        name: {k: round(statistics.median(v), 3) for k, v in kinds.items()}
        for name, kinds in seconds.items()
    }
    pairs = {
        k: [a / b for a, b in zip(seconds["medjax"][k], seconds["torch"][k], strict=True)]
        for k in ("wall", "cpu")
    }
    ratio = {k: round(statistics.median(v), 2) for k, v in pairs.items()}
    print(json.dumps({"given": vars(given), "seconds": medians, "medjax over torch": ratio}))


if __name__ == "__main__":
    main()
