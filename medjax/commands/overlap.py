"""`medjax overlap`: finds scans shared by data sets (exit 4: by training and evaluation)."""

import json

from medjax.errors import EXIT_OK, EXIT_SOME_FAILED, EXIT_VERIFICATION, UsageError, shown


def add(verbs) -> None:
    """Adds the verb's parser."""
    p = verbs.add_parser(
        "overlap",
        help="scans that data sets share, by their rules for names or by content (exit 4: "
        "evaluation overlaps training)",
    )
    p.add_argument("folders", nargs="+", help="data sets to train on")
    p.add_argument(
        "--against",
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="data sets to evaluate on; default: overlaps among the data sets to train on",
    )
    p.add_argument(
        "--content",
        action="store_true",
        help="also compare the voxels of the images (reads every image once)",
    )
    p.add_argument("--workers", type=int, default=0, help="cases at a time; 0: one per core")
    p.add_argument("--json", action="store_true", help="machine-readable report")
    p.add_argument("--quiet", action="store_true")
    p.set_defaults(run=_overlap)


def _overlap(args) -> int:
    from medjax.commands import progress, report_failures
    from medjax.corpora import twins
    from medjax.corpora.sources import scan_corpus

    cases, rules, sides = {}, {}, {"train": [], "evaluation": []}
    for side, folders in (("train", args.folders), ("evaluation", args.against)):
        for folder in folders:
            corpus, members, _ = scan_corpus(folder)
            if corpus.name in cases and folder in args.folders:
                raise UsageError(
                    f"two data sets are called {corpus.name!r}",
                    path=folder,
                    fix='give one "medjax": {"name": ...}',
                )
            cases[corpus.name], rules[corpus.name] = members, twins.rules_of(folder)
            sides[side] += [f"{corpus.name}/{case.name}" for case in members]
    pairs, failed = list(twins.by_name(cases, rules)), []
    if args.content:
        found, failed = twins.by_content(
            cases, workers=args.workers or None, progress=progress(args.quiet, "compare")
        )
        known = {frozenset((p.first, p.second)) for p in pairs}
        pairs += [pair for pair in found if frozenset((pair.first, pair.second)) not in known]
    if args.against:
        pairs = list(twins.between(sides["train"], sides["evaluation"], pairs))
    if args.json:
        print(
            json.dumps(
                [{"first": p.first, "second": p.second, "why": p.why} for p in pairs], indent=1
            )
        )
    else:
        for pair in pairs:
            print(f"{shown(pair.first)}  =  {shown(pair.second)}   ({shown(pair.why)})")
        what = "shared by training and evaluation" if args.against else "shared"
        print(
            f"{len(pairs)} scans {what} among {sum(map(len, cases.values()))} cases"
            + ("" if args.content else "; by names only, see --content")
        )
    code = report_failures(failed)
    return EXIT_VERIFICATION if args.against and pairs else EXIT_SOME_FAILED if code else EXIT_OK
