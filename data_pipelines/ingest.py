r"""The one command behind every corpus file: raw download -> checked, described and prepared cases
in a store.

    medjax ingest amos22 --raw /downloads/amos22 --out /data/store \
      [--only AMOS22_CT] [--where part=Tr]
    python -m data_pipelines.amos22 ...     # the same, in a checkout

    <out>/<corpus>/corpus.json    what the corpus is and where its files are: read by `medjax
                                  verify`, `medjax prepare`, and trainings with data.root=<out>
    <out>/<corpus>/plan.json      decisions of the preparation, made from this corpus alone unless
                                  --plan is given
    <out>/<corpus>/<case>/        prepared arrays, see medjax/prepare/store.py

A case that fails is reported and left out. Exit codes as of `medjax`: 0 ok, 2 usage, 3 some cases
failed, 4 refused by the checks.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.declare import PublicCorpus, first_template
from data_pipelines.find import Found, find_cases
from medjax import files
from medjax.border import guarded
from medjax.commands import add_preparing, progress, report_failures
from medjax.corpora.layouts import corpus_json
from medjax.errors import EXIT_OK, LabelError, UsageError, VerificationError, did_you_mean
from medjax.prepare.targets import check_plan_file, check_targets


def main(corpora: Sequence[PublicCorpus], argv: Sequence[str] | None = None) -> None:
    """Command line of a corpus file; ends the process with an exit code."""
    sys.exit(run(corpora, argv))


def run(
    corpora: Sequence[PublicCorpus], argv: Sequence[str] | None = None, program: str | None = None
) -> int:
    """Like `main`, but returns the exit code.

    Args:
      program: how the command is called in its help; default: as it was.
    """
    return guarded(lambda: _run(corpora, argv, program))


def _run(corpora: Sequence[PublicCorpus], argv: Sequence[str] | None, program: str | None) -> int:
    args = _parser(corpora, program).parse_args(argv)
    if args.describe:
        print("\n\n".join(describe(corpus) for corpus in corpora))
        return EXIT_OK
    if not args.raw or not args.out:
        raise UsageError("nothing to do", expected="--raw FOLDER --out STORE, or --describe")
    code, selected = EXIT_OK, _selected(corpora, args)
    for corpus, found in selected:
        check_targets(corpus.name, found.cases, args.out)
        _check_free(Path(args.out) / corpus.name)
    for corpus, found in selected:
        code = max(code, _ingest(corpus, found, args))
    return code


def _check_free(folder: Path) -> None:
    """`UsageError` if a file that this command writes has the name of one that it did not write."""
    check_plan_file(folder / "plan.json")
    for name in (corpus_json.FILE, f"refused.{corpus_json.FILE}"):
        if not os.path.lexists(path := folder / name):
            continue
        found = files.read_json(path)
        if not isinstance(found, dict) or "corpus" not in found or "format" not in found:
            raise UsageError(
                "is in the way, and medjax did not write it",
                path=path,
                fix="move it away, or give another --out",
            )


def _parser(corpora: Sequence[PublicCorpus], program: str | None) -> argparse.ArgumentParser:
    names = ", ".join(c.name for c in corpora)
    parser = argparse.ArgumentParser(
        program, description=f"Bring a download of {names} into a store. Nothing is downloaded."
    )
    parser.add_argument("--raw", help="folder that the download was unpacked into")
    parser.add_argument(
        "--out",
        help="store; training finds the corpus with --config.data.root=STORE "
        "--config.data.store=STORE",
    )
    parser.add_argument("--only", default="", help=f"comma-separated, of {names}")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="PLACEHOLDER=EXPRESSION",
        help="take only some cases, e.g. part=Tr",
    )
    parser.add_argument(
        "--plan",
        default="",
        help="plan.json to follow, so that corpora of one pool are prepared alike",
    )
    add_preparing(parser)
    parser.add_argument(
        "--keep-suspects", action="store_true", help="also take cases that are known to be bad"
    )
    parser.add_argument(
        "--allow-missing-masks",
        action="store_true",
        help="a class without its mask file counts as absent from the case",
    )
    parser.add_argument(
        "--allow-absent",
        action="append",
        default=[],
        metavar="CLASS",
        help="accept that this class occurs in no case",
    )
    parser.add_argument(
        "--no-verify",
        action="store_true",
        help="skip the report over all files (preparation still checks each case)",
    )
    parser.add_argument("--dry", action="store_true", help="only list what would be ingested")
    parser.add_argument(
        "--describe",
        action="store_true",
        help="print what the corpus is, how to obtain it and how its files must lie",
    )
    return parser


def _selected(
    corpora: Sequence[PublicCorpus], args: argparse.Namespace
) -> list[tuple[PublicCorpus, Found]]:
    """The corpora of this call with their cases; those that are not in the folder are passed over
    unless they were asked for.
    """
    wanted = [name.strip() for name in args.only.split(",") if name.strip()]
    for name in wanted:
        if name not in [c.name for c in corpora]:
            raise UsageError(
                f"no corpus {name!r} in this file",
                fix=did_you_mean(name, [c.name for c in corpora]),
            )
    where = dict(_rule(text) for text in args.where)
    options = {
        "where": where,
        "keep_suspects": args.keep_suspects,
        "allow_missing_masks": args.allow_missing_masks,
    }
    found, absent = [], []
    for corpus in corpora:
        if wanted and corpus.name not in wanted:
            continue
        try:
            found.append((corpus, find_cases(corpus, args.raw, **options)))
        except UsageError as error:
            if wanted or len(corpora) == 1 or not str(error.message).startswith("no labelled case"):
                raise
            absent.append(error)
    if not found:
        raise absent[0]
    return found


def _rule(text: str) -> tuple[str, str]:
    name, mark, expression = text.partition("=")
    if not mark:
        raise UsageError(
            f"cannot read --where {text!r}", expected="PLACEHOLDER=EXPRESSION, e.g. part=Tr"
        )
    return name, expression


def _ingest(corpus: PublicCorpus, found: Found, args: argparse.Namespace) -> int:
    from medjax.corpora.survey import mask_sets
    from medjax.corpora.verify import verify
    from medjax.prepare.fingerprint import check_classes, fingerprint, make_plan
    from medjax.prepare.prepare import prepare

    print(
        f"{corpus.name}: {len(found.cases)} cases in {args.raw}"
        + "".join(f"; {note}" for note in found.notes)
    )
    for name, reason in found.left_out.items():
        print(f"  left out: {name}: {reason} (--keep-suspects takes it)")
    failed = [{"case": Path(str(e.path)).name} | e.record() for e in found.problems]
    if args.dry:
        print("\n".join(f"  {case.name}: {', '.join(case.images)}" for case in found.cases))
        return report_failures(failed)
    if not found.cases:
        report_failures(failed)
        raise VerificationError("no usable case", path=args.raw, fix="fix what is listed above")
    folder = Path(args.out) / corpus.name
    described_as = corpus.corpus()
    if len(corpus.corpus().classes) > 1:
        sets, _ = mask_sets(
            [case for case in found.cases if case.masks], workers=args.workers or None
        )
        described_as = corpus_json.replaced_labels(described_as, sets)
    twins = [twin.to_json() for twin in corpus.twins if twin.cases]
    corpus_json.write(
        folder,
        described_as,
        found.cases,
        {"twins": twins, "licence": corpus.licence, "citation": corpus.citation},
    )
    if not args.no_verify:
        report = verify(folder, workers=args.workers or None)
        print(report.text())
    cache = folder / "fingerprint.json"
    prints = fingerprint(described_as, found.cases, workers=args.workers or None, cache=cache)
    allowed = tuple(name for name in described_as.annotated if name not in args.allow_absent)
    if allowed:
        try:
            check_classes(dataclasses.replace(described_as, annotated=allowed), prints)
        except LabelError as error:
            os.replace(folder / corpus_json.FILE, folder / f"refused.{corpus_json.FILE}")
            reason = {"path": error.path, "found": error.found, "expected": error.expected}
            raise VerificationError(
                error.message, **reason, fix=f"{error.fix} (here: --allow-absent CLASS)"
            ) from None
    spacing = tuple(args.spacing_mm) if args.spacing_mm else "median"
    plan = (
        _read_plan(Path(args.plan))
        if args.plan
        else make_plan({corpus.name: prints}, spacing=spacing, orientation=args.orientation)
    )
    files.write_json(folder / "plan.json", plan.to_json())
    show = None if args.quiet else progress(False, corpus.name)
    result = prepare(
        described_as, found.cases, plan, args.out, workers=args.workers or None, progress=show
    )
    print(
        f"{corpus.name}: {len(result.ok)} prepared, {result.skipped} already there, "
        f"{len(result.failed)} failed"
    )
    for line in result.remarks():
        print(line)
    return report_failures(failed + result.failed)


def _read_plan(path: Path):
    from medjax.prepare.plan import Plan

    try:
        return Plan.from_json(files.read_json(path))
    except (UsageError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"not a plan: {error}", path=path, fix="give the plan.json of a store or a run folder"
        ) from error


def describe(corpus: PublicCorpus) -> str:
    """What a person must know before obtaining a corpus, as text."""
    classes = corpus.corpus()
    lines = [
        f"{corpus.name}: {corpus.title}",
        f"  {corpus.citation}",
        f"  licence   {corpus.licence}",
        f"  obtain    {corpus.obtain} ({corpus.url})",
    ]
    lines.append(
        f"  cases     {corpus.cases or 'not published'}, {corpus.modality}, channels "
        f"{', '.join(corpus.channels)}"
    )
    lines += [f"  value {value:<4}{', '.join(names)}" for value, names in corpus.sets.items()]
    if hidden := [name for name in classes.classes if name not in classes.annotated]:
        lines.append(f"  unknown   {', '.join(hidden)} (not annotated throughout)")
    lines += [f"  meaning   {name}: {text}" for name, text in corpus.meanings.items()]
    for layout in corpus.layouts:
        lines += [f"  image     {template}" for template in layout.images]
        lines += (
            [f"  label     {layout.label}"]
            if layout.label
            else [
                f"  mask      {name}: {first_template(entry)}"
                for name, entry in layout.masks.items()
            ]
        )
        lines += [f"            {layout.note}"] if layout.note else []
    lines += [f"  defect    {text}" for text in corpus.defects]
    lines += [f"  suspect   {name}: {reason}" for name, reason in corpus.suspects.items()]
    lines += [f"  twins     {twin.corpus}: {twin.note}" for twin in corpus.twins]
    return "\n".join(lines)
