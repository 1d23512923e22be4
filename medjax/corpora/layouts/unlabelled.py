"""Images without labels, for verification and for training without annotations.

A folder of scans, or a tree of them.
"""

import os
from pathlib import Path

from medjax.corpora.inputs import Case, find_inputs
from medjax.corpora.layouts.common import UNNAMED, Found, Scan, finish
from medjax.scans.paths import ENDINGS, image_files


def detect(path: Path) -> bool:
    """A scan, or any in the folder or below it."""
    return path.name.endswith(ENDINGS) if path.is_file() else any(True for _ in _folders(path))


def scan(path: Path) -> Scan:
    """A corpus without classes, and a case per scan (`x_0000`, `x_0001` are channels)."""
    cases = find_inputs(
        [str(path)] if path.is_file() else [str(folder) for folder in _folders(path)]
    )
    count = max((len(c.images) for c in cases), default=1)
    channels = tuple(f"{UNNAMED}_{i}" for i in range(count)) if count > 1 else (UNNAMED,)
    return finish(
        Found(path, [Case(c.name, c.images) for c in cases], channels=channels, labels={})
    )


def _folders(path: Path):
    for folder, below, _ in os.walk(path):
        below[:] = sorted(name for name in below if not name.startswith("."))
        if image_files(Path(folder)):
            yield Path(folder)
