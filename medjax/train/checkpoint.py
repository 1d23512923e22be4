"""Checkpoints: atomic, asynchronous, kept by age and by metric, restored onto any number of devices. The only file that knows orbax.

On disk: <folder>/<step>/ with the parameters, the rest of the state, and JSON facts (step, metric, recipe, progress of the run). A step is
written under a temporary name and renamed when complete, so a step folder is whole or absent; one that cannot be read all the same
(a bad disk, a half copy) is set aside in favour of the one before it.
"""

import contextlib
import functools
import itertools
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from medjax.errors import TrainError
from medjax.train import rules as rule_lists

FACTS = "_CHECKPOINT_METADATA"  # orbax' own JSON file of a step; ours are its custom metadata


def steps(folder: str | Path) -> list[int]:
    """The complete checkpoints of a folder, ascending; empty for a missing folder. Reads no arrays."""
    folder = Path(folder)
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit() and (folder / name / FACTS).is_file())


def latest_step(folder: str | Path) -> int | None:
    """The newest complete checkpoint, or None."""
    return max(steps(folder), default=None)


def best_step(folder: str | Path) -> int | None:
    """The checkpoint with the highest metric (the newest among equals), or None if none has one."""
    rated = [(facts["metric"], step) for step in steps(folder) if (facts := read_facts(folder, step)).get("metric") is not None]
    return max(rated)[1] if rated else None


def read_facts(folder: str | Path, step: int) -> dict:
    """The JSON facts of one checkpoint: step, metric, recipe, progress, shapes of all arrays; `TrainError` if they cannot be read."""
    return _facts(Path(folder) / str(step))


def find(path: str | Path, which: str = "last") -> Path:
    """The folder of one checkpoint.

    Args:
      path: a run folder, its `checkpoints` folder, or already the folder of one step.
      which: "last", "best" (highest metric, else the last), or a step as text.

    Raises: `TrainError` naming what was searched.
    """
    path = Path(path)
    if (path / FACTS).is_file():
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if which == "best":
        step = best_step(folder) or latest_step(folder)
    else:
        step = latest_step(folder) if which == "last" else int(which) if which.isdigit() else None
    if step is None or step not in steps(folder):
        found = steps(folder) or "no complete checkpoint"
        raise TrainError(f"no checkpoint {which!r}", path=folder, found=found, fix="train first, or name another step")
    return folder / str(step)


def load_params(path: str | Path, target: Any, *, keep: str = "", which: str = "last") -> Any:
    """Parameters from a checkpoint, strictly.

    Args:
      path: see `find`.
      target: tree of arrays or `jax.ShapeDtypeStruct`; shapes must agree, values take the target's type
        and sharding (or the default device).
      keep: regex over paths; matching leaves of the target are returned as they are, matching leaves on disk are left there
        (a new head on an old encoder). Empty: none.
      which: see `find`.

    Raises: `TrainError` listing the names that only one side has, and the shapes that differ.
    """
    folder = find(path, which)
    flat, structure = jax.tree_util.tree_flatten_with_path(target)
    names = [rule_lists.path_name(keys) for keys, _ in flat]
    kept = {name for name in names if keep and re.search(keep, name)}
    wanted = {name: _placed(leaf) for name, (_, leaf) in zip(names, flat, strict=True) if name not in kept}
    arrays = _facts(folder)["arrays"]["params"]
    stored = {name: tuple(shape) for name, shape in arrays.items() if not (keep and re.search(keep, name))}
    _compare(folder, {name: tuple(leaf.shape) for name, leaf in wanted.items()}, stored)
    loaded = _load(folder, {"params": _nest(wanted)}, partial=bool(kept) or bool(keep))["params"]
    values = dict(zip(rule_lists.paths(loaded), jax.tree.leaves(loaded), strict=True))
    leaves = [leaf if name in kept else values[name] for name, (_, leaf) in zip(names, flat, strict=True)]
    return jax.tree.unflatten(structure, leaves)


def read_params(path: str | Path, which: str = "last") -> dict:
    """All parameters of a checkpoint as nested dictionaries of float32 numpy arrays, whatever the model (see `find`)."""
    folder = find(path, which)
    try:
        where = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # a process that was told to see accelerators only
        where = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = _facts(folder)["arrays"]["params"]
    target = {name: jax.ShapeDtypeStruct(tuple(shape), np.float32, sharding=where) for name, shape in shapes.items()}
    return jax.tree.map(np.asarray, _load(folder, {"params": _nest(target)})["params"])


class Checkpoints:
    """The checkpoints of one run; a context manager that finishes pending writes on leaving.

    Args:
      folder: is made if missing; temporary folders of killed writes are removed.
      keep: how many of the newest stay; the one with the highest metric stays as well.
    """

    def __init__(self, folder: str | Path, keep: int = 2):
        from orbax.checkpoint import v1 as ocp

        self.folder = Path(folder).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        policies = ocp.training.preservation_policies
        best = policies.BestN(get_metric_fn=lambda m: m["metric"], n=1, keep_checkpoints_without_metrics=False)
        self._open = functools.partial(
            ocp.training.Checkpointer,
            str(self.folder),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(max(1, keep)), best]),
            cleanup_tmp_directories=True,
        )
        self._orbax = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *failure: Any) -> None:
        self.close()

    def save(self, step: int, state: Mapping[str, Any], facts: Mapping[str, Any], metric: float | None = None) -> None:
        """Starts writing a checkpoint; waits for the write before it, not for this one. A step that exists is replaced.

        Raises: `TrainError` if this or the previous write failed (a full disk): the older checkpoints are untouched.
        """
        parts = _parts(state)
        arrays = {part: _shapes(tree) for part, tree in parts.items()}
        facts = json.loads(json.dumps({"step": step, "metric": metric, **facts, "arrays": arrays}))  # a copy: it is written later
        with self._failures():
            self._orbax = self._orbax or self._open()
            self._orbax.save_checkpointables_async(
                step,
                parts,
                custom_metadata=facts,
                metrics=None if metric is None else {"metric": metric},
                force=True,
                overwrite=step in steps(self.folder),
            )

    def restore(self, target: Mapping[str, Any], accept: Callable[[dict], None] = lambda facts: None) -> tuple[dict[str, Any], dict] | None:
        """The newest readable checkpoint as (state, facts), or None if the folder has none.

        Args:
          target: abstract state with shardings, on any number of devices.
          accept: is shown the facts of a checkpoint before its arrays are read, and may raise.

        Raises: `TrainError` if the stored names or shapes are not those of `target`, or if no checkpoint can be read: a run never starts
        again silently. Unreadable ones are renamed to <step>.unreadable with a warning.
        """
        self.close()
        self._tidy()
        found, wanted = steps(self.folder), _parts(target)
        for step in reversed(found):
            folder = self.folder / str(step)
            state = facts = problem = None
            try:
                facts = read_facts(self.folder, step)
                arrays = {f"{part}/{k}": tuple(shape) for part in wanted for k, shape in facts["arrays"][part].items()}
            except (TrainError, KeyError, AttributeError) as error:
                problem = error
            if problem is None:
                accept(facts)
                _compare(folder, {f"{part}/{k}": tuple(shape) for part in wanted for k, shape in _shapes(wanted[part]).items()}, arrays)
                try:
                    loaded = _load(folder, wanted)
                    state = {**loaded.get("train", {}), "params": loaded["params"]}
                except TrainError as error:
                    problem = error
            if _everywhere(problem is None):
                return state, facts
            warnings.warn(f"{folder}: unreadable checkpoint set aside ({type(problem).__name__}: {problem})", RuntimeWarning, stacklevel=2)
            self._set_aside([folder])
        if found:
            raise TrainError("no checkpoint can be read", path=self.folder, found=found, fix="restore a copy, or use another workdir")
        return None

    def wait(self) -> None:
        """Blocks until the pending write is complete; `TrainError` if it failed."""
        self.close()

    def close(self) -> None:
        """Finishes the pending write and releases the folder; it opens again by itself."""
        orbax, self._orbax = self._orbax, None
        if orbax is not None:
            with self._failures():
                orbax.close()

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise TrainError(
                "a checkpoint could not be written", path=self.folder, found=reason[:300], fix="free disk space, then resume"
            ) from error

    def _tidy(self) -> None:
        """Sets aside folders that are named like steps but hold no checkpoint: they would count among the newest."""
        complete = {str(step) for step in steps(self.folder)}
        self._set_aside([p for p in self.folder.iterdir() if p.name.isdigit() and p.name not in complete])

    def _set_aside(self, folders: Sequence[Path]) -> None:
        for folder in folders if jax.process_index() == 0 else ():
            others = (folder.with_name(f"{folder.name}.unreadable" + (f"-{n}" if n else "")) for n in itertools.count())
            folder.rename(next(path for path in others if not path.exists()))
        _everywhere(True)


def _facts(folder: Path) -> dict:
    try:
        return json.loads((folder / FACTS).read_text())["custom_metadata"]
    except (OSError, ValueError, KeyError) as error:
        raise TrainError("no readable checkpoint facts", path=folder / FACTS, fix="use another checkpoint") from error


def _parts(state: Mapping[str, Any]) -> dict[str, Any]:
    """The two trees of a checkpoint: parameters, which are also read alone, and the rest, if there is any."""
    rest = {name: value for name, value in state.items() if name != "params"}
    return {"params": state["params"]} | ({"train": rest} if rest else {})


def _shapes(tree: Any) -> dict[str, list[int]]:
    return {name: list(leaf.shape) for name, leaf in zip(rule_lists.paths(tree), jax.tree.leaves(tree), strict=True)}


def _load(folder: Path, target: Any, partial: bool = False) -> Any:
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    context.pytree.loading.partial_load = partial
    try:
        with context:
            loaded = ocp.load_checkpointables(str(folder.absolute()), target)
    except Exception as error:  # whatever the storage layer raises for damaged files
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise TrainError("the arrays cannot be read", path=folder, found=reason[:300], fix="use another checkpoint") from error
    if abstract := [rule_lists.path_name(k) for k, v in jax.tree_util.tree_leaves_with_path(loaded) if not isinstance(v, jax.Array)]:
        raise TrainError("leaves were not restored", path=folder, found=abstract[:12])  # orbax hands missing ones back as they came in
    return loaded


def _compare(folder: Path, wanted: Mapping[str, tuple], stored: Mapping[str, tuple]) -> None:
    """Raises `TrainError` unless names and shapes agree, listing every difference."""
    problems = [f"{name} is not in the checkpoint" for name in wanted if name not in stored]
    problems += [f"{name} is not in the model" for name in stored if name not in wanted]
    problems += [
        f"{name}: {stored[name]} stored, {wanted[name]} wanted" for name in wanted if name in stored and stored[name] != wanted[name]
    ]
    if problems:
        raise TrainError(
            f"the checkpoint does not fit ({len(problems)} differences)", path=folder, found="; ".join(problems[:12]),
            fix="use the model of the checkpoint, or keep the leaves that differ by pattern",
        )  # fmt: skip


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _nest(flat: Mapping[str, Any]) -> dict:
    """{"a/b": x} -> {"a": {"b": x}}; parameters are nested dictionaries."""
    return unflatten_dict(dict(flat), sep="/")


def _everywhere(ok: bool) -> bool:
    """Whether all processes agree that it went well (also a barrier)."""
    if jax.process_count() == 1:
        return ok
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.asarray(ok)).all())
