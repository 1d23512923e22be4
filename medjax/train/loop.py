"""The training loop: set-up, mesh, state, update, restore, loop.

It uses a task's two functions and is independent of models, losses and data. Started again in the
same run folder, it resumes from the last checkpoint, on any number of devices, and the record of
the run equals that of a run that was never stopped. SIGTERM and SIGINT end the step, save, and
raise `Preempted`; until the first step has been compiled there is nothing to save, and they end the
program at once.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from medjax.errors import Preempted, Terminated, TrainError, UsageError
from medjax.train import sharding
from medjax.train import state as states
from medjax.train import update as updates
from medjax.train.checkpoint import Checkpoints
from medjax.train.log import Log, Progress
from medjax.train.optim import Optimizer
from medjax.train.rules import Rules
from medjax.train.trackers import Trackers
from medjax.train.waiting import interruptibly

COMPILING = "compiling the training step"
NOTHING, SAVE, STOP = 0, 1, 2  # what a process requests; the highest of all processes wins


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a run.

    Attributes:
      steps: total number of updates. seed: of the initial parameters and of every step's key.
      validate_every, validation_batches: steps between validations (0: never) and batches in each.
      checkpoint_every, checkpoint_minutes: steps, and minutes, between checkpoints (0: disabled);
        the last step is always saved.
      measure_every: steps between measurements of whole volumes (0: never).
      patience: validations without a better one after which training ends early (0: never).
      keep: number of newest checkpoints to keep, beside the best.
      log_every, print_seconds, tensorboard, picture: see `medjax.train.log.Log`.
    """

    steps: int
    seed: int = 0
    validate_every: int = 0
    validation_batches: int = 50
    measure_every: int = 0
    patience: int = 0
    checkpoint_every: int = 1000
    checkpoint_minutes: float = 0.0
    keep: int = 2
    log_every: int = 50
    print_seconds: float = 30.0
    tensorboard: bool = False
    picture: bool = True

    def __post_init__(self):
        wrong = {f: v for f in ("steps", "log_every", "keep") if (v := getattr(self, f)) < 1}
        wrong |= {
            f: v
            for f in (
                "validate_every",
                "measure_every",
                "patience",
                "checkpoint_every",
                "checkpoint_minutes",
            )
            if (v := getattr(self, f)) < 0
        }
        if wrong or (self.validate_every and self.validation_batches < 1):
            raise UsageError(
                "training settings out of range",
                found=wrong or {"validation_batches": self.validation_batches},
            )


def fit(
    *,
    task: Any,
    init: Callable[[jax.Array], Any],
    optimizer: Optimizer,
    stream: Callable[[int], Iterable[Mapping[str, Any]]],
    settings: Settings,
    workdir: str | Path,
    validation_stream: Callable[[], Iterable[Mapping[str, Any]]] | None = None,
    names: Sequence[str] = (),
    recipe: Mapping[str, Any] | None = None,
    mesh: jax.sharding.Mesh | None = None,
    batch_axes: Sequence[str] = sharding.AXES,
    accumulate: int = 1,
    conv_layout: str = "auto",
    sharding_rules: Rules = sharding.REPLICATE,
    borrow: Callable[[Any], Any] | None = None,
    measure: Callable[[Any], Mapping[str, float]] | None = None,
    trackers: Trackers | None = None,
) -> states.State:
    """Trains to `settings.steps` and returns the final state (see `medjax.train.state`).

    Validation uses the moving average of the parameters if the optimizer keeps one.

    Args:
      task: `loss(params, batch, key) -> (scalar, dict)`, `validate(params, batch) -> sums` as
        `log.Progress.judge` reads them: counts {"tp", "fp", "fn"}, or {"error", "weight"}, of one
        entry per name.
      init: key -> parameters (pure; run under jit, so that large models are born sharded).
      optimizer: see `medjax.train.optim.make`; its `steps` should be those of the settings.
      stream: number of completed steps -> host batches from there on, this process' part of each;
        must not depend on how it was reached.
      validation_stream: -> at least `validation_batches` host batches, the same at every call.
      workdir: run folder; checkpoints/, metrics.jsonl, system.jsonl and progress.png are written
        there.
      names: of the entries of what validation sums up.
      recipe: JSON-ready description of everything a resumed run must share with its beginning
        (data, model, optimizer).
      batch_axes, accumulate: how a batch lies on the mesh, see `medjax.train.sharding.Layout`, and
        the number of micro-batches, see `medjax.train.accumulate`.
      conv_layout: see `medjax.train.compiling`.
      mesh, sharding_rules: see `medjax.train.sharding`; all devices, replicated parameters.
      measure: parameters -> class and its Dice on whole held-out volumes, called every
        `settings.measure_every` steps by all processes.
      trackers: started ones, which get the rows of metrics.jsonl.
      borrow: fresh parameters -> the same tree with leaves from elsewhere (pretraining); not called
        on resume.

    Raises: `Preempted` after a signal (state saved); `TrainError` for a non-finite loss (naming the
      step), another recipe than the run began with, an unusable checkpoint, changing batch shapes,
      or a stream that ends early.
    """
    # set-up
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    recipe = json.loads(json.dumps({**(recipe or {}), "seed": settings.seed}))
    validates = bool(settings.validate_every) and validation_stream is not None

    # mesh
    mesh = mesh if mesh is not None else sharding.make_mesh()
    place, place_validation = (sharding.Placer(mesh, batch_axes) for _ in range(2))

    # state (abstract: names, shapes, shardings) and update
    target = states.abstract(init, optimizer, mesh, sharding_rules)
    update, validate = updates.make(
        task,
        optimizer,
        settings.seed,
        mesh,
        target,
        batch_axes=batch_axes,
        accumulate=accumulate,
        conv_layout=conv_layout,
    )

    with (
        Checkpoints(workdir / "checkpoints", settings.keep) as checkpoints,
        Requests(mesh, settings.checkpoint_minutes, begun=False) as requests,
    ):
        within = getattr(task, "corpora", ())  # validation may count for each of them
        # restore: the run's own checkpoint, else borrowed parameters, else fresh ones
        restored = checkpoints.restore(
            target, lambda facts: _same_recipe(facts["recipe"], recipe, workdir)
        )
        if restored:
            state, facts = restored
            start, progress = facts["step"], Progress(names, facts["progress"], within)
        else:
            _, state = interruptibly(lambda: states.born(init, optimizer, target, settings.seed))
            start, progress = 0, Progress(names, corpora=within)
            if borrow is not None:
                state = states.with_params(state, borrow(states.weights(state, average=False)))

        # loop
        limits = dict(
            steps=settings.steps,
            start=start,
            log_every=settings.log_every,
            print_seconds=settings.print_seconds,
        )
        with (
            Log(
                workdir,
                progress,
                **limits,
                tensorboard=settings.tensorboard,
                picture=settings.picture,
                trackers=trackers,
            ) as log,
            sharding.prefetch(stream(start) if start < settings.steps else (), place) as batches,
        ):
            for step in range(start, settings.steps + 1):
                request = NOTHING
                if step > start:
                    batch = _next(batches, log, step)
                    begin = functools.partial(update, state, batch, requests.array())
                    first = step == start + 1
                    with log.busy(COMPILING) if first else contextlib.nullcontext():
                        state, scalars = requests.begin(begin)
                    request = (
                        log.settle()
                    )  # of the step before: the device is already busy with this one
                    log.submit(step, scalars)
                checked = (
                    validates
                    and step > 0
                    and step % settings.validate_every == 0
                    and progress.validated < step
                )
                measured = (
                    measure is not None
                    and settings.measure_every
                    and step > 0
                    and step % settings.measure_every == 0
                    and progress.measured < step
                )
                saved = step > start and (
                    step == settings.steps
                    or (settings.checkpoint_every and step % settings.checkpoint_every == 0)
                )
                if checked or measured or saved or request:
                    request = max(
                        request, log.settle()
                    )  # now this step too: nothing non-finite is ever saved
                improved = False
                if checked and request < STOP:
                    with sharding.prefetch(
                        itertools.islice(validation_stream(), settings.validation_batches),
                        place_validation,
                    ) as held_out:
                        sums = _evaluate(validate, states.weights(state), held_out, requests)
                    request = STOP if sums is None else request
                    improved = sums is not None and log.validated(step, sums)
                if measured and request < STOP:
                    log.measured(step, measure(states.weights(state)))
                ended = settings.patience and progress.waited >= settings.patience
                if saved or request or improved or (ended and step > start):
                    facts = {"recipe": recipe, "progress": progress.to_json()}
                    checkpoints.save(step, state, facts, progress.best if improved else None)
                    requests.saved()
                if request == STOP:
                    checkpoints.wait()
                    raise Preempted(
                        f"stopped on request after step {step}, state saved",
                        path=workdir,
                        fix="start the same command again",
                    )
                if ended:
                    print(
                        f"stopped after step {step}: {progress.waited} validations without a "
                        "better one",
                        flush=True,
                    )
                    break
    return state


class Requests:
    """This process' requests to the loop: turns signals and a clock into a device array per step.

    A context. SIGTERM and SIGINT stop at the end of a step. A second SIGINT interrupts at once, and
    so does the first signal before the first step in a run of one process. Outside the main thread
    signals are not handled.
    """

    def __init__(
        self, mesh: jax.sharding.Mesh, checkpoint_minutes: float = 0.0, begun: bool = True
    ):
        self.seconds, self.last, self.stopped, self.before = (
            checkpoint_minutes * 60,
            time.monotonic(),
            False,
            {},
        )
        self.alone = jax.process_count() == 1
        self.begun = begun or not self.alone  # from now on signals wait for the end of a step
        local = sum(d.process_index == jax.process_index() for d in mesh.devices.flat)
        place = sharding.split(mesh)
        self.arrays = [
            jax.make_array_from_process_local_data(place, np.full(local, v, np.int32))
            for v in (NOTHING, SAVE, STOP)
        ]

    def __enter__(self) -> "Requests":
        if threading.current_thread() is threading.main_thread():
            self.before = {
                s: signal.signal(s, self._heard) for s in (signal.SIGTERM, signal.SIGINT)
            }
        return self

    def __exit__(self, *failure: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def begin(self, step: Callable[[], Any]) -> Any:
        """The result of a step; the first one, which is compiled, can be interrupted."""
        if self.begun:
            return step()
        _, result = interruptibly(step)
        self.begun = True
        return result

    def _heard(self, number: int, frame: Any) -> None:
        if not self.begun:
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        if self.stopped and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stopped = True

    def array(self) -> jax.Array:
        """The current request on this process' devices."""
        due = (
            self.seconds
            and jax.process_index() == 0
            and time.monotonic() - self.last > self.seconds
        )
        return self.arrays[STOP if self.stopped else SAVE if due else NOTHING]

    def saved(self) -> None:
        """Resets the clock when a checkpoint is started."""
        self.last = time.monotonic()


def _evaluate(
    validate: Callable, params: Any, batches: Iterable[Any], requests: Requests
) -> dict[str, np.ndarray] | None:
    """The result of `validate`, summed over the validation batches and read one batch late.

    None if a stop was requested meanwhile.
    """
    totals, waiting = [], None
    for batch in batches:
        ask = functools.partial(validate, params, batch, requests.array())
        done, sums = (
            interruptibly(ask, lambda: requests.stopped)
            if requests.alone and not totals and waiting is None
            else (True, ask())
        )
        if not done:
            return None
        totals += [jax.device_get(waiting)] if waiting is not None else []
        waiting = sums
        if totals and totals[-1]["request"] == STOP:
            return None
    if waiting is None:
        raise TrainError(
            "the validation stream is empty", fix="give it cases, or set validate_every to 0"
        )
    totals.append(jax.device_get(waiting))
    return {name: sum(_wide(t[name]) for t in totals) for name in totals[0] if name != "request"}


def _wide(values: Any) -> np.ndarray:
    """Converts to the widest type of its kind, so that long sums neither wrap nor round."""
    return np.asarray(
        values, np.float64 if np.issubdtype(np.asarray(values).dtype, np.floating) else np.int64
    )


def _next(batches: Iterator[Any], log: Log, step: int) -> Any:
    began = time.monotonic()
    batch = next(batches, None)
    log.waited += time.monotonic() - began
    if batch is None:
        raise TrainError(
            f"the stream ended before step {step}",
            found=f"{step - 1} steps",
            fix="give an endless stream",
        )
    return batch


def _same_recipe(stored: Any, given: Any, workdir: Path) -> None:
    """Raises `TrainError` listing the entries that changed since the run began."""
    old, new = dict(_flat(stored)), dict(_flat(given))
    missing = "nothing"
    pairs = [
        (name, old.get(name, missing), new.get(name, missing)) for name in sorted({**old, **new})
    ]
    changed = [f"{name}: was {was}, is {now}" for name, was, now in pairs if was != now]
    if changed:
        raise TrainError(
            "the recipe is not the one this run began with",
            path=workdir,
            found="; ".join(changed[:12]),
            fix="use another workdir, or go back to the first recipe",
        )


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value
