"""One training step of nnU-Net's plain U-Net: here and in PyTorch, interleaved in one run. Prints
JSON.

    python -m benchmarks.step [--patch 40 56 40] [--batch 2] [--base 32] [--runs 5]

Both sides: forward, backward, clipping to norm 12, SGD with Nesterov momentum and coupled weight
decay; sigmoid cross-entropy and soft Dice at every resolution with nnU-Net's weights. Times are
wall and process CPU seconds; quote the ratio, machines differ. Needs the `parity` extra.
"""

from benchmarks import harness, training_step

CLASSES = 3


def ours(patch, batch, base):
    """Our step."""
    from medjax.models import unet

    net = unet.make(CLASSES, patch=patch, spacing_mm=(1.0,) * len(patch), base_features=base)
    return training_step.supervised(net, patch, batch, CLASSES)


def theirs(patch, batch, base):
    """The step of PyTorch's PlainConvUNet."""
    from benchmarks.peers import nnunet
    from medjax.topology import features_per_stage, topology

    shape = topology((1.0,) * len(patch), patch)
    features = features_per_stage(len(shape.strides), base)
    net = nnunet.plain_unet(features, shape.strides, shape.kernels, CLASSES)
    return training_step.supervised_peer(net, patch, batch, CLASSES)


def main():
    """Measures and prints."""
    given = harness.parser(__doc__, patch=(40, 56, 40), batch=2, base=32, runs=5).parse_args()
    size = given.patch, given.batch, given.base
    sides = {"medjax": ours(*size), "torch": theirs(*size)}
    found = harness.in_turns({name: one.step for name, one in sides.items()}, given.runs)
    kinds = ("wall", "cpu")
    seconds = {name: {k: found.median(k, 3)[name] for k in kinds} for name in sides}
    ratios = {k: found.ratio("medjax", "torch", k) for k in kinds}
    harness.show(
        {"given": vars(given), "seconds": seconds, "medjax over torch": ratios}, indent=None
    )


if __name__ == "__main__":
    main()
