"""`medjax report`: the HTML page of an evaluation, a prediction or a run."""

from medjax.errors import EXIT_OK, shown


def add(verbs) -> None:
    """Adds the verb's parser."""
    p = verbs.add_parser(
        "report",
        help="write report.html: tables, plots and a viewer in one file that works without a "
        "network",
    )
    p.add_argument("folder", help="output folder of evaluate or predict, or a run folder")
    p.add_argument("--viewer-cases", type=int, default=8, help="scans inside the page (0: none)")
    p.add_argument(
        "--viewer-voxels",
        type=int,
        default=3_000_000,
        help="voxels per scan; larger ones are cropped and coarsened",
    )
    p.add_argument(
        "--budget-mb", type=float, default=60.0, help="size of all scans inside the page"
    )
    p.add_argument(
        "--overwrite",
        action="store_true",
        help="also replace a report.html that medjax did not write",
    )
    p.set_defaults(run=_report)


def _report(args) -> int:
    from medjax.report.prediction import report

    options = {
        "cases": args.viewer_cases,
        "voxels": args.viewer_voxels,
        "budget_mb": args.budget_mb,
        "overwrite": args.overwrite,
    }
    for path in report(args.folder, **options):
        print(shown(path))
    return EXIT_OK
