"""The prompted evaluation of a promptable network on held-out scans.

In: a `PromptedSegmenter`, corpora with cases and references, `config.evaluate.prompted`. Out:
prompted.json, prompted.md and a plot beside the other files of an evaluation, and a section of its
report.html. It runs at the end of a training (`evaluate.prompted.on`), or on a finished run
(`medjax prompted`).
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medjax.corpora.cases import failure, load
from medjax.corpora.inputs import Case
from medjax.errors import UsageError
from medjax.infer.prompted import PromptedSegmenter
from medjax.labels import Corpus, LabelSpace
from medjax.metrics import prompting
from medjax.metrics.prompting import Key, Record
from medjax.prompts import rows, types
from medjax.prompts.request import Request
from medjax.report import prompted as report
from medjax.runs.prompted import asking
from medjax.runs.settings.use import Prompted

Progress = Callable[[int, int, str, str], None]
Held = Mapping[str, tuple[Corpus, Sequence[Case]]]


def check(given: Prompted, reads: Mapping[str, Any] | None = None) -> None:
    """`UsageError` for rows and numbers that cannot be used, and for a network without prompts.

    Args:
      reads: what the network reads; None: not known yet.
    """
    chosen = rows.parsed(given.rows)
    if given.draws < 1 or min(given.clicks, given.cases, given.largest) < 0:
        raise UsageError(
            "unusable numbers of a prompted evaluation",
            found=f"draws {given.draws}, clicks {given.clicks}, cases {given.cases}",
            expected="at least one draw, and no negative numbers",
        )
    most = max([row.positives + row.negatives for row in chosen if row.clicks], default=0)
    if any(row.clicks for row in chosen) and most + given.clicks > types.SLOTS:
        raise UsageError(
            "more clicks than a network has slots for points",
            found=most + given.clicks,
            expected=f"at most {types.SLOTS}",
        )
    if reads is not None and not types.of_spec(reads):
        raise UsageError(
            "the network reads no prompts: it has no prompted evaluation",
            fix="leave out evaluate.prompted, or use a promptable network (docs/segvol.md)",
        )


def evaluate(
    segmenter: Any,
    held: Held,
    given: Prompted,
    *,
    progress: Progress | None = None,
    resamples: int = prompting.RESAMPLES,
) -> dict[str, Any]:
    """Asks a network for all objects of all cases, in every way.

    Args:
      segmenter: see `runs.trained.load_predictor`. held: corpus of the network -> the corpus that
        the references follow, and labelled cases.
      progress: called after every case with (done, total, name, status).

    Returns: `metrics.prompting.tables` with "grid", "settings", "programs", "scans", "asked"
      (objects), "seconds", "without_text" (classes that the network has no text for), and "failed".
    Raises: `UsageError` for a network without prompts, unusable settings, and if no case could be
      asked.
    """
    if not isinstance(segmenter, PromptedSegmenter):
        raise UsageError(
            "the model reads no prompts",
            fix="give a promptable one (docs/segvol.md), or score it with medjax evaluate",
        )
    check(given)
    chosen, record, failed, texts = rows.parsed(given.rows), Record(), [], {}
    started, done = time.perf_counter(), 0
    todo = [
        (name, corpus, case)
        for name, (corpus, cases) in held.items()
        for case in (cases[: given.cases] if given.cases else cases)
    ]
    for name, corpus, case in todo:
        try:
            if corpus.name not in texts:
                texts[corpus.name] = _texts(segmenter, name, corpus)
            record.extend(_of_case(segmenter, name, corpus, case, chosen, given, texts))
            status = "asked"
        except Exception as error:
            failed.append({"corpus": corpus.name} | failure(case, error))
            status = "failed"
        done += 1
        if progress:
            progress(done, len(todo), case.name, status)
    if not record.measured and not record.clicked and not failed:
        raise UsageError(
            "nothing to ask for: no labelled held-out case has one of the classes",
            found=", ".join(held) or "no corpus",
            fix="check the split, the labels and evaluate.prompted.classes",
        )
    without = {
        corpus.name: [n for n in _names(corpus, given) if n not in texts[corpus.name]]
        for corpus, _ in held.values()
        if corpus.name in texts
    }
    found = prompting.tables(record, resamples=resamples, seed=given.seed)
    return found | {
        "grid": "of the scan",
        "settings": segmenter.settings() | {"prompted": given.to_json()},
        "programs": segmenter.compiled,
        "scans": done - len(failed),
        "seconds": round(time.perf_counter() - started, 1),
        "without_text": {name: classes for name, classes in without.items() if classes},
        "failed": failed,
    }


def _of_case(
    segmenter: Any,
    name: str,
    corpus: Corpus,
    case: Case,
    chosen: Sequence[rows.Row],
    given: Prompted,
    texts: Mapping[str, Mapping[str, str]],
) -> Record:
    volume, ids = load(case, corpus)
    if ids is None:
        raise UsageError("a case without a label", path=case.images[0], fix="give its label")
    scan = asking.Scan(segmenter, volume, ids, corpus, Request(name), texts[corpus.name])
    key = Key(corpus.name, case.name, case.patient or case.name, "")
    return asking.measure(scan, key, _names(corpus, given), chosen, given)


def _names(corpus: Corpus, given: Prompted) -> list[str]:
    """The classes of a corpus that are asked for."""
    return [name for name in corpus.annotated if not given.classes or name in given.classes]


def _texts(segmenter: Any, name: str, corpus: Corpus) -> dict[str, str]:
    """Class of a corpus -> the text that asks for it, for those that the network knows."""
    space = segmenter.model.space
    own = space.corpora[space.corpus_index(name)]
    known = dict(space.names[space.corpus_index(name)]) if own.name == corpus.name else {}
    words = {one: known.get(one, one) for one in corpus.annotated}
    return {one: text for one, text in words.items() if segmenter.knows(text)}


def write(found: Mapping[str, Any], folder: Path, *, overwrite: bool = False) -> list[str]:
    """Writes prompted.json, prompted.md and the plot, and renews the page of the evaluation if
    there is one. Returns what to print.

    Raises: `UsageError` if one of the files is there and medjax did not write it, unless
      `overwrite`.
    """
    report.write(found, folder, overwrite=overwrite)
    lines = [*report.sentences(found), f"  see {folder / report.TABLE}"]
    if (folder / "summary.json").is_file():
        from medjax.report.prediction import report as renew

        lines += [f"page      {path}" for path in renew(folder, overwrite=overwrite)]
    return lines


def of_model(
    path: Path | str,
    given: Prompted,
    *,
    data: Sequence[Path | str] = (),
    corpus: str = "",
    adapter: str = "",
    expert: str = "",
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any]:
    """`evaluate` for a finished run or an archive.

    Args:
      data: labelled corpora in place of the held-out scans of the run. corpus: of the network,
        whose preparation they follow; default the one of their name, or the only one.
      adapter, expert: see `runs.exchange.adapters.attach`. options: see
        `runs.trained.load_predictor`.

    Raises: `UsageError` also for an archive without data, and if it is not clear which corpus of
      the network to follow.
    """
    from medjax.runs import predict, trained

    check(given)
    (one,) = predict.adapted([trained.read_model(path)], adapter, expert, False)
    check(given, one.network.reads)
    if data:
        held = dict(_given(one.space.unveiled(), folder, corpus) for folder in data)
    else:
        held = _held_out(Path(path))
    return evaluate(trained.load_predictor(one, **options), held, given, progress=progress)


def _held_out(run: Path) -> Held:
    """The held-out cases of a run folder."""
    from medjax.runs import folder as runfolder
    from medjax.runs import open as corpora

    if not (run / runfolder.SPLITS).is_file():
        raise UsageError(
            "this model names no held-out scans",
            path=run,
            expected=f"a run folder with {runfolder.SPLITS}",
            fix="give labelled data sets: --data FOLDER",
        )
    given = runfolder.read_config(run).data
    split = dataclasses.replace(given.split, file=str(run / runfolder.SPLITS))
    data = corpora.open_data(dataclasses.replace(given, split=split), run)
    return data.held_out(runfolder.read_space(run).unveiled())


def _given(space: LabelSpace, folder: Path | str, corpus: str) -> tuple[str, tuple[Corpus, list]]:
    """(corpus of the network, (corpus of the labels, labelled cases)) of a data set."""
    from medjax.corpora.sources import read_corpus

    described, cases = read_corpus(folder)
    names = [one.name for one in space.corpora]
    chosen = corpus or (described.name if described.name in names else "")
    chosen = chosen or (names[0] if len(names) == 1 else "")
    if not chosen:
        raise UsageError(
            "the model knows several corpora, none of which has the name of the data set",
            path=folder,
            found=described.name,
            expected=", ".join(names),
            fix="choose one whose preparation to follow with --corpus",
        )
    space.corpus_index(chosen)
    return chosen, (described, [case for case in cases if case.labelled])


def earlier(folder: Path | str) -> dict[str, Any]:
    """The numbers of another prompted evaluation.

    Raises: `UsageError` for a folder without them.
    """
    path = Path(folder)
    inside = path / "evaluation"
    found = report.read(inside if (inside / report.NUMBERS).is_file() else path)
    if found is None:
        raise UsageError(
            "no prompted evaluation here",
            path=path,
            expected=f"a folder with {report.NUMBERS}, or a run folder",
            fix="run `medjax prompted` first",
        )
    return found


def compared(first: Mapping[str, Any], found: Mapping[str, Any], name: str) -> dict[str, Any]:
    """This evaluation minus another one of the same scans: {"name", "rows": {row: summary}}."""
    shared = [row for row in found["rows"] if row in first["rows"]]
    return {
        "name": name,
        "rows": {row: prompting.difference(first["cases"], found["cases"], row) for row in shared},
    }
