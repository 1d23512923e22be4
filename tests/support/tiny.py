"""The smallest training: two corpora of four scans, a U-Net of 246 parameters, four steps."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from configs.base import base_config
from medjax.errors import Preempted
from medjax.registry import plain
from medjax.runs import stages
from medjax.train import loop
from tests.support.raw import write_corpus
from tests.support.run import small_unet

LABELS = {"Task01_Both": {"organ": 1, "tumour": 2}, "Task02_Organ": {"organ": 1}}


def write(root: Path) -> list[Path]:
    """Two corpora: organ and tumour; organ alone, in other scans."""
    return [
        write_corpus(root / name, n=4, shape=(10, 12, 11), labels=own, seed=k)
        for k, (name, own) in enumerate(LABELS.items())
    ]


def fields(raw: Sequence[Path], steps: int = 4, model: dict | None = None, **train) -> dict:
    """Config of a training on some corpora; `model` and `train` change fields of these sections."""
    found = plain(base_config())
    found["model"] = {"name": "unet", **small_unet(3), **(model or {})}
    found["data"] |= {
        "folders": ",".join(map(str, raw)),
        "split": found["data"]["split"] | {"folds": 2},
        "spacing_mm": (1.0, 1.0, 1.0),
        "workers": 1,
    }
    found["train"] |= {"patch": (8, 8, 8), "batch": 2, "steps": steps, "checkpoint_every": 2}
    found["train"] |= {"validate_every": 0, "log_every": 1, **train}
    return found


def interrupt(given: dict, folder: Path, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Trains until a stop is requested in the given number of steps from the start of the call."""
    asked, real = [], loop.Requests.array

    def stop(self):
        asked.append(1)
        self.stopped = len(asked) >= steps
        return real(self)

    with monkeypatch.context() as patch, pytest.raises(Preempted):
        patch.setattr(loop.Requests, "array", stop)
        stages.train(stages.open_run(given, folder))
