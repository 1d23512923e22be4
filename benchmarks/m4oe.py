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

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

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
ROOT = Path(__file__).resolve().parent.parent


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
        line = [
            sys.executable,
            "-m",
            "medjax.main",
            f"--config=configs/m4oe.py:{variant}",
            f"--workdir={out / name}",
        ]
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
    grow = [
        sys.executable,
        "-m",
        "medjax.cli",
        "add-modality",
        str(out / "mri"),
        "--data",
        str(given.data / CT),
        "--begin",
        "copy",
    ]
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
        "grown_frozen": [
            *grow,
            "--workdir",
            str(out / "grown_frozen"),
            "--steps",
            str(steps),
            "--freeze",
        ],
    }
    looks = {
        name: [[sys.executable, "-m", "medjax.cli", "gates", str(out / name)]]
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


class Jobs:
    """Runs the command lines, at most `parallel` at once, each after what it needs; a failure stops
    only what depends on it.
    """

    def __init__(self, given, lines, report):
        self.given, self.lines, self.report, self.began = given, lines, report, time.monotonic()
        self.state = dict.fromkeys(lines, "waiting")
        self.seconds, self.lock, self.running = {}, threading.Condition(), {}

    def run(self):
        """Blocks until every job ended one way or another."""
        threads = [
            threading.Thread(target=self._one, args=(name,), daemon=True) for name in self.lines
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _ready(self, name):
        before = self.state.get(AFTER.get(name), "done")
        return before not in ("waiting", "running") and len(self.running) < self.given.parallel

    def _one(self, name):
        with self.lock:
            self.lock.wait_for(lambda: self._ready(name) and not self._more_urgent(name))
            if self.state.get(AFTER.get(name), "done") != "done":
                self.state[name] = f"skipped: {AFTER[name]} did not finish"
                self.lock.notify_all()
                return
            self.state[name], self.running[name] = "running", True
        left = (
            self.given.minutes * 60 - (time.monotonic() - self.began)
            if self.given.minutes
            else None
        )
        try:
            code, seconds = self._call(name, left)
        except OSError as error:
            code, seconds = str(error), 0.0
        with self.lock:
            self.seconds[name] = round(seconds, 1)
            self.state[name] = (
                "done" if code in (0, 3) else f"failed with code {code}, see logs/{name}.log"
            )
            self.running.pop(name)
            print(f"{name}: {self.state[name]} ({self.seconds[name]} s)", flush=True)
            try:
                self.report(self)
            except (
                Exception
            ) as error:  # a table that cannot be drawn yet must not keep the other jobs waiting
                print(
                    f"no report after {name}: {type(error).__name__}: {error}",
                    file=sys.stderr,
                    flush=True,
                )
            self.lock.notify_all()

    def _more_urgent(self, name):
        """Jobs that others wait for go first."""
        waited_for = set(AFTER.values())
        return name not in waited_for and any(self.state[n] == "waiting" for n in waited_for)

    def _call(self, name, left):
        """(exit code of the first line that failed, or 0; seconds)."""
        start = time.monotonic()
        cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(self.given.out / "cache"))
        environment = {
            **os.environ,
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "CI": "1",
            "JAX_COMPILATION_CACHE_DIR": cache,
        }
        environment.setdefault(
            "XLA_FLAGS", "--xla_gpu_autotune_level=0"
        )  # compiles in half the time; scores are what is measured here
        code = 0
        with open(self.given.out / "logs" / f"{name}.log", "w") as log:
            for line in self.lines[name]:
                rest = None if left is None else max(left - (time.monotonic() - start), 1)
                try:
                    done = subprocess.run(
                        line,
                        cwd=ROOT,
                        env=environment,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        timeout=rest,
                    )
                except subprocess.TimeoutExpired:
                    return "timeout", time.monotonic() - start
                code = code or done.returncode
        return code, time.monotonic() - start


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


def collect(given, jobs, facts):
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
        "jobs": jobs.state,
        "seconds": jobs.seconds,
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
    lines += ["| run | " + " | ".join(corpora) + " |", "|---|" + "---|" * len(corpora)]
    for name, row in found["dice"].items():
        cells = [_cell(row[c]) if row and c in row else "" for c in corpora]
        lines.append(
            f"| {NAMES[name]} | "
            + " | ".join(cells if row else [str(found["jobs"].get(name))])
            + " |"
        )
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
            "| modality | " + " | ".join(experts) + " |",
        ]
        lines += ["|---|" + "---:|" * len(experts)]
        lines += [
            f"| {m} | " + " | ".join(f"{row[e]:.3f}" for e in experts) + " |"
            for m, row in table.items()
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2, help="of each job's sampler")
    parser.add_argument(
        "--patch-size",
        type=int,
        default=2,
        help="pixels per token; 4 is the paper's and takes a quarter of the time",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=0.0,
        help="jobs that still run after this are stopped; 0: never",
    )
    parser.add_argument(
        "--stage", choices=("prepare", "all"), default="all", help=argparse.SUPPRESS
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
    line = [
        sys.executable,
        "-m",
        "benchmarks.m4oe",
        "--data",
        str(given.data),
        "--out",
        str(given.out),
        "--stage",
        "prepare",
    ]
    subprocess.run(line, cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"}, check=True)
    facts = json.loads((given.out / "facts.json").read_text()) | {
        "seconds to prepare": round(time.monotonic() - began, 1)
    }

    def report(jobs):
        found = collect(given, jobs, facts)
        (given.out / "m4oe.json").write_text(json.dumps(found, indent=1) + "\n")
        (given.out / "m4oe.md").write_text(markdown(found))
        picture(found, given.out / "dice.png")

    jobs = Jobs(given, commands(given, more), report)
    jobs.run()
    report(jobs)
    print(markdown(collect(given, jobs, facts)))


if __name__ == "__main__":
    main()
