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

import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import numpy as np

from benchmarks import harness, training_step
from medjax.losses import softmax_cross_entropy, softmax_dice
from medjax.models import swin_unet
from medjax.train import optim

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


def heads(given):
    """Of the four stages."""
    return [h * given.width // 96 or 1 for h in (3, 6, 12, 24)]


def ours(given, routing):
    """Our step."""
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
        heads=heads(given),
    )
    image, label, which = batch_of(given)
    table = np.zeros((3, 16, 30), bool)
    for corpus, channels in enumerate(CHANNELS):
        table[corpus, 1 + np.arange(len(channels)), list(channels)] = True
    batch = {
        "image": image,
        "label": label,
        "table": table[which],
        "known": table.any(1)[which],
        "corpus": which,
        "modality": which,
    }
    losses = [
        ("cross_entropy", 0.4, softmax_cross_entropy.make()),
        ("dice", 0.6, softmax_dice.make()),
    ]
    optimizer = optim.make(
        steps=1000, name="adamw", lr=5e-4, weight_decay=1e-4, schedule="constant", clip_norm=0.0
    )
    return training_step.Ours(net, losses, batch, optimizer, context=("corpus", "modality"))


def theirs(given, routing):
    """The same step in PyTorch, on the GPU if there is one."""
    import torch

    from benchmarks.peers import torch_losses
    from benchmarks.peers.torch_swin_unet import SwinUnet

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
            heads=heads(given),
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

    def loss():
        with torch.autocast(device.type, torch.bfloat16, enabled=given.dtype == "bfloat16"):
            logits = forward(image, modality, which.tolist())
        return torch_losses.slices(logits, label)

    return training_step.Theirs(net, optimizer, loss, clip=None)


def measure(given, routing):
    """Seconds per step of both sides, rounds in turn."""
    sides = {"medjax": ours(given, routing)}
    try:
        sides["torch"] = theirs(given, routing)
    except ImportError as error:
        print(f"only our side: {error}")

    def several(step):
        return lambda: [step() for _ in range(given.steps)][-1]

    turns = harness.in_turns({n: several(one.step) for n, one in sides.items()}, given.rounds)
    seconds = {k: {n: v / given.steps for n, v in turns.median(k).items()} for k in ("wall", "cpu")}
    found = {
        "seconds": {n: round(v, 4) for n, v in seconds["wall"].items()},
        "loss": turns.results,
        "cpu seconds": {n: round(v, 4) for n, v in seconds["cpu"].items()},
        "images/s": {n: round(given.batch / v, 1) for n, v in seconds["wall"].items()},
    }
    if len(sides) > 1:
        for kind in ("wall", "cpu"):
            found[f"torch over medjax, {kind}"] = turns.ratio("torch", "medjax", kind)
    return found


def arguments():
    """The flags."""
    return harness.parser(
        __doc__,
        batch=2,
        side=224,
        width=96,
        window=7,
        dtype=harness.flag("float32", choices=("float32", "bfloat16")),
        rounds=5,
        steps=harness.flag(1, help="per round"),
        compile=harness.flag(False, help="torch.compile the peer"),
        routings="soft,hard,dense",
        out="",
    )


def main():
    """Measures and prints."""
    given = arguments().parse_args()
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
        harness.show({routing: found["steps"][routing]}, indent=None)
    harness.show(found, given.out, indent=None)


if __name__ == "__main__":
    main()
