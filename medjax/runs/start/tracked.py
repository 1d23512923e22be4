"""The trackers of a run (`config.log`), from its start to its end.

In: the config and the run folder. Out: `train.trackers.Trackers`, which the loop calls. The package
of a tracker is needed where the first process runs, and only there.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from medjax.runs import hosts
from medjax.runs.settings.schema import Config
from medjax.train import stepfolder, trackers


def check(config: Config) -> None:
    """`UsageError` in the first process for trackers that do not exist or cannot be imported."""
    hosts.first(lambda: trackers.chosen(config.log))


@contextlib.contextmanager
def started(config: Config, workdir: Path) -> Iterator[trackers.Trackers]:
    """The trackers of a training, started; they end with the block.

    Raises: see `Trackers.start`.
    """
    import jax

    primary = jax.process_index() == 0
    with trackers.Trackers(trackers.chosen(config.log) if primary else {}, workdir) as found:
        resumes = stepfolder.latest_step(workdir / "checkpoints") is not None
        hosts.first(lambda: found.start(name_of(workdir), config.as_given(), resumes))
        yield found


def name_of(workdir: Path) -> str:
    """The name of a run folder; that of a fold with the name of its cross-validation.

    >>> name_of(Path("/runs/mine")), name_of(Path("/runs/mine/fold_2"))
    ('mine', 'mine/fold_2')
    """
    folder = Path(workdir).resolve()
    parent = f"{folder.parent.name}/" if re.fullmatch(r"fold_\d+", folder.name) else ""
    return f"{parent}{folder.name}"
