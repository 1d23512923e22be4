"""What rows are built from: small data sets in several layouts, scans, a run without training,
archives, a trained run.

Everything is synthetic. Folders of `shared` must not be changed; a row that damages one takes
`copied`.
"""

import hashlib
import json
import shutil
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np

from benchmarks.attack.harness import Said, Site, medjax, shared, train
from tests.support import raw as make_raw
from tests.support.run import ORGANS as ORGANS
from tests.support.run import make_run

SHAPE = (12, 16, 14)
CONFIG = '''"""A training of a few steps."""

from configs.base import base_config, ordered


def get_config(variant=None):
    c = base_config()
    with c.unlocked():
        c.model = ordered(dict(
            name="unet", features=(2, 3), strides=((1,) * 3, (2,) * 3),
            kernels=((1,) * 3, (3,) * 3), convs_per_stage=1, convs_per_stage_decoder=1,
            deep_supervision=False,
        ))
        c.augment = ordered(dict(on=False))
    c.train.patch, c.train.batch, c.train.steps = (8, 8, 8), 2, 4
    c.train.validate_every, c.train.checkpoint_every, c.train.log_every = 2, 2, 1
    c.train.validation_batches = 1
    c.sampler.threads = 1
    c.data.workers = 1
    c.data.split.folds, c.data.split.fold = 2, 0
    c.evaluate.on = False
    return c.lock()
'''


def image(seed: int = 0, shape=SHAPE, kind: str = "MR", **more) -> tuple[np.ndarray, np.ndarray]:
    """A (z, y, x) scan and its label map with the values 1 and 2."""
    array, label = make_raw.make_case(shape, (1, 2), kind=kind, seed=seed, **more)
    return array[..., 0], label


def scan(path: Path, seed: int = 0, shape=SHAPE, **more) -> Path:
    """A CT scan on disk."""
    make_raw.save(path, image(seed, shape, "CT")[0], **more)
    return path


def corpus(folder: Path, n: int = 2, **more) -> Path:
    """A data set with dataset.json."""
    return make_raw.write_corpus(folder, n=n, shape=SHAPE, **more)


def pairs(folder: Path, n: int = 3) -> Path:
    """A folder per case, as KiTS has it."""
    for i in range(n):
        array, label = image(i)
        make_raw.save(folder / f"case_{i:03d}" / "imaging.nii.gz", array)
        make_raw.save(folder / f"case_{i:03d}" / "segmentation.nii.gz", label)
    return folder


def bids(folder: Path, n: int = 2) -> Path:
    """A folder per subject, manual segmentations under derivatives."""
    for i in range(n):
        array, label = image(i)
        make_raw.save(folder / f"sub-{i:02d}" / "anat" / f"sub-{i:02d}_T1w.nii.gz", array)
        place = folder / "derivatives" / "manual" / f"sub-{i:02d}" / "anat"
        make_raw.save(place / f"sub-{i:02d}_desc-manual_dseg.nii.gz", label)
    (folder / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.9.0"}')
    (folder / "derivatives" / "manual" / "dseg.tsv").write_text(
        "index\tname\n0\tbackground\n1\torgan\n2\ttumour\n"
    )
    return folder


def perclass(folder: Path, n: int = 2) -> Path:
    """A folder per case with a mask per class, as TotalSegmentator has it."""
    for i in range(n):
        array, label = image(i, kind="CT")
        make_raw.save(folder / f"s{i}" / "ct.nii.gz", array)
        for value, name in ((1, "organ"), (2, "tumour")):
            make_raw.save(
                folder / f"s{i}" / "segmentations" / f"{name}.nii.gz",
                (label == value).astype(np.uint8),
            )
    return folder


def described(folder: Path, name: str = "Toy", case: str = "case_0", **fields) -> Path:
    """A corpus.json with one case; returns the folder."""
    array, label = image(0)
    make_raw.save(folder / "i.nii.gz", array)
    make_raw.save(folder / "l.nii.gz", label)
    labels = [[0, []], [1, ["organ"]], [2, ["tumour"]]]
    about = {
        "name": name,
        "labels": labels,
        "annotated": ["organ", "tumour"],
        "modality": "MR",
        "channels": ["MRI"],
        "ignore": None,
    }
    row = {"name": case, "images": ["i.nii.gz"], "label": "l.nii.gz", "patient": "p"}
    (folder / "corpus.json").write_text(
        json.dumps({"format": 1, "corpus": about, "cases": [row]} | fields)
    )
    return folder


def run(site: Site) -> Path:
    """A run folder with random weights; CT, classes organ and tumour."""
    return shared(site, "run", lambda folder: make_run(folder))


def archive(site: Site) -> Path:
    """The run as a weights archive."""
    source = run(site)
    return shared(site, "model.medjax", lambda path: _export(source, path, "weights"))


def function(site: Site) -> Path:
    """The run as a function archive."""
    source = run(site)
    return shared(site, "function.medjax", lambda path: _export(source, path, "function"))


def _export(source: Path, path: Path, kind: str) -> None:
    from medjax.runs.exchange.export import export

    made = path.with_name(f"x-{path.name}.medjax" if path.suffix != ".medjax" else path.name)
    export(source, made, kind, **({"platforms": ("cpu",)} if kind == "function" else {}))
    if made != path:
        made.rename(path)


def copied(source: Path, target: Path) -> Path:
    """A copy that may be damaged."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, target, symlinks=True) if source.is_dir() else shutil.copyfile(
        source, target
    )
    return target


def predict(model: Path, source: Path, out: Path, *more: object) -> Said:
    """`medjax predict` in this process."""
    return medjax("predict", "-m", model, "-i", source, "-o", out, "--no-html", *more)


def mask(path: Path) -> np.ndarray:
    """The voxels of a mask, (z, y, x)."""
    return np.asarray(nib.load(path).dataobj).T


def config(site: Site) -> Path:
    """The config of a training of four steps."""
    (path := site.path("tiny.py")).write_text(CONFIG)
    return path


def training(site: Site, data: Path, workdir: Path, *more: object) -> tuple[str, ...]:
    """The arguments of a training."""
    return (
        f"--config={config(site)}",
        f"--workdir={workdir}",
        f"--config.data.folders={data}",
        *map(str, more),
    )


def trained(site: Site) -> tuple[Path, Path]:
    """(raw data, run folder) of a training of four steps that has checkpoints of steps 2 and 4 and
    its own store, both to be damaged.
    """

    def build(folder: Path) -> None:
        folder.mkdir()
        said = train(*training(site, corpus(folder / "Task01_Toy", n=4), folder / "run"))
        assert said.code == 0, said.text

    source = shared(site, "trained", build)
    target = copied(source, site.path("trained"))
    return target / "Task01_Toy", target / "run"


def again(site: Site, raw: Path, folder: Path, *more: object) -> Said:
    """The same training command once more."""
    return train(*training(site, raw, folder, *more))


def rewritten(
    source: Path,
    target: Path,
    change: Mapping[str, object] = {},
    *,
    manifest: Mapping = {},
    raw: bool = False,
) -> Path:
    """An archive with some members changed, digests made to match.

    Args:
      change: member -> bytes, or a function of the old bytes or of the parsed JSON. manifest:
        fields set in it. raw: digests stay.
    """
    with zipfile.ZipFile(source) as old:
        members = {name: old.read(name) for name in old.namelist()}
    for name, value in change.items():
        members[name] = value if isinstance(value, bytes) else value(members[name])
    head = json.loads(members.pop("manifest.json"))
    if not raw:
        head["members"] = {
            name: {"sha256": hashlib.sha256(c).hexdigest(), "bytes": len(c)}
            for name, c in sorted(members.items())
        }
    with zipfile.ZipFile(target, "w") as new:
        for name, content in {
            "manifest.json": json.dumps(head | dict(manifest)).encode(),
            **members,
        }.items():
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.compress_type = (
                zipfile.ZIP_DEFLATED if name.endswith(".json") else zipfile.ZIP_STORED
            )
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            new.writestr(entry, content)
    return target


def edited(function):
    """A change of a JSON member by a function that alters the parsed value in place."""

    def change(content: bytes) -> bytes:
        value = json.loads(content)
        function(value)
        return json.dumps(value).encode()

    return change


def edit(path: Path, function) -> None:
    """Alters a JSON file in place."""
    path.write_bytes(edited(function)(path.read_bytes()))
