r"""A small SegVol on a CPU: what texts, boxes, points and clicks find, on phantoms and real scans,
and what low-rank adapters add beside full fine-tuning.

    python -m benchmarks.prompted --data DIR --out DIR [--steps 2000] [--more 3000]
      [--adapt-steps 300]

DIR holds Task04_Hippocampus, Task91_SarcomaCT, Task92_SarcomaMR and example_ct. A base
(`configs/segvol.py:demo`) learns the phantoms, half of its samples windows of full resolution;
`longer` goes on from it with whole scans alone. Then, each in equally many steps on the same
patches and prompts, adapters of rank 8 or all parameters learn the two structures of the
hippocampus and sarcomas in MR. Every model answers `medjax prompted`: `longer` on its held-out
phantoms, on sarcomas in CT and MR and on a whole torso, none of which it was trained on; the others
on the held-out scans of their data set; all but the base on the overview alone. Trainings and
evaluations that are complete are not repeated. Writes prompted.json and prompted.md.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness, trainings

CONFIG = "configs/segvol.py"
JITTERS = tuple(f"box@{share}" for share in (0.05, 0.1, 0.2, 0.3, 0.5))
BOXES = ("box", *JITTERS)
WORDS = ("text", "box+text", "points+text")
POINTS = ("points1", "points5", "points5+-")
CLICKS = ("clicks", "clicks@points1")
OVERVIEW = ("text/out", "box/out")
PHANTOMS = {"phantoms_base": "base", "phantoms_longer": "longer"}
TARGETS = {"hippocampus": "Task04_Hippocampus", "sarcoma_mr": "Task92_SarcomaMR"}
RECIPE = {"lora": "small_lora", "full": "small"}
TORSO = "torso"
LARGEST = 10  # organs of the torso


def fields(given: argparse.Namespace, steps: int) -> dict[str, object]:
    """Of every training."""
    return {
        "train.steps": steps,
        "train.checkpoint_every": min(steps, 250),
        "seed": given.seed,
        "evaluate.on": False,
    }


def jobs(given: argparse.Namespace) -> dict[str, trainings.Job]:
    """The trainings that are not complete."""
    out, base = given.out, given.out / "longer"
    words = trainings.flags(fields(given, given.steps))
    further = trainings.flags(
        fields(given, given.more)
        | {"init.source": out / "base", "sampler.whole": 1.0, "optim.lr": 4e-4}
    )
    found = {
        "base": trainings.training(f"{CONFIG}:demo", out, "base", words),
        "longer": trainings.training(f"{CONFIG}:demo", out, "longer", further, "base"),
    }
    for target, folder in TARGETS.items():
        for arm, recipe in RECIPE.items():
            own = fields(given, given.adapt_steps) | {
                "data.folders": given.data / folder,
                "data.store": out / f"store_{target}",
                "init.source": base,
                "train.validate_every": 0,
                "optim.warmup_steps": given.adapt_steps // 15,
            }
            name = f"{target}_{arm}"
            found[name] = trainings.training(
                f"{CONFIG}:{recipe}", out, name, trainings.flags(own), "longer"
            )
    left = {name: job for name, job in found.items() if not trainings.finished(out / name)}
    return {
        name: job if job.after in left else trainings.Job(job.lines) for name, job in left.items()
    }


def questions(given: argparse.Namespace) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Name of an evaluation -> (run, words for `medjax prompted`)."""
    every = (*WORDS, *BOXES, *POINTS, *CLICKS, *OVERVIEW)
    found = {name: (run, ("--rows", *every)) for name, run in PHANTOMS.items()}
    unseen = (*BOXES, *POINTS, *CLICKS)
    for name, folder in {"sarcoma_ct": "Task91_SarcomaCT", **TARGETS}.items():
        words = ("--data", str(given.data / folder), "--corpus", corpus_like(name))
        asked = (*words, "--rows", *unseen, "--cases", str(given.cases))
        found[f"{name}_longer"] = ("longer", asked)
    words = ("--data", str(given.out / TORSO), "--corpus", "PhantomCT", "--largest", str(LARGEST))
    found[f"{TORSO}_longer"] = ("longer", (*words, "--rows", *unseen))
    for target in TARGETS:
        for arm in RECIPE:
            rows = ("--rows", *WORDS, *unseen, "--cases", str(given.cases))
            found[f"{target}_{arm}"] = (f"{target}_{arm}", rows)
    return found


def corpus_like(name: str) -> str:
    """The phantoms whose preparation a data set follows in the base."""
    return "PhantomCT" if name.endswith("_ct") else "PhantomMR"


def describe_torso(data: Path, out: Path) -> None:
    """The torso scan as a described corpus; its organs are called by their values."""
    from medjax.corpora.inputs import Case
    from medjax.corpora.layouts import corpus_json
    from medjax.labels import Corpus
    from medjax.scans import formats

    image, label = data / "example_ct" / "ct.nii.gz", data / "example_ct" / "organs.nii.gz"
    values = [int(v) for v in np.unique(formats.read(label, "label").array) if v]
    corpus = Corpus("Torso", tuple((v, (f"organ {v}",)) for v in values))
    case = Case("torso", (str(image),), str(label), corpus="Torso", modality="CT")
    corpus_json.write(out / TORSO, corpus, [case])


def ask(given: argparse.Namespace, name: str, run: str, words: Sequence[str]) -> dict[str, Any]:
    """The numbers of an evaluation, which is made if it is not there."""
    from medjax import cli

    folder = given.out / "answers" / name
    path = folder / "prompted.json"
    if not path.is_file():
        command = [
            "prompted",
            "-m",
            str(given.out / run),
            "-o",
            str(folder),
            "--zoom",
            "in" if run == "base" else "out",
            "--quiet",
        ]
        code = cli.main([*command, "--draws", str(given.draws), *words])
        if code not in (0, 3):
            return {"failed": f"medjax {' '.join(command)}: exit code {code}"}
    return json.loads(path.read_text())


def shown(found: Mapping[str, Any] | None, sign: str = "") -> str:
    """Mean and interval."""
    if not found or found["mean"] is None:
        return "-"
    ends = found["interval"]
    told = f" [{ends[0]:{sign}.3f}, {ends[1]:{sign}.3f}]" if ends else ""
    return f"{found['mean']:{sign}.3f}{told}"


def markdown(found: Mapping[str, Mapping[str, Any]]) -> str:
    """One table of rows, one of what texts choose, one of adapters beside all parameters."""
    answers = {name: one for name, one in found.items() if "rows" in one}
    lines = ["| scans | model | row | Dice | ellipsoid of the box | difference |"]
    lines += ["|---|---|---|---:|---:|---:|"]
    for name, one in answers.items():
        scans, _, model = name.rpartition("_")
        for row, cells in one["rows"].items():
            floor = shown(cells.get("ellipsoid")), shown(cells.get("minus_ellipsoid"), "+")
            lines.append(
                f"| {scans} | {model} | {row} | {shown(cells['dice'])} | {' | '.join(floor)} |"
            )
        for row, cells in one["clicks"].items():
            steps = " ".join(f"{step['mean']:.3f}" for step in cells["steps"])
            lines.append(
                f"| {scans} | {model} | {row}, 0 to {len(cells['steps']) - 1} clicks: {steps} | "
                f"{shown(cells['last'])} | | {shown(cells['gain'], '+')} |"
            )
    lines += [
        "",
        "| scans, model | Dice of the right text minus a wrong one | programs | seconds |",
    ]
    lines += ["|---|---:|---:|---:|"]
    for name, one in answers.items():
        told = shown(one["confusion"]["right_minus_wrong"], "+")
        lines.append(f"| {name} | {told} | {one['programs']} | {one['seconds']} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    p = harness.parser(
        __doc__,
        data=harness.flag(type=Path, required=True),
        out=harness.flag(type=Path, required=True),
        steps=harness.flag(2000, help="of the base"),
        more=harness.flag(3000, help="of `longer`"),
        adapt_steps=harness.flag(300, help="of every adaptation"),
        seed=harness.flag(0),
        draws=harness.flag(2, help="of prompts that depend on random numbers"),
        cases=harness.flag(20, help="of a real data set that are asked"),
        parallel=harness.flag(1, help="trainings at a time"),
        only=harness.flag((), nargs="*", help="evaluations; default all"),
    )
    given = p.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    describe_torso(given.data, given.out)
    asked = questions(given)
    chosen = {name: asked[name] for name in given.only or asked}
    needed = {"base", "longer", *(run for run, _ in chosen.values())}
    todo = {name: job for name, job in jobs(given).items() if name in needed}
    done = trainings.run(todo, given.out, given.parallel)
    found = {
        name: ask(given, name, run, words)
        for name, (run, words) in chosen.items()
        if trainings.finished(given.out / run)
    }
    failed = {name: entry["log"] for name, entry in done.items() if "log" in entry}
    failed |= {name: one["failed"] for name, one in found.items() if "rows" not in one}
    made = {"machine": harness.machine(), "steps": given.steps, "failed": failed, "answers": found}
    trainings.write(given.out, "prompted", made, markdown(found))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
