r"""Preparation, training step and prediction of two versions of medjax, in turns in one run:
seconds and ratios. Prints JSON.

    git worktree add --detach OLD 337855a
    python -m benchmarks.versions OLD NEW [--rounds 5] [--size full|small] [--only prepare step]
    python -m benchmarks.versions OLD NEW --only predict --image torso_ct.nii.gz   # a scan of yours

OLD and NEW are checkouts. Every version makes its own phantom corpora, store and run; then each
action runs in a process of its own, OLD and NEW in turns (the order changes from round to round).
Start-up, imports and compilation are not in the seconds: prepare and predict count their second
time, a step the stretches after the first. Ratios are NEW over OLD, the median over rounds; of
predict also by CPU seconds, which other programs on the machine disturb less.
"""

import json
import os
import tempfile
from pathlib import Path

from benchmarks import harness

PROGRAM = Path(__file__).with_name("one_version.py")
SIZES = {
    "full": {
        "cases": 12,
        "scans": 4,
        "steps": 48,
        "batch": 2,
        "features": 16,
        "patch": (32, 48, 48),
    },
    "small": {},
}
ACTIONS = ("prepare", "step", "predict")


def run(checkout: Path, folder: Path, action: str, **given) -> dict:
    """An action of `benchmarks/one_version.py` in a process of its own."""
    words = [*harness.script("x")[:1], "-P", PROGRAM, checkout, folder, action, json.dumps(given)]
    own = {
        "PYTHONPATH": str(checkout),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "CI": "1",
    }
    return harness.run_json(words, cwd=checkout, env=os.environ | own)


def compare(
    old: Path, new: Path, rounds: int, size: dict, actions=ACTIONS, say=lambda text: None
) -> dict:
    """Action -> seconds of both by round, and the ratio."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="versions-") as root:
        sides = {"old": old.resolve(), "new": new.resolve()}
        for name, checkout in sides.items():
            (Path(root) / name).mkdir()
            run(checkout, Path(root) / name, "make", **size)
        for action in actions:
            seconds: dict[str, list[float]] = {name: [] for name in sides}
            used: dict[str, list[float]] = {name: [] for name in sides}
            for turn in range(rounds):
                for name in list(sides)[:: -1 if turn % 2 else 1]:
                    seen = run(sides[name], Path(root) / name, action, **size)
                    seconds[name].append(round(seen["seconds"], 4))
                    used[name] += [round(seen["cpu_s"], 4)] if "cpu_s" in seen else []
                    say(f"{action} {name}: {seconds[name][-1]} s")
            found[action] = {
                **seconds,
                "new over old": harness.ratio(seconds["new"], seconds["old"]),
            }
            if used["old"] and used["new"]:
                over = harness.ratio(used["new"], used["old"])
                found[action] |= {"cpu_s": used, "new over old, CPU": over}
    return found


def main() -> None:
    """Compares and prints."""
    parser = harness.parser(
        __doc__,
        rounds=5,
        size=harness.flag("full", choices=tuple(SIZES)),
        only=harness.flag(ACTIONS, nargs="+", choices=ACTIONS),
        image=harness.flag("", help="CT that predict takes instead of phantoms"),
        out="",
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    given = parser.parse_args()
    size = SIZES[given.size]
    if given.image:
        size = {**size, "image": str(Path(given.image).resolve())}
    found = compare(given.old, given.new, given.rounds, size, given.only, print)
    harness.show(harness.machine() | {"size": given.size, "found": found}, given.out)


if __name__ == "__main__":
    main()
