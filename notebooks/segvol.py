# %% [markdown]
# # Segmentation by text, points and boxes
#
# SegVol segments what it is asked for: a class by its name, or the object around a point or in a
# box. A small network is trained here for a few steps on synthetic scans, to show the way; after
# 2000 steps it finds the large organs.

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

changes = {
    "data.phantom_cases": 5,
    "train.steps": 12,
    "train.log_every": 3,
    "train.validate_every": 0,
    "optim.warmup_steps": 2,
    "evaluate.on": False,
}
config = medjax.config("configs/segvol.py:demo", changes)
run = medjax.train(config, "runs/segvol")
print("loss", [round(line["loss"], 3) for line in run.metrics if "loss" in line])

# %% [markdown]
# ## Ask a scan
#
# The scan is encoded once; then every question costs a pass of the decoder. Coordinates are those
# that a viewer shows: millimetres, x to the patient's left (RAS).

# %%
import nibabel as nib
import numpy as np

folder = run.workdir / "phantoms" / "Task01_PhantomCT"
scan = nib.load(sorted((folder / "imagesTr").glob("*.nii.gz"))[0])
label = nib.load(sorted((folder / "labelsTr").glob("*.nii.gz"))[0])
session = medjax.Predictor(run.workdir, corpus="PhantomCT").open(scan)
liver = session.segment(text="liver")
print("liver by text:", int(liver.sum()), "voxels")

# %% [markdown]
# A point in the middle of the reference, and its box:

# %%
voxels = np.argwhere(np.asarray(label.dataobj) == 1)
middle = voxels[np.abs(voxels - voxels.mean(0)).sum(1).argmin()]
point = nib.affines.apply_affine(label.affine, middle)
corners = nib.affines.apply_affine(label.affine, [voxels.min(0), voxels.max(0)])
box = (*corners.min(0), *corners.max(0))
found = session.segment(
    name="lesion", points=[tuple(map(float, point))], box=tuple(map(float, box))
)
print("by point and box:", int(found.sum()), "voxels; reference", len(voxels))

# %% [markdown]
# A click corrects the last object, and can be taken back:

# %%
after = session.click(tuple(map(float, corners[0])), positive=False)
print("after a negative click:", int(after.sum()))
print("undone:", bool((session.undo() == found).all()))

# %% [markdown]
# ## The same on the command line
#
# `medjax predict -m runs/segvol -i scan.nii.gz -o masks --text liver --object lesion --point
# 12.5,-30,88` writes both objects into one label map. `medjax prompted -m runs/segvol` scores
# every way to ask against what the prompts alone would score.
