# %% [markdown]
# # medjax in five minutes
#
# A first mask from a model that medjax brings along, then a training of your own, on synthetic
# scans. No data are needed.

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

# %% [markdown]
# ## A first mask
#
# `medjax demo` on the command line does the same: it draws a CT, an MRI and a contrast-enhanced
# MRI of bodies that the model has not seen, segments and scores them, and writes `report.html`
# with a viewer.

# %%
import medjax
from medjax.commands.demo import MODEL, demo

shown = demo("first")
print(f"mean Dice {shown.mean:.2f}; open {shown.page}")

# %% [markdown]
# The scan, the reference and the prediction:

# %%
from medjax import show

picture = sorted((shown.folder / "evaluation" / "montages").glob("*.png"))[0]
try:
    from IPython.display import HTML, display

    display(HTML(show.picture(picture)))
except ImportError:
    print(picture)

# %% [markdown]
# ## The same from Python
#
# A `Predictor` is loaded and compiled once, and reads paths, nibabel images, or arrays with their
# affine. The model has learned three annotation protocols; `corpus` chooses whose label values
# the mask has.

# %%
scan = next((shown.folder / "phantoms" / "Task01_PhantomCT" / "imagesTr").glob("*.nii.gz"))
predictor = medjax.Predictor(MODEL, corpus="PhantomCT")
mask = predictor.predict(scan)
print(mask.shape, predictor.labels)

# %%
liver = predictor.probabilities(scan)["liver"]
print(f"liver: {(liver > 0.5).sum():,} voxels with more than 50 %")

# %% [markdown]
# ## A training
#
# Every setting is a field. The demo recipe takes minutes; here a narrow network learns for a few
# steps, to show what happens. Give it `train.steps=1000` and 16 features, and it finds the
# organs.

# %%
config = medjax.config("configs/multitalent.py:demo", {"train.steps": 30, "data.phantom_cases": 5})
config.model.base_features = 8
config.evaluate.montages = 1
run = medjax.train(config, "runs/quick")
run

# %%
print(run.metrics[-1]["step"], "steps; last loss", round(run.metrics[-1]["loss"], 2))
print("report:", run.report)

# %% [markdown]
# ## The network is a function
#
# `apply(params, image)` is pure: `jax.jit`, `jax.grad` and `jax.vmap` take it.

# %%
import jax
import numpy as np

model = run.load()
patch = np.zeros((1, *model.config.train.patch, 1), np.float32)
logits = jax.jit(model.apply)(model.params, patch)["logits"]
print(logits.shape, model.classes)
