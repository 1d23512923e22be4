"""Does every class that a corpus claims to annotate occur at all? A class that never does teaches the network that it does not exist.

In: prepared cases. Out: the names of annotated classes without a single voxel.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from medjax.data import store
from medjax.errors import LabelError
from medjax.labels import Corpus


def absent_classes(corpus: Corpus, root: str | os.PathLike, cases: Iterable[str] | None = None) -> tuple[str, ...]:
    """Annotated classes of a corpus (or view) that no prepared case holds.

    Args:
      root: the store. cases: names to look at; default all that are prepared. Unlabelled cases count for nothing; without any labelled
        case nothing can be said, and nothing is returned.
    """
    seen: set[int] = set()
    labelled = False
    for name in store.list_cases(root, corpus.store) if cases is None else cases:
        meta: Mapping = json.loads((Path(root) / corpus.store / name / "case.json").read_text())
        if meta["labelled"]:
            labelled = True
            seen |= {int(i) for i, count in meta["voxels"].items() if count}
    return tuple(name for name in corpus.annotated if not seen & set(corpus.ids_of(name))) if labelled else ()


def check_occurrence(corpus: Corpus, root: str | os.PathLike, cases: Iterable[str] | None = None) -> None:
    """`LabelError` with the explanation, if `absent_classes` finds any."""
    if absent := absent_classes(corpus, root, cases):
        values = {name: [corpus.values[i] for i in corpus.ids_of(name)] for name in absent}
        raise LabelError(
            f"said to be annotated, but no voxel of it in any case: {', '.join(absent)}",
            path=corpus.name, found=f"nowhere the values {values}",
            expected="at least one voxel, or the network learns that the class never exists",
            fix='correct the label values, or leave the class out of "annotated" in the "medjax" block of dataset.json (of the view, '
                'the config)',
        )  # fmt: skip
