"""One training step of M4oE at paper size, here and in PyTorch, interleaved in one run. Prints JSON
and, with --out, writes it.

    python -m benchmarks.m4oe_step                                    # CPU: batch 2, float32
    python -m benchmarks.m4oe_step --batch 36 --dtype bfloat16        # GPU: images per second
    python -m benchmarks.m4oe_step --side 64 --window 2 --width 24    # small

Both sides: forward, backward, AdamW; 0.4 cross-entropy + 0.6 squared Dice per slice, heads of 14, 3
and 16 classes, three modalities mixed in the batch, drop path 0.2; with bfloat16 ours computes in
it and PyTorch autocasts to it. Routings: the soft mixture on both sides, hard routing, and plain
MLPs. Without torch only our side runs. Quote ratios, machines differ. Needs the `parity` extra.
"""

import argparse
import json
import os
import statistics
import time

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
import optax

from medjax.losses import softmax_cross_entropy, softmax_dice
from medjax.models import swin_unet

CHANNELS = (tuple(range(13)), (13, 14), tuple(range(15, 30)))  # kept apart, as in M4oE
ROUTINGS = {"soft": ("both", "gate"), "hard": ("both", "hard"), "dense": ("none", "gate")}


def batch_of(given):
    """Image, labels, and which head and modality each sample has."""
    rng = np.random.default_rng(0)
    which = np.arange(given.batch) % 3
    image = rng.normal(size=(given.batch, given.side, given.side, 1)).astype(np.float32)
    label = np.stack(
        [rng.integers(0, 1 + len(CHANNELS[h]), (given.side, given.side)) for h in which]
    ).astype(np.int32)
    return image, label, which


def ours(given, routing):
    """() -> None, one step; blocks until it is done."""
    place, kind = ROUTINGS[routing]
    net = swin_unet.make(
        30,
        corpus_channels=CHANNELS,
        modalities=3,
        experts_in=place,
        routing=kind,
        dtype=given.dtype,
        width=given.width,
        window=given.window,
        heads=[h * given.width // 96 or 1 for h in (3, 6, 12, 24)],
    )
    image, label, which = (jnp.asarray(a) for a in batch_of(given))
    table = np.zeros((3, 16, 30), bool)
    for corpus, channels in enumerate(CHANNELS):
        table[corpus, 1 + np.arange(len(channels)), list(channels)] = True
    batch = {
        "label": label,
        "table": jnp.asarray(table)[which],
        "known": jnp.asarray(table.any(1))[which],
        "corpus": which,
    }
    context = {"corpus": which, "modality": which}
    losses = ((0.4, softmax_cross_entropy.make()), (0.6, softmax_dice.make()))
    tx = optax.adamw(5e-4, weight_decay=1e-4)

    @jax.jit
    def init():
        params = net.init(jax.random.key(0), image[:1])["params"]
        return params, tx.init(params)

    def step(state, key):
        params, opt = state

        def loss(p):
            outputs = net.apply({"params": p}, image, context, True, rngs={"dropout": key})
            return sum(weight * f(outputs, batch) for weight, f in losses)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, opt = tx.update(gradient, opt, params)
        return (optax.apply_updates(params, updates), opt), value

    update = jax.jit(step, donate_argnums=0)
    held = {"state": init(), "count": 0}

    def run(steps=1):
        for _ in range(steps):
            held["count"] += 1
            held["state"], value = update(held["state"], jax.random.key(held["count"]))
        held["loss"] = float(jax.block_until_ready(value))
        return held["loss"]

    return run


def theirs(given, routing):
    """The same step in PyTorch, on the GPU if there is one."""
    import torch
    from torch.nn import functional as F

    from benchmarks.torch_swin_unet import SwinUnet

    place, kind = ROUTINGS[routing]
    mlp = kind if place == "both" else "dense"
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = (
        SwinUnet(
            [1 + len(c) for c in CHANNELS],
            given.side,
            given.width,
            heads=[h * given.width // 96 or 1 for h in (3, 6, 12, 24)],
            window=given.window,
            encoder=mlp,
            decoder=mlp,
        )
        .to(device)
        .train()
    )
    image, label, which = batch_of(given)
    image = torch.from_numpy(image).permute(0, 3, 1, 2).contiguous().to(device)
    label, modality = torch.from_numpy(label).long().to(device), torch.from_numpy(which).to(device)
    optimizer = torch.optim.AdamW(
        net.parameters(), 5e-4, weight_decay=1e-4, fused=device.type == "cuda"
    )
    forward = torch.compile(net) if given.compile else net

    def run(steps=1):
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=given.dtype == "bfloat16"):
                logits = forward(image, modality, which.tolist())
            total = 0.0
            for x, y in zip(logits, label, strict=True):
                x = x.float()
                p, hot = x.softmax(0), F.one_hot(y, len(x)).permute(2, 0, 1).float()
                overlap, volume = (p * hot).sum((1, 2)), (p * p).sum((1, 2)) + hot.sum((1, 2))
                total = (
                    total
                    + 0.4 * F.cross_entropy(x[None], y[None])
                    + 0.6 * (1 - ((2 * overlap + 1e-5) / (volume + 1e-5)).mean())
                )
            total = total / len(logits)
            total.backward()
            optimizer.step()
        return float(total.detach())

    return run


def measure(given, routing):
    """Seconds per step of both sides, rounds in turn."""
    sides = {"medjax": ours(given, routing)}
    try:
        sides["torch"] = theirs(given, routing)
    except ImportError as error:
        print(f"only our side: {error}")
    wall, cpu = {n: [] for n in sides}, {n: [] for n in sides}
    losses = {}
    for i in range(given.rounds + 1):  # the first round compiles and warms up
        for name, run in sides.items():
            began = time.perf_counter(), time.process_time()
            losses[name] = run(given.steps)
            if i:
                wall[name].append((time.perf_counter() - began[0]) / given.steps)
                cpu[name].append((time.process_time() - began[1]) / given.steps)
    found = {
        "seconds": {n: round(statistics.median(v), 4) for n, v in wall.items()},
        "loss": losses,
    }
    found["cpu seconds"] = {n: round(statistics.median(v), 4) for n, v in cpu.items()}
    found["images/s"] = {n: round(given.batch / v, 1) for n, v in found["seconds"].items()}
    if len(sides) > 1:
        for key, times in (("torch over medjax, wall", wall), ("torch over medjax, cpu", cpu)):
            found[key] = round(
                statistics.median(
                    b / a for a, b in zip(times["medjax"], times["torch"], strict=True)
                ),
                2,
            )
    return found


def main():
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--window", type=int, default=7)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="per round")
    parser.add_argument("--compile", action="store_true", help="torch.compile the peer")
    parser.add_argument("--routings", default="soft,hard,dense")
    parser.add_argument("--out", default="")
    given = parser.parse_args()
    device = jax.devices()[0]
    found = {
        "given": vars(given),
        "device": f"{device.platform} {device.device_kind}",
        "jax": jax.__version__,
        "steps": {},
    }
    for routing in given.routings.split(","):
        try:
            found["steps"][routing] = measure(given, routing)
        except Exception as error:  # one routing that does not fit must not lose the others
            found["steps"][routing] = {"failed": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps({routing: found["steps"][routing]}), flush=True)
        if given.out:
            with open(given.out, "w") as file:
                json.dump(found, file, indent=1)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
