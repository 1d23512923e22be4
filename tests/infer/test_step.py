"""A step on the device: mirrors and members are averaged, and every input goes with its window."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from medjax import decision
from medjax.infer.device import step
from medjax.infer.model import Model
from medjax.labels import Corpus, merge
from medjax.prepare.plan import Intensity, Plan


def test_a_step_averages_mirrors_and_members():
    """The network looks left: its mirror image looks right; members add their parameter."""
    corpus = Corpus("Liver", ((1, ("liver",)), (2, ("liver", "tumour"))), channels=("CT",))
    plan = Plan({"Liver": (1.0, 1.0, 1.0)}, {"CT": Intensity("nonorm")})

    def apply(params, image, context):
        shifted = jnp.roll(image, 1, 3) + params + context["corpus"][:, None, None, None, None]
        return {"logits": jnp.concatenate([shifted, shifted * 2], -1)}

    model = Model(apply, jnp.float32(0), plan, merge([corpus]), (2, 2, 4))
    image = np.random.default_rng(1).normal(size=(2, 2, 2, 4, 1)).astype(np.float32)
    run = step.make(model, decision.make("sigmoid", "logit"), mirror_axes=(2,), members=2)
    entries = {"corpus": jnp.int32(3), "modality": jnp.int32(0), "spacing_mm": jnp.ones(3)}
    found = jax.jit(run)(jnp.array([0.0, 1.0]), image, entries, jnp.array([1]))
    expected = (np.roll(image, 1, 3) + np.roll(image, -1, 3)) + 2 * (0.5 + 3)
    assert np.allclose(found, expected, atol=1e-5)
    unsure = step.make(model, decision.make(), members=2, uncertainty=True)
    found = jax.jit(unsure)(jnp.array([0.0, 1.0]), image, entries, jnp.array([1]))
    p = special.expit(2 * (np.roll(image, 1, 3) + np.array([3.0, 4.0])))
    assert np.allclose(found[..., 0], p.mean(-1), atol=1e-5)
    assert np.allclose(found[..., 1], p.std(-1), atol=1e-3)
