"""Several trainings as processes of their own, some at a time, on one prepared store; what they
leave behind as numbers.

Used by the benchmarks that compare runs. A run that fails is reported with the end of its log and
the others go on.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Training:
    """One command: `name` is its folder under the output, `after` names a training that must be
    complete before.
    """

    name: str
    flags: tuple[str, ...]
    after: str = ""


def parser(text: str, sizes: Sequence[str], size_help: str) -> argparse.ArgumentParser:
    """The arguments that the comparisons share."""
    made = argparse.ArgumentParser(description=text.splitlines()[0])
    made.add_argument("--data", type=Path, required=True)
    made.add_argument("--out", type=Path, required=True)
    made.add_argument("--steps", type=int, default=1500)
    made.add_argument("--parallel", type=int, default=1, help="trainings at a time")
    made.add_argument("--timeout", type=float, default=3600.0, help="seconds for all trainings")
    made.add_argument("--size", choices=sizes, default="full", help=size_help)
    return made


def folders(data: Path, names: Sequence[str]) -> str:
    """The flag value that names the corpora of `data`."""
    return ",".join(str(data / name) for name in names)


def prepare(config: str, flags: Sequence[str], out: Path) -> None:
    """Fills the store that all trainings share, once and before them: a training of no corpus is
    not needed for that.
    """
    from medjax import main
    from medjax.registry import plain
    from medjax.runs import stages

    command = main.parse(
        ["medjax.main", f"--config={config}", f"--workdir={out / 'prepare'}", *flags]
    )
    stages.prepare_stage(stages.open_run(plain(command.config), command.workdir))


def run(
    config: str, trainings: Sequence[Training], out: Path, parallel: int, timeout_s: float
) -> dict[str, dict]:
    """Runs all, at most `parallel` at a time; returns name -> {"rc", "wall_s"}; logs go to
    <out>/<name>.log.
    """
    environment = {
        **os.environ,
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / parallel:.2f}",
    }
    environment |= {
        "CI": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", "")))),
    }
    waiting, running, done = list(trainings), {}, {}
    deadline = time.monotonic() + timeout_s
    while waiting or running:
        for training in [
            t for t in waiting if t.after and t.after in done and done[t.after]["rc"] != 0
        ]:
            waiting.remove(training)
            done[training.name] = {
                "rc": None,
                "wall_s": 0.0,
                "log": f"{training.after} failed before it",
            }
        for training in [t for t in waiting if not t.after or t.after in done][
            : parallel - len(running)
        ]:
            waiting.remove(training)
            command = [
                sys.executable,
                "-m",
                "medjax.main",
                f"--config={config}",
                f"--workdir={out / training.name}",
                *training.flags,
            ]
            log = (out / f"{training.name}.log").open("w")
            print(f"start {training.name}", flush=True)
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
            running[training.name] = (process, time.monotonic(), log)
        time.sleep(0.2)
        for name, (process, began, log) in list(running.items()):
            if process.poll() is None and time.monotonic() > deadline:
                process.kill()
                process.wait()
            if process.poll() is not None:
                log.close()
                del running[name]
                text = (out / f"{name}.log").read_text()
                done[name] = {
                    "rc": process.returncode,
                    "wall_s": round(time.monotonic() - began, 1),
                }
                done[name] |= {"log": text[-1500:]} if process.returncode else {}
                print(
                    f"end   {name}: rc {process.returncode}, {done[name]['wall_s']} s", flush=True
                )
        if time.monotonic() > deadline:
            done |= {
                t.name: {"rc": None, "wall_s": 0.0, "log": "no time was left"} for t in waiting
            }
            waiting = []
    return done


def lines(path: Path) -> list[dict]:
    """A .jsonl file; a last line that is not complete is left out."""
    found = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def training_seconds(folder: Path) -> float | None:
    """Seconds of all logged steps but the first stretch, which holds the compilation, scaled to the
    whole run.
    """
    rows = lines(folder / "system.jsonl")
    rates = [row["steps_per_s"] for row in rows[1:]] or [row["steps_per_s"] for row in rows]
    if not rates:
        return None
    return rows[-1]["step"] * sum(1 / r for r in rates) / len(rates)


def cells(folder: Path) -> dict[tuple[str, str], dict]:
    """(corpus, class) -> {"mean", "interval", "n"} of Dice from a run's evaluation; empty where
    there is none.
    """
    path = folder / "evaluation" / "summary.json"
    if not path.is_file():
        return {}
    table = json.loads(path.read_text())["cells"]
    return {
        (c, k): {f: cell["Dice"][f] for f in ("mean", "interval", "n")}
        for c, row in table.items()
        for k, cell in row.items()
    }


def curve(folder: Path, classes: Sequence[str]) -> tuple[list[int], list[float]]:
    """Steps and the mean pseudo Dice of `classes` on held-out patches."""
    rows = [
        row for row in lines(folder / "metrics.jsonl") if any(f"dice/{c}" in row for c in classes)
    ]
    means = [
        [row[f"dice/{c}"] for c in classes if row.get(f"dice/{c}") is not None] for row in rows
    ]
    pairs = [(row["step"], sum(m) / len(m)) for row, m in zip(rows, means, strict=True) if m]
    return [s for s, _ in pairs], [v for _, v in pairs]


def shown(cell: Mapping | None) -> str:
    """A cell of a table: mean and interval."""
    if not cell or cell["mean"] is None:
        return "-"
    return f"{cell['mean']:.3f}" + (
        " [{:.3f}, {:.3f}]".format(*cell["interval"]) if cell["interval"] else ""
    )


def write(out: Path, name: str, found: Mapping, markdown: str) -> None:
    """<name>.json and <name>.md in the output folder, the table on the screen."""
    (out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / f"{name}.md").write_text(markdown + "\n")
    print(markdown, flush=True)


def plot(
    path: Path,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    title: str,
    x: str,
    y: str,
) -> None:
    """Labelled lines as a picture; a missing drawing library leaves the numbers without it."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        print(f"no picture: {error}", flush=True)
        return
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for label, (steps, values) in ((k, v) for k, v in curves.items() if v[0]):
        axes.plot(steps, values, marker="o", markersize=3, label=label)
    axes.set(title=title, xlabel=x, ylabel=y, ylim=(0, 1))
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=8)
    FigureCanvasAgg(figure).print_png(str(path))
