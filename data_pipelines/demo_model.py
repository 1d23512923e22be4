r"""The model of `medjax demo`: trained on the embedded corpora, exported, described.

    python -m data_pipelines.demo_model OUT                      # all steps
    python -m data_pipelines.demo_model OUT --checkpoint 800     # of a training that was stopped

In: nothing. Out: OUT/run (the training; the same command resumes it), OUT/phantom.medjax (the
archive, below 3 MB) and OUT/phantom.json (its card: command, settings, seeds, step, versions, and
the Dice on the scans that `medjax demo` draws). Both files belong into medjax/phantom/assets/.
"""

import argparse
import json
import sys
from pathlib import Path

import medjax
from medjax import files
from medjax.commands import demo
from medjax.phantom.corpora import make_case
from medjax.runs.exchange import export
from medjax.runs.info import environment
from medjax.train import log
from medjax.weights.formats.archive import read

RECIPE = "configs/multitalent.py:demo"
CHANGES = {
    "name": "phantom",
    "data.phantom_cases": 16,
    "model.base_features": 12,
    "model.max_features": 80,
    "train.steps": 2000,
    "evaluate.montages": 2,
}
LARGEST = 3_000_000  # bytes of the archive
USE = "Shows medjax on synthetic scans. It has never seen a patient and segments none."


def make(out: Path, checkpoint: str = "") -> Path:
    """Trains (or resumes), exports and describes; returns the path of the card.

    Args:
      checkpoint: a step that OUT/run has saved; then nothing is trained.
    """
    config = medjax.config(RECIPE, CHANGES)
    if not checkpoint:
        medjax.train(config, out / "run")
    archive = out / demo.MODEL.name
    export.export(out / "run", archive, checkpoint=checkpoint, overwrite=True)
    size = archive.stat().st_size
    if size > LARGEST:
        raise SystemExit(f"{archive}: {size:,} bytes, more than {LARGEST:,}")
    step = read(archive).manifest["provenance"]["step"]
    rows = [row for row in log.read(out / "run" / "metrics.jsonl") if row["step"] <= step]
    command = "python -m data_pipelines.demo_model OUT"
    shown = demo.demo(out / f"check_{step}", model=archive)
    card = {
        "name": "phantom",
        "use": USE,
        "licence": "CC0-1.0 (synthetic training scans), Apache-2.0 (weights)",
        "command": command + (f" --checkpoint {checkpoint}" if checkpoint else ""),
        "recipe": RECIPE,
        "changes": CHANGES,
        "seed": config.seed,
        "step": step,
        "training": {
            "corpora": "medjax.phantom, size small",
            "cases": config.data.phantom_cases,
            "seed": config.data.phantom_seed,
        },
        "validation_dice_in_patches": [row["dice"] for row in rows if "dice" in row][-1],
        "bytes": size,
        "sha256": files.sha256(archive),
        "versions": environment()["versions"],
        "golden": {
            "seed": demo.SEED,
            "dice": shown.dice,
            "mean": shown.mean,
            "coarse_ct": coarse_ct(archive),
        },
    }
    path = out / demo.CARD.name
    path.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return path


def coarse_ct(model: Path) -> dict[str, float]:
    """Class -> Dice on a CT of large voxels, without overlapping windows: some seconds."""
    image, label, _, affine = make_case("ct", demo.SEED, 0, size="tiny")
    predictor = medjax.Predictor(model, corpus="PhantomCT", overlap=0.0)
    mask = predictor.predict(image, affine)
    found = {}
    for value, name in predictor.labels.items():
        mine, true = mask == value, label == value
        found[name] = round(2 * float((mine & true).sum()) / float(mine.sum() + true.sum()), 4)
    return found


def main(argv: list[str] | None = None) -> int:
    """Entry point of the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--checkpoint", default="", help="export this step, train nothing")
    given = parser.parse_args(argv)
    path = make(given.out, given.checkpoint)
    print(f"{path}; copy it and {demo.MODEL.name} to {demo.ASSETS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
