"""Raw folders in common layouts -> corpus and cases. One module per layout.

Each module has `detect(path)` and `scan(path)`. The layouts:

    described    corpus.json, written by an ingestion of data_pipelines           corpus_json.py
    msd, nnunet  dataset.json (Medical Segmentation Decathlon, nnU-Net raw)       listed.py
    m3d          M3D-Seg: image.npy, mask_(k, x, y, z).npz, CODE.json             m3d.py
    datalist     MONAI: JSON with "training": [{"image", "label", "fold"}]        datalist.py
    bids         BIDS: sub-*/, derivatives, *_dseg or *_label-NAME_mask           bids.py
    perclass     a binary mask per class, possibly overlapping (TotalSegmentator) perclass.py
    dicom        DICOM series with DICOM-SEG or RTSTRUCT                          dicoms.py
    folders      a folder of images and a folder of label maps                    folders.py
    pairs        image and label map side by side (KiTS, BraTS, LiTS)             pairs.py
    scans        images without labels                                            unlabelled.py

Facts that a layout has no field for (class names, channels, patients) are read from `medjax.json`,
see `corpora/dataset_json.py`.
"""

from pathlib import Path
from types import ModuleType

from medjax.corpora.dataset_json import HINT_FILE, hints
from medjax.corpora.layouts import (
    bids,
    corpus_json,
    datalist,
    dicoms,
    folders,
    listed,
    m3d,
    pairs,
    perclass,
    unlabelled,
)
from medjax.corpora.layouts.common import Scan
from medjax.errors import UsageError, did_you_mean

LAYOUTS: dict[str, ModuleType] = {
    "described": corpus_json,
    "msd": listed,
    "nnunet": listed,
    "m3d": m3d,
    "datalist": datalist,
    "bids": bids,
    "perclass": perclass,
    "dicom": dicoms,
    "folders": folders,
    "pairs": pairs,
    "scans": unlabelled,
}


def detect(path: Path) -> str:
    """Name of the first layout that fits; `UsageError` listing the layouts if none does."""
    for word, layout in LAYOUTS.items():
        if word == "scans" and path.is_dir() and (path / "dataset.json").is_file():
            # a description without its files: the layout reports what is missing
            return "nnunet"
        if layout.detect(path):
            return word
    raise UsageError(
        "no data set in a known layout (no dataset.json, no pair of image and label folders, no "
        "masks, no DICOM)",
        path=path,
        found=", ".join(sorted(p.name for p in path.iterdir() if not p.name.startswith("."))[:8])
        if path.is_dir()
        else "a file",
        expected=f"one of {', '.join(LAYOUTS)}",
        fix="see docs/data.md",
    )


def scan(path: Path, layout: str = "") -> Scan:
    """Corpus, usable cases, and the problems of the other cases.

    Args:
      path: the folder, or the list of a "datalist".
      layout: name of the layout; "" uses medjax.json, or else detects it.
    """
    return LAYOUTS[name_of(path, layout)].scan(path)


def name_of(path: Path, layout: str = "") -> str:
    """The layout that `scan` uses; its arguments and errors."""
    place = path if path.is_dir() else path.parent
    if not layout and (place / HINT_FILE).is_file():
        layout = str(hints(place)[0].get("layout", ""))
    if layout and layout not in LAYOUTS:
        raise UsageError(f"unknown layout {layout!r}", fix=did_you_mean(layout, LAYOUTS))
    return layout or detect(path)
