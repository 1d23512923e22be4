"""`medjax prepare`: crops, resamples and stores data sets for training; resumes an earlier call."""

from pathlib import Path

from medjax.border import say
from medjax.commands import add_planning, fingerprints, plan_arguments, progress, report_failures
from medjax.errors import UsageError, did_you_mean, shown


def add(verbs) -> None:
    """Adds the verb's parser."""
    p = verbs.add_parser(
        "prepare",
        help="crop, resample and store data sets for training; resumes an interrupted call",
    )
    p.add_argument("folders", nargs="+", help="data sets in any layout that `medjax verify` reads")
    p.add_argument("-o", "--output", required=True, help="store folder")
    p.add_argument(
        "--plan",
        default="",
        help="a plan of `medjax plan`, nnUNetPlans.json or plans.pkl; default: decided here from "
        "the data",
    )
    p.add_argument(
        "--configuration",
        default="",
        help='configuration of the plan, e.g. "3d_lowres", which has its own spacing',
    )
    p.add_argument(
        "--force", action="store_true", help="prepare all cases again, even those up to date"
    )
    p.add_argument(
        "--cases",
        nargs="+",
        default=None,
        metavar="NAME",
        help="prepare only these cases; the plan is still decided from all of them",
    )
    p.add_argument(
        "--packed",
        action="store_true",
        help="compressed chunks: smaller files for slow or remote disks; reading patches is slower",
    )
    add_planning(p)
    p.set_defaults(run=_prepare)


def _prepare(args) -> int:
    from medjax import files
    from medjax.corpora.sources import scan_corpus
    from medjax.prepare.prepare import check_plan, prepare
    from medjax.prepare.targets import check_plan_file, check_targets

    corpora, workers = [scan_corpus(folder) for folder in args.folders], args.workers or None
    chosen = _chosen(args.cases, [case.name for _, cases, _ in corpora for case in cases])
    for corpus, cases, _ in corpora:
        check_targets(corpus.store, cases, args.output)
    check_plan_file(Path(args.output) / "plan.json")
    plan, lines = _plan(args, corpora)
    if not args.quiet:
        print("\n".join(lines), flush=True)
    for corpus, _, _ in corpora:
        check_plan(corpus, plan)
    root, failed = (
        Path(args.output),
        [{"case": e.path} | e.record() for _, _, problems in corpora for e in problems],
    )
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.refused(root, error) from error
    files.write_json(root / "plan.json", plan.to_json())
    for corpus, cases, _ in corpora:
        cases = [case for case in cases if chosen is None or case.name in chosen]
        how = {"force": args.force, "packed": args.packed, "say": say}
        result = prepare(
            corpus,
            cases,
            plan,
            root,
            workers=workers,
            progress=progress(args.quiet, f"prepare {corpus.name}"),
            **how,
        )
        print(
            f"{corpus.name}: {len(result.ok)} prepared, {result.skipped} already there, "
            f"{len(result.failed)} failed"
        )
        for name, reason in result.stale.items():
            print(f"  {shown(name)}: prepared again, because of other {reason}")
        for line in result.remarks():
            print(line)
        failed += result.failed
    return report_failures(failed)


def _chosen(names: list[str] | None, known: list[str]) -> set[str] | None:
    """The cases of `--cases`, None for all."""
    for name in names or ():
        if name not in known:
            raise UsageError(f"no case {name!r} in these data sets", fix=did_you_mean(name, known))
    return None if names is None else set(names)


def _plan(args, corpora):
    from medjax.prepare.plan import make_plan
    from medjax.prepare.planner import explain
    from medjax.weights.foreign_plans.read import read_any_plan

    given = plan_arguments(args)
    if args.plan:
        if given["size"] or given["intensity"]:
            raise UsageError(
                "--plan decides size and intensity",
                path=args.plan,
                fix="give --size and --intensity to `medjax plan`, or leave out --plan",
            )
        plan = read_any_plan(args.plan, corpora[0][0].channels)
        plan = plan.at(args.configuration) if args.configuration else plan
        return plan, [f"Plan: {args.plan}", *explain({}, plan)]
    prints = fingerprints(args, corpora, given["intensity"])
    plan = make_plan(prints, **given)
    return plan, explain(prints, plan, given["spacing"])
