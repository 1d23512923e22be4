"""`medjax export`: a trained run as one file."""

from pathlib import Path


def add(verbs) -> None:
    """Adds the verb's parser."""
    p = verbs.add_parser(
        "export", help="a trained run as one file: weights, StableHLO function, or Orbax checkpoint"
    )
    p.add_argument("run_folder", help="a run folder, or a weights archive")
    p.add_argument("-o", "--output", required=True, help="NAME.medjax, or a folder with --orbax")
    form = p.add_mutually_exclusive_group()
    form.add_argument(
        "--stablehlo",
        action="store_true",
        help="one self-contained function instead of weights: runs without the model's code",
    )
    form.add_argument(
        "--orbax",
        action="store_true",
        help="a slim run folder: config, labels, plan and an Orbax checkpoint of the weights",
    )
    form.add_argument(
        "--family",
        default="",
        help="the weight file of the program that the weights came from (segvol): NAME.safetensors",
    )
    p.add_argument(
        "--extras", default="", help="of --family: extras.safetensors of the imported run"
    )
    p.add_argument("--checkpoint", default="", help="last, best or a step; default: the config's")
    p.add_argument(
        "--platforms",
        nargs="+",
        default=("cpu", "cuda", "tpu"),
        help="platforms for which a StableHLO function is compiled",
    )
    p.add_argument(
        "--licence",
        action="append",
        default=[],
        metavar="CORPUS=TEXT",
        help="licence of a training corpus whose data set does not state one",
    )
    p.add_argument("--overwrite", action="store_true", help="replace an existing file")
    p.set_defaults(run=_export)


def _export(args) -> int:
    from medjax.runs.exchange import export, foreign

    if args.family:
        print(
            foreign.export(
                Path(args.run_folder),
                Path(args.output),
                args.family,
                extras=Path(args.extras) if args.extras else None,
                checkpoint=args.checkpoint,
                overwrite=args.overwrite,
            )
        )
        return 0
    kind = "function" if args.stablehlo else "orbax" if args.orbax else "weights"
    print(
        export.export(
            Path(args.run_folder),
            Path(args.output),
            kind,
            checkpoint=args.checkpoint,
            platforms=args.platforms,
            licences=export.given_licences(args.licence),
            overwrite=args.overwrite,
        )
    )
    return 0
