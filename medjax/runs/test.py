"""The last stage of a run: held-out cases -> predictions/, evaluation/ and a table.

In: a predictor and, per corpus, the cases with their reference labels. Out: masks, numbers, plots,
pictures and report.html in the run folder; the table on the screen; the records of cases that
failed.
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medjax import lines
from medjax.corpora.inputs import Case
from medjax.errors import MedjaxError
from medjax.infer.cases import Files, predict_cases
from medjax.labels import Corpus
from medjax.metrics import channels, regions, tables, written
from medjax.metrics import evaluate as metrics
from medjax.prompts.request import Request
from medjax.report import present
from medjax.runs import folder as runfolder
from medjax.runs.settings.schema import Evaluate


def say(text: str) -> None:
    """Prints a line on stderr."""
    print(text, file=sys.stderr, flush=True)


def predict_and_score(
    predictor: Any,
    held: Mapping[str, tuple[Corpus, list[Case]]],
    workdir: Path,
    settings: Evaluate,
    line: Callable,
) -> list[dict]:
    """Predicts `held` (corpus name -> corpus, cases) into the run folder and scores it.

    Prints the table; returns failure records.
    """
    failed, masks = [], {}
    written.check(workdir / "evaluation", written.NUMBERS)  # before the work of predicting
    for name, (corpus, cases) in held.items():
        out = workdir / "predictions" / name
        if cases:
            say(f"predict {name}: {len(cases)} held-out cases, the network is compiled first ...")
        done = (
            predict_cases(
                predictor,
                cases,
                out,
                Request(name),
                files=Files(facts=_own_channels(predictor, corpus)),
                continue_=True,
                progress=line(f"predict {name}"),
                warn=say,
            )
            if cases
            else None
        )
        failed += done.failed if done else []
        fine = [c for c in cases if done and c.name in {*done.ok, *done.skipped}]
        masks[name] = (corpus, [(case, out / f"{case.name}.nii.gz") for case in fine])
    wrong, result = score(masks, settings)
    if result is not None:
        publish(result, workdir, settings)
        print(f"masks     {workdir / 'predictions'}", flush=True)
    return failed + wrong


def score(
    masks: Mapping[str, tuple[Corpus, list[tuple[Case, Path]]]], settings: Evaluate
) -> tuple[list[dict], Any]:
    """Compares masks with references.

    Args:
      masks: corpus name -> corpus and (case, predicted mask).
      settings: `config.evaluate`.

    Returns: records of what could not be scored, and the result over all corpora (None if there is
      nothing).
    """
    results = []
    grouping = groups(settings)
    for name, (plain, found) in masks.items():
        corpus, further = regions.extended(plain, settings.regions, settings.alone)
        pairs = [
            metrics.Pair(
                case.name,
                case.label_files[0],
                str(mask),
                case.patient,
                case,
                channels.read(mask.parent, case.name, corpus.annotated),
            )
            for case, mask in found
        ]
        if pairs:
            with lines.busy(f"scoring {len(pairs)} masks of {name}"):
                results.append(
                    metrics.evaluate(
                        pairs,
                        corpus,
                        apart=further,
                        surface=settings.surface,
                        groups=grouping,
                    )
                )
    failed = [record for result in results for record in result.failed]
    if not results:
        return failed, None
    result = metrics.join(results, grouping) if len(results) > 1 else results[0]
    return failed, dataclasses.replace(result, conflicts=_conflicts(masks))


def _own_channels(predictor: Any, corpus: Corpus) -> Callable | None:
    """Counts every class' own channel, for the sidecars; None where the classes compete in one
    softmax, and have no channel of their own.
    """
    if predictor.decision.competes:
        return None
    space = predictor.model.space
    channel_of = dict(space.names[space.corpus_index(corpus.name)])

    def facts(case: Case, volume: Any, segmentation: Any) -> dict:
        try:
            counted = channels.count(case, volume, segmentation.masks, corpus, channel_of)
        except MedjaxError:  # a reference that cannot be read: the evaluation reports it
            return {}
        return {channels.FIELD: counted}

    return facts


def _conflicts(
    masks: Mapping[str, tuple[Corpus, list[tuple[Case, Path]]]],
) -> dict[str, dict]:
    """Corpus -> share of the foreground with two exclusive classes, and how they were painted."""
    counted = {
        name: channels.conflicts([(mask.parent, case.name) for case, mask in found])
        for name, (_, found) in masks.items()
    }
    return {name: entry for name, entry in counted.items() if entry}


def groups(settings: Evaluate) -> dict[str, tuple[str, ...]]:
    """Group -> its classes as "class" or "corpus/class".

    The groups of the config, and "difficult" if there is a baseline: MultiTalent calls the classes
    difficult that the baseline segments with a mean Dice below 0.75.
    """
    found = {name: tuple(members) for name, members in settings.groups.items()}
    if settings.baseline:
        cells = runfolder.read_json(
            Path(settings.baseline).expanduser() / "evaluation", "summary.json"
        )["cells"]
        low = [
            f"{corpus}/{name}"
            for corpus, row in cells.items()
            for name, cell in row.items()
            if _below(cell, settings)
        ]
        found["difficult"] = tuple(low)
    return found


def _below(cell: Mapping, settings: Evaluate) -> bool:
    mean = cell["Dice"]["mean"]
    return mean is not None and mean < settings.difficult_below


def publish(result: Any, workdir: Path, settings: Evaluate) -> None:
    """Writes evaluation/ in a run folder (numbers, plots, pictures, page) and prints the Dice."""
    folder = workdir / "evaluation"
    with lines.busy("writing numbers, plots, pictures and the report"):
        result.write(folder)
        page = present.present(result, folder, montages=settings.montages)
    print(f"\n{tables.screen(result)}\n")
    print(f"all numbers, with intervals and further metrics: {folder / 'table.md'}")
    print(f"numbers   {folder}\npage      {page}", flush=True)
