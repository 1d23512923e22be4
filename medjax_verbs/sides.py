"""`medjax sides`: describes a corpus in which paired organs of one class are a left and a right."""


def add(verbs) -> None:
    """Adds the verb's parser."""
    p = verbs.add_parser(
        "sides", help="describe a corpus in which a class such as kidney is a left and a right one"
    )
    p.add_argument("corpus", help="folder of the corpus, in any layout")
    p.add_argument(
        "-o",
        "--output",
        required=True,
        help="folder for corpus.json and the label maps; give it to a run",
    )
    p.add_argument(
        "--classes", nargs="+", required=True, metavar="CLASS", help="classes that come in pairs"
    )
    p.set_defaults(run=_sides)


def _sides(args) -> int:
    from medjax.corpora import sides
    from medjax.corpora.layouts import corpus_json
    from medjax.corpora.sources import read_corpus

    corpus, cases = read_corpus(args.corpus)
    facts = corpus_json.facts(args.corpus)
    print(sides.write(args.output, corpus, cases, args.classes, facts).sentence())
    return 0
