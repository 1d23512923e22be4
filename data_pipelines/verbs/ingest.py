"""`medjax ingest`: brings a download of a public corpus into a store.

    medjax ingest CORPUS --help
    medjax ingest amos22 --raw /downloads/amos22 --out /data/store

CORPUS is a name of `medjax info --corpora` or the file that declares it; `tfds` and `organs` are
further tools. In a checkout `python -m data_pipelines.FILE` is the same.
"""

import importlib
from collections.abc import Sequence

TOOLS = ("tfds", "organs")  # commands of this package that are not corpora


def add(verbs) -> None:
    """Adds the verb's parser; the arguments behind the name are those of the corpus."""
    p = verbs.add_parser(
        "ingest",
        help="bring a download of a public corpus into a store: medjax ingest amos22 --raw DIR "
        "--out STORE",
        add_help=False,
    )
    p.add_argument("corpus", nargs="?", metavar="CORPUS", help="a corpus or its file, e.g. amos22")
    p.set_defaults(run=_ingest, forwards=True)


def _ingest(args) -> int:
    from medjax.errors import EXIT_OK, UsageError

    if not args.corpus and {"-h", "--help"} & set(args.rest):
        print(__doc__)
        raise SystemExit(EXIT_OK)
    if not args.corpus:
        known = "`medjax info --corpora` lists the corpora; further tools: " + ", ".join(TOOLS)
        raise UsageError("no corpus named", fix=f"medjax ingest CORPUS --help. {known}")
    return run(args.corpus, args.rest)


def run(name: str, arguments: Sequence[str]) -> int:
    """Ingests a corpus; returns the exit code.

    Args:
      name: a corpus ("AMOS22_CT"), the file that declares it ("amos22"), or one of `TOOLS`.
      arguments: see `data_pipelines.ingest`.
    """
    from data_pipelines import catalogue, ingest
    from medjax.errors import UsageError, did_you_mean

    if name in TOOLS:
        module = "data_pipelines.tfds.__main__" if name == "tfds" else f"data_pipelines.{name}"
        return importlib.import_module(module).main(list(arguments))
    corpora = catalogue.corpora()
    files = {corpus: catalogue.module_of(corpus) for corpus in corpora}
    if name in corpora:
        return ingest.run((corpora[name],), arguments, f"medjax ingest {name}")
    if name not in files.values():
        known = sorted({*files.values(), *files, *TOOLS})
        raise UsageError(f"no corpus {name!r} in the catalogue", fix=did_you_mean(name, known))
    found = importlib.import_module(f"data_pipelines.{name}").CORPORA
    return ingest.run(found, arguments, f"medjax ingest {name}")
