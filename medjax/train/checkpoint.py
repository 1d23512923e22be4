"""Checkpoints: atomic, asynchronous, restored onto any number of devices.

    <folder>/<step>/params/  trained parameters
                    ema/     their moving average, if the run keeps one
                    train/   step and optimizer state
                    JSON facts (step, metric, recipe, progress, hash of the base), hashes.json
    <folder>/base/0/params/  frozen parameters, written once; every step names them by their hash

A step is written under a temporary name and renamed when complete, so a step folder is complete or
absent. The newest steps and the one with the best metric are kept. An unreadable step (a bad disk,
a partial copy) is set aside and the one before it is used; if none can be read, nothing is changed
and an error is raised. `saved.json` beside the folder names the newest step, so that a missing
folder is detected too.

`load_params` and `read_params` are the way to the parameters of a run: both join trained and frozen
leaves and choose between the parameters and their moving average.
"""

import contextlib
import functools
import itertools
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from medjax import files
from medjax.errors import TrainError, UsageError, did_you_mean
from medjax.train import base as bases
from medjax.train import hashes, storage
from medjax.train import state as states
from medjax.train.stepfolder import (
    BASE,
    FACTS,
    TEMPORARY,
    base_of,
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

AVERAGES = ("auto", "off")  # whether readers take the moving average of the parameters
_UNHEARD = storage.Unheard()


def load_params(
    path: str | Path, target: Any, *, keep: str = "", which: str = "last", ema: str = "auto"
) -> Any:
    """Parameters from a checkpoint, strictly: all of them, trained and frozen.

    Args:
      path: see `find`.
      target: tree of arrays or `jax.ShapeDtypeStruct`; shapes must agree, values take the target's
        type and sharding (or the default device).
      keep: regex over paths; matching leaves of the target are returned as they are, matching
        leaves on disk are left there (a new head on an old encoder). Empty: none.
      which: see `find`.
      ema: "auto": the moving average of the parameters if the run keeps one; "off": never.

    Raises: `TrainError` listing the names that only one side has, and the shapes that differ, or
      for missing or other frozen parameters.
    """
    folder = find(path, which)
    sources = _sources(folder, ema)
    named = storage.flat(target)
    kept = {name for name in named if keep and re.search(keep, name)}
    wanted = {name: storage.placed(leaf) for name, leaf in named.items() if name not in kept}
    stored = {
        name: shape
        for _, _, shapes in sources
        for name, shape in shapes.items()
        if not (keep and re.search(keep, name))
    }
    storage.compare(folder, {name: tuple(leaf.shape) for name, leaf in wanted.items()}, stored)
    values = {name: named[name] for name in kept} | _read(sources, wanted)
    return jax.tree.unflatten(jax.tree.structure(target), [values[name] for name in named])


def read_params(path: str | Path, which: str = "last", ema: str = "auto") -> dict:
    """All parameters of a checkpoint as nested dictionaries of float32 numpy arrays (see `find`).

    Independent of the model. `ema`: see `load_params`.
    """
    try:
        where = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS names accelerators only
        where = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    sources = _sources(find(path, which), ema)
    wanted = {
        name: jax.ShapeDtypeStruct(shape, np.float32, sharding=where)
        for _, _, shapes in sources
        for name, shape in shapes.items()
    }
    return jax.tree.map(np.asarray, storage.nest(_read(sources, wanted)))


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
        self._base: tuple[list, dict] | None = None  # frozen leaves, and what steps say of them

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
        facts = {"step": step, "metric": metric, **facts, "hashed": True}
        facts["arrays"] = {part: storage.shapes(tree) for part, tree in parts.items()}
        if jax.tree.leaves(state.get("frozen", {})):
            facts["base"] = self._write_base(state["frozen"])
        facts = json.loads(json.dumps(facts))  # a copy: it is written later
        with self._failures():
            logging.getLogger("absl").addFilter(_UNHEARD)
            self._orbax = self._orbax or self._open()
            self._finish()
            self._writing, self._facts = step, facts
            self._pending = self._orbax.save_checkpointables_async(
                step,
                {part: tree for part, tree in parts.items() if jax.tree.leaves(tree)},
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
        found, share = steps(self.folder), (jax.process_index(), jax.process_count())
        missing, problems = (newest_saved(self.folder) or 0) > max(found, default=0), {}
        whole = states.join(target["params"], target.get("frozen", {}))
        wanted_parts = _parts(target) | {"params": whole}
        wanted = _named({part: storage.shapes(tree) for part, tree in wanted_parts.items()})
        for step in reversed(found):
            folder = self.folder / str(step)
            state = facts = problem = base = None
            try:
                facts = read_facts(self.folder, step)
                base, stored = base_of(folder, facts), facts["arrays"]
                frozen = facts_of(base)["arrays"]["params"] if base else {}
                found_here = _named(
                    {part: stored[part] for part in wanted_parts if part != "ema"}
                    | {"params": {**stored["params"], **frozen}}
                    | ({"ema": stored.get("ema", {})} if "ema" in wanted_parts else {})
                )
                hashes.check(folder, facts, share=share)
                if base:
                    hashes.check(base, facts_of(base), share=share)
            except (TrainError, KeyError, AttributeError, TypeError) as error:
                problem = error
            if storage.everywhere(problem is None):
                accept(facts)
                storage.compare(folder, wanted, found_here)
                try:
                    state = _restored(folder, base, stored["params"], target)
                except TrainError as error:
                    problem = error
                if storage.everywhere(problem is None):
                    self._set_aside(problems)
                    if missing:
                        text = (
                            f"{self.folder}: step {newest_saved(self.folder)} was saved but "
                            f"cannot be used; continuing from step {step}"
                        )
                        warnings.warn(text, RuntimeWarning, stacklevel=2)
                    if base and set(frozen) == set(storage.flat(state["frozen"])):
                        self._base = (jax.tree.leaves(state["frozen"]), facts["base"])
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
                storage.remove(self.folder / f"{self._writing}{TEMPORARY}")
            self._pending = self._writing = None
            raise TrainError(
                "a checkpoint could not be written; the older ones are untouched",
                path=self.folder,
                found=storage.reason(error),
                fix="free disk space, then start the same command again",
            ) from error

    def _write_base(self, frozen: Any) -> dict:
        """Writes the frozen parameters unless they are there; returns what a step says of them."""
        leaves = jax.tree.leaves(frozen)
        if self._base is not None and all(
            a is b for a, b in itertools.zip_longest(leaves, self._base[0])
        ):
            return self._base[1]
        digest = bases.digest(frozen)
        number, there = bases.place(self.folder, digest)
        if not there:
            with Checkpoints(self.folder / BASE, keep=number + 1) as writer:
                writer.save(number, {"params": frozen}, {"hash": digest})
        self._base = (leaves, {"number": number, "hash": digest})
        return self._base[1]

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
        storage.everywhere(True)


def _sources(folder: Path, ema: str) -> list[tuple[Path, str, dict[str, tuple]]]:
    """Where the parameters of a checkpoint are stored: (folder, part, name -> shape).

    The files match their hashes.
    """
    if ema not in AVERAGES:
        raise UsageError(f"unknown choice infer.ema={ema!r}", fix=did_you_mean(ema, AVERAGES))
    facts = facts_of(folder)
    base = base_of(folder, facts)
    averaged = ema == "auto" and isinstance(facts.get("arrays"), dict) and "ema" in facts["arrays"]
    places = [(folder, facts, "ema" if averaged else "params")]
    places += [(base, facts_of(base), "params")] if base else []
    found = []
    for place, about, part in places:
        hashes.check(place, about, part)
        try:
            shapes = {name: tuple(shape) for name, shape in about["arrays"][part].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TrainError(
                "no list of parameters",
                path=place / FACTS,
                fix="use a checkpoint that medjax wrote",
            ) from error
        found.append((place, part, shapes))
    return found


def _read(sources: Sequence[tuple[Path, str, dict]], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Name -> array of the wanted leaves, from wherever they are stored."""
    found: dict[str, Any] = {}
    for folder, part, shapes in sources:
        some = {name: wanted[name] for name in shapes if name in wanted}
        if some:
            target = {part: storage.nest(some)}
            loaded = storage.load(folder, target, partial=len(some) < len(shapes))
            found |= storage.flat(loaded[part])
    return found


def _restored(
    folder: Path, base: Path | None, names: Mapping[str, Any], target: Mapping[str, Any]
) -> dict[str, Any]:
    """The state in the form of `target`, whose leaves may be stored in the step or in the base.

    Args:
      names: the parameters that the step itself holds.
    """
    frozen = target.get("frozen", {})
    whole = storage.flat(states.join(target["params"], frozen))
    as_saved = set(names) == set(storage.flat(target["params"]))
    own = target["params"] if as_saved else storage.nest({name: whole[name] for name in names})
    parts = _parts(target) | {"params": own}
    loaded = storage.load(
        folder,
        {part: tree for part, tree in parts.items() if jax.tree.leaves(tree)},
        partial=not as_saved,  # earlier versions wrote a place without a value for frozen leaves
    )
    values = storage.flat(loaded.get("params", {}))
    if base:
        others = {name: leaf for name, leaf in whole.items() if name not in names}
        held = frozen if as_saved else storage.nest(others)
        values |= storage.flat(storage.load(base, {"params": held})["params"])
    state = dict(loaded.get("train", {})) | ({"ema": loaded["ema"]} if "ema" in loaded else {})
    for part in ("params", "frozen"):
        if part in target:
            leaves = [values[name] for name in storage.flat(target[part])]
            state[part] = jax.tree.unflatten(jax.tree.structure(target[part]), leaves)
    return state


def _parts(state: Mapping[str, Any]) -> dict[str, Any]:
    """The trees of a step: parameters, which can be read alone, their average, and the rest."""
    alone = {name: state[name] for name in ("params", "ema") if name in state}
    rest = {name: value for name, value in state.items() if name not in (*alone, "frozen")}
    return alone | ({"train": rest} if rest else {})


def _named(arrays: Mapping[str, Mapping[str, Sequence[int]]]) -> dict[str, tuple]:
    """Shapes by part and name, as "part/name" -> shape."""
    return {
        f"{part}/{name}": tuple(shape)
        for part, shapes in arrays.items()
        for name, shape in shapes.items()
    }
