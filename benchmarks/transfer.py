r"""Pre-training on other corpora against training from scratch: Dice after few steps on few cases,
and the learning curves.

    python -m benchmarks.transfer --data DIR --out DIR [--steps 1500] [--parallel 3] \
      [--size full|cpu|try]

DIR as for `benchmarks.multi_corpus`. TSFM's smallest network is pre-trained on the heart and both
sarcoma sets for N steps; then 20 hippocampus cases are learned from there in N/10 steps (or the
`--percents` given), and from scratch in as many and in N steps: the same network, patch, batch,
optimizer and cases. All are scored on the same held-out cases. Writes transfer.json, .md and .png.
"""

import argparse
import json
from pathlib import Path

from benchmarks import trainings
from benchmarks.multi_corpus import TASKS

CONFIG = "configs/tsfm.py:t_small"
CLASSES = ("Anterior", "Posterior")
KINDS = {"finetuned": "pre-trained", "scratch": "scratch"}


def splits(data: Path, out: Path, cases: int) -> Path:
    """A split file: fold 0 as usual, with only the first `cases` hippocampus cases (in a seeded
    order) left to train on.
    """
    import numpy as np

    from medjax.corpora.sources import scan_corpus
    from medjax.corpora.splits import make_splits

    found = {
        corpus.name: members for corpus, members, _ in (scan_corpus(data / task) for task in TASKS)
    }
    fold = make_splits(found)[0]
    ours = sorted(name for name in fold["train"] if name.startswith("Hippocampus/"))
    kept = {ours[i] for i in np.random.default_rng(0).permutation(len(ours))[:cases]}
    fold["train"] = [name for name in fold["train"] if name in kept or name not in set(ours)]
    path = out / "splits.json"
    path.write_text(json.dumps([fold]))
    return path


SIZES = {  # full is the config's
    "full": (),
    "cpu": ("train.patch=32,48,48", "train.batch=2", "train.validation_batches=10"),
    "try": ("train.patch=16,32,32", "train.batch=2", "train.validation_batches=2"),
}


def flags(data: Path, out: Path, split: Path, size: str) -> tuple[str, ...]:
    """What all runs share."""
    return (
        f"--config.data.folders={trainings.folders(data, TASKS)}",
        f"--config.data.store={out / 'store'}",
        f"--config.data.split.file={split}",
        "--config.evaluate.montages=2",
        "--config.infer.batch_windows=4",
        *(f"--config.{field}" for field in SIZES[size]),
    )


def of_length(steps: int) -> tuple[str, ...]:
    """The flags that depend on a run's length."""
    every = max(steps // 15, 1)
    return (
        f"--config.train.steps={steps}",
        f"--config.train.validate_every={every}",
        f"--config.train.checkpoint_every={steps}",
        f"--config.train.log_every={every}",
    )


def main() -> None:
    """Runs and writes."""
    parser = trainings.parser(__doc__, SIZES, "cpu: a smaller patch and batch; try: tiny")
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument(
        "--percents",
        type=int,
        nargs="+",
        default=(10,),
        help="lengths of the short runs, of --steps",
    )
    given = parser.parse_args()
    out, data = given.out.resolve(), given.data.resolve()
    out.mkdir(parents=True, exist_ok=True)
    shared = flags(data, out, splits(data, out, given.cases), given.size)
    trainings.prepare(CONFIG, shared, out)
    ours = (*shared, "--config.data.only=Hippocampus")
    others = "--config.data.only=Heart,SarcomaCT,SarcomaMR"
    begun = f"--config.init.source={out / 'pretrained'}"
    flagged = {
        "pretrained": (
            (*shared, others, *of_length(given.steps), "--config.evaluate.on=False"),
            "",
        ),
        "scratch_100": ((*ours, *of_length(given.steps)), ""),
    }
    for percent in given.percents:
        short = (*ours, *of_length(part(given.steps, percent)))
        flagged[f"scratch_{percent}"] = short, ""
        flagged[f"finetuned_{percent}"] = (*short, begun), "pretrained"
    jobs = {
        name: trainings.training(CONFIG, out, name, words, after)
        for name, (words, after) in flagged.items()
    }
    status = trainings.run(jobs, out, given.parallel, given.timeout)
    report(out, given, status)


def part(steps: int, percent: int) -> int:
    """That share of the steps, at least one."""
    return max(steps * percent // 100, 1)


def report(out: Path, given: argparse.Namespace, status: dict) -> None:
    """The comparison from the run folders."""
    rows, found, curves = [], {}, {}
    runs = [
        (f"{kind}_{p}", title, part(given.steps, p))
        for p in given.percents
        for kind, title in KINDS.items()
    ]
    for name, kind, steps in (*runs, ("scratch_100", KINDS["scratch"], given.steps)):
        title = f"{kind}, {steps} steps"
        table = trainings.cells(out / name)
        cells = [table.get(("Hippocampus", c)) for c in CLASSES]
        means = [cell["mean"] for cell in cells if cell and cell["mean"] is not None]
        seconds = trainings.training_seconds(out / name)
        mean = f"{sum(means) / len(means):.3f}" if len(means) == len(CLASSES) else "-"
        shown = " | ".join(trainings.shown(cell) for cell in cells)
        rows.append(f"| {kind} | {steps} | {shown} | {mean} | {seconds or 0:.0f} |")
        found[name] = {"dice": dict(zip(CLASSES, cells, strict=True)), "seconds": seconds}
        curves[title] = trainings.curve(out / name, CLASSES)
    n = next((cell["n"] for run in found.values() for cell in run["dice"].values() if cell), "-")
    text = [
        f"{given.cases} training cases, {n} held out; pre-training {given.steps} steps. Mean Dice "
        "[95 % interval over patients].",
        "",
        "| run | steps | Anterior | Posterior | mean | training s |",
        "|---|---|---|---|---|---|",
        *rows,
        *(
            f"Failed: {name} (rc {entry['rc']})"
            for name, entry in status.items()
            if entry["rc"] != 0
        ),
    ]
    account = out / f"finetuned_{given.percents[0]}" / "transfer.json"
    moved = json.loads(account.read_text()) if account.is_file() else None
    facts = {
        "given": {k: str(v) for k, v in vars(given).items()},
        "runs": found,
        "curves": curves,
        "transfer": moved,
        "status": status,
    }
    trainings.write(out, "transfer", facts, "\n".join(text))
    trainings.plot(
        out / "transfer.png",
        curves,
        f"Hippocampus, {given.cases} training cases",
        "step",
        "Dice on held-out patches",
    )


if __name__ == "__main__":
    main()
