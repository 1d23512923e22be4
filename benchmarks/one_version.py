"""One action of one version of medjax, timed or traced; started by `benchmarks.versions` and
`benchmarks.layout` with the checkout of that version as PYTHONPATH.

    PYTHONPATH=CHECKOUT python -P benchmarks/one_version.py CHECKOUT FOLDER ACTION [JSON]

Actions work in FOLDER and print one JSON object:

  make      writes the phantom corpora and trains a run of two steps on them
  prepare   prepares the corpora twice; seconds of the second time
  step      trains `steps` steps on the store of `make`; seconds per step after the first stretch
  predict   predicts `scans` scans, or the one scan `image`, twice; seconds of the second time, and
            CPU seconds of the process

With {"trace": true} `predict` and `step` run once and report the Python functions of medjax that
were entered (distinct files, distinct functions, calls; module bodies are not counted) and how
often the scan or the case was opened. Only the standard library and the commands of medjax are
used here, so that old versions run as well.
"""

import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path


class Trace:
    """Counts the functions below a folder that are entered, in all threads, and the opened files
    whose path holds `watched`.
    """

    def __init__(self, folder: Path, watched: str):
        self.folder, self.watched = f"{folder}{os.sep}", watched
        self.calls: dict = {}
        self.opened, self.on = 0, False
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple) -> None:
        # os.open has no mode; it is what `open` with an opener calls, which is counted already
        if self.on and event == "open" and arguments[1] and self.watched in str(arguments[0]):
            self.opened += 1

    def _profile(self, frame, event: str, argument) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(self.folder):
            self.calls[frame.f_code] = self.calls.get(frame.f_code, 0) + 1

    def __enter__(self) -> "Trace":
        self.on = True
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *_) -> None:
        sys.setprofile(None)
        threading.setprofile(None)
        self.on = False

    def found(self) -> dict:
        """The counts."""
        kept = {code: n for code, n in self.calls.items() if code.co_name != "<module>"}
        return {
            "files": len({code.co_filename for code in kept}),
            "functions": len(kept),
            "calls": sum(kept.values()),
            "opened": self.opened,
        }


def command(module: str, *arguments: object) -> float:
    """A command of medjax in this process: its seconds; ends the program if it failed."""
    import importlib

    main, began = importlib.import_module(module).main, time.perf_counter()
    out, sys.stdout = sys.stdout, sys.stderr
    try:
        code = main([str(a) for a in arguments])
    finally:
        sys.stdout = out
    if code:
        raise SystemExit(f"{module} {' '.join(map(str, arguments))}: exit code {code}")
    return time.perf_counter() - began


def corpora(folder: Path) -> list[Path]:
    """The raw corpora."""
    return sorted(p for p in (folder / "raw").iterdir() if p.is_dir())


def train(folder: Path, name: str, steps: int, size: dict) -> Path:
    """A training into a new folder, on the shared store; returns the folder."""
    shutil.rmtree(folder / name, ignore_errors=True)
    fields = {
        "data.folders": ",".join(map(str, corpora(folder))),
        "data.store": folder / "store",
        "data.split.folds": 2,
        "train.steps": steps,
        "train.log_every": max(steps // 8, 1),
        "train.validate_every": 0,
        "train.checkpoint_every": steps,
        "train.patch": ",".join(map(str, size["patch"])),
        "train.batch": size["batch"],
        "model.base_features": size["features"],
        "sampler.threads": 1,
        "evaluate.on": False,
    }
    flags = [f"--config.{key}={value}" for key, value in fields.items()]
    where = f"--workdir={folder / name}"
    command("medjax.main", "--config=configs/multitalent.py:unet_small", where, *flags)
    return folder / name


def seconds_per_step(run: Path) -> float:
    """The mean over the logged stretches but the first, which holds the compilation."""
    rows = [json.loads(line) for line in (run / "system.jsonl").read_text().splitlines()]
    rates = [row["steps_per_s"] for row in rows[1:] or rows]
    return sum(1 / rate for rate in rates) / len(rates)


def make(checkout: Path, folder: Path, given: dict) -> dict:
    """Corpora, store and a run."""
    command("medjax.cli", "phantom", folder / "raw", "--cases", given["cases"])
    train(folder, "run", 2, given)
    return {}


def prepare(checkout: Path, folder: Path, given: dict) -> dict:
    """All corpora into a new store, the second of two times."""
    for _ in range(2):
        shutil.rmtree(folder / "again", ignore_errors=True)
        more = ("-o", folder / "again", "--workers", 1, "--quiet")
        seconds = command("medjax.cli", "prepare", *corpora(folder), *more)
    return {"seconds": seconds}


def step(checkout: Path, folder: Path, given: dict) -> dict:
    """A training; traced with two numbers of steps, so that one step and the way to it are told
    apart.
    """
    if not given.get("trace"):
        return {"seconds": seconds_per_step(train(folder, "trained", given["steps"], given))}
    trace = Trace(checkout / "medjax", f"{folder / 'store'}{os.sep}")
    with trace:
        train(folder, "traced", given["steps"], given)
    return trace.found()


def predict(checkout: Path, folder: Path, given: dict) -> dict:
    """Masks of the first scans of the first corpus, or of `image`, the second of two times; traced:
    once.
    """
    scans = sorted((corpora(folder)[0] / "imagesTr").iterdir())[: given["scans"]]
    scans = [Path(given["image"])] if given.get("image") else scans
    corpus = json.loads((folder / "run" / "labels.json").read_text())["corpora"][0]["name"]
    out = folder / "masks"
    words = ("predict", "-m", folder / "run", "-i", *scans, "-o", out, "--corpus", corpus)
    words += ("--no-html", "--quiet")
    trace = Trace(checkout / "medjax", str(scans[0]))
    for _ in range(1 if given.get("trace") else 2):
        shutil.rmtree(out, ignore_errors=True)
        if given.get("trace"):
            with trace:
                command("medjax.cli", *words)
        else:
            used = time.process_time()
            seconds = command("medjax.cli", *words)
            used = time.process_time() - used
    return trace.found() if given.get("trace") else {"seconds": seconds, "cpu_s": used}


ACTIONS = {action.__name__: action for action in (make, prepare, step, predict)}
# small sizes: seconds per action; `benchmarks.versions` has larger ones
SIZE = {"cases": 4, "scans": 1, "steps": 2, "batch": 2, "features": 4, "patch": (16, 16, 16)}


def main(argv: list[str]) -> None:
    """Runs one action."""
    checkout, folder, action, *more = argv
    given = SIZE | (json.loads(more[0]) if more else {})
    import medjax

    if Path(medjax.__file__).resolve().parent != Path(checkout).resolve() / "medjax":
        raise SystemExit(f"{medjax.__file__} is not of {checkout}: set PYTHONPATH to the checkout")
    found = ACTIONS[action](Path(checkout).resolve(), Path(folder).resolve(), given)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
