"""Cross-entropy of the task that a network recognises from its prompts.

    L = mean over samples of -log softmax(category)_task

Source: MAST-Pro (MICCAI 2025), section 2.3. With the sentence of the task as input the answer is
nearly given away; `theta_all` of `models.mast_pro` scores the sentences of all tasks instead.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from medjax.errors import UsageError
from medjax.losses.parts import separable


def make() -> Callable[[Mapping, Mapping], Float[Array, ""]]:
    """The loss f(outputs, batch) -> scalar >= 0.

    outputs: `category` (b, tasks). batch: `task` (b,) int.

    Raises: `UsageError`, when it is called, for outputs without `category` or a batch without
      tasks.
    """

    def category(outputs: Mapping, batch: Mapping) -> Float[Array, ""]:
        scores, task = outputs.get("category"), batch.get("task")
        if scores is None or task is None:
            raise UsageError(
                "the loss category needs a network that scores tasks",
                found=f"outputs {', '.join(sorted(outputs))}",
                fix="leave config.losses.category out, or set model.theta to kernel48",
            )
        return each(scores, task).mean()

    return separable.marked(category, lambda complete, weighted: separable.MEAN)


def each(scores: Float[Array, "b t"], task: Int[Array, " b"]) -> Float[Array, " b"]:
    """The cross-entropy of every sample, in float32."""
    log = jax.nn.log_softmax(scores.astype(jnp.float32), -1)
    return -jnp.take_along_axis(log, task[:, None], -1)[:, 0]
