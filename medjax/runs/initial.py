"""`config.init`: initialises a run with the parameters of a finished run or an imported model.

In: the source's run folder or archive with its class names, and this run's label space and network.
Out: the function that the loop calls on its fresh parameters; it prints the report and writes
transfer.json into the run folder.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from medjax.errors import UsageError, did_you_mean
from medjax.labels import LabelSpace
from medjax.runs import adapt, build, fitted
from medjax.runs import folder as runfolder
from medjax.runs import trained as models
from medjax.runs.build import Network
from medjax.runs.config import with_field
from medjax.runs.settings.schema import Config
from medjax.runs.start import head_prior
from medjax.train import checkpoint, stepfolder
from medjax.weights import adapters
from medjax.weights.transfer import transfer

TRANSFER = "transfer.json"
TOPOLOGIES = ("source", "own")


def trilinear(table: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A position table (d, h, w, features) on another grid, resampled trilinearly.

    Half-pixel centres, edges clamped, no anti-aliasing.
    """
    return np.asarray(jax.image.resize(jnp.asarray(table), shape, "linear", antialias=False))


RESIZERS: Mapping[str, Callable] = {"trilinear": trilinear}


def with_topology(config: Config, workdir: Path) -> Config:
    """The config with strides and kernels of the network of `config.init.source`, if it leaves them
    open.

    Another patch or spacing would lead to other strides, with which the same kernels compute
    something else although every shape fits. A trained run keeps those that it started with. With
    `init.topology` "own" the data of this run decide (a plan of its own, as in nnU-Net's transfer).

    Raises: what `read_model` and `Trained.network` raise for a source that cannot be used.
    """
    given, model = config.init, config.model
    if given.topology not in TOPOLOGIES:
        raise UsageError(
            f"unknown config.init.topology {given.topology!r}",
            fix=did_you_mean(given.topology, TOPOLOGIES),
        )
    wanted = [name for name in build.TOPOLOGY if name in build.accepted(model.name)]
    wanted = [name for name in wanted if model.options.get(name) is None]
    if not given.source or not wanted or given.topology == "own":
        return config
    if stepfolder.latest_step(workdir / "checkpoints") is not None:
        found = runfolder.read_config(workdir).model.options
    else:
        source = models.read_model(Path(given.source).expanduser())
        if source.config.model.name != model.name:
            return config
        if len(source.config.train.patch) != len(config.train.patch):
            return config
        found = source.network.topology
    for name in wanted:
        if found.get(name) is not None:
            config = with_field(config, f"model.{name}", found[name])
    return config


def borrower(
    config: Config, space: LabelSpace, net: Network, workdir: Path, report: bool = True
) -> Callable[[Any], Any] | None:
    """fresh parameters -> parameters initialised from `config.init.source`.

    None if no source is named.

    Args:
      report: print and write the account of the copied parameters.

    Raises: `UsageError` now for a source that is no run or names its classes otherwise than the
      config expects; the function raises what `weights.transfer` raises.
    """
    given, grafted = config.init, build.adapter_settings(config)
    if not given.source:
        if grafted and not grafted.from_scratch:
            raise UsageError(
                "adapters need a trained network to adapt, and config.init.source names none",
                fix="give --config.init.source=RUN, or --config.adapters.from_scratch=True to "
                "adapt random parameters",
            )
        return None
    folder = Path(given.source).expanduser()
    trained = models.read_model(folder)
    source = trained.space
    if workdir.resolve() == folder.resolve():
        raise UsageError(
            "a run cannot begin from itself",
            path=folder,
            fix="give another --workdir, or leave config.init.source empty",
        )
    wrong = sorted(set(given.classes) - set(space.classes)) + sorted(
        {v for v in given.classes.values() if v} - set(source.classes)
    )
    if wrong:
        raise UsageError(
            f"config.init.classes names unknown classes {wrong}",
            expected=f"here: {list(space.classes)}; source: {list(source.classes)}",
        )
    other = _other_topology(trained, net)
    if other and grafted:
        raise UsageError(
            "adapters need the network of their source", found=other, fix="leave these fields out"
        )
    channels = (max(len(c.channels) for c in source.corpora), net.channels)
    here, there = adapt.channel_names((config, space), (trained.config, source))

    def borrow(fresh: Any) -> Any:
        begun = (
            trained.params()
            if trained.archive
            else fitted.check_finite(checkpoint.read_params(folder, given.checkpoint), folder)
        )
        begun = adapt.rearranged(begun, (trained.config, source), fresh, (config, space))
        new = given.new
        if grafted and grafted.grafts and not adapters.has_adapters(begun):
            new = f"{new}|{adapters.LEAF}" if new else adapters.LEAF
        params, account = transfer(
            fresh,
            begun,
            rename=given.rename,
            heads=given.heads,
            source_classes=there,
            target_classes=here,
            named=adapt.axis_names((config, space), (trained.config, source)),
            same_class=given.classes,
            resize=given.resize,
            resizers=RESIZERS,
            input_channels=channels,
            widen=given.widen,
            fresh=given.fresh,
            new=new,
        )
        if head_prior.measures(config):
            params = head_prior.without_loaded(params, account, here)
        if grafted:
            _check_base(params, begun, grafted)
        if report and jax.process_index() == 0:
            differs = f"\n  other topology  {other}" if other else ""
            print(f"{account.text()}\n  source          {folder}{differs}", flush=True)
            runfolder.write_json(
                workdir / TRANSFER, {"source": str(folder.resolve())} | account.to_json()
            )
        return params

    return borrow


def _other_topology(source: models.Trained, net: Network) -> str:
    """Strides and kernels that differ between two networks of one kind, in words."""
    theirs = source.network.topology
    return "; ".join(
        f"{name} {net.topology[name]}, of the source {theirs[name]}"
        for name in build.TOPOLOGY
        if name in theirs and theirs[name] != net.topology.get(name, theirs[name])
    )


def _check_base(params: Any, source: Any, settings: adapters.Adapters) -> None:
    """`UsageError` for leaves that are neither the source's nor trained."""
    own, given = (traverse_util.flatten_dict(tree, sep="/") for tree in (params, source))
    changed = [
        path
        for path in sorted(adapters.frozen(params, settings))
        if path not in given or not np.array_equal(own[path], given[path])
    ]
    if changed:
        raise UsageError(
            f"{len(changed)} parameters are not those of the source, and nothing trains them",
            found=", ".join(changed[:6]),
            fix='train them: a rule like ("^head/", "whole") in config.adapters.rules',
        )
