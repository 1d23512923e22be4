"""Organ masks of TotalSegmentator for a task of MAST-Pro: looks up the ids of its host organs.

    medjax ingest organs CORPUS --task KiTS --files DIR --version 2 -o OUT

DIR holds a label map of the task "total" per case, called as the case. The ids differ between the
versions; masks of the other one are refused.
"""

import argparse
import sys

from data_pipelines.tumour_tasks import MAST_PRO_TASKS
from medjax.corpora import organs
from medjax.corpora.layouts import corpus_json
from medjax.corpora.sources import read_corpus
from medjax.errors import MedjaxError


def main(arguments: list[str] | None = None) -> int:
    """See the module's text; the exit code."""
    p = argparse.ArgumentParser(prog="medjax ingest organs", description=__doc__)
    p.add_argument("corpus", help="folder of the corpus, in any layout")
    p.add_argument("--task", required=True, choices=list(MAST_PRO_TASKS))
    p.add_argument("--files", required=True, help="folder of TotalSegmentator's label maps")
    p.add_argument("--version", type=int, required=True, choices=(1, 2))
    p.add_argument("-o", "--output", required=True, help="folder for corpus.json and the masks")
    p.add_argument("--closing-mm", type=float, default=0.0)
    p.add_argument("--dilate-mm", type=float, default=0.0)
    args = p.parse_args(arguments)
    try:
        organs.check_version(organs.by_name(args.files).values(), args.version)
        ids = MAST_PRO_TASKS[args.task].organ_ids(args.version)
        corpus, cases = read_corpus(args.corpus)
        written = organs.write(
            args.output,
            corpus,
            cases,
            organs.from_files(args.files, ids),
            f"TotalSegmentator v{args.version}",
            closing_mm=args.closing_mm,
            dilate_mm=args.dilate_mm,
            facts=corpus_json.facts(args.corpus),
        )
    except MedjaxError as error:
        print(f"organs: {error}", file=sys.stderr)
        return 2
    print(written.sentence())
    return 0


if __name__ == "__main__":
    sys.exit(main())
