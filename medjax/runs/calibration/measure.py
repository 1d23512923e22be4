"""Chooses a temperature per class on the validation cases of a finished run.

In: a run folder. Out: calibration.json in it, with the temperatures (`runs.temperatures`) and, per
corpus and class, calibration error, Brier score, log-likelihood and reliability before and after.
Every class that a corpus does not annotate is left out of that corpus' voxels. The classes of a
softmax share one temperature, and a voxel belongs to the last of its classes in precedence.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medjax.corpora.cases import failure
from medjax.corpora.inputs import Case
from medjax.corpora.labels_of_case import read_label_volume
from medjax.errors import UsageError, shown
from medjax.infer import owned
from medjax.infer.conflicts import CALIBRATED, ORDERED, strength
from medjax.labels import Corpus, LabelSpace
from medjax.metrics import calibration
from medjax.prompts.request import Request
from medjax.runs import folder
from medjax.runs import open as corpora
from medjax.runs.calibration.voxels import Sample
from medjax.runs.footprint import table
from medjax.runs.prompted import prompting
from medjax.runs.temperatures import FILE, KIND, rule
from medjax.runs.trained import load_predictor, read_model
from medjax.scans import formats

VOXELS, MOST = 20_000, 1_000_000  # of a case, and of all cases together
SCORES = ("ECE", "Brier", "NLL")
Held = Mapping[str, tuple[Corpus, Sequence[Case]]]


@dataclasses.dataclass(frozen=True)
class Voxels:
    """Sampled voxels of a corpus: (n, c) probabilities, (n,) ids of the reference, (n,) weights."""

    values: np.ndarray
    ids: np.ndarray
    weight: np.ndarray


def calibrate(
    run: Path | str,
    *,
    checkpoint: str = "",
    device: str = "",
    voxels: int = VOXELS,
    overwrite: bool = False,
    progress: Callable[[int, int, str, str], None] | None = None,
) -> dict:
    """Predicts the validation cases, chooses the temperatures and writes calibration.json.

    Args:
      run: its folder. checkpoint, device: see `runs.trained.load_predictor`.
      voxels: of a case at most; of many cases fewer, so that there are at most a million.
      overwrite: also replace a file that medjax did not write.
      progress: called after every case with (done, total, name, status).

    Returns: what was written, with the records of cases that failed under "failed".
    Raises: `UsageError` for what is no run folder, a promptable model, a run without validation
      cases, or one of which none can be predicted.
    """
    run = Path(run)
    folder.read_config(run)
    if voxels < 2:
        raise UsageError("--voxels must be at least 2", found=voxels)
    owned.refuse_document(run / FILE, KIND, overwrite=overwrite, what="the calibration")
    trained = read_model(run)
    if prompting.promptable(trained):
        raise UsageError(
            "a promptable model has no probabilities of classes to calibrate",
            path=run,
        )
    held = validation_cases(run)
    predictor = load_predictor(
        trained, checkpoint=checkpoint, device=device, conflicts=ORDERED, postprocess="none"
    )
    found, failed = gathered(predictor, held, voxels, progress)
    if not found:
        raise UsageError(
            "no validation case could be predicted",
            path=run,
            found=failed[0]["message"] if failed else "none",
        )
    space = predictor.model.space
    document = owned.mark(KIND) | {
        "activation": predictor.decision.name,
        "weights": predictor.settings()["weights"],
        "cases": {name: [case.name for case in cases] for name, (_, cases) in held.items()},
        "failed": failed,
        **chosen(space, found, predictor.decision.competes),
    }
    folder.write_json(run / FILE, document)
    return document


def ensure(run: Path, word: str, device: str, say: Callable[[str], None]) -> None:
    """Calibrates a run that has been trained with calibrated conflicts, before it is evaluated;
    not if that was done with the same parameters.

    Args:
      word: of `infer.conflicts`.
    """
    if word == CALIBRATED:
        try:
            rule([trained := read_model(run)], word, trained.weights()[1])
        except UsageError:
            say("choosing temperatures on the validation cases ...")
            say(report(calibrate(run, device=device)))


def validation_cases(run: Path) -> Held:
    """Corpus name -> corpus and its labelled validation cases, by the splits of the run.

    Raises: `UsageError` without any.
    """
    if (run / folder.SPLITS).is_file():
        given = folder.read_config(run).data
        split = dataclasses.replace(given.split, file=str(run / folder.SPLITS))
        data = corpora.open_data(dataclasses.replace(given, split=split), run)
        held = data.held_out(folder.read_space(run).unveiled(), "val") if data.splits else {}
        if any(cases for _, cases in held.values()):
            return held
    raise UsageError(
        "this run has no validation cases to calibrate on",
        path=run,
        expected=f"{folder.SPLITS} with labelled cases under val",
        fix="calibrate a run of a fold that holds cases out",
    )


def gathered(
    predictor: Any,
    held: Held,
    voxels: int = VOXELS,
    progress: Callable[[int, int, str, str], None] | None = None,
) -> tuple[dict[str, Voxels], list[dict]]:
    """Corpus name -> sampled voxels of its cases, and the records of cases that failed."""
    space: LabelSpace = predictor.model.space
    total = sum(len(cases) for _, cases in held.values())
    most = max(2, min(voxels, MOST // max(1, total)))
    found, failed, done = {}, [], 0
    for name, (corpus, cases) in held.items():
        samples = []
        for case in cases:
            done, status = done + 1, "measured"
            try:
                samples.append(_sample(predictor, space, corpus, case, most))
            except Exception as error:
                failed.append({"corpus": name} | failure(case, error))
                status = "failed"
            if progress:
                progress(done, total, case.name, status)
        if samples:
            parts = ((s.values, s.ids, s.weight) for s in samples)
            found[name] = Voxels(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    return found, failed


def chosen(space: LabelSpace, found: Mapping[str, Voxels], competes: bool) -> dict[str, Any]:
    """The temperatures of all classes with voxels, and the scores before and after.

    Args:
      found: corpus -> voxels of all classes of the space. competes: the classes share a softmax.

    Returns: {"temperatures": {class: T}, "kept": classes without foreground or background in the
      voxels, which keep 1, "voxels": sampled, "classes": {corpus: {class: {"temperature",
      "voxels", "foreground", "before": {ECE, Brier, NLL}, "after": ...}}}, "reliability": {corpus:
      {class: {"before": table, "after": table}}}}; see `metrics.calibration`. Foreground: share.
    """
    truth = {name: _truth(space, name, one, competes) for name, one in found.items()}
    known = {name: space.known[space.corpus_index(name)] for name in found}
    if competes:
        temperatures, told = _together(space, found, truth, known)
    else:
        temperatures, told = _alone(space, found, truth, known)
    classes: dict[str, dict] = {}
    reliability: dict[str, dict] = {}
    for corpus, one in found.items():
        after = _scaled(one.values, [temperatures.get(n, 1.0) for n in space.classes], competes)
        for k in np.flatnonzero(known[corpus]):
            name, y = space.classes[k], truth[corpus][:, k]
            both = {"before": one.values[:, k], "after": after[:, k]}
            tables = {when: calibration.reliability(p, y, one.weight) for when, p in both.items()}
            scores = {
                when: {
                    "ECE": calibration.ece(tables[when]),
                    "Brier": calibration.brier(p, y, one.weight),
                    "NLL": calibration.nll(p, y, one.weight),
                }
                for when, p in both.items()
            }
            total = float(one.weight.sum())
            classes.setdefault(corpus, {})[name] = {
                "temperature": temperatures[name],
                "voxels": len(y),
                "foreground": float(one.weight[y].sum()) / total if total else None,
                **scores,
            }
            reliability.setdefault(corpus, {})[name] = tables
    return {
        "temperatures": temperatures,
        "kept": [name for name in temperatures if not told[name]],
        "voxels": sum(len(one.ids) for one in found.values()),
        "classes": classes,
        "reliability": reliability,
    }


def report(found: Mapping[str, Any]) -> str:
    """A table of temperature and scores before and after, for the screen."""
    rows = [("corpus", "class", "temperature", *(f"{score} before, after" for score in SCORES))]
    for corpus, cells in found["classes"].items():
        for name, cell in cells.items():
            pairs = (f"{_number(cell['before'][s])}, {_number(cell['after'][s])}" for s in SCORES)
            kept = " (kept)" if name in found["kept"] else ""
            rows.append((shown(corpus), shown(name), f"{cell['temperature']:.3f}{kept}", *pairs))
    lines = [table(rows), f"{found['voxels']:,} voxels of {_count(found)} validation cases"]
    if found["kept"]:
        lines.append("kept: without foreground or background in them, the temperature stays 1")
    return "\n".join(lines)


def _sample(predictor: Any, space: LabelSpace, corpus: Corpus, case: Case, most: int) -> Sample:
    volume = formats.read_case(case.images)
    label = read_label_volume(case, corpus, like=volume)
    k = space.corpus_index(corpus.name)
    kept = Sample(label.array, corpus.ignore_id, space.table[k], space.known[k], most)
    predictor.segment(volume, Request(corpus.name, classes=space.classes), on_scores=kept)
    return kept


def _truth(space: LabelSpace, corpus: str, one: Voxels, competes: bool) -> np.ndarray:
    """(n, c) bool: the classes of a voxel; of a softmax the last in precedence alone."""
    inside = space.table[space.corpus_index(corpus)][one.ids]
    if not competes:
        return inside
    out, taken = np.zeros_like(inside), np.zeros(len(inside), bool)
    for k in reversed(strength(space, space.classes)):
        out[:, k] = inside[:, k] & ~taken
        taken |= inside[:, k]
    return out


def _alone(
    space: LabelSpace, found: Mapping[str, Voxels], truth: Mapping, known: Mapping
) -> tuple[dict[str, float], dict[str, bool]]:
    """A temperature for each class, over the corpora that annotate it."""
    temperatures, told = {}, {}
    for k, name in enumerate(space.classes):
        own = [corpus for corpus in found if known[corpus][k]]
        if own:
            temperatures[name], told[name] = calibration.temperature(
                np.concatenate([found[c].values[:, k] for c in own]),
                np.concatenate([truth[c][:, k] for c in own]),
                np.concatenate([found[c].weight for c in own]),
            )
    return temperatures, told


def _together(
    space: LabelSpace, found: Mapping[str, Voxels], truth: Mapping, known: Mapping
) -> tuple[dict[str, float], dict[str, bool]]:
    """One temperature for all classes."""
    places = {c: np.where(t.any(-1), 1 + t.argmax(-1), 0) for c, t in truth.items()}
    one, could = calibration.temperature_together(
        np.concatenate([v.values for v in found.values()]),
        np.concatenate([places[c] for c in found]),
        np.concatenate([np.tile(known[c], (len(v.ids), 1)) for c, v in found.items()]),
        np.concatenate([v.weight for v in found.values()]),
    )
    return dict.fromkeys(space.classes, one), dict.fromkeys(space.classes, could)


def _scaled(values: np.ndarray, temperatures: Sequence[float], competes: bool) -> np.ndarray:
    if competes:
        return calibration.scaled_together(values, temperatures[0])
    columns = [calibration.scaled(values[:, k], t) for k, t in enumerate(temperatures)]
    return np.stack(columns, -1)


def _count(found: Mapping[str, Any]) -> int:
    return sum(map(len, found["cases"].values())) - len(found["failed"])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
