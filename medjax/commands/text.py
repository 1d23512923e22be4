"""`medjax text`: vectors of class names or sentences, for networks that read texts."""

from pathlib import Path


def add(verbs) -> None:
    """Adds the verb's parser."""
    p = verbs.add_parser(
        "text", help="vectors of texts: medjax text --names liver --encoder FILE -o X.text.npz"
    )
    p.add_argument("--names", nargs="+", default=[], metavar="NAME", help="class names")
    p.add_argument(
        "--sentences", default="", help='JSON file {"name": "sentence", ...}, instead of --names'
    )
    p.add_argument(
        "--template",
        default=None,
        help='text of a name, with "{}" for it; default: that of SegVol. "" for the bare name',
    )
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--encoder", default="", help="CLIP's text tower: its weights, or those of SegVol"
    )
    source.add_argument(
        "--hash", action="store_true", help="no encoder: vectors of word pieces without meaning"
    )
    source.add_argument(
        "--run",
        default="",
        dest="of_run",
        metavar="RUN",
        help="the table that a run holds, by class name",
    )
    p.add_argument(
        "--projected",
        action="store_true",
        help="CLIP's vectors behind its projection (MAST-Pro) instead of before it (SegVol)",
    )
    p.add_argument("-o", "--output", required=True, help="NAME.text.npz to write")
    p.set_defaults(run=_text)


def _text(args) -> int:
    from medjax.errors import UsageError
    from medjax.prompts import texts
    from medjax.runs.prompted import texts as of_runs

    out = Path(args.output)
    if not out.name.endswith(texts.SUFFIX):
        raise UsageError("unusable name", path=out, expected=f"a name that ends in {texts.SUFFIX}")
    if args.projected and not args.encoder:
        raise UsageError("--projected is a choice of --encoder", fix="leave out --projected")
    if args.of_run:
        if args.sentences or args.template is not None:
            raise UsageError("a run's table has no texts", fix="leave out --sentences, --template")
        found = of_runs.of_run(Path(args.of_run), tuple(args.names))
    else:
        names, sentences = _named(args)
        if args.hash:
            found = texts.hashed(sentences if args.sentences else names)
            found = texts.Vectors(names, found.texts, found.vectors, found.facts)
            print(texts.HASH_NOTE)
        else:
            print(of_runs.SCOPE)
            found = of_runs.by_encoder(
                Path(args.encoder), names, sentences, pooled=not args.projected
            )
            if not args.sentences:
                facts = {**found.facts, "template": _template(args)}
                found = texts.Vectors(names, found.texts, found.vectors, facts)
    texts.write(out, found)
    count, width = found.vectors.shape
    print(f"{out}  {count} vectors of width {width} ({found.facts['kind']})")
    return 0


def _template(args) -> str:
    from medjax.prompts import texts

    return texts.TEMPLATE if args.template is None else args.template


def _named(args) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(names, sentences) of the call; `UsageError` for none, both, or a file of another form."""
    from medjax.errors import UsageError
    from medjax.files import read_json
    from medjax.prompts import texts

    if bool(args.names) == bool(args.sentences):
        raise UsageError(
            "no texts" if not args.names else "names and sentences are given",
            fix="give --names NAME ... or --sentences FILE",
        )
    if args.names:
        return tuple(args.names), texts.filled(_template(args), args.names)
    found = read_json(Path(args.sentences))
    good = isinstance(found, dict) and found and all(isinstance(v, str) for v in found.values())
    if not good:
        raise UsageError(
            "not a file of sentences", path=args.sentences, expected='{"name": "sentence", ...}'
        )
    return tuple(found), tuple(found.values())
