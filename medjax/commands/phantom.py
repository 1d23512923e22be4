"""`medjax phantom`: writes the embedded synthetic corpora as files."""

from pathlib import Path

from medjax.errors import EXIT_OK


def add(verbs) -> None:
    """Adds the verb's parser."""
    p = verbs.add_parser("phantom", help="write the embedded synthetic corpora")
    p.add_argument("output")
    p.add_argument("--cases", type=int, default=10, help="cases per corpus")
    p.add_argument("--seed", type=int, default=0)
    p.set_defaults(run=_phantom)


def _phantom(args) -> int:
    from medjax.phantom.corpora import write_corpora

    for folder in write_corpora(Path(args.output), seed=args.seed, cases=args.cases):
        print(folder)
    return EXIT_OK
