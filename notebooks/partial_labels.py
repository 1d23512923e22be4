# %% [markdown]
# # Partial labels
#
# Three data sets show the same anatomy and annotate different parts of it. If voxels that a data
# set did not annotate counted as background, the network would be punished for finding the liver
# where nobody drew it. medjax asks each data set what it annotated, and a class that was not
# gives exactly zero gradient.

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
from medjax.corpora.sources import scan_corpus
from medjax.labels import merge
from medjax.phantom.corpora import write_corpora

folders = write_corpora("raw", seed=3, cases=1)
read = [scan_corpus(folder) for folder in folders]
space = merge([corpus for corpus, _, _ in read])

# %% [markdown]
# ## Who annotated what
#
# Classes of one name share a channel (`--config.data.share=per_corpus` keeps them apart). `known`
# says which classes a corpus annotates.

# %%
print(" " * 26, *(corpus.name.removeprefix("Phantom").rjust(4) for corpus in space.corpora))
for name, known in zip(space.classes, space.known.T, strict=True):
    print(name.ljust(26), *(("yes" if yes else "-").rjust(4) for yes in known))

# %% [markdown]
# A label map holds one value per voxel, and a value may stand for several classes: a voxel of the
# left kidney belongs to "left kidney" and "kidney" in the CT corpus; in the MRI corpus the liver
# tumour is a part of the liver.

# %%
for corpus in space.corpora:
    print(corpus.name, {value: names for value, names in corpus.labels if len(names) > 1})

# %% [markdown]
# ## The gradient of what is unknown
#
# One patch of random logits for each corpus, with the same label ids. The loss reads `known`; its
# gradient is zero in every unknown channel, not merely small.

# %%
import jax
import jax.numpy as jnp
import numpy as np

from medjax.losses import cross_entropy, dice

rng = np.random.default_rng(0)
count, classes = len(space.corpora), len(space.classes)
logits = jnp.asarray(rng.normal(size=(count, 8, 8, 8, classes)), jnp.float32)
batch = {
    "label": jnp.asarray(rng.integers(0, 3, size=(count, 8, 8, 8))),
    "table": jnp.asarray(space.table),
    "known": jnp.asarray(space.known),
}
losses = [cross_entropy.make(), dice.make()]


def total(logits):
    """What MultiTalent minimises."""
    return sum(loss({"logits": logits}, batch) for loss in losses)


size = jnp.abs(jax.grad(total)(logits)).max(axis=(1, 2, 3))
assert (np.asarray(size) == 0)[~space.known].all() and (np.asarray(size) > 0)[space.known].any()
print("largest gradient, known:  ", float(size[space.known].max()))
print("largest gradient, unknown:", float(size[~space.known].max()))

# %% [markdown]
# ## What comes of it
#
# The model that medjax brings along was trained in this way. An MRI, whose corpus annotates liver
# and tumour only, can be asked for what was learned on CT: nobody annotated it here, so it cannot
# be scored, but it can be looked at.

# %%
import medjax
from medjax.commands.demo import MODEL

scan = read[1][1][0].images[0]
asked = ("liver", "liver tumour", "spleen", "right kidney", "left kidney", "aorta", "spine")
predictor = medjax.Predictor(MODEL, corpus="PhantomMR", classes=asked)
found = predictor.segment(scan).masks
for name in asked:
    said = "annotated" if name in read[1][0].classes else "learned on another corpus"
    print(f"{name:16} {int(found[name].sum()):8,} voxels   {said}")
