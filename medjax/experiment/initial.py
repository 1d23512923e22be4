"""`config.init`: parameters of a finished run (or an imported model) as the beginning of another one.

In: the source's run folder or archive with its class names, and this run's label space and network. Out: the function that the loop calls
on its fresh parameters; it prints the report and writes transfer.json into the run folder.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medjax.errors import UsageError
from medjax.experiment import models, runfolder
from medjax.experiment.network import Network
from medjax.labels import LabelSpace
from medjax.train import checkpoint
from medjax.train.transfer import transfer

TRANSFER = "transfer.json"


def trilinear(table: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A position table (d, h, w, features) on another grid: half-pixel centres, edges clamped, no anti-aliasing."""
    return np.asarray(jax.image.resize(jnp.asarray(table), shape, "linear", antialias=False))


RESIZERS: Mapping[str, Callable] = {"trilinear": trilinear}


def borrower(fields: Mapping, space: LabelSpace, net: Network, workdir: Path) -> Callable[[Any], Any] | None:
    """fresh parameters -> parameters begun from `fields["init"]["source"]`; None where no source is named.

    Raises: `UsageError` now for a source that is no run or names its classes otherwise than the config expects; the function raises what
    `medjax.train.transfer` raises.
    """
    given = fields["init"]
    if not given["source"]:
        return None
    folder = Path(given["source"]).expanduser()
    trained = models.read_model(folder)
    source = trained.space
    if workdir.resolve() == folder.resolve():
        raise UsageError("a run cannot begin from itself", path=folder, fix="give another --workdir, or leave config.init.source empty")
    wrong = sorted(set(given["classes"]) - set(space.classes)) + sorted({v for v in given["classes"].values() if v} - set(source.classes))
    if wrong:
        raise UsageError(
            f"config.init.classes names unknown classes {wrong}", expected=f"here: {list(space.classes)}; source: {list(source.classes)}"
        )
    heads = tuple((pattern, axis if _by_class(fields, trained.fields) else None) for pattern, axis in given["heads"])
    channels = (max(len(c.channels) for c in source.corpora), net.channels)

    def borrow(fresh: Any) -> Any:
        found = trained.params() if trained.archive else checkpoint.read_params(folder, given["checkpoint"])
        params, report = transfer(
            fresh, found, rename=given["rename"], heads=heads,
            source_classes=source.classes, target_classes=space.classes, same_class=given["classes"], resize=given["resize"],
            resizers=RESIZERS, input_channels=channels, widen=given["widen"], fresh=given["fresh"],
        )  # fmt: skip
        if jax.process_index() == 0:
            print(f"{report.text()}\n  source          {folder}", flush=True)
            runfolder.write_json(workdir / TRANSFER, {"source": str(folder.resolve())} | report.to_json())
        return params

    return borrow


def _by_class(*configs: Mapping) -> bool:
    """Whether the channels of all models' heads are the classes of their label space (heads by corpus have more, and other logits)."""
    return all(fields["model"].get("head", "sigmoid") == "sigmoid" for fields in configs)
