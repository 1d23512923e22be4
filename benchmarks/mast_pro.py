r"""The rows of MAST-Pro on five real tasks: text, organ mask, experts, alone and together, beside
tuning everything; and whether the prompts are used at all.

    python -m benchmarks.mast_pro --data DIR --out DIR [--steps 300] [--only full dmoe]

DIR holds Task04_Hippocampus, Task02_Heart, Task91_SarcomaCT and Task92_SarcomaMR. The tasks are the
anterior and the posterior hippocampus (two corpora on the same scans: without a prompt the question
has no answer), the left atrium, and sarcomas in CT and MR. A U-Net learns the whole hippocampus in
two folds; its masks of held-out scans are the organ masks, the other tasks have none. Stage 1
learns all five as classes, then every row begins with it. Runs that have been scored are not
repeated. Prompts: the full row predicts held-out hippocampi with the right organ mask, none, and
one shifted by 8 voxels, and with the sentence of the other task. Writes mast_pro.json and
mast_pro.md.
"""

import argparse
import contextlib
import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness, trainings
from configs.mast_pro import ROWS as RECIPES

CONFIG = "configs/mast_pro.py"
ROWS = ("swin_unetr", "ap", "tp", "dmoe", "full", "full_tuning")
TASKS = {  # name -> folder of the data, values of the tumour, sentence
    "HippocampusAnterior": (
        "Task04_Hippocampus",
        (1,),
        "This is an anterior hippocampus in the temporal lobe, appearing as an elongated "
        "grey-matter mass with well-defined borders on T1-weighted MRI.",
    ),
    "HippocampusPosterior": (
        "Task04_Hippocampus",
        (2,),
        "This is a posterior hippocampus in the temporal lobe, appearing as a curved tapering "
        "mass with well-defined borders on T1-weighted MRI.",
    ),
    "LeftAtrium": (
        "Task02_Heart",
        (1,),
        "This is a left atrium in the heart, appearing as a large bright chamber mass with "
        "smooth borders on cardiac MRI.",
    ),
    "SarcomaCT": (
        "Task91_SarcomaCT",
        (1,),
        "This is a soft tissue sarcoma in a limb, appearing as a lobulated heterogeneous mass "
        "with partly ill-defined borders on CT.",
    ),
    "SarcomaMR": (
        "Task92_SarcomaMR",
        (1,),
        "This is a soft tissue sarcoma in a limb, appearing as a bright lobulated mass with "
        "partly ill-defined borders on fat-saturated MRI.",
    ),
}
HIPPOCAMPUS = tuple(name for name, (folder, *_) in TASKS.items() if "Hippo" in folder)
WHOLE = "HippocampusWhole"
SHIFT = 8  # voxels
CONDITIONS = ("right", "no organ", "shifted organ", "other task")
RESAMPLES = 2000


# -- corpora ---------------------------------------------------------------------------------------


def describe(data: Path, out: Path) -> None:
    """The five tasks, and the whole hippocampus, as described corpora below <out>/corpora."""
    from medjax.corpora.layouts import corpus_json
    from medjax.corpora.sources import read_corpus

    wanted = {name: (folder, values, "tumour") for name, (folder, values, _) in TASKS.items()}
    wanted[WHOLE] = ("Task04_Hippocampus", (1, 2), "hippocampus")
    for name, (folder, values, class_) in wanted.items():
        corpus, cases = read_corpus(data / folder)
        labels = tuple((v, (class_,) if v in values else ()) for v in corpus.values if v)
        changed = dataclasses.replace(
            corpus, name=name, labels=labels, annotated=(class_,), meanings=(), store=name
        )
        renamed = [dataclasses.replace(case, corpus=name) for case in cases]
        corpus_json.write(out / "corpora" / name, changed, renamed)


def with_organs(out: Path) -> None:
    """The two tasks of the hippocampus with the organ masks of the other folds' networks."""
    from medjax.corpora import organs
    from medjax.corpora.sources import read_corpus
    from medjax.runs.prompted.organs import from_run

    for name in HIPPOCAMPUS:
        corpus, cases = read_corpus(out / "corpora" / name)
        target = out / "corpora_with_organs" / name
        mask_of = from_run(out / "organ", ["hippocampus"], cases, target / "predicted", print)
        print(organs.write(target, corpus, cases, mask_of, "run").sentence(), flush=True)


def folders(out: Path, organs: bool) -> str:
    """The flag value that names the five corpora."""
    return ",".join(
        str(out / ("corpora_with_organs" if organs and name in HIPPOCAMPUS else "corpora") / name)
        for name in TASKS
    )


def write_texts(path: Path) -> None:
    """The sentences as hashes of their words: no text encoder is at hand."""
    from medjax.prompts import texts

    sentences = [sentence for *_, sentence in TASKS.values()]
    texts.write(path, texts.hashed(tuple(TASKS), sentences=sentences))


# -- trainings -------------------------------------------------------------------------------------


def shared(given: argparse.Namespace, steps: int) -> dict[str, object]:
    """Fields of every run."""
    return {
        "data.split.folds": 2,
        "train.patch": "32,64,32",  # a hippocampus as a whole; a step of two takes seconds of a CPU
        "augment.quarter": 0,  # quarter turns need equal sides
        "train.steps": steps,
        "train.validate_every": 0,
        "train.checkpoint_every": steps,
        "train.log_every": max(steps // 10, 1),
        "evaluate.surface": False,
        "evaluate.montages": 0,
    }


def organ_job(given: argparse.Namespace) -> trainings.Job:
    """Two folds of a U-Net for the whole hippocampus."""
    fields = shared(given, max(given.steps, 1)) | {
        "data.folders": given.out / "corpora" / WHOLE,
        "data.spacing_rule": "per_corpus",
        "model.base_features": 8,
    }
    words = ("--mode=crossval", *trainings.flags(fields))
    return trainings.training("configs/multitalent.py:unet_small", given.out, "organ", words)


def jobs(given: argparse.Namespace) -> dict[str, trainings.Job]:
    """Stage 1 and the rows, those that are not scored yet."""
    first = shared(given, 4 * given.steps) | {
        "data.folders": folders(given.out, False),
        "data.store": given.out / "store_stage1",
        "data.share": "per_corpus",
        "evaluate.on": False,
    }
    found = {
        "stage1": trainings.training(
            f"{CONFIG}:small_stage1", given.out, "stage1", trainings.flags(first)
        )
    }
    for row in given.only or ROWS:
        own = shared(given, given.steps) | {
            "data.folders": folders(given.out, True),
            "data.store": given.out / "store",
            "init.source": given.out / "stage1",
        }
        if RECIPES[row][0]:
            own |= {"text.source": "file", "text.file": given.out / "tasks.text.npz"}
        found[row] = trainings.training(
            f"{CONFIG}:small_{row}", given.out, row, trainings.flags(own), "stage1"
        )
    if trainings.finished(given.out / "stage1"):
        del found["stage1"]
        found = {name: dataclasses.replace(job, after="") for name, job in found.items()}
    return {name: job for name, job in found.items() if not trainings.cells(given.out / name)}


# -- whether prompts are used ----------------------------------------------------------------------


def prompted(out: Path, cases: int) -> dict[str, dict[str, list[float]]]:
    """Task -> condition -> Dice of each held-out case of the full row."""
    from medjax.prompts.request import Request
    from medjax.runs import open as corpora
    from medjax.runs.trained import load_predictor, read_model
    from medjax.scans import formats

    model = read_model(out / "full")
    predictor, data = load_predictor(model), corpora.open_data(model.config.data, model.path)
    found: dict[str, dict[str, list[float]]] = {}
    for name, other in zip(HIPPOCAMPUS, HIPPOCAMPUS[::-1], strict=True):
        wanted = set(data.side(name, "val"))
        held = [case for case in data.cases[name] if case.name in wanted][:cases]
        corpus = next(c for c in data.stores if c.name == name)
        found[name] = {condition: [] for condition in CONDITIONS}
        for case in held:
            volume = formats.read_case(case.images)
            truth = np.isin(formats.read(case.label, "label").array, tumour_values(corpus))
            for condition in CONDITIONS:
                task = other if condition == "other task" else name
                request = Request(name, task=task)
                changed = dataclasses.replace(volume, array=told(volume.array, condition))
                mask = predictor.segment(changed, request).label_map > 0
                found[name][condition].append(dice(mask, truth))
    return found


def tumour_values(corpus: Any) -> list[int]:
    """Label values of the one class of a corpus."""
    return [value for value, names in corpus.labels if names]


def told(image: np.ndarray, condition: str) -> np.ndarray:
    """The image (z, y, x, 2) with another organ mask."""
    changed = np.array(image)
    if condition == "no organ":
        changed[..., 1] = 0
    if condition == "shifted organ":
        changed[..., 1] = np.roll(image[..., 1], SHIFT, axis=1)
        changed[:, :SHIFT, :, 1] = 0
    return changed


def dice(mask: np.ndarray, truth: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|), 1 of two empty masks."""
    total = int(mask.sum()) + int(truth.sum())
    return 2 * int((mask & truth).sum()) / total if total else 1.0


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % interval over resampled cases."""
    found = np.asarray(values)
    rng = np.random.default_rng(seed)
    means = found[rng.integers(0, len(found), (RESAMPLES, len(found)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(found.mean()), float(low), float(high)


# -- tables ----------------------------------------------------------------------------------------


def budgets(out: Path, rows: Sequence[str]) -> dict[str, dict[str, int]]:
    """Row -> numbers of trained and frozen parameters."""
    from medjax.runs import footprint
    from medjax.runs.trained import read_model

    found = {}
    for row in rows:
        with contextlib.suppress(Exception):
            trained = read_model(out / row)
            found[row] = footprint.budget(trained.config, trained.network)
    return found


def markdown(found: Mapping[str, Any]) -> str:
    """Both tables."""
    lines = [
        "| row | trained | " + " | ".join(TASKS) + " |",
        "|---|---:" + "|---:" * len(TASKS) + "|",
    ]
    for row, cells in found["rows"].items():
        size = found["budgets"].get(row, {})
        share = size.get("trained", 0) / max(sum(size.values()), 1)
        shown = [trainings.shown(cells.get(f"{name}/tumour")) for name in TASKS]
        lines.append(f"| {row} | {size.get('trained', 0):,} ({share:.0%}) | {' | '.join(shown)} |")
    if found["prompts"]:
        lines += ["", "| task | right - no organ | right - shifted organ | right - other task |"]
        lines += ["|---|---:|---:|---:|"]
        for name, conditions in found["prompts"].items():
            right = np.array(conditions["right"])
            ends = [interval(right - np.array(conditions[c])) for c in CONDITIONS[1:]]
            cells = [f"{m:+.3f} [{a:+.3f}, {b:+.3f}]" for m, a, b in ends]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    p = harness.parser(
        __doc__,
        data=harness.flag(type=Path, required=True),
        out=harness.flag(type=Path, required=True),
        steps=harness.flag(300, help="of every row; stage 1 has four times as many"),
        cases=harness.flag(40, help="held-out cases of the comparison of prompts"),
        parallel=harness.flag(1, help="trainings at a time"),
        only=harness.flag((), nargs="*", choices=ROWS, help="rows; default all"),
    )
    given = p.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    describe(given.data, given.out)
    write_texts(given.out / "tasks.text.npz")
    if not (given.out / "organ" / "crossval.json").is_file():
        done = trainings.run({"organ": organ_job(given)}, given.out, 1)
        if done["organ"]["rc"] not in (0, 3):
            print(done["organ"]["log"])
            return 1
    if not all(
        (given.out / "corpora_with_organs" / n / "corpus.json").is_file() for n in HIPPOCAMPUS
    ):
        shutil.rmtree(given.out / "corpora_with_organs", ignore_errors=True)
        with_organs(given.out)
    done = trainings.run(jobs(given), given.out, given.parallel)
    rows = [row for row in ROWS if trainings.cells(given.out / row)]
    found = {
        "machine": harness.machine(),
        "steps": given.steps,
        "failed": {name: entry["log"] for name, entry in done.items() if "log" in entry},
        "budgets": budgets(given.out, rows),
        "rows": {
            row: {f"{c}/{k}": cell for (c, k), cell in trainings.cells(given.out / row).items()}
            for row in rows
        },
        "prompts": prompted(given.out, given.cases) if "full" in rows else {},
    }
    trainings.write(given.out, "mast_pro", found, markdown(found))
    return 0 if not found["failed"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
