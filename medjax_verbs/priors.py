"""`medjax priors`: what the tokens of tasks mean that a network with context priors has learned."""


def add(verbs) -> None:
    """Adds the verb's parser."""
    p = verbs.add_parser(
        "priors",
        help="tokens of tasks of a network with context priors: analogies, neighbours, map",
    )
    p.add_argument("model", metavar="RUN", help="folder of a trained run, or an archive")
    p.add_argument("-o", "--out", help="where priors.json, .md and .svg go; default RUN/priors")
    p.add_argument(
        "--analogy",
        nargs=4,
        action="append",
        default=[],
        metavar=("A", "B", "C", "D"),
        help="A - B + C against D; repeatable; default: left X - right X + right Y against left Y",
    )
    p.add_argument(
        "--overwrite", action="store_true", help="also replace files that medjax did not write"
    )
    p.set_defaults(run=_priors)


def _priors(args) -> int:
    from pathlib import Path

    from medjax_verbs import prior_tokens

    out = Path(args.out) if args.out else Path(args.model) / "priors"
    found = prior_tokens.measured(prior_tokens.of_run(Path(args.model)), args.analogy)
    prior_tokens.write(found, out, overwrite=args.overwrite)
    print(prior_tokens.markdown(found))
    return 0
