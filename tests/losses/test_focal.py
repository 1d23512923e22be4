"""The focal loss against its formula written out in numpy, cross-entropy as its special case, and
the laws of losses over annotated classes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import base_config
from medjax.errors import UsageError
from medjax.losses import cross_entropy, focal
from medjax.losses.parts import separable, voxelwise
from medjax.registry import plain
from medjax.runs import stages
from medjax.train import log
from tests.losses.test_losses import BATCH, VOXELS, oracle_batch
from tests.support.raw import write_corpus
from tests.support.run import small_unet


def formula(outputs, batch, gamma, alpha):
    """-a (1 - q)^gamma log q per sample, voxel and class, with q itself (Lin et al., Eq. 5)."""
    x = np.asarray(outputs["logits"])
    table, label = np.asarray(batch["table"]), np.asarray(batch["label"])
    hit = np.stack([rows[ids] for rows, ids in zip(table, label, strict=True)])
    q = np.where(hit, 1 / (1 + np.exp(-x)), 1 - 1 / (1 + np.exp(-x)))
    a = 1.0 if alpha is None else np.where(hit, alpha, 1 - alpha)
    return -a * (1 - q) ** gamma * np.log(q)


@pytest.mark.parametrize("gamma", [0, 0.5, 2.0, 5])
@pytest.mark.parametrize("alpha", [None, 0.25, 1])
def test_the_loss_follows_the_formula(gamma, alpha):
    with jax.enable_x64(True):
        outputs, batch = oracle_batch((3, 4, 5))
        values, known = formula(outputs, batch, gamma, alpha), np.asarray(batch["known"])
        expected = (values.mean((1, 2, 3)) * known).sum() / BATCH
        found = jax.jit(focal.make(gamma, alpha))(outputs, batch)
        assert float(found) == pytest.approx(expected, rel=1e-11)
        weight = np.arange(VOXELS).reshape(1, 3, 4, 5) % 3 * np.ones((BATCH, 1, 1, 1))
        share = weight[..., None] / weight.sum((1, 2, 3)).reshape(-1, 1, 1, 1, 1)
        expected = ((values * share).sum((1, 2, 3)) * known).sum() / BATCH
        weighted = batch | {"weight": jnp.asarray(weight)}
        found = jax.jit(focal.make(gamma, alpha))(outputs, weighted)
        assert float(found) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize(
    "options", [("batch", "sum", 1), ("per_annotating", "mean", 1), ("sum", "sum", 2)]
)
def test_without_modulation_it_is_cross_entropy(options):
    """Value and gradient; with alpha = 1/2 half of them."""
    outputs, batch = oracle_batch((3, 4, 5), np.float32)
    bce = cross_entropy.make(*options)
    for alpha, share in ((None, 1.0), (0.5, 0.5)):
        fl = focal.make(0, alpha, *options)
        value, gradient = jax.jit(jax.value_and_grad(lambda z, f=fl: f({"logits": z}, batch)))(
            outputs["logits"]
        )
        expected, slope = jax.jit(jax.value_and_grad(lambda z: bce({"logits": z}, batch)))(
            outputs["logits"]
        )
        assert float(value) == pytest.approx(share * float(expected), rel=1e-6)
        np.testing.assert_allclose(gradient, share * slope, atol=1e-8)
    for complete in (True, False):
        words = {separable.over_samples(f, complete=complete, weighted=True) for f in (fl, bce)}
        assert len(words) == 1 and (words != {"batch"} or "mean" in options)


def test_voxels_that_are_right_weigh_less():
    """The paper's example: with gamma = 2, q = 0.9 costs a hundredth of cross-entropy."""
    x = jnp.log(jnp.array([0.9, 0.5]) / (1 - jnp.array([0.9, 0.5])))
    batch = {
        "label": jnp.zeros((2, 1), jnp.int32),
        "table": jnp.ones((2, 1, 1), bool),
        "known": jnp.ones((2, 1), bool),
    }
    for sample, expected in enumerate((100.0, 4.0)):
        one = {k: v[sample : sample + 1] for k, v in batch.items()}
        outputs = {"logits": x[sample].reshape(1, 1, 1)}
        ratio = cross_entropy.make()(outputs, one) / focal.make(2, None)(outputs, one)
        assert float(ratio) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_unknown_classes_have_no_gradient_and_large_logits_a_finite_one(gamma):
    outputs, batch = oracle_batch((3, 4, 5), np.float32)
    known = np.asarray(batch["known"])
    logits = jnp.where(known[:, None, None, None], outputs["logits"], -jnp.inf)
    f = focal.make(gamma)
    slope = jax.jit(jax.grad(lambda z: f({"logits": z}, batch)))
    found = np.moveaxis(np.asarray(slope(logits)), -1, 1)
    assert (found[~known] == 0).all() and (found[known] != 0).all()
    for scale in (1e3, 1e30):
        assert np.isfinite(f({"logits": scale * outputs["logits"]}, batch))
        assert np.isfinite(slope(scale * outputs["logits"])).all()


def test_unusable_numbers_and_names_are_refused():
    for arguments, message in (
        ({"gamma": -0.5}, "gamma of the focal loss; found -0.5; expected 0 or more"),
        ({"alpha": 1.5}, "alpha of the focal loss; found 1.5; expected 0 to 1, or None"),
        ({"normalise": "bach"}, "unknown focal loss option 'bach'.*batch"),
    ):
        with pytest.raises(UsageError, match=message):
            focal.make(**arguments)
    with pytest.raises(UsageError, match=r"unknown blur option 'avg'.*mean"):
        voxelwise.make("blur", lambda x, g: x - g, "batch", "avg", 1)


@pytest.mark.slow
def test_a_training_lowers_it(tmp_path):
    """Beside cross-entropy, as `--config.losses=cross_entropy,focal` asks for."""
    folder = write_corpus(tmp_path / "Task01_Organ", n=4, shape=(8, 10, 12), labels={"organ": 1})
    fields = plain(base_config())
    fields["model"] = {"name": "unet", **small_unet(3)}
    fields["losses"] = {"cross_entropy": {"weight": 1.0}, "focal": {"weight": 1.0}}
    fields["data"] |= {
        "folders": str(folder),
        "split": fields["data"]["split"] | {"folds": 2},
        "spacing_mm": (1.0, 1.0, 1.0),
    }
    fields["augment"] = {"on": False}
    fields["optim"] |= {"name": "adamw", "lr": 0.02}
    fields["train"] |= {
        "patch": (8, 8, 8),
        "batch": 2,
        "steps": 12,
        "validate_every": 0,
        "log_every": 1,
    }
    stages.train(stages.open_run(fields, tmp_path / "run"))
    rows = log.read(tmp_path / "run" / "metrics.jsonl")
    losses = [row["loss/focal"] for row in rows if "loss/focal" in row]
    assert len(losses) == 12 and all(np.isfinite(losses))
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
