"""`medjax evaluate`: masks scored against references."""

from pathlib import Path

from medjax.commands import report_failures


def add(verbs) -> None:
    """Adds the verb's parser."""
    p = verbs.add_parser("evaluate", help="score masks against references")
    p.add_argument("--reference", required=True, help="folder of reference masks")
    p.add_argument("--prediction", required=True, help="folder of predicted masks with the same names")
    p.add_argument("--labels", default="", help="dataset.json that names the labels; default: beside the reference folder")
    p.add_argument("--surface", action="store_true", help="also HD95, NSD and ASSD (slower)")
    p.add_argument("-o", "--output", required=True, help="folder for summary.json, cases.csv and table.md")
    p.set_defaults(run=_evaluate)


def _evaluate(args) -> int:
    from medjax.data.sources import read_labels
    from medjax.metrics.evaluate import evaluate, find_pairs

    corpus = read_labels(args.labels or Path(args.reference).parent / "dataset.json")
    pairs, unmatched = find_pairs(args.reference, args.prediction)
    result = evaluate(pairs, corpus, surface=args.surface, unmatched=unmatched)
    result.write(args.output)
    print(result.markdown())
    return report_failures(result.failed)
