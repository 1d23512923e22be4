"""Continuations of a finished run: `--config.train.steps=+1000`.

In: the config of a call and its run folder. Out: the config with the number of steps after all
continuations. Each begins with the schedule from its start (a warm restart: the learning rate rises
again, moments of the gradients stay), and is recorded in config.json as `train.continued`, the step
after which it began. The rest of the recipe must be the run's own.
"""

import dataclasses
from pathlib import Path

from medjax.errors import UsageError
from medjax.runs import folder
from medjax.runs.settings.schema import Config
from medjax.train import stepfolder


def applied(config: Config, workdir: Path) -> Config:
    """The config with the continuations of its run folder, and one more if `train.more` asks.

    Without `train.more`, a config with the steps that the run began with means the run as it is. An
    unfinished continuation is resumed by the same +N.

    Raises: `UsageError` if there is no finished run to continue.
    """
    given, more = config.train, config.train.more
    if more < 0:
        raise UsageError("a run cannot be shortened", found=f"train.steps=+{more}")
    latest = stepfolder.latest_step(workdir / "checkpoints")
    if latest is None:
        if more:
            raise UsageError(
                "there is no finished run to continue",
                path=workdir,
                fix=f"give its --workdir, or write --config.train.steps={more} for a new run",
            )
        return config
    old = folder.read_config(workdir).train
    if not more:
        if not old.continued or given.steps != old.continued[0]:
            return config
        return _with(config, old.steps, old.continued)
    if latest >= old.steps:
        return _with(config, old.steps + more, (*old.continued, old.steps))
    if old.continued and old.steps - old.continued[-1] == more:
        return _with(config, old.steps, old.continued)
    raise UsageError(
        f"the run is not finished: step {latest} of {old.steps}",
        path=workdir,
        fix="finish it with the command that it began with, then continue it",
    )


def _with(config: Config, steps: int, continued: tuple[int, ...]) -> Config:
    own = tuple(name for name in config.train.given if name != "more")
    train = dataclasses.replace(config.train, steps=steps, more=0, continued=continued, given=own)
    return dataclasses.replace(config, train=train)
