"""Chooses the classes for largest-component filtering, on validation masks as nnU-Net does.

In: folders of reference and predicted masks. Out: a JSON file with the rules (see
`infer.postprocess.Rules`) and, per class, the mean Dice before and after. A class is chosen if its
mean Dice increases; cases without it in both masks do not count.
"""

from pathlib import Path

import numpy as np

from medjax import files
from medjax.corpora.sources import read_labels
from medjax.errors import UsageError, shown
from medjax.infer.owned import mark
from medjax.infer.postprocess import largest
from medjax.labels import Corpus
from medjax.metrics.evaluate import find_pairs
from medjax.runs import folder
from medjax.runs.footprint import table
from medjax.runs.trained import POSTPROCESS
from medjax.scans import formats, nifti


def place(run: Path) -> Path:
    """Path of the run's postprocess.json. Raises `UsageError` if `run` is not a run folder."""
    folder.read_config(run)
    return run / POSTPROCESS


def choose(
    reference: str, prediction: str, labels: Path, out: Path, run: Path | None = None
) -> str:
    """Decides and writes `out`; returns the table of mean Dice values.

    Args:
      run: whose label space names the classes; without it, classes have the names of the corpus.

    Raises: `UsageError` without a pair of masks.
    """
    corpus = read_labels(labels)
    pairs = [pair for pair in find_pairs(reference, prediction)[0] if pair.prediction]
    if not pairs:
        raise UsageError(
            "no pair of masks", found=prediction, expected=f"files named like those in {reference}"
        )
    names = global_names(corpus, run)
    before, after = ({name: [] for name in corpus.annotated} for _ in range(2))
    for pair in pairs:
        truth, found = (formats.read(path, "label") for path in (pair.reference, pair.prediction))
        nifti.check_same_geometry(truth, found)
        for name in corpus.annotated:
            values = [corpus.values[i] for i in corpus.ids_of(name)]
            wanted, mask = np.isin(truth.array, values), np.isin(found.array, values)
            if wanted.any() or mask.any():
                before[name].append(dice(wanted, mask))
                after[name].append(dice(wanted, largest(mask)[0]))
    evidence = {
        names[name]: {
            "dice_before": _mean(before[name]),
            "dice_after": _mean(after[name]),
            "cases": len(before[name]),
        }
        for name in corpus.annotated
    }
    chosen = [
        name
        for name, seen in evidence.items()
        if seen["cases"] and seen["dice_after"] > seen["dice_before"]
    ]
    basis = {
        "reference": reference,
        "prediction": prediction,
        "masks": {p.case: files.sha256(p.prediction) for p in pairs},
    }
    folder.write_json(
        out,
        mark("postprocessing")
        | {"rules": {"largest": chosen}, "evidence": evidence, "basis": basis},
    )
    rows = [("class", "cases", "Dice", "largest only", "chosen")]
    for name, seen in evidence.items():
        numbers = (
            ("-", "-")
            if not seen["cases"]
            else (f"{seen['dice_before']:.4f}", f"{seen['dice_after']:.4f}")
        )
        rows.append((shown(name), str(seen["cases"]), *numbers, "yes" if name in chosen else ""))
    return f"{table(rows)}\n{shown(out)}"


def global_names(corpus: Corpus, run: Path | None) -> dict[str, str]:
    """Class of the corpus -> class of the run's label space, if there is a run."""
    if run is None:
        return {name: name for name in corpus.annotated}
    space = folder.read_space(run).unveiled()
    found = dict(space.names[space.corpus_index(corpus.name)])
    return {name: found.get(name, name) for name in corpus.annotated}


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """2 |a and b| / (|a| + |b|) of two masks that are not both empty."""
    return 2 * float(np.count_nonzero(a & b)) / float(np.count_nonzero(a) + np.count_nonzero(b))


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
