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
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

from benchmarks import harness


@dataclasses.dataclass(frozen=True)
class Job:
    """Command lines that run one after another; `after` names a job that must be complete before.

    The exit codes in `good` are a success (3: some cases failed, the scores are there).
    """

    lines: Sequence[Sequence[str]]
    after: str = ""
    good: tuple[int, ...] = (0,)


def flags(fields: Mapping[str, object]) -> tuple[str, ...]:
    """Fields of a config as words of a command line."""
    return tuple(f"--config.{name}={value}" for name, value in fields.items())


def training(config: str, out: Path, name: str, flags: Sequence[str], after: str = "") -> Job:
    """One training into <out>/<name>."""
    words = harness.script("medjax.main", f"--config={config}", f"--workdir={out / name}", *flags)
    return Job((words,), after)


def parser(text: str, sizes: Sequence[str], size_help: str) -> argparse.ArgumentParser:
    """The arguments that the comparisons share."""
    return harness.parser(
        text,
        data=harness.flag(type=Path, required=True),
        out=harness.flag(type=Path, required=True),
        steps=1500,
        parallel=harness.flag(1, help="trainings at a time"),
        timeout=harness.flag(3600.0, help="seconds for all trainings"),
        size=harness.flag("full", choices=sizes, help=size_help),
    )


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
    jobs: Mapping[str, Job],
    out: Path,
    parallel: int,
    timeout_s: float | None = None,
    report: Callable[[dict], None] = lambda done: None,
    **environment: str,
) -> dict[str, dict]:
    """Runs all, at most `parallel` at a time, first those that others wait for.

    Args:
      out: logs go to <out>/<name>.log. timeout_s: for all; what still runs then is stopped. report:
        called after every job with what is returned in the end. environment: added to this
        process'.

    Returns: name -> {"rc", "wall_s"}, and "log", the end of its output, of a job that failed.
    """
    path = os.pathsep.join(filter(None, (str(harness.ROOT), os.environ.get("PYTHONPATH", ""))))
    shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "CI": "1", "PYTHONPATH": path}
    shared["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / max(parallel, 1):.2f}"
    deadline = time.monotonic() + (timeout_s or float("inf"))
    needed = {job.after for job in jobs.values()}
    order = sorted(jobs, key=lambda name: name not in needed)
    done: dict[str, dict] = {}

    def one(name: str) -> dict:
        began, code = time.monotonic(), 0
        print(f"start {name}", flush=True)
        with (out / f"{name}.log").open("w") as log:
            for line in jobs[name].lines:
                try:
                    found = subprocess.run(
                        line,
                        cwd=harness.ROOT,
                        env=os.environ | shared | environment,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        timeout=max(deadline - time.monotonic(), 1) if timeout_s else None,
                    ).returncode
                except subprocess.TimeoutExpired:
                    found = None
                code = code if code not in jobs[name].good else found
                if found is None:
                    break
        text = (out / f"{name}.log").read_text()
        entry = {"rc": code, "wall_s": round(time.monotonic() - began, 1)}
        print(f"end   {name}: rc {code}, {entry['wall_s']} s", flush=True)
        return entry | ({} if code in jobs[name].good else {"log": text[-1500:]})

    waiting, running = list(order), {}
    with ThreadPoolExecutor(max(parallel, 1)) as pool:
        while waiting or running:
            for name in list(waiting):
                before = done.get(jobs[name].after)
                if before is not None and before["rc"] not in jobs[jobs[name].after].good:
                    why = f"{jobs[name].after} failed before it"
                elif time.monotonic() > deadline:
                    why = "no time was left"
                elif (not jobs[name].after or before) and len(running) < parallel:
                    running[pool.submit(one, name)] = name
                    waiting.remove(name)
                    continue
                else:
                    continue
                waiting.remove(name)
                done[name] = {"rc": None, "wall_s": 0.0, "log": why}
            for future in wait(running, 0.5, FIRST_COMPLETED).done:
                done[running.pop(future)] = future.result()
                report(done)
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


def finished(folder: Path) -> bool:
    """Whether a training has reached its last step, scored or not."""
    from medjax.runs import folder as runfolder
    from medjax.train import stepfolder

    step = stepfolder.latest_step(folder / "checkpoints")
    return step is not None and step >= runfolder.read_config(folder).train.steps


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
