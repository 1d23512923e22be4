"""`medjax prepare`: crop, resample and store data sets for training; finishes what an earlier call left."""

import json
from pathlib import Path

from medjax.commands import progress, report_failures


def add(verbs) -> None:
    """Adds the verb's parser."""
    p = verbs.add_parser("prepare", help="crop, resample and store data sets for training; finishes what an earlier call left")
    p.add_argument("folders", nargs="+", help="data sets in MSD or nnU-Net raw layout")
    p.add_argument("-o", "--output", required=True, help="store folder")
    p.add_argument("--spacing-mm", nargs=3, type=float, metavar=("Z", "Y", "X"), help="target spacing; default: nnU-Net's median rule")
    p.add_argument("--spacing-rule", choices=("median", "per_corpus"), default="median", help="where no spacing is given")
    p.add_argument("--orientation", choices=("RAS", "stored"), default="RAS")
    p.add_argument("--workers", type=int, default=0, help="cases at a time; 0: one per core")
    p.add_argument("--quiet", action="store_true")
    p.set_defaults(run=_prepare)


def _prepare(args) -> int:
    from medjax.data.fingerprint import fingerprint, make_plan
    from medjax.data.prepare import prepare
    from medjax.data.sources import scan_corpus

    corpora = [scan_corpus(folder) for folder in args.folders]
    prints = {corpus.name: fingerprint(corpus, cases) for corpus, cases, _ in corpora}
    spacing = tuple(args.spacing_mm) if args.spacing_mm else args.spacing_rule
    plan = make_plan(prints, spacing=spacing, orientation=args.orientation)
    root, failed = Path(args.output), [{"case": e.path} | e.record() for _, _, problems in corpora for e in problems]
    root.mkdir(parents=True, exist_ok=True)
    (root / "plan.json").write_text(json.dumps(plan.to_json(), indent=1))
    for corpus, cases, _ in corpora:
        result = prepare(corpus, cases, plan, root, workers=args.workers or None, progress=progress(args.quiet, f"prepare {corpus.name}"))
        print(f"{corpus.name}: {len(result.ok)} prepared, {result.skipped} already there, {len(result.failed)} failed")
        failed += result.failed
    return report_failures(failed)
