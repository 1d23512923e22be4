"""`medjax demo`: a first mask in less than a minute, without data and without a training.

In: nothing but a folder. Out: one synthetic scan of each embedded corpus, never seen in training;
its mask by the small model that medjax brings along (`phantom/assets/phantom.medjax`, made by
`data_pipelines/demo_model.py`); scores, pictures and report.html.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from medjax.errors import EXIT_OK, EXIT_SOME_FAILED, sentence, shown

ASSETS = Path(__file__).resolve().parent.parent / "phantom" / "assets"
MODEL, CARD = ASSETS / "phantom.medjax", ASSETS / "phantom.json"
FOLDER = "medjax_demo"
SEED = 2026  # of the scans; the training has seed 0


@dataclasses.dataclass(frozen=True)
class Shown:
    """What a demo made.

    Attributes:
      folder: with phantoms/, predictions/ and evaluation/. page: report.html.
      dice: corpus -> class -> Dice; None where neither mask nor reference has the class.
      mean: over the classes, as the evaluation defines it. failed: records of failed cases.
    """

    folder: Path
    page: Path
    dice: dict[str, dict[str, float | None]]
    mean: float | None
    failed: list[dict]


def add(verbs) -> None:
    """Adds the verb's parser."""
    p = verbs.add_parser("demo", help="a first mask: a shipped model on synthetic scans, scored")
    p.add_argument("-o", "--output", default=FOLDER, help=f"folder; default {FOLDER}")
    p.add_argument("--seed", type=int, default=SEED, help="another seed draws other bodies")
    p.add_argument("--no-open", action="store_true", help="do not open the page in a browser")
    p.set_defaults(run=_demo)


def card() -> dict[str, Any]:
    """What is known of the shipped model: its training, licence, and golden Dice."""
    return json.loads(CARD.read_text(encoding="utf-8"))


def demo(folder: Path | str = FOLDER, *, seed: int = SEED, model: Path | str = MODEL) -> Shown:
    """Draws a scan of each embedded corpus, predicts and scores it, and writes the page.

    The same call again continues: what is there is not computed twice.

    Args:
      folder: where everything is written. seed: of the scans, not negative. model: a `.medjax`
        archive or run folder that knows the embedded corpora.

    Raises: `UsageError` if a file that medjax did not write is in the way, or for a negative seed.
    """
    from medjax import lines
    from medjax.commands import progress
    from medjax.corpora.sources import scan_corpus
    from medjax.errors import UsageError
    from medjax.phantom.corpora import write_corpora
    from medjax.runs import test
    from medjax.runs.settings import schema
    from medjax.runs.trained import load_predictor

    if seed < 0:
        raise UsageError("no such seed", found=seed, expected="a whole number, not negative")
    folder = Path(folder)
    with lines.busy("drawing three synthetic scans"):
        drawn = write_corpora(folder / "phantoms", seed=seed, cases=1)
    held = {}
    for path in drawn:
        corpus, cases, _ = scan_corpus(path)
        held[corpus.name] = (corpus, cases)
    predictor = load_predictor(model)
    settings = schema.Evaluate(montages=len(held))
    failed = test.predict_and_score(
        predictor, held, folder, settings, lambda what: progress(False, what)
    )
    evaluation = folder / "evaluation"
    found = json.loads((evaluation / "summary.json").read_text(encoding="utf-8"))
    dice = {
        corpus: {name: cell["Dice"]["mean"] for name, cell in cells.items()}
        for corpus, cells in found["cells"].items()
    }
    mean = found["overall"]["Dice"]["mean"]
    return Shown(folder, evaluation / "report.html", dice, mean, failed)


def _demo(args) -> int:
    made = demo(args.output, seed=args.seed)
    for entry in made.failed:
        print(f"medjax: {shown(entry['case'])} failed: {sentence(entry)}", file=sys.stderr)
    if made.mean is not None:
        print(f"mean Dice {made.mean:.3f} on bodies that the model has not seen")
    print(f"scans     {made.folder / 'phantoms'}\nmodel     {MODEL}")
    if not args.no_open and _has_browser():
        import webbrowser

        webbrowser.open(made.page.resolve().as_uri())
    return EXIT_SOME_FAILED if made.failed else EXIT_OK


def _has_browser() -> bool:
    """Whether someone sits before a screen."""
    if os.environ.get("CI"):
        return False
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return sys.platform in ("darwin", "win32") or bool(screen)
