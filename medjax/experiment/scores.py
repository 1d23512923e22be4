"""Held-out cases -> predictions/, evaluation/ and a table: the last stage of a run.

In: a predictor and, per corpus, the cases with their reference labels. Out: masks, summary.json, cases.csv, table.md and montages in the
run folder; the table on the screen; the records of cases that failed.
"""

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medjax.data import formats, geometry
from medjax.data.annotation import read_label
from medjax.data.inputs import Case
from medjax.infer.predict import predict_cases
from medjax.labels import Corpus
from medjax.metrics import evaluate as metrics
from medjax.metrics import montage


def predict_and_score(
    predictor: Any, held: Mapping[str, tuple[Corpus, list[Case]]], workdir: Path, settings: Mapping, line: Callable
) -> list[dict]:
    """Predicts `held` (corpus name -> corpus, cases) into the run folder, scores it, prints the table; returns failure records."""
    results, failed, shown = [], [], []
    for name, (corpus, cases) in held.items():
        if not cases:
            continue
        out = workdir / "predictions" / name
        done = predict_cases(predictor, cases, out, name, continue_=True, progress=line(f"predict {name}"))
        failed += done.failed
        fine = [c for c in cases if c.name in {*done.ok, *done.skipped}]
        pairs = [metrics.Pair(c.name, c.label_files[0], str(out / f"{c.name}.nii.gz"), c.patient, c) for c in fine]
        if pairs:
            results.append(metrics.evaluate(pairs, corpus, surface=settings["surface"]))
            failed += results[-1].failed
            shown += [(corpus, case, out / f"{case.name}.nii.gz") for case in fine]
    if not results:
        return failed
    result = metrics.join(results) if len(results) > 1 else results[0]
    folder = workdir / "evaluation"
    result.write(folder)
    _montages(shown, folder / "montages", settings["montages"])
    print(f"\n{result.markdown()}\nmasks     {workdir / 'predictions'}\nnumbers   {folder}\npictures  {folder / 'montages'}", flush=True)
    return failed


def _montages(shown: list[tuple[Corpus, Case, Path]], folder: Path, count: int) -> None:
    """Pictures of at most `count` cases, the corpora in turn."""
    order = list(range(len(shown)))
    random.Random(0).shuffle(order)
    by_corpus: dict[str, list[int]] = {}
    for i in order:
        by_corpus.setdefault(shown[i][0].name, []).append(i)
    turns = [i for column in zip(*[v + [None] * (len(shown) - len(v)) for v in by_corpus.values()], strict=True) for i in column]
    for i in [i for i in turns if i is not None][:count]:
        corpus, case, mask = shown[i]
        image = formats.read_case(case.images)
        labels = corpus.to_raw(read_label(case, corpus, image)), formats.read(mask, "label").array
        canonical = geometry.fit(image, None, crop="none")
        reference, prediction = (canonical.image(label[..., None])[..., 0] for label in labels)
        names = {value: "+".join(classes) for value, classes in corpus.labels if classes}
        montage.montage(
            canonical.image(image.array)[..., 0], reference, prediction, folder / f"{corpus.name}_{case.name}.png",
            spacing_mm=canonical.spacing_mm, names=names,
        )  # fmt: skip
