"""`medjax verify`: checks every image and label of data sets; exit 4 if there is an error."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from medjax.commands import progress
from medjax.errors import EXIT_OK, EXIT_VERIFICATION, UsageError


def add(verbs) -> None:
    """Adds the verb's parser."""
    p = verbs.add_parser(
        "verify", help="check every image and label of data sets (exit 4 when something is wrong)"
    )
    p.add_argument(
        "folders",
        nargs="+",
        metavar="PATH",
        help="data sets in any layout of docs/data.md, or scans without labels",
    )
    p.add_argument("--json", action="store_true", help="machine-readable report")
    p.add_argument(
        "--fix",
        default="",
        metavar="OUT",
        help="write a corrected copy to the new folder OUT, and verify it",
    )
    p.add_argument(
        "--layout",
        default="",
        metavar="WORD",
        help="msd, nnunet, m3d, datalist, bids, perclass, dicom, folders, pairs or scans",
    )
    p.add_argument(
        "--workers",
        type=int,
        default=0,
        help="cases at a time; 0: one per core, fewer while memory is short",
    )
    p.add_argument("--quiet", action="store_true", help="no progress")
    p.set_defaults(run=_verify)


def _verify(args) -> int:
    from medjax.corpora.fix import fix
    from medjax.corpora.verify import verify

    options = {"layout": args.layout, "workers": args.workers or None}
    reports, copies = [], []
    outs = _outputs(args.folders, Path(args.fix)) if args.fix else []
    for number, folder in enumerate(args.folders):
        reports.append(verify(folder, **options, progress=progress(args.quiet, f"verify {folder}")))
        if not args.json:
            print(reports[-1].text() + "\n", flush=True)
        if args.fix:
            if reports[-1].cases == 0:
                raise UsageError(
                    "nothing to correct: the description itself cannot be used",
                    path=folder,
                    fix="fix it first, see above",
                )
            copies.append(
                fix(folder, outs[number], **options, progress=progress(args.quiet, f"fix {folder}"))
            )
            if not args.json:
                print(copies[-1].text() + "\n", flush=True)
    if args.json:
        fixed = [{"fix": copy.to_json()} for copy in copies] or [{}] * len(reports)
        print(
            json.dumps(
                [report.to_json() | extra for report, extra in zip(reports, fixed, strict=True)],
                indent=1,
            )
        )
    return EXIT_OK if all(found.ok for found in copies or reports) else EXIT_VERIFICATION


def _outputs(folders: Sequence[str], out: Path) -> list[Path]:
    """Where the corrected copies go; raises before any work if one cannot be written."""
    from medjax.corpora.fix import check_target

    names = [os.path.basename(os.path.realpath(folder)) for folder in folders]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(
            f"two data sets are called {twice!r}", path=out, fix="correct them one by one"
        )
    outs = [out / name for name in names] if len(folders) > 1 else [out]
    if os.path.islink(out):
        raise UsageError(
            "the folder for the corrected copy is a symbolic link",
            path=out,
            fix="name the folder itself",
        )
    for one in outs:
        for folder in folders:
            check_target(folder, one)
    return outs
