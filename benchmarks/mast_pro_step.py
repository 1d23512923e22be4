r"""A training step of MAST-Pro's second stage with a frozen backbone, the same with everything
tuned, and MONAI's SwinUNETR in PyTorch: seconds in turns in one process, memory of each alone.

    python -m benchmarks.mast_pro_step FROZEN TUNED [--rounds 7] [--out FILE]

FROZEN and TUNED are run folders of `benchmarks.mast_pro` (`full` and `full_tuning`). MONAI's
network has their backbone's feature size, patch and batch, one channel; AdamW tunes all of it.
The steps of medjax hold the augmentation and the losses of their recipes, MONAI's neither prompts
nor augmentation. Memory: what a process holds more at its peak, after two steps, than once its
packages were imported.
"""

from pathlib import Path
from typing import Any

from benchmarks import harness, training_step

SIDES = ("frozen", "tuned", "monai")
CLASSES = 1  # a tumour mask


def monai(folder: Path) -> training_step.Theirs:
    """The peer of a run folder's backbone."""
    import torch

    from benchmarks import network_steps
    from medjax.runs.trained import read_model

    config = read_model(folder).config
    entry = {
        "model": "swin_unetr",
        "patch": tuple(config.train.patch),
        "classes": CLASSES,
        "arguments": {"feature_size": config.model.options["feature_size"]},
    }
    net = network_steps.build_peer(entry, "cpu")
    step = training_step.supervised_peer(net, entry["patch"], config.train.batch, CLASSES)
    step.optimizer = torch.optim.AdamW(net.parameters(), config.optim.lr)
    return step


def made(side: str, folders: dict[str, Path]) -> Any:
    """() -> a step of a side."""
    if side == "monai":
        return monai(folders["frozen"]).step
    return training_step.OfRun(folders[side])


def alone(side: str, folders: dict[str, Path]) -> dict[str, float]:
    """MiB that this process comes to hold for two steps of a side."""
    import jax.numpy  # noqa: F401

    from medjax.runs import trained  # noqa: F401

    if side == "monai":
        import monai.networks.nets  # noqa: F401
    with harness.watched() as memory:
        step = made(side, folders)
        step()
        step()
    return {"peak_mib": round((memory.peak - memory.base) / 2**20, 1)}


def main() -> None:
    """See the module's text."""
    p = harness.parser(
        __doc__,
        rounds=7,
        out=harness.flag(help="file for the JSON"),
        alone=harness.flag("", help=None),
    )
    p.add_argument("frozen", type=Path)
    p.add_argument("tuned", type=Path)
    given = p.parse_args()
    folders = {"frozen": given.frozen, "tuned": given.tuned}
    if given.alone:
        harness.show(alone(given.alone, folders), indent=None)
        return
    words = ("benchmarks.mast_pro_step", given.frozen, given.tuned)
    held = {
        side: harness.run_json(harness.script(*words, "--alone", side), cwd=harness.ROOT)
        for side in SIDES
    }
    steps = {side: made(side, folders) for side in SIDES}
    turns = harness.in_turns(steps, given.rounds, warm=2)
    found = {
        side: held[side]
        | getattr(step, "facts", {})
        | {f"{kind}_s": turns.median(kind, 3)[side] for kind in ("wall", "cpu")}
        | {f"{kind}_to_tuned": turns.ratio(side, "tuned", kind) for kind in ("wall", "cpu")}
        for side, step in steps.items()
    }
    harness.show({"machine": harness.machine()} | found, given.out or "")


if __name__ == "__main__":
    main()
