"""nnU-Net's masks of the held-out cases of a data set through nnU-Net's evaluator and ours: the
largest difference. Prints JSON.

    python -m benchmarks.evaluators --data DIR/Task04_Hippocampus [--masks FOLDER]

Without `--masks` (a folder of `<case>.nii.gz`), nnU-Net v2 predicts the cases of fold 0 with random
weights: what the masks look like does not matter to the comparison, that another program wrote them
does. Needs the `parity` extra.
"""

import json
import math
import shutil
import subprocess
import tempfile
from pathlib import Path

from benchmarks import harness
from benchmarks.peers import nnunet
from medjax.corpora.sources import scan_corpus
from medjax.corpora.splits import make_splits
from medjax.metrics import evaluate

PATCH = (40, 56, 40)
COUNTS = ("Dice", "IoU", "TP", "FP", "FN", "n_ref", "n_pred")


def predict(cases, classes: int, folder: Path) -> Path:
    """nnU-Net's masks of the cases, random weights."""
    model = nnunet.write_model(
        folder / "model",
        classes=classes,
        patch=PATCH,
        spacing_mm=(1.0, 1.0, 1.0),
        features=(8, 16, 32),
        strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
        kernels=((3, 3, 3),) * 3,
    )
    scans, masks = folder / "scans", folder / "masks"
    scans.mkdir()
    for case in cases:
        shutil.copyfile(case.images[0], scans / f"{case.name}_0000.nii.gz")
    subprocess.run(nnunet.command(model, scans, masks), check=True, capture_output=True)
    return masks


def main() -> None:
    """Compares and prints."""
    given = harness.parser(
        __doc__, data=harness.flag(type=Path, required=True), masks=harness.flag(type=Path)
    ).parse_args()
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    corpus, cases, _ = scan_corpus(given.data)
    held = {name.split("/", 1)[1] for name in make_splits({corpus.name: cases})[0]["val"]}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        chosen = [case for case in cases if case.name in held]
        masks = given.masks or predict(chosen, len(corpus.values) - 1, folder)
        chosen = [case for case in chosen if (masks / f"{case.name}.nii.gz").is_file()]
        references = folder / "references"
        references.mkdir()
        compared = folder / "compared"
        compared.mkdir()
        for case in chosen:
            shutil.copyfile(case.label, references / f"{case.name}.nii.gz")
            shutil.copyfile(masks / f"{case.name}.nii.gz", compared / f"{case.name}.nii.gz")
        values = [value for value in corpus.values if value]
        theirs = compute_metrics_on_folder(
            str(references),
            str(compared),
            None,
            SimpleITKIO(),
            ".nii.gz",
            regions_or_labels=values,
            num_processes=1,
        )
        pairs, _ = evaluate.find_pairs(references, compared)
        result = evaluate.evaluate(pairs, corpus, surface=False)
        result.write(folder / "ours")
        ours = json.loads((folder / "ours" / "summary.json").read_text())
    differences, numbers = [], 0
    for mine, other in zip(ours["metric_per_case"], theirs["metric_per_case"], strict=True):
        for value in values:
            a, b = mine["metrics"][str(value)], other["metrics"][value]
            for key in COUNTS:
                both_nan = math.isnan(float(b[key])) and (
                    a[key] is None or math.isnan(float(a[key]))
                )
                differences.append(0.0 if both_nan else abs(float(a[key]) - float(b[key])))
                numbers += 1
    found = {"cases": len(pairs), "numbers": numbers, "largest_difference": max(differences)}
    means = {"medjax": ours["foreground_mean"]["Dice"], "nnunet": theirs["foreground_mean"]["Dice"]}
    harness.show(found | {"foreground_dice": means})


if __name__ == "__main__":
    main()
