# %% [markdown]
# # Your own scans
#
# From a folder of scans and masks to a trained, scored model: verify, plan, train, predict,
# evaluate. The same data set then trains from `tensorflow-datasets` records. Put the path of your
# folder into `DATA`; as long as it is empty, synthetic scans are written.

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
from pathlib import Path

from medjax import cli

DATA = ""
STEPS = 30  # 1500 and more for a model that is of use


def medjax(*words):
    """The command line within this process; an exit code above 0 stops the notebook."""
    code = cli.main([str(word) for word in words])
    assert code == 0, f"medjax {words[0]}: exit code {code}"


# %%
if not DATA:
    medjax("phantom", "raw", "--cases", 5, "--seed", 7)
    DATA = "raw/Task02_PhantomMR"
print(*sorted(p.relative_to(DATA) for p in Path(DATA).rglob("*") if p.is_file())[:6], sep="\n")

# %% [markdown]
# ## Verify and plan
#
# Every image and label is read: truncated files, wrong geometry and undeclared labels are errors
# that name the file and the fix. The layout is detected (ten are known). `plan` explains spacing,
# patch and network by nnU-Net's rules.

# %%
medjax("verify", DATA)

# %%
medjax("plan", DATA)

# %% [markdown]
# ## Train
#
# `unet_small` is a U-Net for two cores. Here it is narrower, and the voxels are larger.

# %%
import medjax as engine

changes = {
    "data.spacing_mm": (6.0, 5.0, 5.0),
    "model.base_features": 8,
    "train.steps": STEPS,
    "train.validate_every": 0,
    "train.patch": (24, 32, 32),
    "evaluate.montages": 1,
}
config = engine.config("configs/multitalent.py:unet_small", changes)
config.data.folders = DATA
run = engine.train(config, "runs/mine")
run

# %% [markdown]
# ## Predict and evaluate
#
# Masks keep the header of the scan. Nothing is overwritten that medjax did not write.

# %%
medjax(
    "predict",
    "-m",
    "runs/mine",
    "-i",
    f"{DATA}/imagesTr",
    "-o",
    "masks",
    "--num-parts",
    5,
    "--part-id",
    0,
)

# %%
medjax(
    "evaluate",
    "--reference",
    DATA,
    "--prediction",
    "masks",
    "-o",
    "scores",
    "--no-surface",
    "--montages",
    1,
)

# %% [markdown]
# ## tensorflow-datasets
#
# A data set as ArrayRecord files, written and read without TensorFlow: one folder to copy, also
# in a bucket. `--config.data.tfds` takes the name of a build below `$TFDS_DATA_DIR`, or its
# folder.

# %%
medjax("ingest", "tfds", "--folder", DATA, "--out", "tfds")

# %%
import os

os.environ["TFDS_DATA_DIR"] = str(Path("tfds").resolve())
name = next(Path("tfds/folders").iterdir()).name
config = engine.config("configs/multitalent.py:unet_small", changes | {"train.steps": 2})
config.data.tfds = name
config.evaluate.on = False
engine.train(config, "runs/records")
batch = next(engine.stream(config, "runs/records"))
print({key: value.shape for key, value in batch.items()})
