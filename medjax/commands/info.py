"""`medjax info`: installed versions, the contents of a run folder, or the known public corpora."""

import json
from pathlib import Path

from medjax.errors import EXIT_OK, UsageError, did_you_mean


def add(verbs) -> None:
    """Adds the verb's parser."""
    p = verbs.add_parser(
        "info",
        help="versions, devices, models, configs; contents of a run folder; public corpora",
    )
    p.add_argument(
        "run_folder",
        nargs="?",
        default="",
        help="a run folder, or with --corpora the name of a corpus",
    )
    p.add_argument(
        "--corpora",
        action="store_true",
        help="the catalogue of public corpora: licence, classes, defects, overlaps",
    )
    p.add_argument(
        "--catalogue",
        default="",
        metavar="MODULE:FUNCTION",
        help="a catalogue that no installed package registers",
    )
    p.add_argument(
        "--accept",
        action="store_true",
        help="accept config.json, labels.json and plan.json of a run as they are now",
    )
    p.add_argument("--json", action="store_true")
    p.set_defaults(run=_info)


def _info(args) -> int:
    from medjax.runs.info import about, about_parameters, about_run, as_text

    if args.corpora or args.catalogue:
        return _corpora(args)
    if args.accept:
        return _accept(args)
    if args.run_folder:
        facts = about_run(Path(args.run_folder)) | about_parameters(Path(args.run_folder))
    else:
        facts = about()
    print(json.dumps(facts, indent=1) if args.json else as_text(facts))
    return EXIT_OK


def _accept(args) -> int:
    from medjax.runs import folder

    if not args.run_folder:
        raise UsageError("no run folder to accept", fix="medjax info RUN --accept")
    changed = folder.accept(Path(args.run_folder))
    print(f"accepted: {', '.join(changed) or 'nothing was edited'}")
    return EXIT_OK


def _corpora(args) -> int:
    from medjax.runs.catalogues import as_table, registered
    from medjax.runs.info import as_text

    facts, name = registered(args.catalogue), args.run_folder
    if name and name not in facts["corpora"]:
        raise UsageError(
            f"no corpus {name!r} in the catalogue", fix=did_you_mean(name, facts["corpora"])
        )
    chosen = facts["corpora"][name] if name else facts
    print(
        json.dumps(chosen, indent=1) if args.json else as_text(chosen) if name else as_table(facts)
    )
    return EXIT_OK
