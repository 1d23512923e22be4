"""The `medjax` command: parses arguments, calls a room, turns errors into messages and exit codes.

Nothing heavy is imported before work starts, so `--help` answers at once.

Exit codes: 0 ok, 1 error, 2 usage, 3 finished but some cases failed, 4 verification failed, 75 preempted (run again to go on).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from medjax import __version__
from medjax.errors import EXIT_ERROR, EXIT_OK, EXIT_SOME_FAILED, EXIT_VERIFICATION, MedjaxError, UsageError, did_you_mean, sentence


class _Parser(argparse.ArgumentParser):
    """argparse with suggestions for unknown flags."""

    def error(self, message: str):
        known = [option for action in self._actions for option in action.option_strings]
        unknown = [word for word in message.split() if word.startswith("--") and word.split("=")[0] not in known]
        raise UsageError(f"{self.prog}: {message}", fix=did_you_mean(unknown[0], known) if unknown else f"see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("medjax", description="Train one segmentation model on many partly annotated data sets, and use it.")
    parser.add_argument("--version", action="version", version=f"medjax {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=_Parser)

    p = verbs.add_parser("verify", help="check every image and label of data sets (exit 4 when something is wrong)")
    p.add_argument("folders", nargs="+", help="data sets in MSD or nnU-Net raw layout")
    p.add_argument("--json", action="store_true", help="machine-readable report")
    p.set_defaults(run=_verify)

    p = verbs.add_parser("prepare", help="crop, resample and store data sets for training; finishes what an earlier call left")
    p.add_argument("folders", nargs="+", help="data sets in MSD or nnU-Net raw layout")
    p.add_argument("-o", "--output", required=True, help="store folder")
    p.add_argument("--spacing-mm", nargs=3, type=float, metavar=("Z", "Y", "X"), help="target spacing; default: nnU-Net's median rule")
    p.add_argument("--spacing-rule", choices=("median", "per_corpus"), default="median", help="where no spacing is given")
    p.add_argument("--orientation", choices=("RAS", "stored"), default="RAS")
    p.add_argument("--workers", type=int, default=0, help="cases at a time; 0: one per core")
    p.add_argument("--quiet", action="store_true")
    p.set_defaults(run=_prepare)

    p = verbs.add_parser("train", help="train a config: medjax train CONFIG --workdir=RUN [--config.field=value ...]")
    p.add_argument("config", help="configs/NAME.py[:variant]")
    p.set_defaults(run=_train)

    p = verbs.add_parser("predict", help="segment images with a trained run")
    p.add_argument("-m", "--model", required=True, help="run folder")
    p.add_argument("-i", "--input", required=True, nargs="+", help="files, folders, globs, or a .json / .csv list")
    p.add_argument("-o", "--output", required=True, help="folder for the masks")
    p.add_argument("--corpus", default="", help="whose annotation protocol to write; needed when the model knows several")
    p.add_argument("--checkpoint", choices=("last", "best"), default="last")
    p.add_argument("--tta", choices=("none", "mirror"), default="none", help="average over mirrored inputs")
    p.add_argument("--overlap", type=float, default=None, help="share of a window that neighbours cover again; default: the config's")
    p.add_argument("--batch-windows", type=int, default=None, help="windows per device call; default: the config's")
    p.add_argument("--device", default="", help="cpu, gpu, gpu:1, tpu; default: the best there is")
    p.add_argument("--continue", dest="continue_", action="store_true", help="skip cases whose mask is already there")
    p.add_argument("--one-file-per-class", action="store_true", help="also write one binary mask per class (classes may overlap)")
    p.add_argument("--probabilities", action="store_true", help="also write the class probabilities")
    p.add_argument("--quiet", action="store_true")
    p.set_defaults(run=_predict)

    p = verbs.add_parser("evaluate", help="score masks against references")
    p.add_argument("--reference", required=True, help="folder of reference masks")
    p.add_argument("--prediction", required=True, help="folder of predicted masks with the same names")
    p.add_argument("--labels", default="", help="dataset.json that names the labels; default: beside the reference folder")
    p.add_argument("--surface", action="store_true", help="also HD95, NSD and ASSD (slower)")
    p.add_argument("-o", "--output", required=True, help="folder for summary.json, cases.csv and table.md")
    p.set_defaults(run=_evaluate)

    p = verbs.add_parser("phantom", help="write the embedded synthetic corpora")
    p.add_argument("output")
    p.add_argument("--cases", type=int, default=10, help="cases per corpus")
    p.add_argument("--seed", type=int, default=0)
    p.set_defaults(run=_phantom)

    p = verbs.add_parser("info", help="versions, devices, models, configs; or what a run folder knows")
    p.add_argument("run_folder", nargs="?", default="", help="a run folder")
    p.add_argument("--json", action="store_true")
    p.set_defaults(run=_info)
    for p in verbs.choices.values():
        p.set_defaults(parser=p)
    return parser


def _progress(quiet: bool, what: str):
    def show(done: int, total: int, name: str, status: str) -> None:
        end = "\r" if sys.stderr.isatty() and done < total else "\n"
        if not quiet and (sys.stderr.isatty() or status == "failed" or done == total):
            print(f"{what} {done}/{total} {name}: {status}".ljust(78), end=end, file=sys.stderr, flush=True)

    return show


def _report_failures(failed: Sequence[dict]) -> int:
    for entry in failed:
        print(f"medjax: {entry['case']} failed: {sentence(entry)}", file=sys.stderr)
    return EXIT_SOME_FAILED if failed else EXIT_OK


def _verify(args) -> int:
    from medjax.data.verify import verify

    reports = [verify(folder) for folder in args.folders]
    if args.json:
        print(json.dumps([report.to_json() for report in reports], indent=1))
    else:
        print("\n\n".join(report.text() for report in reports))
    return EXIT_OK if all(report.ok for report in reports) else EXIT_VERIFICATION


def _prepare(args) -> int:
    from medjax.data.fingerprint import fingerprint, make_plan
    from medjax.data.prepare import prepare
    from medjax.data.sources import scan_corpus

    corpora = [scan_corpus(folder) for folder in args.folders]
    prints = {corpus.name: fingerprint(corpus, cases) for corpus, cases, _ in corpora}
    spacing = tuple(args.spacing_mm) if args.spacing_mm else args.spacing_rule
    plan = make_plan(prints, spacing=spacing, orientation=args.orientation)
    root, failed = Path(args.output), [{"case": e.path} | e.record() for _, _, problems in corpora for e in problems]
    root.mkdir(parents=True, exist_ok=True)
    (root / "plan.json").write_text(json.dumps(plan.to_json(), indent=1))
    for corpus, cases, _ in corpora:
        result = prepare(corpus, cases, plan, root, workers=args.workers or None, progress=_progress(args.quiet, f"prepare {corpus.name}"))
        print(f"{corpus.name}: {len(result.ok)} prepared, {result.skipped} already there, {len(result.failed)} failed")
        failed += result.failed
    return _report_failures(failed)


def _train(args) -> int:
    from medjax import main

    return main.main([f"--config={args.config}", *args.rest])


def _predict(args) -> int:
    from medjax.experiment import stages

    result = stages.predict(
        Path(args.model), args.input, Path(args.output), corpus=args.corpus, checkpoint=args.checkpoint, tta=args.tta, overlap=args.overlap,
        batch_windows=args.batch_windows, device=args.device, continue_=args.continue_, one_file_per_class=args.one_file_per_class,
        probabilities=args.probabilities, progress=_progress(args.quiet, "predict"),
    )  # fmt: skip
    return _report_failures(result.failed)


def _evaluate(args) -> int:
    from medjax.data.sources import read_labels
    from medjax.metrics.evaluate import evaluate, find_pairs

    corpus = read_labels(args.labels or Path(args.reference).parent / "dataset.json")
    pairs, unmatched = find_pairs(args.reference, args.prediction)
    result = evaluate(pairs, corpus, surface=args.surface, unmatched=unmatched)
    result.write(args.output)
    print(result.markdown())
    return _report_failures(result.failed)


def _phantom(args) -> int:
    from medjax.data.phantom import write_corpora

    for folder in write_corpora(Path(args.output), seed=args.seed, cases=args.cases):
        print(folder)
    return EXIT_OK


def _info(args) -> int:
    from medjax.experiment.info import about, about_run, as_text

    facts = about_run(Path(args.run_folder)) if args.run_folder else about()
    print(json.dumps(facts, indent=1) if args.json else as_text(facts))
    return EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line border: errors become one clear message and an exit code."""
    try:
        args, rest = _parser().parse_known_args(argv)
        if rest and args.verb != "train":
            args.parser.error(f"unrecognized arguments: {' '.join(rest)}")
        args.rest = rest
        return args.run(args)
    except MedjaxError as error:
        print(f"medjax: {error}", file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, BrokenPipeError):
        return EXIT_ERROR


if __name__ == "__main__":
    sys.exit(main())
