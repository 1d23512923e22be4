"""Weights & Biases as a tracker (extra `wandb`): see `medjax.train.trackers`.

The project is $WANDB_PROJECT, by default medjax; the library's other variables work as documented
there (WANDB_MODE=offline, WANDB_ENTITY, ...). Its files are in RUN/wandb. The steps of the training
are a metric of their own, `step`, the axis of all others: the library's own steps cannot be
continued, since it drops whatever comes for an earlier one, and keeps the last one back.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from medjax.train import trackers

STEP = "step"


class Wandb:
    """A run of Weights & Biases."""

    def __init__(self):
        self.wandb = trackers.imported("wandb")

    def start(self, run: trackers.Described) -> str:
        """See `trackers.Tracker`. The config of a run that is continued stays as it was."""
        self.run = self.wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "medjax",
            name=run.name,
            id=run.id or None,
            resume="allow" if run.id else None,
            dir=str(run.folder),
            config=None if run.id else dict(run.config),
        )
        self.run.define_metric("*", step_metric=STEP)
        return str(self.run.id)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `trackers.Tracker`."""
        self.run.log({**values, STEP: step})

    def picture(self, name: str, path: Path, step: int) -> None:
        """See `trackers.Tracker`."""
        self.run.log({name: self.wandb.Image(str(path)), STEP: step})

    def finish(self, status: str) -> None:
        """See `trackers.Tracker`."""
        self.run.finish(exit_code=0 if status == trackers.FINISHED else 1)
