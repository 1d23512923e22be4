"""`medjax ingest tfds`: a raw download as a tensorflow-datasets corpus."""

import argparse
import os
import sys

from medjax.errors import EXIT_OK, EXIT_SOME_FAILED, MedjaxError, UsageError, sentence


def main(argv: list[str] | None = None) -> int:
    """Builds one corpus; exit code as of `medjax`."""
    parser = argparse.ArgumentParser(
        "medjax ingest tfds",
        description="Write a raw download as tensorflow-datasets ArrayRecord volumes.",
    )
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--corpus", help="a name of `medjax info --corpora`; with --raw")
    kind.add_argument("--folder", help="a data set of your own, in any layout that medjax reads")
    parser.add_argument("--raw", help="folder that the download was unpacked into")
    parser.add_argument("--out", required=True, help="data_dir of tensorflow-datasets")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="PLACEHOLDER=EXPRESSION",
        help="take only some cases, e.g. part=Tr",
    )
    parser.add_argument("--keep-suspects", action="store_true")
    parser.add_argument("--allow-missing-masks", action="store_true")
    args = parser.parse_args(argv)
    try:
        raw = args.folder or args.raw
        if raw is None:
            raise UsageError("no download named", fix="give --raw FOLDER")
        if not os.path.isdir(raw):
            raise UsageError("no such folder", path=raw)
        from data_pipelines.tfds.builder import build, build_folder

        where = dict(text.partition("=")[::2] for text in args.where)
        options = {
            "where": where,
            "keep_suspects": args.keep_suspects,
            "allow_missing_masks": args.allow_missing_masks,
        }
        if args.folder:
            builder = build_folder(os.path.abspath(raw), args.out)
        else:
            builder = build(args.corpus, os.path.abspath(raw), args.out, **options)
    except MedjaxError as error:
        print(f"medjax: {error}", file=sys.stderr)
        return error.exit_code
    print(
        f"{builder.builder_config.name}: {builder.info.splits['train'].num_examples} cases in "
        f"{builder.data_path}; use it as --config.data.tfds={builder.data_path} or "
        f"tfds:{builder.data_path}"
    )
    for entry in builder.failed:
        print(f"medjax: {entry['case']} failed: {sentence(entry)}", file=sys.stderr)
    return EXIT_SOME_FAILED if builder.failed else EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
