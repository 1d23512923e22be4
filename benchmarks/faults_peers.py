"""The planted faults that make a case unusable, before other programs: do they say anything?

    python -m benchmarks.faults_peers [--data FOLDER] [--table FILE]

For every fault of `benchmarks/faults.py` whose case must be refused (single channel), in a data set
of its own with one sound case: nibabel and SimpleITK read all files, MONAI's LoadImage reads them,
medjax verifies the data set. A reader need not compare files or know labels; it is asked because
programs that rely on it see what it sees. "says so" is an exception (or, for medjax, an error of
the report), "silent" is none, "no answer" nothing within 120 s. Needs the extra `parity`.
"""

import contextlib
import io
import json
import signal
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from benchmarks import faults, harness
from benchmarks.peers.readers import READERS

LIMIT_S = 120


def plant(folder: Path, fault: faults.Fault, pairs: Sequence[tuple[Path, Path]]) -> None:
    """One sound and one faulty case in nnU-Net's raw layout."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for case, (image, label) in zip(("good", "bad"), pairs, strict=False):
        site = faults.Site(
            case,
            [folder / "imagesTr" / f"{case}_0000.nii.gz"],
            folder / "labelsTr" / f"{case}.nii.gz",
        )
        site.image.write_bytes(image.read_bytes())
        site.label.write_bytes(label.read_bytes())
        if case == "bad":
            fault.plant(site)
            if site.image.name != "bad_0000.nii.gz":
                site.image.rename(folder / "imagesTr" / "bad_0000.nii")
    values = sorted(
        {int(v) for _, path in pairs for v in np.unique(np.asanyarray(nib.load(path).dataobj))}
        - {0}
    )
    labels = {"background": 0} | {f"class {v}": v for v in values}
    spec = {
        "channel_names": {"0": "MRI"},
        "labels": labels,
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(spec))


class _TooLong(BaseException):
    pass


def _alarm(*_) -> None:
    raise _TooLong


def ask(peer: Callable[[Path], None], folder: Path) -> str:
    """ "says so", "silent" or "no answer"; a program's chatter is dropped."""
    signal.signal(signal.SIGALRM, _alarm)
    signal.alarm(LIMIT_S)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        try:
            peer(folder)
        except _TooLong:
            return "no answer"
        except Exception:
            return "says so"
        finally:
            signal.alarm(0)
    return "silent"


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table."""
    args = harness.parser(
        __doc__, data=harness.flag(type=Path), table=harness.flag(type=Path)
    ).parse_args(argv)
    chosen = [
        f
        for f in faults.FAULTS
        if f.expected == faults.ERROR and f.corpus == "one" and f.number not in ("4", "5a", "5b")
    ]
    lines = [f"| no. | planted | {' | '.join(READERS)} |", "|---|---|" + "---|" * len(READERS)]
    found = dict.fromkeys(READERS, 0)
    with tempfile.TemporaryDirectory() as root:
        pairs = faults.base_cases(args.data) if args.data else faults.synthetic(Path(root) / "base")
        sound = Path(root) / "sound"
        plant(sound, faults.Fault("0", "nothing", lambda site: None, faults.CLEAN), pairs)
        for number, what, folder in [
            ("", "nothing (must be silent)", sound),
            *((f.number, f.what, Path(root) / f.number) for f in chosen),
        ]:
            if number:
                plant(folder, next(f for f in chosen if f.number == number), pairs)
            said = {name: ask(peer, folder) for name, peer in READERS.items()}
            found = {
                name: found[name] + (said[name] == "says so" and bool(number)) for name in READERS
            }
            lines.append(f"| {number} | {what} | {' | '.join(said.values())} |")
            print(lines[-1], flush=True)
    lines.append(f"| | found of {len(chosen)} | {' | '.join(map(str, found.values()))} |")
    print(lines[-1])
    if args.table:
        args.table.write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
