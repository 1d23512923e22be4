"""What hashes cost: preparing and reading with them and without, in turns.

    python -m benchmarks.hashing [store] [--shape 200 320 320] [--rounds 7]

`store` prepares one synthetic CT scan with and without hashes, then reads patches of it as a new
process would (first use) and again. Prints one JSON object per subject; ratios are medians over the
rounds of (with / without) of neighbouring runs, by wall and CPU time.
"""

import argparse
import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np

from benchmarks import harness


def ratio(
    with_hashes: Callable[[], object], without: Callable[[], object], rounds: int
) -> dict[str, float]:
    """Both in turns: medians of their seconds, and of the ratios of neighbours by wall and CPU."""
    turns = harness.in_turns({"with": with_hashes, "without": without}, rounds)
    seconds = {f"{name}_s": value for name, value in turns.median().items()}
    kinds = ("wall", "cpu")
    return seconds | {f"ratio_{k}": turns.ratio("with", "without", k, 4) for k in kinds}


@contextlib.contextmanager
def _unhashed() -> Iterator[None]:
    """Preparation as it was before there were hashes."""
    from medjax.prepare import hashes

    nothing = {
        "of_flat": lambda path, array: {},
        "of_packed": lambda path: {},
        "of_file": lambda path: "",
    }
    with contextlib.ExitStack() as stack:
        for name, function in nothing.items():
            stack.enter_context(mock.patch.object(hashes, name, function))
        yield


def store(args: argparse.Namespace) -> dict:
    """Preparation of one scan; all of its patches read for the first time, and read again."""
    from benchmarks.prepare import write_scans
    from medjax.corpora.sources import read_corpus
    from medjax.prepare import store as stored
    from medjax.prepare.plan import Intensity, Plan
    from medjax.prepare.prepare import prepare

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_scans(root / "Dataset001_Bench", args.shape, (1.0, 1.0, 1.0), 1)
        corpus, cases = read_corpus(root / "Dataset001_Bench")
        plan = Plan(
            {corpus.store: (1.0, 1.0, 1.0)},
            {c: Intensity("ct", (-500.0, 500.0), 0.0, 200.0) for c in corpus.channels},
        )

        def made(place: Path) -> None:
            if failed := prepare(corpus, cases, plan, place, workers=1, force=True).failed:
                raise SystemExit(str(failed))

        def unhashed() -> None:
            with _unhashed():
                made(root / "without")

        preparation = ratio(lambda: made(root / "with"), unhashed, args.rounds)
        names = {
            place: root / place / corpus.store / cases[0].name for place in ("with", "without")
        }
        described = names["without"] / "case.json"
        described.write_text(
            json.dumps(
                {
                    k: v
                    for k, v in json.loads(described.read_text()).items()
                    if k not in ("hashes", "checksum")
                }
            )
        )

        def read(place: str, new: bool) -> None:
            if new:
                for function in (stored._meta, stored._handle, stored._check):
                    function.cache_clear()
            rng, case = np.random.default_rng(0), stored.open_case(names[place])
            shape = case.meta["shape"]
            for _ in range(40):
                low = [int(rng.integers(0, max(1, n - 96))) for n in shape]
                part = tuple(slice(a, min(a + 96, n)) for a, n in zip(low, shape, strict=True))
                case.image(part), case.label(part)

        first = ratio(lambda: read("with", True), lambda: read("without", True), args.rounds)
        later = ratio(lambda: read("with", False), lambda: read("without", False), args.rounds)
        size = sum(p.stat().st_size for p in names["with"].rglob("*") if p.is_file())
    return {
        "mib": round(size / 2**20, 1),
        "prepare": preparation,
        "40 patches, first use": first,
        "40 patches, again": later,
    }


SUBJECTS: dict[str, Callable[[argparse.Namespace], dict]] = {"store": store}


def main() -> None:
    """Prints one JSON object per subject."""
    parser = harness.parser(
        __doc__, shape=harness.flag((200, 320, 320), help="voxels of the scan"), rounds=7
    )
    parser.add_argument(
        "subjects", nargs="*", default=list(SUBJECTS), help=f"of {', '.join(SUBJECTS)}; default all"
    )
    args = parser.parse_args()
    for name in args.subjects:
        report = {"subject": name, **harness.machine(), "shape": args.shape}
        harness.show(report | SUBJECTS[name](args), indent=None)


if __name__ == "__main__":
    main()
