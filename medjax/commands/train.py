"""`medjax train`: the same as `python -m medjax.main`."""


def add(verbs) -> None:
    """Adds the verb's parser; `--help` is that of the program."""
    p = verbs.add_parser(
        "train",
        help="train a config: medjax train CONFIG --workdir=RUN [--config.field=value ...]",
        add_help=False,
    )
    p.add_argument("config", nargs="?", help="configs/NAME.py[:variant]")
    p.set_defaults(run=_train, forwards=True)


def _train(args) -> int:
    from medjax import main

    return main.main([*([f"--config={args.config}"] if args.config else []), *args.rest])
