"""`medjax evaluate`: scores masks against references, compares two models, writes a report."""

import dataclasses
import os
from pathlib import Path

from medjax import files
from medjax.commands import progress, report_failures
from medjax.errors import UsageError, did_you_mean, shown


def add(verbs) -> None:
    """Adds the verb's parser."""
    p = verbs.add_parser(
        "evaluate",
        help="score masks against references: Dice, IoU, NSD, HD95, ASSD, volumes; intervals and "
        "comparison",
    )
    p.add_argument(
        "--reference",
        required=True,
        help="folder of masks <case>.nii.gz or <case>/<class>.nii.gz, or a data set",
    )
    p.add_argument(
        "--prediction", required=True, help="folder of predicted masks with the same names"
    )
    p.add_argument(
        "--compare",
        default="",
        metavar="PREDICTION",
        help="predictions of another model on the same cases: paired differences",
    )
    p.add_argument(
        "--names",
        nargs=2,
        default=None,
        metavar=("FIRST", "OTHER"),
        help="names of the two models; default: their folders",
    )
    p.add_argument(
        "--per-class",
        action="store_true",
        help="score <case>/<class>.nii.gz where there is a <case>.nii.gz as well",
    )
    p.add_argument(
        "--labels",
        default="",
        help="dataset.json that names the labels; default: beside the reference folder",
    )
    p.add_argument(
        "--images",
        default="",
        help="folder of the scans, for pictures and viewer; default: those of the data set",
    )
    p.add_argument(
        "--classes",
        nargs="+",
        default=None,
        help="the classes to score; default: all annotated ones",
    )
    p.add_argument(
        "--group",
        action="append",
        default=[],
        metavar="NAME=CLASS,CLASS",
        help="an additional mean over the named classes; repeatable",
    )
    p.add_argument(
        "--tolerance-mm",
        nargs="+",
        default=[],
        metavar="MM|CLASS=MM",
        help="tolerance of the NSD, for all classes or per class; default 1",
    )
    p.add_argument("--no-surface", action="store_true", help="skip NSD, HD95 and ASSD")
    p.add_argument(
        "--test",
        choices=("wilcoxon", "permutation", "t"),
        default="wilcoxon",
        help="test of the paired differences (t: Student's)",
    )
    p.add_argument(
        "--one-sided",
        action="store_true",
        help="p of `the other model (--compare) is better`, instead of `they differ`",
    )
    p.add_argument(
        "--region",
        action="append",
        default=[],
        metavar="NAME=CLASS,CLASS",
        help="the union of the named classes is scored as well; repeatable",
    )
    p.add_argument(
        "--alone",
        action="store_true",
        help="also score classes without those nested in them, as a label map holds them",
    )
    p.add_argument("--resamples", type=int, default=10_000, help="of the bootstrap")
    p.add_argument("--seed", type=int, default=0, help="seed of bootstrap and permutations")
    p.add_argument("--montages", type=int, default=6, help="pictures of the worst cases")
    p.add_argument("--viewer-cases", type=int, default=8, help="scans inside report.html (0: none)")
    p.add_argument(
        "--no-report", action="store_true", help="numbers only: no pictures, plots or report.html"
    )
    p.add_argument(
        "--workers", type=int, default=0, help="cases at a time; 0: one per core, memory permitting"
    )
    p.add_argument("--quiet", action="store_true")
    p.add_argument(
        "--overwrite", action="store_true", help="also replace files that medjax did not write"
    )
    p.add_argument(
        "-o",
        "--output",
        required=True,
        help="folder for summary.json, cases.csv, table.md, plots/, montages/, report.html",
    )
    p.set_defaults(run=_evaluate)


def _evaluate(args) -> int:
    from medjax.corpora.scoring import read_protocol
    from medjax.metrics import evaluate as metrics
    from medjax.metrics import regions
    from medjax.metrics.compare import compare
    from medjax.report import present

    reference = Path(args.reference)
    beside = reference.parent / "dataset.json"
    whole = (reference / "dataset.json").is_file() or not (
        args.labels or beside.is_file()
    )  # a data set, not a folder of masks
    described = read_protocol(args.labels or (reference if whole else beside), args.images)
    groups = {name: tuple(classes) for name, classes in map(_group, args.group)}
    united = {name: tuple(classes) for name, classes in map(_group, args.region)}
    sources = {described.corpus.store: tuple(described.sources.values())}
    regions.check([described.corpus], sources, united, args.alone)
    scored, further = regions.extended(described.corpus, united, args.alone)
    described = dataclasses.replace(described, corpus=scored)
    for name in (n for names in groups.values() for n in names):
        described.corpus.ids_of(name)
    names = args.names or _names(args.prediction, args.compare)
    if args.compare and names[0] == names[1]:
        raise UsageError(
            "both models have one name", found=names[0], fix="give --names FIRST OTHER"
        )
    options = {
        "classes": args.classes,
        "apart": further,
        "surface": not args.no_surface,
        "groups": groups,
        "resamples": args.resamples,
        "seed": args.seed,
        "tolerance_mm": described.tolerance_mm
        | _tolerances(args.tolerance_mm, described.corpus.classes),
        "workers": args.workers or None,
    }
    wanted, found, results = _references(args.reference, described, whole), [], []
    for name, folder in zip(names, (args.prediction, args.compare), strict=True):
        if folder:
            pairs, unmatched = metrics.find_pairs(
                wanted, folder, described.sources, per_class=args.per_class
            )
            pairs = (
                [pair for pair in pairs if pair.prediction] if whole else pairs
            )  # of a whole data set, mostly training cases
            found.append((name, pairs, unmatched))
    out = Path(args.output)
    _check_output(out, described.corpus, further, [pair.case for pair in found[0][1]], args)
    for name, pairs, unmatched in found:
        show = progress(args.quiet, f"score {shown(name)}")
        results.append(
            metrics.evaluate(pairs, described.corpus, unmatched=unmatched, progress=show, **options)
        )
    results[0].write(out, overwrite=args.overwrite)
    compared = None
    if args.compare:
        results[1].write(out / "compared", overwrite=args.overwrite)
        compared = compare(
            *results,
            names=tuple(names),
            test=args.test,
            side="better" if args.one_sided else "two-sided",
            resamples=args.resamples,
            seed=args.seed,
        )
        compared.write(out, overwrite=args.overwrite)
    print(results[0].markdown() + ("" if compared is None else f"\n{compared.markdown()}"))
    if not args.no_report:
        shown_as = {
            "comparison": compared,
            "montages": args.montages,
            "viewer_cases": args.viewer_cases,
        }
        print(present.present(results[0], out, overwrite=args.overwrite, **shown_as))
    return report_failures([entry for result in results for entry in result.failed])


def _check_output(out: Path, corpus, further: tuple[str, ...], cases: list[str], args) -> None:
    """Checks that the output can be written, before anything is scored."""
    from medjax.infer import outputs
    from medjax.metrics import written

    classes = (*(corpus.annotated if args.classes is None else args.classes), *further)
    for name in classes:
        corpus.ids_of(name)
    planned = [(corpus.name, case) for case in cases] if args.montages else []
    names = written.planned(
        {corpus.name: classes}, planned, compared=bool(args.compare), page=not args.no_report
    )
    written.check(out, names, overwrite=args.overwrite)
    outputs.make_folder(out)
    files.sweep(out)


def _references(folder: str, described, whole: bool):
    """The reference folder, or all labels of a data set."""
    return (
        {name: case.label_files[0] for name, case in described.sources.items() if case.labelled}
        if whole
        else folder
    )


def _names(first: str, other: str) -> tuple[str, str]:
    """Short distinct names of two folders; parent folders are added as needed."""
    if not other:
        return Path(os.path.realpath(first)).name, ""
    parts = [Path(os.path.realpath(p)).parts for p in (first, other)]
    for depth in range(1, max(map(len, parts)) + 1):
        names = tuple("/".join(p[-depth:]) for p in parts)
        if names[0] != names[1]:
            return names
    return names


def _group(text: str) -> tuple[str, list[str]]:
    name, sign, classes = text.partition("=")
    if not sign or not name or not classes:
        raise UsageError("not a group", found=text, expected="NAME=CLASS,CLASS")
    return name, classes.split(",")


def _tolerances(given: list[str], classes: tuple[str, ...]) -> dict[str, float]:
    """Tolerances: `2` for all classes, `liver=3` for one class, which takes precedence."""
    found: dict[str, float] = {}
    for text in sorted(given, key=lambda t: "=" in t):
        name, _, value = text.rpartition("=")
        try:
            millimetres = float(value)
        except ValueError:
            millimetres = -1.0
        if not 0 <= millimetres < 1e6:
            raise UsageError("not a tolerance", found=text, expected="a number of mm, or CLASS=MM")
        if name and name not in classes:
            raise UsageError(
                f"unknown class {name!r} in --tolerance-mm", fix=did_you_mean(name, classes)
            )
        found |= {name: millimetres} if name else dict.fromkeys(classes, millimetres)
    return found
