"""`medjax gates`: mean gate weights of a trained mixture, by modality, stage and block."""


def add(verbs) -> None:
    """Adds the verb's parser."""
    p = verbs.add_parser(
        "gates", help="mean gate weights of a mixture of experts: table and heat map"
    )
    p.add_argument("model", metavar="RUN", help="folder of a trained run, with its store")
    p.add_argument(
        "-o", "--out", help="where gates.json, gates.md and gates.png go; default RUN/gates"
    )
    p.add_argument("--batches", type=int, default=8, help="per corpus")
    p.add_argument("--side", choices=("val", "train"), default="val", help="of the split")
    p.add_argument(
        "--overwrite", action="store_true", help="also replace files that medjax did not write"
    )
    p.set_defaults(run=_gates)


def _gates(args) -> int:
    from pathlib import Path

    from medjax_verbs import gate_weights as gates

    run = Path(args.model)
    out = Path(args.out) if args.out else run / "gates"
    gates.check(out, overwrite=args.overwrite)
    found = gates.measure(run, batches=args.batches, side=args.side)
    gates.write(found, out, overwrite=args.overwrite)
    print(found.markdown())
    return 0
