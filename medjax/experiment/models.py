"""Finished runs as predictors: a run folder becomes an `infer.predictor.Predictor`, and scans go through it.

In: run folders and input paths. Out: masks. Everything that loads "a model" comes through `load_predictor`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medjax.data.inputs import find_inputs
from medjax.errors import UsageError
from medjax.experiment import network, runfolder


def load_predictor(
    folder: Path, *, checkpoint: str = "", tta: str = "", overlap: float | None = None, batch_windows: int | None = None, device: str = ""
) -> Any:
    """A `Predictor` from a run folder; what is not given follows the run's config.

    Its label space has every corpus as annotated (no views), under the name of its store.
    Raises: `UsageError` for a folder that is no run or has no checkpoint; `TrainError` for one that does not fit its config.
    """
    from medjax.infer.predict import Model, Predictor
    from medjax.train import checkpoint as checkpoints

    fields, space, plan = runfolder.read_config(folder), runfolder.read_space(folder), runfolder.read_plan(folder)
    if checkpoints.latest_step(folder / "checkpoints") is None:
        raise UsageError("the run has no checkpoint", path=folder, fix="train it first: the same command with --mode=train")
    given = fields["infer"]
    spacing = tuple(float(v) for v in np.mean(list(plan.spacing_mm.values()), 0))
    net = network.make_network(fields, space, spacing)
    params = checkpoints.load_params(folder / "checkpoints", net.abstract(), which=checkpoint or given["checkpoint"])
    axes = {"none": (), "mirror": tuple(range(len(net.patch)))}[tta] if tta else given["mirror_axes"]
    return Predictor(
        Model(net.apply, params, plan, space.unveiled(), net.patch, len(net.patch), space.conditions()),
        overlap=given["overlap"] if overlap is None else overlap,
        mirror_axes=axes,
        average=given["average"],
        batch_windows=batch_windows or given["batch_windows"] or None,
        devices=_named_devices(device),
    )


def _named_devices(name: str) -> list | None:
    import jax

    if not name:
        return None
    platform, _, index = name.partition(":")
    try:
        devices = jax.devices(platform)
        return [devices[int(index)]] if index else devices[:1]
    except (RuntimeError, IndexError, ValueError) as error:
        known = [f"{d.platform}:{d.id}" for d in jax.devices()]
        raise UsageError(f"no device {name!r}", expected=", ".join(known)) from error


def predict(
    folder: Path, inputs: Sequence[str], out: Path, *, corpus: str = "", progress: Any = None,
    continue_: bool = False, one_file_per_class: bool = False, probabilities: bool = False, **options: Any,
) -> Any:  # fmt: skip
    """`medjax predict`: scans through a run's network.

    Args:
      folder: the run. inputs: files, folders, globs or lists. out: folder for the masks.
      corpus: whose annotation protocol to write; needed when the run knows several.
      options: see `load_predictor`.

    Returns: see `infer.predict.predict_cases`. Raises: `UsageError` for an unknown corpus or nothing found, before any model is loaded.
    """
    from medjax.infer.predict import predict_cases

    space = runfolder.read_space(folder).unveiled()
    names = [c.name for c in space.corpora]
    if not corpus and len(names) > 1:
        raise UsageError("the model knows several annotation protocols", expected=", ".join(names), fix="choose one with --corpus")
    described = space.corpora[space.corpus_index(corpus or names[0])]
    cases = find_inputs(inputs, channels=len(described.channels))
    predictor = load_predictor(folder, **options)
    return predict_cases(
        predictor, cases, out, described.name, continue_=continue_, probabilities=probabilities,
        one_file_per_class=one_file_per_class, progress=progress,
    )  # fmt: skip
