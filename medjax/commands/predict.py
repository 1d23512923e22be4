"""`medjax predict`: segments scans with a trained run, an archive, or an ensemble of them."""

import argparse
import sys
from pathlib import Path

from medjax.commands import progress, report_failures
from medjax.errors import EXIT_USAGE, shown


def add(verbs) -> None:
    """Adds the verb's parser."""
    p = verbs.add_parser(
        "predict", help="segment images with a trained run, an archive, or an ensemble of them"
    )
    p.add_argument(
        "-m",
        "--model",
        required=True,
        nargs="+",
        help="run folders or .medjax archives; several are averaged",
    )
    p.add_argument(
        "-i",
        "--input",
        required=True,
        nargs="+",
        help="files, folders, globs, or .json / .csv lists",
    )
    p.add_argument("-o", "--output", required=True, help="folder for the masks")
    p.add_argument(
        "--frame",
        type=int,
        default=None,
        metavar="N",
        help="frame of a 4D file to segment, counted from 0",
    )
    p.add_argument(
        "--replace-nan",
        default=None,
        metavar="VALUE",
        help="replacement for NaN and infinite voxels: a number, or min (the smallest voxel)",
    )

    p.add_argument(
        "--organ",
        default="",
        metavar="MASK",
        help="mask of the organ that the model is told: a file, a folder with masks called as the "
        "scans, or none; any grid",
    )

    p = (group := p).add_argument_group("what to write")
    p.add_argument(
        "--corpus",
        default="",
        help="corpus whose annotation protocol to write; required if the model has several",
    )
    p.add_argument(
        "--task",
        default="",
        help="task to tell the model, or all if it is unknown; default: that of the corpus",
    )
    p.add_argument(
        "--classes",
        nargs="+",
        default=None,
        metavar="CLASS",
        help="predict only these classes; default: all of the protocol",
    )
    p.add_argument(
        "--one-file-per-class",
        action="store_true",
        help="also one binary mask per class (classes may overlap)",
    )
    p.add_argument(
        "--probabilities", action="store_true", help="also the class probabilities (.npz)"
    )
    p.add_argument(
        "--uncertainty",
        action="store_true",
        help="also entropy, and disagreement over mirrors, folds or seeds",
    )
    p.add_argument(
        "--statistics", action="store_true", help="also volume (ml) and mean intensity per class"
    )
    p.add_argument("--preview", action="store_true", help="also a picture (PNG) per case")
    p.add_argument(
        "--no-html",
        action="store_true",
        help="do not write report.html (tables, and a viewer of the first scans and masks)",
    )
    p.add_argument(
        "--report",
        default="",
        metavar="run.json",
        help="also write the manifest of this call to this file",
    )
    p.add_argument(
        "--postprocess",
        default="",
        metavar="WHAT",
        help="none, chosen (on validation data), or a JSON file; default: the config's",
    )

    p.add_argument(
        "--conflicts",
        choices=("ordered", "argmax", "calibrated"),
        default="",
        help="which of exclusive classes in one voxel the label map shows: the last in precedence, "
        "the most probable, or that at the temperatures which `medjax calibrate` chose; default: "
        "the config's",
    )

    p.add_argument(
        "--overwrite",
        action="store_true",
        help="also replace files that medjax did not write (never the scans)",
    )

    p = group.add_argument_group(
        "prompts", "of a promptable model; without any, every class of the protocol by text"
    )
    for name, metavar, text in (
        ("object", "NAME", "begins an object; prompts behind it belong to it"),
        ("text", "TEXT", "what it is: a class that the model knows, or a phrase, see --encoder"),
        ("point", "X,Y,Z[,neg]", "a point inside it, or with neg outside"),
        ("box", "X0,Y0,Z0,X1,Y1,Z1", "a box around it"),
    ):
        p.add_argument(
            f"--{name}", action=_Prompt, dest="flags", default=(), metavar=metavar, help=text
        )
    p.add_argument(
        "--prompts",
        nargs="+",
        default=(),
        metavar="FILE",
        help="prompts.json, or Slicer markups (.mrk.json); see docs/segvol.md",
    )
    p.add_argument(
        "--encoder",
        default="",
        metavar="FILE",
        help="text encoder (CLIP's weights) for a --text that is no class; default: that of the "
        "training, if it is at hand",
    )
    p.add_argument(
        "--space",
        choices=("ras", "lps", "voxel"),
        default="",
        help="of the coordinates: mm in RAS (default) or LPS, or voxels x,y,z from 0",
    )
    p.add_argument(
        "--zoom",
        choices=("in", "out"),
        default="",
        help="look again at full resolution, or at the overview only; default: the config's",
    )

    p = group.add_argument_group("how")
    p.add_argument(
        "--adapter",
        default="",
        metavar="FILE",
        help="an adapter file (`medjax adapter`) that was trained on this model",
    )
    p.add_argument("--expert", default="", help="of an adapter with several: the one to use")
    p.add_argument(
        "--force-base", action="store_true", help="use an adapter of another base in spite of it"
    )
    p.add_argument("--checkpoint", default="", help="last, best or a step; default: the config's")
    p.add_argument(
        "--tta",
        choices=("none", "mirror"),
        default="",
        help="average over mirrored inputs; default: the config's",
    )
    p.add_argument(
        "--overlap",
        type=float,
        default=None,
        help="share of a window that its neighbour also covers; default: the config's",
    )
    p.add_argument(
        "--window",
        type=int,
        nargs="+",
        default=(),
        metavar="N",
        help="window z y x (or y x); default: the training patch",
    )
    p.add_argument(
        "--batch-windows",
        type=int,
        default=None,
        help="windows per device call; default: the config's",
    )
    p.add_argument(
        "--fast", action="store_true", help="use the faster, coarser version, if the model has one"
    )
    p.add_argument(
        "--device",
        default="",
        help="cpu, gpu or tpu (all of them), gpu:1; default: all of the best, one CPU",
    )
    p.add_argument(
        "--backend",
        choices=("auto", "host", "device"),
        default="",
        help="where windows are blended; default: the config's",
    )
    p.add_argument("--max-memory", type=float, default=None, metavar="GIB", help="memory limit")

    p = group.add_argument_group("many cases")
    p.add_argument(
        "--continue",
        dest="continue_",
        action="store_true",
        help="skip cases that are complete with the same settings and scans",
    )
    p.add_argument("--num-parts", type=int, default=1, help="number of calls that share the cases")
    p.add_argument("--part-id", type=int, default=0, help="which share this call processes, from 0")
    p.add_argument("--quiet", action="store_true", help="print problems only")
    p.add_argument(
        "--disable-progress-bar",
        "--disable_progress_bar",
        action="store_true",
        help="print plain lines instead of an updated one",
    )
    group.set_defaults(run=_predict)


class _Prompt(argparse.Action):
    """Keeps the order of the flags of prompts."""

    def __call__(self, parser, namespace, values, option_string=None):
        kept = (*namespace.flags, ((option_string or "").lstrip("-"), values))
        namespace.flags = kept


def _predict(args) -> int:
    from medjax.prompts.request import Request
    from medjax.runs import predict

    def say(line: str) -> None:
        if not args.quiet:
            print(line, file=sys.stderr, flush=True)

    page = not args.no_html and args.num_parts == 1
    result = predict.predict(
        args.model,
        args.input,
        Path(args.output),
        Request(args.corpus, tuple(args.classes) if args.classes else None, args.task),
        part=(args.part_id, args.num_parts),
        continue_=args.continue_,
        one_file_per_class=args.one_file_per_class,
        probabilities=args.probabilities,
        statistics=args.statistics,
        preview=args.preview,
        report=Path(args.report) if args.report else None,
        frame=args.frame,
        replace_nan=args.replace_nan,
        max_memory_gib=args.max_memory,
        say=say,
        progress=progress(args.quiet, "predict", live=not args.disable_progress_bar),
        checkpoint=args.checkpoint,
        tta=args.tta,
        overlap=args.overlap,
        window=args.window,
        batch_windows=args.batch_windows,
        device=args.device,
        backend=args.backend,
        uncertainty=args.uncertainty,
        postprocess=args.postprocess,
        conflicts=args.conflicts,
        fast=args.fast,
        overwrite=args.overwrite,
        page=page,
        adapter=args.adapter,
        expert=args.expert,
        force_base=args.force_base,
        organ=args.organ,
        zoom=args.zoom,
        flags=args.flags,
        prompts=args.prompts,
        space=args.space,
        encoder=args.encoder,
        warn=lambda text: print(f"medjax: {text}", file=sys.stderr, flush=True),
    )
    if page and (result.ok or result.failed):
        _page(Path(args.output), args.overwrite, say)
    code = report_failures(result.failed)
    wrong = bool(result.failed) and all(one["error"] == "UsageError" for one in result.failed)
    return EXIT_USAGE if wrong and not (result.ok or result.skipped) else code


def _page(folder: Path, overwrite: bool, say) -> None:
    """Writes report.html. Errors while writing it never fail the prediction."""
    from medjax.report.prediction import prediction_report

    try:
        say(f"report: {shown(prediction_report(folder, overwrite=overwrite))}")
    except Exception as error:
        say(f"report.html could not be written: {shown(error)}")
