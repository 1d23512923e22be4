"""Held-out cases -> predictions/, evaluation/ and a table: the last stage of a run.

In: a predictor and, per corpus, the cases with their reference labels. Out: masks, numbers, plots, pictures and
report.html in the run folder; the table on the screen; the records of cases that failed.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medjax.data.inputs import Case
from medjax.infer.predict import predict_cases
from medjax.labels import Corpus
from medjax.metrics import evaluate as metrics
from medjax.metrics import present


def predict_and_score(
    predictor: Any, held: Mapping[str, tuple[Corpus, list[Case]]], workdir: Path, settings: Mapping, line: Callable
) -> list[dict]:
    """Predicts `held` (corpus name -> corpus, cases) into the run folder, scores it, prints the table; returns failure records."""
    results, failed = [], []
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
    if not results:
        return failed
    result = metrics.join(results) if len(results) > 1 else results[0]
    folder = workdir / "evaluation"
    result.write(folder)
    page = present.present(result, folder, montages=settings["montages"])
    print(f"\n{result.markdown()}\nmasks     {workdir / 'predictions'}\nnumbers   {folder}\npage      {page}", flush=True)
    return failed
