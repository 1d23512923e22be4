r"""Seconds per scan of one network for all corpora, of one network per corpus one after the other,
and of an ensemble of folds. Prints JSON.

    python -m benchmarks.ensemble        # a synthetic scan, small networks: seconds
    python -m benchmarks.ensemble --data FOLDER --variant unet --patch 96 192 192 \
      --spacing 1.5 1 1 --mirror --rounds 5

All three give the masks of every class of MultiTalent's corpora (13 corpora, 47 classes) for the
same scan, on its grid, through `medjax.infer`: one network once, one network per corpus with that
corpus' classes, and the joint network of `--folds` folds as an ensemble. Weights are random, which
changes no work: every window is computed whatever it shows; only painting depends on what is found.
A first round compiles; the others are interleaved. Times are wall and process CPU seconds; quote
the ratios, machines differ.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from benchmarks import harness
from configs import multitalent
from medjax.infer.model import Model
from medjax.infer.segmenter import Segmenter
from medjax.labels import LabelSpace, merge
from medjax.prepare.plan import Intensity, Plan
from medjax.prompts.request import Request
from medjax.registry import plain
from medjax.runs import build
from medjax.runs import open as corpora
from medjax.runs.settings.schema import Config, resolve
from medjax.scans import nifti
from tests.support.run import random_params

CT = Intensity("ct", (-927.0, 275.0), 63.4, 175.5)


def predictor(
    config: Config, space: LabelSpace, spacing_mm: tuple, members: int, settings: dict
) -> Segmenter:
    """An ensemble of `members` networks of the config with random parameters; one is a network
    alone.
    """
    net = build.make_network(config, space, spacing_mm)
    first, *others = (random_params(net.abstract(), seed) for seed in range(members))
    plan = Plan(
        {corpus.store: spacing_mm for corpus in space.corpora},
        {c: CT for corpus in space.corpora for c in corpus.channels},
    )
    return Segmenter(Model(net.apply, first, plan, space, net.patch), ensemble=others, **settings)


def contenders(
    config: Config, space: LabelSpace, spacing_mm: tuple, folds: int, settings: dict
) -> dict[str, Callable[[nifti.Volume], int]]:
    """Name -> scan -> number of masks; each call does all of the work, preparation included."""
    joint, ensemble = (
        predictor(config, space, spacing_mm, members, settings) for members in (1, folds)
    )
    alone = {c.name: predictor(config, merge((c,)), spacing_mm, 1, settings) for c in space.corpora}
    first = space.corpora[0].name

    def together(made: Segmenter) -> Callable[[nifti.Volume], int]:
        return lambda volume: len(made.segment(volume, Request(first, space.classes)).masks.names)

    def one_by_one(volume: nifti.Volume) -> int:
        return sum(
            len(made.segment(volume, Request(name)).masks.names) for name, made in alone.items()
        )

    return {
        "joint": together(joint),
        "per corpus": one_by_one,
        f"{folds} folds": together(ensemble),
    }


def compare(calls: dict[str, Callable], volume: nifti.Volume, rounds: int) -> dict:
    """Seconds of every contender: its first call, then in turn; the ratio to the joint network is
    the median over rounds.
    """
    turns = harness.in_turns({n: lambda f=f: f(volume) for n, f in calls.items()}, rounds)
    return {
        name: {
            "first_s": round(turns.first[name], 2),
            "masks": turns.results[name],
            **{f"{k}_s": [round(v, 3) for v in turns.seconds[k][name]] for k in ("wall", "cpu")},
            **{f"{k}_ratio": turns.ratio(name, "joint", k) for k in ("wall", "cpu")},
        }
        for name in calls
    }


def synthetic(shape: Sequence[int], spacing_mm: Sequence[float], folder: Path) -> Path:
    """Smooth noise as a CT scan, (z, y, x) voxels."""
    coarse = np.random.default_rng(0).normal(50, 150, [-(-n // 4) for n in shape])
    array = coarse.repeat(4, 0).repeat(4, 1).repeat(4, 2)[: shape[0], : shape[1], : shape[2]]
    nib.save(
        nib.Nifti1Image(np.rint(array).astype(np.int16).T, np.diag([*spacing_mm[::-1], 1.0])),
        folder / "synthetic.nii.gz",
    )
    return folder / "synthetic.nii.gz"


def main() -> None:
    """Compares on every scan."""
    args = harness.parser(
        __doc__,
        data=harness.flag(
            type=Path, help="folder of NIfTI scans (CT, one channel); default: a synthetic one"
        ),
        variant=harness.flag("unet_small", help="of configs/multitalent.py: the network"),
        arguments=harness.flag(
            {"base_features": 8}, type=json.loads, help="more arguments of the network, JSON"
        ),
        patch=(16, 32, 32),
        spacing=harness.flag((3.0, 2.0, 2.0), help="of the networks' grid, mm (z, y, x)"),
        shape=harness.flag((24, 48, 48), help="of the synthetic scan"),
        corpora=harness.flag(13, help="how many of the 13 corpora"),
        folds=5,
        mirror=harness.flag(False, help="average over the eight mirror images"),
        rounds=3,
    ).parse_args()
    fields, spacing = plain(multitalent.get_config(args.variant)), args.spacing
    fields["model"] |= args.arguments
    fields["train"]["patch"] = args.patch
    config, pool = resolve(fields), resolve(plain(multitalent.get_config("unet"))).data
    space = merge(
        corpora.open_data(pool, Path(), files=False).space.corpora[: args.corpora], "per_corpus"
    )
    settings = {
        "mirror_axes": (0, 1, 2) if args.mirror else (),
        "activation": config.infer.activation,
    }
    calls = contenders(config, space, spacing, args.folds, settings)
    with tempfile.TemporaryDirectory() as folder:
        scans = (
            [p for p in sorted(args.data.iterdir()) if p.name.endswith((".nii", ".nii.gz"))]
            if args.data
            else []
        )
        for scan in scans or [synthetic(args.shape, spacing, Path(folder))]:
            volume = nifti.read(scan)
            described = {
                "scan": scan.name,
                "shape": volume.shape,
                "corpora": len(space.corpora),
                "classes": len(space.classes),
            }
            described |= {"patch": args.patch, "network": config.model.as_given()}
            harness.show(described | compare(calls, volume, args.rounds))


if __name__ == "__main__":
    main()
