r"""One network for several partly annotated corpora against one network per corpus: Dice per corpus
and class, and training time.

    python -m benchmarks.multi_corpus --data DIR --out DIR [--steps 1500] [--parallel 6] \
      [--size full|cpu|try]

DIR holds Task04_Hippocampus, Task02_Heart, Task91_SarcomaCT and Task92_SarcomaMR. The hippocampus
is seen as two corpora, half of its cases annotated for Anterior only and half for Posterior only.
The joint network (MultiTalent's U-Net, small) and the single ones have the same architecture,
patch, batch, number of steps and splits; all are scored on the same held-out cases. `--longer N`
adds a joint network of N steps: with five times the steps it sees as many patches as the single
ones together. Writes multi_corpus.json, .md and .png.
"""

import argparse
from pathlib import Path

from benchmarks import trainings

CONFIG = "configs/hippocampus.py:joint"
TASKS = ("Task04_Hippocampus", "Task02_Heart", "Task91_SarcomaCT", "Task92_SarcomaMR")
SINGLES = {  # corpus or view -> (store, class) it is scored on
    "HippocampusAnterior": ("Hippocampus", "Anterior"),
    "HippocampusPosterior": ("Hippocampus", "Posterior"),
    "Heart": ("Heart", "left atrium"),
    "SarcomaCT": ("SarcomaCT", "tumour"),
    "SarcomaMR": ("SarcomaMR", "tumour"),
}


SIZES = {
    "full": ("model.base_features=16", "train.patch=40,64,64", "train.batch=4"),
    "cpu": ("model.base_features=8", "train.patch=32,48,48", "train.batch=2", "data.split.folds=3"),
    "try": ("model.base_features=8", "train.patch=16,32,32", "train.batch=2", "data.split.folds=2"),
}


def flags(data: Path, out: Path, steps: int, size: str) -> tuple[str, ...]:
    """What all runs share; the views are the config's."""
    every = max(steps // 10, 1)
    return (
        f"--config.data.folders={trainings.folders(data, TASKS)}",
        f"--config.data.store={out / 'store'}",
        f"--config.train.steps={steps}",
        f"--config.train.validate_every={every}",
        "--config.train.validation_batches=10",
        f"--config.train.checkpoint_every={steps}",
        f"--config.train.log_every={max(steps // 40, 1)}",
        "--config.evaluate.montages=2",
        "--config.infer.batch_windows=4",
        *(f"--config.{field}" for field in SIZES[size]),
    )


def main() -> None:
    """Runs and writes."""
    parser = trainings.parser(
        __doc__, SIZES, "cpu: half as wide, a third of the cases held out; try: tiny"
    )
    parser.add_argument("--longer", type=int, default=0, help="steps of a further joint network")
    given = parser.parse_args()
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    shared = flags(given.data.resolve(), out, given.steps, given.size)
    trainings.prepare(CONFIG, shared, out)
    flagged = {"joint": shared}
    flagged |= {name: (*shared, f"--config.data.only={name},") for name in SINGLES}
    if given.longer:
        flagged["joint_longer"] = flags(given.data.resolve(), out, given.longer, given.size)
    jobs = {name: trainings.training(CONFIG, out, name, words) for name, words in flagged.items()}
    status = trainings.run(jobs, out, given.parallel, given.timeout)
    report(out, given, status)


def difference(one: dict | None, other: dict | None) -> str:
    """Of two cells' means, in brackets; empty where one is missing."""
    both = one and other and one["mean"] is not None and other["mean"] is not None
    return f"({one['mean'] - other['mean']:+.3f})" if both else ""


def report(out: Path, given: argparse.Namespace, status: dict) -> None:
    """The comparison from the run folders."""
    joints = {"joint": given.steps} | ({"joint_longer": given.longer} if given.longer else {})
    tables = {name: trainings.cells(out / name) for name in (*joints, *SINGLES)}
    seconds = {name: trainings.training_seconds(out / name) for name in tables}
    rows, found = [], {}
    for name, cell in SINGLES.items():
        found["/".join(cell)] = scores = {run: tables[run].get(cell) for run in (*joints, name)}
        alone, n = scores[name], next((score["n"] for score in scores.values() if score), "-")
        shown = [
            trainings.shown(alone),
            *(f"{trainings.shown(scores[run])} {difference(scores[run], alone)}" for run in joints),
        ]
        rows.append(f"| {cell[0]} | {cell[1]} | {n} | {' | '.join(shown)} |")
    singles = [seconds[name] for name in SINGLES]
    ratio = seconds["joint"] / sum(singles) if seconds["joint"] and all(singles) else None
    heads = "".join(f" one for all, {steps} steps (difference) |" for steps in joints.values())
    text = [
        "Fold 0. Mean Dice [95 % interval over patients].",
        "",
        f"| corpus | class | n | one network per corpus, {given.steps} steps each |{heads}",
        f"|{'---|' * (4 + len(joints))}",
        *rows,
        "",
        "Training seconds without compilation: "
        + ", ".join(f"{k} {v:.0f}" if v else f"{k} -" for k, v in seconds.items())
        + ".",
        f"The joint network's against the sum of the single ones': {ratio:.2f}."
        if ratio
        else "No time ratio: a run is missing.",
    ]
    failed = {name: entry for name, entry in status.items() if entry["rc"] != 0}
    text += [f"Failed: {name} (rc {entry['rc']})" for name, entry in failed.items()]
    facts = {
        "given": {k: str(v) for k, v in vars(given).items()},
        "dice": found,
        "seconds": seconds,
        "ratio": ratio,
        "runs": status,
    }
    trainings.write(out, "multi_corpus", facts, "\n".join(text))
    curves = {}
    for name, (_, label) in SINGLES.items():
        for run, how in (
            *((run, f"joint, {steps} steps") for run, steps in joints.items()),
            (name, "alone"),
        ):
            curves[f"{name}/{label}, {how}"] = trainings.curve(out / run, [f"{name}/{label}"])
    trainings.plot(out / "multi_corpus.png", curves, "held-out patches", "step", "Dice")


if __name__ == "__main__":
    main()
