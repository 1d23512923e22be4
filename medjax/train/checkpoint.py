"""Checkpoints: atomic, asynchronous, restored onto any number of devices.

The only file that uses orbax. On disk: <folder>/<step>/ with the parameters, the rest of the state,
JSON facts (step, metric, recipe, progress of the run) and hashes of all files. A step is written
under a temporary name and renamed when complete, so a step folder is complete or absent. The newest
steps and the one with the best metric are kept. An unreadable step (a bad disk, a partial copy) is
set aside and the one before it is used; if none can be read, nothing is changed and an error is
raised. `saved.json` beside the folder names the newest step, so that a missing folder is detected
too.
"""

import contextlib
import functools
import itertools
import json
import logging
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from medjax import files
from medjax.errors import MedjaxError, TrainError
from medjax.train import hashes
from medjax.train import rules as rule_lists
from medjax.train.stepfolder import (
    FACTS,
    best_step,
    damaged,
    facts_of,
    find,
    latest_step,
    newest_saved,
    read_facts,
    require_readable,
    saved_path,
    steps,
)

__all__ = [
    "FACTS",
    "Checkpoints",
    "best_step",
    "find",
    "latest_step",
    "load_params",
    "read_facts",
    "read_params",
    "require_readable",
    "steps",
]

FULL = {
    "No space left on device": "the disk is full: ",
    "Disk quota exceeded": "the quota is used up: ",
    "File too large": "files may not grow that large here: ",
}
TEMPORARY = ".orbax-checkpoint-tmp"  # ends the name of a step that is being written


def load_params(path: str | Path, target: Any, *, keep: str = "", which: str = "last") -> Any:
    """Parameters from a checkpoint, strictly.

    Args:
      path: see `find`.
      target: tree of arrays or `jax.ShapeDtypeStruct`; shapes must agree, values take the target's
        type and sharding (or the default device).
      keep: regex over paths; matching leaves of the target are returned as they are, matching
        leaves on disk are left there (a new head on an old encoder). Empty: none.
      which: see `find`.

    Raises: `TrainError` listing the names that only one side has, and the shapes that differ.
    """
    folder = find(path, which)
    flat, structure = jax.tree_util.tree_flatten_with_path(target)
    names = [rule_lists.path_name(keys) for keys, _ in flat]
    kept = {name for name in names if keep and re.search(keep, name)}
    wanted = {
        name: _placed(leaf) for name, (_, leaf) in zip(names, flat, strict=True) if name not in kept
    }
    arrays = _checked(folder)
    stored = {
        name: tuple(shape) for name, shape in arrays.items() if not (keep and re.search(keep, name))
    }
    _compare(folder, {name: tuple(leaf.shape) for name, leaf in wanted.items()}, stored)
    loaded = _load(folder, {"params": _nest(wanted)}, partial=bool(kept) or bool(keep))["params"]
    values = dict(zip(rule_lists.paths(loaded), jax.tree.leaves(loaded), strict=True))
    leaves = [
        leaf if name in kept else values[name] for name, (_, leaf) in zip(names, flat, strict=True)
    ]
    return jax.tree.unflatten(structure, leaves)


def read_params(path: str | Path, which: str = "last") -> dict:
    """All parameters of a checkpoint as nested dictionaries of float32 numpy arrays (see `find`).

    Independent of the model.
    """
    folder = find(path, which)
    try:
        where = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS names accelerators only
        where = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = _checked(folder)
    target = {
        name: jax.ShapeDtypeStruct(tuple(shape), np.float32, sharding=where)
        for name, shape in shapes.items()
    }
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
        best = policies.BestN(
            get_metric_fn=lambda m: m["metric"], n=1, keep_checkpoints_without_metrics=False
        )
        context = ocp.Context()
        context.asynchronous.post_finalization_callback = lambda: (
            self._hash()
        )  # orbax copies it, which would copy the object that a method is bound to
        self._open = functools.partial(
            ocp.training.Checkpointer,
            str(self.folder),
            context=context,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy(
                [policies.LatestN(max(1, keep)), best]
            ),
            cleanup_tmp_directories=True,
        )
        self._orbax, self._pending, self._writing, self._facts = None, None, None, {}

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *failure: Any) -> None:
        self.close()

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        facts: Mapping[str, Any],
        metric: float | None = None,
    ) -> None:
        """Starts writing a checkpoint; waits for the previous write, not for this one.

        A step that exists is replaced.

        Raises: `TrainError` if this or the previous write failed (a full disk): the older
          checkpoints are unchanged.
        """
        parts = _parts(state)
        arrays = {part: _shapes(tree) for part, tree in parts.items()}
        facts = json.loads(
            json.dumps({"step": step, "metric": metric, **facts, "arrays": arrays, "hashed": True})
        )  # a copy: it is written later
        with self._failures():
            logging.getLogger("absl").addFilter(_UNHEARD)
            self._orbax = self._orbax or self._open()
            self._finish()
            self._writing, self._facts = step, facts
            self._pending = self._orbax.save_checkpointables_async(
                step,
                parts,
                custom_metadata=facts,
                metrics=None if metric is None else {"metric": metric},
                force=True,
                overwrite=step in steps(self.folder),
            )

    def restore(
        self, target: Mapping[str, Any], accept: Callable[[dict], None] = lambda facts: None
    ) -> tuple[dict[str, Any], dict] | None:
        """The newest readable checkpoint as (state, facts), or None if the folder has none.

        Args:
          target: abstract state with shardings, on any number of devices.
          accept: called with the facts of a checkpoint before its arrays are read; may raise.

        Raises: `TrainError` if the stored names or shapes are not those of `target`, or if
          checkpoints were saved but none can be read: a run never restarts silently, and nothing is
          changed. Unreadable ones beside a readable one are renamed to <step>.unreadable with a
          warning.
        """
        self.close()
        require_readable(self.folder)
        found, wanted = steps(self.folder), _parts(target)
        missing, problems = (newest_saved(self.folder) or 0) > max(found, default=0), {}
        for step in reversed(found):
            folder = self.folder / str(step)
            state = facts = problem = None
            try:
                facts = read_facts(self.folder, step)
                arrays = {
                    f"{part}/{k}": tuple(shape)
                    for part in wanted
                    for k, shape in facts["arrays"][part].items()
                }
                hashes.check(folder, facts, share=(jax.process_index(), jax.process_count()))
            except (TrainError, KeyError, AttributeError, TypeError) as error:
                problem = error
            if _everywhere(problem is None):
                accept(facts)
                _compare(
                    folder,
                    {
                        f"{part}/{k}": tuple(shape)
                        for part in wanted
                        for k, shape in _shapes(wanted[part]).items()
                    },
                    arrays,
                )
                try:
                    loaded = _load(folder, wanted)
                    state = {**loaded.get("train", {}), "params": loaded["params"]}
                except TrainError as error:
                    problem = error
                if _everywhere(problem is None):
                    self._set_aside(problems)
                    if missing:
                        text = (
                            f"{self.folder}: step {newest_saved(self.folder)} was saved but "
                            f"cannot be used; continuing from step {step}"
                        )
                        warnings.warn(text, RuntimeWarning, stacklevel=2)
                    return state, facts
            problems[folder] = problem or "another process cannot read it"
            text = f"{folder}: unreadable checkpoint ({type(problem).__name__}: {problem})"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        if found:
            raise TrainError(
                "no checkpoint can be read",
                path=self.folder,
                found="; ".join(f"{path.name}: {why}" for path, why in problems.items()),
                fix="copy the whole folder again; to start from the first step, use another "
                "--workdir",
            )
        return None

    def wait(self) -> None:
        """Blocks until the pending write is complete; `TrainError` if it failed."""
        self.close()

    def close(self) -> None:
        """Finishes the pending write and releases the folder; it is reopened on the next use."""
        orbax, self._orbax = self._orbax, None
        if orbax is not None:
            with self._failures():
                self._finish()
                orbax.close()

    def _finish(self) -> None:
        """Waits for the step that is being written, and notes it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
            if (path := saved_path(self.folder)) and jax.process_index() == 0:
                files.write_json(path, {"step": self._writing}, error=TrainError)

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if (
                self._writing is not None and jax.process_index() == 0
            ):  # half a checkpoint, which is unusable
                _remove(self.folder / f"{self._writing}{TEMPORARY}")
            self._pending = self._writing = None
            raise TrainError(
                "a checkpoint could not be written; the older ones are untouched",
                path=self.folder,
                found=_reason(error),
                fix="free disk space, then start the same command again",
            ) from error

    def _hash(self) -> None:
        """Called when all files of the step are written, before its renaming; first process."""
        folder = self.folder / f"{self._writing}{TEMPORARY}"
        hashes.write(folder if folder.is_dir() else self.folder / str(self._writing), self._facts)

    def _set_aside(self, problems: Mapping[Path, object]) -> None:
        """Renames step folders that cannot be read, because they would count among the newest."""
        if jax.process_index() == 0:
            partial = [self.folder / name for name in damaged(self.folder) if name.isdecimal()]
            for folder, reason in (
                dict.fromkeys(partial, f"no file {FACTS}") | dict(problems)
            ).items():
                others = (
                    folder.with_name(f"{folder.name}.unreadable" + (f"-{n}" if n else ""))
                    for n in itertools.count()
                )
                target = next(path for path in others if not path.exists())
                warnings.warn(
                    f"{folder}: unreadable checkpoint set aside as {target.name} ({reason})",
                    RuntimeWarning,
                    stacklevel=3,
                )
                folder.rename(target)
        _everywhere(True)


def _checked(folder: Path) -> dict[str, Sequence[int]]:
    """Name -> shape of the parameters of a checkpoint whose files match their hashes."""
    facts = facts_of(folder)
    hashes.check(folder, facts, "params")
    try:
        return dict(facts["arrays"]["params"])
    except (KeyError, TypeError, ValueError) as error:
        raise TrainError(
            "no list of parameters", path=folder / FACTS, fix="use a checkpoint that medjax wrote"
        ) from error


class _Unheard(logging.Filter):
    """Drops orbax' log records of a failure that is also raised with its traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        """False for a traceback from orbax."""
        return not (record.exc_info and "orbax" in record.pathname)


_UNHEARD = _Unheard()


def _remove(folder: Path) -> None:
    """Removes a half-written step; threads of the writer may add files to it for a moment more."""
    for _ in range(40):
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)
        if not folder.exists():
            return


def _reason(error: BaseException) -> str:
    """The innermost line with the storage layer's reason."""
    if isinstance(error, MedjaxError):
        return error.message
    text = str(error)
    known = next((why for sign, why in FULL.items() if sign in text), "")
    return known + f"{type(error).__name__}: {text}".splitlines()[0][:300]


def _parts(state: Mapping[str, Any]) -> dict[str, Any]:
    """The two trees of a checkpoint: parameters, which can be read alone, and the rest, if any."""
    rest = {name: value for name, value in state.items() if name != "params"}
    return {"params": state["params"]} | ({"train": rest} if rest else {})


def _shapes(tree: Any) -> dict[str, list[int]]:
    return {
        name: list(leaf.shape)
        for name, leaf in zip(rule_lists.paths(tree), jax.tree.leaves(tree), strict=True)
    }


def _load(folder: Path, target: Any, partial: bool = False) -> Any:
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    context.pytree.loading.partial_load = partial
    try:
        with context:
            loaded = ocp.load_checkpointables(str(folder.absolute()), target)
    except Exception as error:  # the storage layer raises many types for damaged files
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise TrainError(
            "the arrays cannot be read",
            path=folder,
            found=reason[:300],
            fix="use another checkpoint",
        ) from error
    if abstract := [
        rule_lists.path_name(k)
        for k, v in jax.tree_util.tree_leaves_with_path(loaded)
        if not isinstance(v, jax.Array)
    ]:
        raise TrainError(
            "leaves were not restored", path=folder, found=abstract[:12]
        )  # orbax hands missing ones back as they came in
    return loaded


def _compare(folder: Path, wanted: Mapping[str, tuple], stored: Mapping[str, tuple]) -> None:
    """Raises `TrainError` unless names and shapes agree, listing every difference."""
    problems = [f"{name} is not in the checkpoint" for name in wanted if name not in stored]
    problems += [f"{name} is not in the model" for name in stored if name not in wanted]
    problems += [
        f"{name}: {stored[name]} stored, {wanted[name]} wanted"
        for name in wanted
        if name in stored and stored[name] != wanted[name]
    ]
    if problems:
        raise TrainError(
            f"the checkpoint does not fit ({len(problems)} differences)",
            path=folder,
            found="; ".join(problems[:12]),
            fix="use the model of the checkpoint, or keep the leaves that differ by pattern",
        )


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(
        jax.local_devices()[0]
    )
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
