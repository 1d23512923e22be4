"""`medjax verify`: every image and label of data sets, checked; exit 4 when something is wrong."""

import json

from medjax.errors import EXIT_OK, EXIT_VERIFICATION


def add(verbs) -> None:
    """Adds the verb's parser."""
    p = verbs.add_parser("verify", help="check every image and label of data sets (exit 4 when something is wrong)")
    p.add_argument("folders", nargs="+", help="data sets in MSD or nnU-Net raw layout")
    p.add_argument("--json", action="store_true", help="machine-readable report")
    p.set_defaults(run=_verify)


def _verify(args) -> int:
    from medjax.data.verify import verify

    reports = [verify(folder) for folder in args.folders]
    if args.json:
        print(json.dumps([report.to_json() for report in reports], indent=1))
    else:
        print("\n\n".join(report.text() for report in reports))
    return EXIT_OK if all(report.ok for report in reports) else EXIT_VERIFICATION
