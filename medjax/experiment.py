"""Trainings from Python, the same as `python -m medjax.main` within this process.

import medjax
config = medjax.config("configs/multitalent.py:unet_small", {"train.steps": 500})
config.data.folders = "/data/Task04_X,/data/Dataset012_Y"
run = medjax.train(config, "runs/mine")     # prepares, trains, evaluates; again: resumes
model = medjax.load("runs/mine")            # or run.load(): .module .params .apply .space
mask = model.predict("scan.nii.gz")
batch = next(medjax.stream(config, "runs/mine"))    # what the training sees
"""

import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medjax import main, show
from medjax.errors import UsageError
from medjax.registry import plain


def config(recipe: str | Path, changes: Mapping[str, Any] | None = None) -> Any:
    """The config of a recipe as an `ml_collections.ConfigDict`, whose fields can be changed.

    Args:
      recipe: "configs/NAME.py[:variant]", of one's own or of medjax. changes: dotted field ->
        value, as the flags `--config.FIELD=VALUE`: {"train.steps": 500, "optim.lr": 1e-3}.

    Raises: `UsageError` for a file, a field or a value that does not exist.
    """
    found = main.load(str(recipe))
    main.change(found, dict(changes or {}), str(recipe))
    return found.unlock() if hasattr(found, "unlock") else found


def train(
    config: Any, workdir: str | Path = "", *, mode: str = "train", folds: tuple[int, ...] = ()
) -> "Run":
    """Prepares, trains (or resumes) and evaluates, bit by bit as the command does.

    Args:
      config: a ConfigDict (see `config`), a dictionary, or the name of a recipe.
      workdir: run folder; default runs/NAME.
      mode: "train", "evaluate" a trained run, or "crossval" with the chosen `folds`.

    Returns: the `Run`.
    Raises: `UsageError`, `DataError`, `TrainError`, ... with the sentence that the command prints;
      `Preempted` if it was interrupted after saving.
    """
    if mode not in ("train", "evaluate", "crossval"):
        raise UsageError(f"unknown mode {mode!r}", expected="train, evaluate or crossval")
    from medjax.runs import hosts

    if hosts.settings(os.environ) is not None:
        raise UsageError(
            "several processes train by the command, not from Python",
            fix="./launch.sh local|slurm|tpu CONFIG, see docs/scaling.md",
        )
    given, recipe = _given(config)
    folder = Path(workdir) if workdir else main.default_workdir(plain(given))
    code = main.run(main.Command(given, folder, mode, tuple(folds), recipe=recipe))
    return Run(folder, code)


def load(run: Any, checkpoint: str = "") -> "Loaded":
    """A trained model: its Flax module, parameters, label space, and prediction.

    Args:
      run: a run folder, a `.medjax` archive, or a `Run`. checkpoint: "last", "best" or a step;
        default the config's.

    Raises: `UsageError` for another path, a run without a checkpoint, or an exported function.
    """
    from medjax.runs.trained import read_model

    return Loaded(read_model(run.workdir if isinstance(run, Run) else run), checkpoint)


def stream(
    config: Any, workdir: str | Path = "", *, side: str = "train", start: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """The batches that a training draws, prepared where they are not yet; endless.

    Args:
      config, workdir: see `train`. side: "train", or "val" for those of validation. start: number
        of completed steps.

    Yields: dictionaries of arrays (`medjax.sample.batch`): image (b, z, y, x, m) int16 with gain
      and bias, label (b, z, y, x), corpus, modality, spacing_mm, case.
    """
    from medjax.runs import hosts, stages
    from medjax.runs.settings import schema

    if side not in ("train", "val"):
        raise UsageError(f"unknown side {side!r}", expected="train or val")
    given, _ = _given(config)
    fields = plain(given)
    folder = Path(workdir) if workdir else main.default_workdir(fields)
    with hosts.holding(folder, "preparing"):
        run = stages.open_run(schema.resolve(fields), folder)
        stages.prepare_stage(run)
    return stages.batches(run, side, start)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder after a training.

    Attributes:
      workdir: the folder. code: the exit code of the command: 0, or 3 if some cases failed.
    """

    workdir: Path
    code: int = 0

    @property
    def metrics(self) -> list[dict]:
        """The lines of metrics.jsonl: step, loss, dice/CLASS, ..."""
        from medjax.train import log

        return log.read(self.workdir / "metrics.jsonl")

    @property
    def scores(self) -> dict:
        """evaluation/summary.json; {} if nothing was evaluated."""
        path = self.workdir / "evaluation" / "summary.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @property
    def report(self) -> Path:
        """The page with tables, pictures and viewer."""
        return self.workdir / "evaluation" / "report.html"

    def load(self, checkpoint: str = "") -> "Loaded":
        """The trained model, see `load`."""
        return load(self, checkpoint)

    def _repr_html_(self) -> str:
        """What a notebook shows: the table of Dice, and the curves."""
        from medjax.metrics import tables
        from medjax.metrics.result import Result

        scored = bool(self.scores)
        parts = [
            show.table("Run", {"folder": self.workdir, "report": self.report if scored else "-"})
        ]
        if scored:
            parts.append(show.plain(tables.screen(Result.load(self.workdir / "evaluation"))))
        return "".join([*parts, show.picture(self.workdir / "progress.png")])


class Loaded:
    """A trained model.

    Attributes:
      path: of the run or archive. config: of its run, typed and frozen. space: classes, corpora and
        what each annotates (`medjax.labels.LabelSpace`). plan: spacing and normalisation.
      module: the Flax module. params: its parameters (nested dictionaries of arrays).
    """

    def __init__(self, trained: Any, checkpoint: str = ""):
        self._trained, self._checkpoint = trained, checkpoint
        self.path, self.config, self.plan = trained.path, trained.config, trained.plan
        self.space, self.module = trained.space, trained.network.module

    @functools.cached_property
    def params(self) -> Any:
        """The parameters; read when they are first used."""
        return self._trained.params(self._checkpoint)

    @property
    def classes(self) -> tuple[str, ...]:
        """The channels of the output, in order."""
        return self.space.classes

    def apply(self, params: Any, image: Any, context: Any = None, **options: Any) -> dict:
        """The network as a pure function, which `jax.jit` and `jax.grad` take.

        Args:
          params: `self.params`, or others of their shape. image: (b, z, y, x, m) float, normalised
            as the plan says. context: what the network reads beside the image, see
            `medjax.models.context`; default zeros.
          options: train (False), key.

        Returns: {"logits": (b, z, y, x, classes), ...}.
        """
        return self._trained.network.apply(params, image, context, **options)

    def predictor(self, **options: Any) -> Any:
        """A `medjax.Predictor` of this model; its options."""
        from medjax.api import Predictor

        return Predictor(self.path, checkpoint=self._checkpoint, **options)

    def predict(self, image: Any, affine: Any = None, **options: Any) -> Any:
        """The label map of a scan (see `medjax.Predictor.predict`).

        Args:
          image, affine: a path, a nibabel image, or an array with its affine. options: corpus,
            classes, tta, ...; one predictor is kept for each choice.
        """
        key = repr(sorted(options.items()))
        if key not in self._kept:
            self._kept[key] = self.predictor(**options)
        return self._kept[key].predict(image, affine)

    @functools.cached_property
    def _kept(self) -> dict[str, Any]:
        return {}

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from medjax.runs import build

        rows = {
            "folder": self.path,
            "network": self.config.model.name,
            "parameters": f"{build.count(self._trained.network.abstract()):,}",
            "patch": " x ".join(map(str, self.config.train.patch)),
            "classes": ", ".join(self.space.classes),
            "corpora": ", ".join(corpus.name for corpus in self.space.corpora),
        }
        return show.table(self.config.name, rows)


def _given(config: Any) -> tuple[Any, str]:
    """A config and the recipe it was named by, if it was; fields are checked."""
    if isinstance(config, str | Path):
        found = main.load(str(config))
        main.change(found, {}, str(config))
        return found, str(config)
    if not hasattr(config, "keys"):
        raise UsageError(
            "not a config",
            found=type(config).__name__,
            expected='medjax.config("configs/NAME.py"), a dictionary, or the name of a recipe',
        )
    main.change(config, {}, "config")
    return config, ""
