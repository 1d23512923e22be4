"""`medjax add-modality`: extends a trained run by a corpus in a new modality."""


def add(verbs) -> None:
    """Adds the verb's parser."""
    p = verbs.add_parser(
        "add-modality",
        help="add a modality (expert, gate column, head) or a corpus (head) to a trained run",
    )
    p.add_argument("old", metavar="RUN", help="folder of the trained run")
    p.add_argument(
        "--data", required=True, metavar="FOLDER", nargs="+", help="raw folders of the new corpora"
    )
    p.add_argument("--workdir", required=True, help="folder of the new run")
    p.add_argument(
        "--begin",
        default="copy",
        help='"copy" (of --expert), "fresh", or a run with masked pre-training on the new modality',
    )
    p.add_argument("--expert", default="", help="modality of the run whose expert is copied")
    p.add_argument(
        "--gate",
        default="",
        help='gate column: "apart" (default for a copy), "split" (with --freeze), "closed" or '
        '"fresh"',
    )
    p.add_argument("--freeze", action="store_true", help="train the new parts only")
    p.add_argument("--steps", type=int, help="training steps; 0: only report what would be added")
    p.add_argument("--lr", type=float, help="learning rate; default the run's")
    p.set_defaults(run=_add)


def _add(args) -> int:
    from pathlib import Path

    from medjax.runs import folder, stages
    from medjax_verbs import grow

    changes = {"train.steps": args.steps} if args.steps else {}
    changes |= {"optim.lr": args.lr} if args.lr else {}
    old, workdir = Path(args.old), Path(args.workdir)
    config = grow.grown_config(
        old,
        args.data,
        workdir,
        begin=args.begin,
        source=args.expert,
        gate=args.gate,
        freeze=args.freeze,
        **changes,
    )
    if args.steps == 0:
        from medjax.runs.open import open_data

        stages.say(grow.check(old, config, open_data(config.data, workdir).space).text())
        return 0
    run = stages.open_run(config, workdir)
    report = grow.check(old, config, run.data.space)
    stages.say(report.text())
    folder.write_json(workdir / "growth.json", report.to_json())
    stages.train(run)
    return stages.evaluate(run)
