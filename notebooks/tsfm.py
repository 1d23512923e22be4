# %% [markdown]
# # TSFM on a GPU or TPU
#
# TSFM is a residual trunk with a transformer at its bottom, published with up to 1.6 billion
# parameters. This notebook rehearses the large network without allocating it, trains the smallest
# one spread over the devices (on a CPU eight are simulated), and reads the Orbax checkpoint
# without medjax.

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
import jax

try:
    jax.config.update("jax_num_cpu_devices", 8)  # has no effect on a GPU or TPU
except (RuntimeError, AttributeError):
    pass  # jax has started already
print(jax.devices())

# %% [markdown]
# ## The rehearsal
#
# Parameters and memory from shapes alone. The corpora are not on this machine: the text says where
# each can be obtained. `--devices=1,8,64` adds the memory per device, compiled for so many.

# %%
from medjax import main

assert main.main(["--config=configs/tsfm.py:h", "--mode=dry"]) == 0

# %% [markdown]
# ## A training over all devices
#
# `sharding.fsdp` devices share one copy of the parameters; the others have copies of their own. The
# rules of the recipe replicate small arrays and spread the others (fully sharded data
# parallel); the batch is divided as well.

# %%
import medjax

count = jax.device_count()
changes = {
    "data.phantom_cases": 5,
    "data.spacing_mm": (8.0, 8.0, 8.0),
    "train.patch": (16, 32, 32),
    "train.batch": max(2, count),
    "sharding.fsdp": 4 if count % 4 == 0 else 1,
    "train.steps": 3,
    "train.log_every": 1,
    "train.validate_every": 0,
    "init.head_prior": "",
    "evaluate.on": False,
}
config = medjax.config("configs/tsfm.py:t_small", changes)
run = medjax.train(config, "runs/tsfm")
print("loss", [round(line["loss"], 3) for line in run.metrics if "loss" in line])

# %% [markdown]
# ## The checkpoint with plain Orbax
#
# `medjax export --orbax` writes a slim run folder: documents and parameters. Nothing of medjax is
# needed to read the arrays.

# %%
from medjax import cli

assert cli.main(["export", "runs/tsfm", "-o", "slim", "--orbax"]) == 0

# %%
from pathlib import Path

from orbax.checkpoint import v1 as ocp

(step,) = [path for path in Path("slim/checkpoints").iterdir() if path.name.isdigit()]
params = ocp.load_checkpointables(step.resolve())["params"]
leaves = jax.tree.leaves(params)
print(f"{len(leaves)} arrays, {sum(leaf.size for leaf in leaves):,} parameters")

# %%
import numpy as np

mine = medjax.load("slim").params
same = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), mine, params)
assert all(jax.tree.leaves(same))
