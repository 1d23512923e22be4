# %% [markdown]
# # LoRA on your data; your own loss and network
#
# First a low-rank adapter teaches a trained model a new corpus: a file of some hundred kilobytes
# beside a model that stays as it is. Then the batches of medjax feed a training loop of your own,
# with another loss and another network. Synthetic scans stand in for yours.

# %%
# Installs medjax where it is missing, and keeps the jax that is there (Colab's, for GPU or TPU).
import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

SOURCE = "medjax @ git+https://github.com/medjax/medjax"
if importlib.util.find_spec("medjax") is None:
    kept = [d for d in importlib.metadata.distributions() if d.name.lower().startswith("jax")]
    Path("kept.txt").write_text("".join(f"{d.name}=={d.version}\n" for d in kept))
    words = [sys.executable, "-m", "pip", "install", "-q", SOURCE, "-c", "kept.txt"]
    subprocess.run(words, check=True)

# %%
import medjax
from medjax import cli
from medjax.commands.demo import MODEL

STEPS = 20  # some hundred for an adapter that is of use
assert cli.main(["phantom", "raw", "--cases", "5", "--seed", "11"]) == 0
DATA = "raw/Task03_PhantomCE"

# %% [markdown]
# ## An adapter
#
# `adapters.kernels=unet` puts factors of rank 4 beside every convolution; head layers are trained
# whole. A fresh adapter computes exactly what the base does, so the loss begins where the base
# has it.

# %%
changes = {
    "adapters.kernels": "unet",
    "adapters.rank": 4,
    "adapters.whole": r"^(head|out)_?\d*/",
    "data.phantom_cases": 0,
    "train.steps": STEPS,
    "train.validate_every": 0,
    "evaluate.montages": 0,
    "model.base_features": 12,
    "model.max_features": 80,
    "init.head_prior": "",
    "optim.lr": 1e-3,
}
config = medjax.config("configs/multitalent.py:demo", changes)
config.data.folders, config.init.source = DATA, str(MODEL)
run = medjax.train(config, "runs/adapted")
run

# %% [markdown]
# The adapter as a file, bound to its base by a hash:

# %%
arguments = ["adapter", "extract", "runs/adapted", "-o", "mine.adapter.safetensors"]
assert cli.main(arguments) == 0
assert cli.main(["adapter", "info", "mine.adapter.safetensors"]) == 0

# %%
from pathlib import Path

scan = sorted(Path(DATA, "imagesTr").glob("*.nii.gz"))[0]
adapted = medjax.Predictor(MODEL, adapter="mine.adapter.safetensors")
print({name: int(mask.sum()) for name, mask in adapted.segment(scan).masks.items()})

# %% [markdown]
# ## Your own loss
#
# `medjax.stream` yields what the training sees: arrays, prepared and drawn as the config says.
# The network is a pure function. Nothing else is needed for a loop of one's own; here a focal
# Tversky loss, which medjax does not have, with optax.

# %%
import jax
import jax.numpy as jnp
import optax

from medjax.losses.parts import targets
from medjax.sample.batch import dequantise

model = medjax.load(run)
space = model.space
table, known = jnp.asarray(space.table), jnp.asarray(space.known)


def tversky(logits, batch, alpha=0.3, beta=0.7, gamma=0.75):
    """Focal Tversky loss over the classes that each sample's corpus annotates."""
    rows = {"label": batch["label"], "table": table[batch["corpus"]]}
    rows["known"] = known[batch["corpus"]]
    logits, target, annotated, _ = targets.unpack({"logits": logits}, rows)
    p, axes = jax.nn.sigmoid(logits), (1, 2, 3)
    hit, false = (p * target).sum(axes), (p * (1 - target)).sum(axes)
    missed = ((1 - p) * target).sum(axes)
    index = (hit + 1) / (hit + alpha * false + beta * missed + 1)
    return ((1 - index) ** gamma * annotated).sum() / annotated.sum()


# %% [markdown]
# ## Your own network
#
# Any function of parameters and image will do; here two convolutions in Flax.

# %%
from flax import linen as nn


class Small(nn.Module):
    """Two convolutions."""

    @nn.compact
    def __call__(self, image):
        x = nn.relu(nn.Conv(8, (3, 3, 3))(image))
        return nn.Conv(len(space.classes), (1, 1, 1), bias_init=nn.initializers.constant(-3.0))(x)


network, optimiser = Small(), optax.adam(1e-2)
batches = medjax.stream(config, "runs/adapted")
first = next(batches)
params = network.init(jax.random.key(0), dequantise(first))
state = optimiser.init(params)


@jax.jit
def step(params, state, batch):
    """One update; returns the loss before it."""
    loss, gradient = jax.value_and_grad(
        lambda p: tversky(network.apply(p, dequantise(batch)), batch)
    )(params)
    updates, state = optimiser.update(gradient, state)
    return optax.apply_updates(params, updates), state, loss


curve = []
for _ in range(15):
    params, state, loss = step(params, state, next(batches))
    curve.append(float(loss))
print(f"loss {curve[0]:.3f} -> {min(curve):.3f}")
