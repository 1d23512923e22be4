"""Several optimizers in sequence as one.

For fine-tuning that trains the heads first, warms up the whole network and then follows its
schedule. In: phases as plain data (steps, which leaves are trained, optimizer, schedule). Out: one
`Optimizer` whose state holds the states of all phases, so a run that is stopped in any phase
resumes there. The step determines the phase.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from medjax.errors import UsageError, did_you_mean
from medjax.train import optim
from medjax.train.optim import Optimizer

OWN = ("steps", "continues")  # fields of a phase that are not arguments of `optim.make`
WHOLE = ("ema", "restarts")  # arguments of `optim.make` that hold for the whole run


def make(
    phases: Sequence[Mapping[str, Any]],
    common: Mapping[str, Any],
    steps: int,
    restarts: Sequence[int] = (),
) -> Optimizer:
    """One optimizer from several.

    Args:
      phases: in order; `steps`, `continues` (True: keeps the momentum of the previous phase, which
        must train the same leaves with the same optimizer; only learning rate and schedule may
        differ), and any argument of `optim.make` that differs from `common`. Schedules count from
        the phase's first step.
      common: arguments of `optim.make` that the phases share.
      steps: of the whole run; must be the phases' sum, or with `restarts` above it.
      restarts: steps after which the schedule of the last phase begins again (`optim.make`); the
        first is the phases' sum.

    Leaves that a phase does not train keep their value and do not count for its clipping norm.
    Raises: `UsageError` for fields that do not exist, lengths that do not add up, or a phase that
    cannot continue the previous one.
    """
    known = (*OWN, *(k for k in inspect.signature(optim.make).parameters if k not in WHOLE))
    for k, phase in enumerate(phases):
        for key in phase:
            if key not in known:
                raise UsageError(
                    f"phase {k} of the optimizer has no field {key!r}",
                    fix=f"set config.optim.{key}, which holds for the whole run"
                    if key in WHOLE
                    else did_you_mean(key, known),
                )
    lengths = [int(phase.get("steps", 0)) for phase in phases]
    planned = restarts[0] if restarts else steps
    if not phases or min(lengths) < 1 or sum(lengths) != planned:
        raise UsageError(
            "the phases do not fill the run",
            found=f"{lengths}, together {sum(lengths)}",
            expected=f"config.train.steps = {planned}",
            fix="set train.steps to the sum of config.optim.phases",
        )
    if restarts:
        before = planned - lengths[-1]
        own = {"steps": steps - before, "restarts": tuple(at - before for at in restarts)}
        phases = (*phases[:-1], {**phases[-1], **own})
    made = [
        optim.make(**{**common, **{key: v for key, v in phase.items() if key != "continues"}})
        for phase in phases
    ]
    starts = [int(v) for v in np.cumsum([0, *lengths[:-1]])]
    groups = _groups(phases, common)
    rates = [optimizer.schedule for optimizer in made]

    def phase_of(step: Any) -> Any:
        return (
            sum((jnp.asarray(step) >= start).astype(jnp.int32) for start in starts[1:])
            if starts[1:]
            else jnp.zeros((), jnp.int32)
        )

    def schedule(step: Any) -> Any:
        values = jnp.stack(
            [
                jnp.asarray(r(jnp.asarray(step) - s), jnp.float32)
                for r, s in zip(rates, starts, strict=True)
            ]
        )
        return values[phase_of(step)]

    def trained(params: Any) -> Any:
        return jax.tree.map(lambda *on: any(on), *(optimizer.trained(params) for optimizer in made))

    def norm(gradients: Any, step: Any) -> Any:
        return jnp.stack([optimizer.norm(gradients, step) for optimizer in made])[phase_of(step)]

    # one transformation per group of phases that share a state; the learning rate comes from the
    # phase, so each runs at rate 1
    units = [
        optim.make(
            **_arguments(phases[members[0]], common), lr=1.0, schedule="constant", steps=1
        ).tx
        for members in groups
    ]
    group_of = np.array([g for g, members in enumerate(groups) for _ in members])

    def init(params: Any) -> dict:
        return {"step": jnp.zeros((), jnp.int32), "states": [unit.init(params) for unit in units]}

    def update(gradients: Any, state: dict, params: Any = None) -> tuple[Any, dict]:
        step, states = state["step"], state["states"]

        def branch(g: int):
            def run(operand: tuple) -> tuple:
                gradients, states, params = operand
                changes, new = units[g].update(gradients, states[g], params)
                changes = jax.tree.map(lambda c, p: c.astype(p.dtype), changes, params)
                return changes, [new if k == g else old for k, old in enumerate(states)]

            return run

        branches = [branch(g) for g in range(len(units))]
        changes, states = jax.lax.switch(
            jnp.asarray(group_of)[phase_of(step)], branches, (gradients, states, params)
        )
        rate = schedule(step)
        return jax.tree.map(lambda c: (rate * c).astype(c.dtype), changes), {
            "step": step + 1,
            "states": states,
        }

    tx = optax.GradientTransformation(init, update)
    return Optimizer(tx, schedule, trained, norm, made[0].ema)


def _groups(phases: Sequence[Mapping[str, Any]], common: Mapping[str, Any]) -> list[list[int]]:
    """Numbers of the phases that share an optimizer state."""
    groups: list[list[int]] = []
    for k, phase in enumerate(phases):
        if not phase.get("continues"):
            groups.append([k])
            continue
        if not k:
            raise UsageError(
                "the first phase has nothing to continue", fix="remove `continues` there"
            )
        old, new = _arguments(phases[k - 1], common), _arguments(phase, common)
        if changed := [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]:
            raise UsageError(
                f"phase {k} cannot continue phase {k - 1}: {', '.join(changed)} differ",
                fix="remove `continues` there",
            )
        groups[-1].append(k)
    return groups


def _arguments(phase: Mapping[str, Any], common: Mapping[str, Any]) -> dict:
    """The arguments of a phase's optimizer, without its learning rate."""
    rate = (
        "lr",
        "schedule",
        "power",
        "warmup_steps",
        "final",
        "span",
        "shift",
        "steps_per_epoch",
        "restarts",
        *OWN,
    )
    return {key: value for key, value in {**common, **phase}.items() if key not in rate}
