"""`medjax predict`: scans through a trained run."""

from pathlib import Path

from medjax.commands import progress, report_failures


def add(verbs) -> None:
    """Adds the verb's parser."""
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


def _predict(args) -> int:
    from medjax.experiment import stages

    result = stages.predict(
        Path(args.model), args.input, Path(args.output), corpus=args.corpus, checkpoint=args.checkpoint, tta=args.tta, overlap=args.overlap,
        batch_windows=args.batch_windows, device=args.device, continue_=args.continue_, one_file_per_class=args.one_file_per_class,
        probabilities=args.probabilities, progress=progress(args.quiet, "predict"),
    )  # fmt: skip
    return report_failures(result.failed)
