"""`medjax calibrate`: chooses a temperature per class on the validation cases of a run."""

from medjax.commands import progress, report_failures


def add(verbs) -> None:
    """Adds the verb's parser."""
    p = verbs.add_parser(
        "calibrate",
        help="measure how far the probabilities of a run can be trusted, and choose the "
        "temperatures that mend them, on its validation cases",
    )
    p.add_argument("run_folder", metavar="RUN", help="folder of a training")
    p.add_argument("--checkpoint", default="", help="last, best or a step; default: the config's")
    p.add_argument("--device", default="", help="cpu, gpu, ...; default: the best")
    p.add_argument(
        "--voxels",
        type=int,
        default=20_000,
        help="of a case at most, half of them near an object; of all cases at most a million",
    )
    p.add_argument(
        "--overwrite", action="store_true", help="also replace a file that medjax did not write"
    )
    p.add_argument("--quiet", action="store_true", help="print problems only")
    p.set_defaults(run=_calibrate)


def _calibrate(args) -> int:
    from medjax.runs.calibration import measure
    from medjax.runs.temperatures import FILE

    found = measure.calibrate(
        args.run_folder,
        checkpoint=args.checkpoint,
        device=args.device,
        voxels=args.voxels,
        overwrite=args.overwrite,
        progress=progress(args.quiet, "measure"),
    )
    if not args.quiet:
        print(f"{measure.report(found)}\n{args.run_folder}/{FILE}")
    return report_failures(found["failed"])
