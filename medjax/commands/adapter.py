"""`medjax adapter`: adapters as small files: taken out of a run, shown, merged, stacked."""

from pathlib import Path


def add(verbs) -> None:
    """Adds the verb's parser."""
    p = verbs.add_parser(
        "adapter", help="low-rank adapters as small files: extract, info, merge, stack"
    )
    kinds = p.add_subparsers(dest="kind", required=True, metavar="extract|info|merge|stack")
    one = kinds.add_parser("extract", help="the adapter of a run that was trained with one")
    one.add_argument("run_folder", help="a run folder, or a weights archive")
    one.add_argument("--name", default="", help="of its expert; default: the experiment's")
    one.add_argument("--checkpoint", default="", help="last, best or a step; default: the config's")
    one.add_argument(
        "--licence",
        action="append",
        default=[],
        metavar="CORPUS=TEXT",
        help="licence of a training corpus whose data set does not state one",
    )
    one.set_defaults(run=_extract)
    two = kinds.add_parser("info", help="kernels, ranks, experts, base and licences of a file")
    two.add_argument("file")
    two.set_defaults(run=_info)
    three = kinds.add_parser("merge", help="a model with the adapter added to its kernels")
    three.add_argument("base", help="the model it was trained on: run folder or archive")
    three.add_argument("file")
    three.add_argument("--expert", default="", help="the expert to merge, of several")
    three.add_argument("--force-base", action="store_true", help="accept another base")
    three.set_defaults(run=_merge)
    four = kinds.add_parser("stack", help="several adapters of one base as experts of one")
    four.add_argument("files", nargs="+")
    four.add_argument(
        "--route",
        required=True,
        choices=("modality", "corpus", "task"),
        help="what decides the expert of a case; whatever none was trained on gets the base",
    )
    four.set_defaults(run=_stack)
    for parser, what in (
        (one, "NAME.adapter.safetensors"),
        (three, "NAME.medjax, or a run folder"),
        (four, "NAME.adapter.safetensors"),
    ):
        parser.add_argument("-o", "--output", required=True, help=what)
        parser.add_argument("--overwrite", action="store_true", help="replace an existing file")


def _extract(args) -> int:
    from medjax.runs.exchange import adapters, export

    print(
        adapters.extract(
            Path(args.run_folder),
            Path(args.output),
            name=args.name,
            checkpoint=args.checkpoint,
            licences=export.given_licences(args.licence),
            overwrite=args.overwrite,
        )
    )
    return 0


def _info(args) -> int:
    from medjax.runs.exchange import adapters

    print(adapters.about(Path(args.file)))
    return 0


def _merge(args) -> int:
    from medjax.runs.exchange import adapters

    print(
        adapters.merge(
            Path(args.base),
            Path(args.file),
            Path(args.output),
            expert=args.expert,
            force=args.force_base,
            overwrite=args.overwrite,
        )
    )
    return 0


def _stack(args) -> int:
    from medjax.runs.exchange import adapters

    print(
        adapters.stack(
            [Path(f) for f in args.files], args.route, Path(args.output), overwrite=args.overwrite
        )
    )
    return 0
