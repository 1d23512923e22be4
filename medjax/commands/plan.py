"""`medjax plan`: spacing, normalisation, patch, batch and network for data sets, with reasons.

Also converts the plan of another engine.
"""

import json
import os
from dataclasses import replace
from pathlib import Path

from medjax.commands import add_planning, fingerprints, plan_arguments
from medjax.errors import EXIT_OK, UsageError
from medjax.files import read_json, refused, write_json

PRESETS = ("default", "resenc_m", "resenc_l", "resenc_xl")
BUDGETS = ("cpu", "8gb", "24gb", "80gb")


def add(verbs) -> None:
    """Adds the verb's parser."""
    p = verbs.add_parser(
        "plan",
        help="decide spacing, normalisation, patch, batch and network from the data, with reasons",
    )
    p.add_argument("folders", nargs="*", help="data sets in any layout that `medjax verify` reads")
    p.add_argument("-o", "--output", default="plan.json", help="file to write (default plan.json)")
    p.add_argument(
        "--preset",
        choices=PRESETS,
        default="default",
        help="nnU-Net's default U-Net or its residual encoders M, L, XL",
    )
    p.add_argument(
        "--memory-gib",
        type=float,
        default=None,
        help="accelerator memory to plan for; default: the preset's (8, 8, 24, 40)",
    )
    p.add_argument(
        "--budget",
        choices=BUDGETS,
        default="",
        help="plan patch, batch, width and number of steps for a machine: two cores, or a GPU with "
        "that memory; the plan then needs no --config.data.configuration",
    )
    p.add_argument("--steps", type=int, default=0, help="with --budget: another number of steps")
    p.add_argument(
        "--keep-axes",
        action="store_true",
        help="keep the axis order z y x even if z is not the coarsest axis",
    )
    p.add_argument(
        "--import",
        dest="imported",
        default="",
        metavar="FILE",
        help="nnUNetPlans.json or plans.pkl to convert instead",
    )
    p.add_argument(
        "--channels",
        nargs="+",
        default=None,
        help="channel names of an imported plan without a dataset.json beside it",
    )
    p.add_argument("--json", action="store_true", help="print the plan instead of sentences")
    add_planning(p)
    p.set_defaults(run=_plan)


def _plan(args) -> int:
    if bool(args.imported) == bool(args.folders):
        raise UsageError(
            "nothing to plan for", fix="give data set folders, or --import nnUNetPlans.json"
        )
    plan, lines = _imported(args) if args.imported else _made(args)
    _write(Path(args.output), plan.to_json())
    if args.json:
        print(json.dumps(plan.to_json(), indent=1))
        return EXIT_OK
    first = next(iter(plan.configurations), "3d_fullres")
    print("\n".join(lines))
    print(f"\nWritten to {args.output}. Prepare with: medjax prepare ... --plan {args.output}")
    named = f" --config.data.configuration={first} --config.model.name=plan"
    print(f"Train with: --config.data.plan={args.output}{'' if args.budget else named}")
    return EXIT_OK


def _write(path: Path, fields: dict) -> None:
    """Writes the plan; only replaces a plan, never another file of that name."""
    if os.path.lexists(path):
        old = read_json(path, fix="choose another name with -o") if path.is_file() else None
        if not isinstance(old, dict) or not {"spacing_mm", "intensity"} <= set(old):
            raise UsageError(
                "exists and is no plan of medjax, so it is not replaced",
                path=path,
                fix="choose another name with -o",
            )
    try:
        write_json(path, fields)
    except OSError as error:
        raise refused(path, error) from error


def _made(args):
    from medjax.augment.lateral import AUTO, sentence
    from medjax.corpora.sources import scan_corpus
    from medjax.labels import merge
    from medjax.prepare.planner import explain, plan_experiment

    corpora = [scan_corpus(folder) for folder in args.folders]
    given = plan_arguments(args)
    if args.budget and (args.memory_gib or args.preset != "default"):
        raise UsageError(
            "--budget decides preset and memory", fix="leave out --preset and --memory-gib"
        )
    if args.steps < 0 or (args.steps and not args.budget):
        raise UsageError("--steps needs a --budget and a positive number", found=args.steps)
    prints = fingerprints(args, corpora, given["intensity"])
    plan = plan_experiment(
        prints,
        len(merge([corpus for corpus, _, _ in corpora]).classes) + 1,
        preset=args.preset,
        memory_gib=args.memory_gib,
        transpose="none" if args.keep_axes else "coarsest",
        budget=args.budget,
        **given,
    )
    if args.steps:
        own = {n: replace(c, steps=args.steps) for n, c in plan.configurations.items()}
        plan = replace(plan, configurations=own)
    lines = explain(prints, plan, given["spacing"])
    known = plan.orientation == "RAS"
    if text := sentence([corpus for corpus, _, _ in corpora], AUTO, known):
        lines.append(f"{text} (augment.lateral=auto)")
    return plan, lines


def _imported(args):
    from medjax.prepare.planner import explain
    from medjax.weights.foreign_plans.read import read_any_plan

    plan = read_any_plan(args.imported, args.channels)
    return plan, explain({}, plan)
