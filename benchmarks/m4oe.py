r"""M4oE on real scans: does masked pre-training help, does the gate, do experts at all; and what a
new modality costs the old ones.

    python -m benchmarks.m4oe --data DIR --out OUT [--steps 1500] [--parallel 4] [--minutes 4] \
      [--config.field=value ...]

DIR holds Task04_Hippocampus, Task02_Heart, Task92_SarcomaMR (MRI) and Task91_SarcomaCT. One
prepared store, one split by patients, the same network sizes, steps and batches everywhere:

  pretrain, pretrain_dense   masked images of all four, with an expert per modality and with plain
                             MLPs
  gate, hard, dense          fine-tuned from them: gated mixture, hard routing, plain MLPs
  scratch                    the gated mixture without pre-training
  mri                        the gated mixture on the three MRI corpora alone
  grown, grown_frozen        SarcomaCT added to `mri` as a new modality: everything trains on, or
                             the new parts alone

Writes OUT/m4oe.json, m4oe.md, dice.png and gates.png after every finished job, so that a run that
is cut short leaves what it has.
"""

import json
import os
import subprocess
import time
from pathlib import Path

from benchmarks import harness, trainings

MRI, CT = ("Task04_Hippocampus", "Task02_Heart", "Task92_SarcomaMR"), "Task91_SarcomaCT"
TRAINED = ("gate", "scratch", "hard", "dense", "mri", "grown", "grown_frozen")
AFTER = {
    "gate": "pretrain",
    "hard": "pretrain",
    "dense": "pretrain_dense",
    "grown": "mri",
    "grown_frozen": "mri",
}
NAMES = {
    "gate": "pre-trained, gated",
    "scratch": "no pre-training, gated",
    "hard": "pre-trained, hard routing",
    "dense": "pre-trained, plain MLP",
    "mri": "MRI only, gated",
    "grown": "CT added, all trained",
    "grown_frozen": "CT added, new parts only",
}
HIDDEN = 8  # pixels along a side of what pre-training hides: 4x4 tokens of 2 pixels


def warmup(steps):
    """Steps of pre-training's warm-up: the config's 40 of 400, a tenth of shorter runs (an
    optimizer needs steps behind its warm-up).
    """
    return min(40, steps // 10)


def commands(given, more):
    """Job -> its command lines, run one after another; `AFTER` says what each waits for."""
    out, steps = given.out, given.steps
    folders = ",".join(str(given.data / name) for name in (*MRI, CT))
    mri = ",".join(str(given.data / name) for name in MRI)
    common = [
        f"--config.data.store={out / 'store'}",
        "--config.data.share=per_corpus",
        f"--config.train.steps={steps}",
        f"--config.train.checkpoint_every={max(steps, 1)}",
        "--config.train.checkpoint_minutes=0",
        "--config.train.log_every=50",
        "--config.evaluate.montages=0",
        "--config.infer.overlap=0.25",
        f"--config.sampler.threads={given.threads}",
        f"--config.model.patch_size={given.patch_size}",
    ]

    def main(name, variant, *own, corpora=folders, split="all"):
        own = [
            f"--config.data.folders={corpora}",
            f"--config.data.split.file={out / f'split_{split}.json'}",
            *own,
        ]
        line = harness.script(
            "medjax.main", f"--config=configs/m4oe.py:{variant}", f"--workdir={out / name}"
        )
        return [*line, *common, *own, *more]  # of a field that comes twice the last counts

    checks = [
        f"--config.train.validate_every={max(steps // 10, 1)}",
        "--config.train.validation_batches=8",
    ]
    off = ["--config.train.validate_every=0"]
    hidden = [
        f"--config.task_options.patch_size={given.patch_size}",
        f"--config.task_options.block={max(HIDDEN // given.patch_size, 1)}",
    ]
    warm = [f"--config.optim.warmup_steps={warmup(steps)}", *hidden, *checks]
    grow = harness.script(
        "medjax.cli", "add-modality", out / "mri", "--data", given.data / CT, "--begin", "copy"
    )
    lines = {
        "pretrain": main("pretrain", "small_pretrain", *warm),
        "pretrain_dense": main(
            "pretrain_dense", "small_pretrain", "--config.model.experts_in=none", *warm
        ),
        "scratch": main("scratch", "small", *off),
        "mri": main("mri", "small", *checks, corpora=mri, split="mri"),
        "gate": main("gate", "small", f"--config.init.source={out / 'pretrain'}", *off),
        "hard": main("hard", "small_hard", f"--config.init.source={out / 'pretrain'}", *off),
        "dense": main(
            "dense", "small_none", f"--config.init.source={out / 'pretrain_dense'}", *off
        ),
        "grown": [*grow, "--workdir", str(out / "grown"), "--steps", str(steps)],
    }
    lines["grown_frozen"] = [*grow, "--workdir", str(out / "grown_frozen"), *lines["grown"][-2:]]
    lines["grown_frozen"] += ["--freeze"]
    looks = {
        name: [harness.script("medjax.cli", "gates", out / name)]
        for name in ("gate", "scratch", "grown", "grown_frozen")
    }
    return {name: [line, *looks.get(name, ())] for name, line in lines.items()}


def prepare(given):
    """Splits by patient over all corpora, and the store that all jobs share."""
    from configs.m4oe import get_config
    from medjax.registry import plain
    from medjax.runs import folder as runfolder
    from medjax.runs import stages

    fields = plain(get_config("small"))
    fields["data"] |= {
        "folders": ",".join(str(given.data / n) for n in (*MRI, CT)),
        "store": str(given.out / "store"),
        "share": "per_corpus",
    }
    run = stages.open_run(fields, given.out / "prepared")
    stages.prepare_stage(run)
    split = run.data.splits[0]
    kept = [c.name for c in run.data.stores if c.modality != "CT"]
    only = {side: [n for n in names if n.split("/")[0] in kept] for side, names in split.items()}
    runfolder.write_json(given.out / "split_all.json", [split])
    runfolder.write_json(given.out / "split_mri.json", [only])
    held = {c.name: len(run.data.side(c.name, "val")) for c in run.data.stores}
    runfolder.write_json(
        given.out / "facts.json",
        {"modalities": {c.name: c.modality for c in run.data.stores}, "held out": held},
    )


def scores(folder):
    """corpus -> (Dice, low, high) of a finished run, without one None."""
    try:
        summary = json.loads((folder / "evaluation" / "summary.json").read_text())
    except (OSError, ValueError):
        return None
    return {
        corpus: (v["Dice"]["mean"], *(v["Dice"]["interval"] or (None, None)))
        for corpus, v in summary["corpora"].items()
    }


def curve(folder, name):
    """[(step, validation Dice of a class)] of a run."""
    found = []
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        row = json.loads(line)
        value = next((v for k, v in row.items() if k.endswith(name) and isinstance(v, float)), None)
        if value is not None:
            found.append((row.get("step"), value))
    return found


def collect(given, done, facts):
    """Everything that is known by now."""
    out = given.out
    results = {name: scores(out / name) for name in TRAINED}
    growth = {}
    for name in ("grown", "grown_frozen"):
        try:
            growth[name] = json.loads((out / name / "growth.json").read_text())
        except (OSError, ValueError):
            continue
        points = curve(out / name, "SarcomaCT/tumour")
        best = max((v for _, v in points), default=0)
        growth[name]["validation"] = points
        growth[name]["steps to 90 % of the best"] = next(
            (s for s, v in points if best > 0 and v >= 0.9 * best), None
        )
    gates = {}
    for name in ("gate", "scratch", "grown", "grown_frozen"):
        try:
            gates[name] = json.loads((out / name / "gates" / "gates.json").read_text())["mean"]
        except (OSError, ValueError):
            continue
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(given).items()}
    return {
        "given": settings,
        "facts": facts,
        "jobs": {name: entry["rc"] for name, entry in done.items()},
        "seconds": {name: entry["wall_s"] for name, entry in done.items()},
        "dice": results,
        "growth": growth,
        "gates": gates,
    }


def markdown(found):
    """The tables."""
    corpora = list(dict.fromkeys(c for row in found["dice"].values() if row for c in row))
    lines = [
        f"{found['given']['steps']} steps each; Dice on held-out volumes, mean [95 % bootstrap "
        "interval over patients].",
        "",
    ]
    rows = [
        [
            NAMES[name],
            *(_cell(row[c]) if c in row else "" for c in corpora),
        ]
        if row
        else [NAMES[name], f"exit code {found['jobs'].get(name, 'none yet')}"]
        for name, row in found["dice"].items()
    ]
    lines.append(harness.table(["run", *corpora], rows))
    for name, entry in found["growth"].items():
        added = ", ".join(f"{k} {v:,}" for k, v in entry["added"].items())
        lines += [
            "",
            f"{NAMES[name]}: {entry['before']:,} + {entry['added_in_all']:,} parameters "
            f"({added}); largest change of an old logit before "
            f"training {entry['change']:.1e}; 90 % of the best validation Dice on SarcomaCT at "
            f"step {entry['steps to 90 % of the best']}.",
        ]
    for name, table in found["gates"].items():
        experts = list(next(iter(table.values())))
        lines += [
            "",
            f"Mean gate weight over all blocks, {NAMES[name]}:",
            "",
            harness.table(
                ["modality", *experts],
                [[m, *(f"{row[e]:.3f}" for e in experts)] for m, row in table.items()],
                right=range(1, 1 + len(experts)),
            ),
        ]
    lines += ["", "Seconds: " + ", ".join(f"{k} {v}" for k, v in found["seconds"].items())]
    return "\n".join(lines) + "\n"


def _cell(values):
    mean, low, high = values
    return (
        "-"
        if mean is None
        else f"{mean:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low is not None else "")
    )


def picture(found, path):
    """Dice per corpus and run, with intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = {NAMES[k]: v for k, v in found["dice"].items() if v}
    corpora = list(dict.fromkeys(c for row in rows.values() for c in row))
    if not rows:
        return
    figure = Figure(figsize=(2 + 2.2 * len(corpora), 4), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    width = 0.8 / len(rows)
    for i, (name, row) in enumerate(rows.items()):
        own = [(k, row[c]) for k, c in enumerate(corpora) if c in row and row[c][0] is not None]
        heights = [v[0] for _, v in own]
        error = [
            [h - (v[1] if v[1] is not None else h) for h, (_, v) in zip(heights, own, strict=True)],
            [(v[2] if v[2] is not None else h) - h for h, (_, v) in zip(heights, own, strict=True)],
        ]
        axis.bar(
            [k + (i - len(rows) / 2 + 0.5) * width for k, _ in own],
            heights,
            width,
            yerr=error,
            label=name,
            capsize=2,
        )
    axis.set_xticks(range(len(corpora)), corpora)
    axis.set_ylabel("Dice")
    axis.set_ylim(0, 1)
    axis.legend(fontsize=7)
    figure.savefig(path, dpi=150)


def main():
    """Runs everything and writes the report."""
    parser = harness.parser(
        __doc__,
        data=harness.flag(type=Path, required=True),
        out=harness.flag(type=Path, required=True),
        steps=1500,
        parallel=4,
        threads=harness.flag(2, help="of each job's sampler"),
        patch_size=harness.flag(
            2, help="pixels per token; 4 is the paper's and takes a quarter of the time"
        ),
        minutes=harness.flag(0.0, help="jobs that still run after this are stopped; 0: never"),
        stage=harness.flag("all", choices=("prepare", "all"), help=None),
    )
    given, more = parser.parse_known_args()
    if given.steps < 2:
        parser.error("--steps must be at least 2")
    given.data, given.out = given.data.resolve(), given.out.resolve()
    if missing := [
        name for name in (*MRI, CT) if not (given.data / name / "dataset.json").is_file()
    ]:
        parser.error(f"{given.data} lacks {', '.join(missing)}")
    (given.out / "logs").mkdir(parents=True, exist_ok=True)
    if given.stage == "prepare":
        return prepare(given)
    began = time.monotonic()
    place = ("--data", given.data, "--out", given.out)
    line = harness.script("benchmarks.m4oe", *place, "--stage", "prepare")
    subprocess.run(line, cwd=harness.ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"}, check=True)
    facts = json.loads((given.out / "facts.json").read_text()) | {
        "seconds to prepare": round(time.monotonic() - began, 1)
    }

    def report(done):
        found = collect(given, done, facts)
        (given.out / "m4oe.json").write_text(json.dumps(found, indent=1) + "\n")
        (given.out / "m4oe.md").write_text(markdown(found))
        picture(found, given.out / "dice.png")
        return found

    jobs = {
        name: trainings.Job(lines, AFTER.get(name, ""), good=(0, 3))
        for name, lines in commands(given, more).items()
    }
    # compiles in half the time; scores are what is measured here
    quick = {"XLA_FLAGS": os.environ.get("XLA_FLAGS", "--xla_gpu_autotune_level=0")}
    cache = str(given.out / "cache")
    quick["JAX_COMPILATION_CACHE_DIR"] = os.environ.get("JAX_COMPILATION_CACHE_DIR", cache)
    limit = given.minutes * 60 or None
    done = trainings.run(jobs, given.out / "logs", given.parallel, limit, report, **quick)
    print(markdown(report(done)))


if __name__ == "__main__":
    main()
