"""`medjax info`: what is installed here, or what a run folder knows."""

import json
from pathlib import Path

from medjax.errors import EXIT_OK


def add(verbs) -> None:
    """Adds the verb's parser."""
    p = verbs.add_parser("info", help="versions, devices, models, configs; or what a run folder knows")
    p.add_argument("run_folder", nargs="?", default="", help="a run folder")
    p.add_argument("--json", action="store_true")
    p.set_defaults(run=_info)


def _info(args) -> int:
    from medjax.experiment.info import about, about_run, as_text

    facts = about_run(Path(args.run_folder)) if args.run_folder else about()
    print(json.dumps(facts, indent=1) if args.json else as_text(facts))
    return EXIT_OK
