"""Left and right under mirroring: which label ids trade places when a scan is mirrored across the
body's midline.

In: the corpora's labels and pairs of class names. Out: per corpus pairs of dense ids, for
`augment/nnunet.py`. The class sets of a pair of ids become each other when every class is replaced
by its partner; ids without a lateral class stay.
"""

import re
from collections.abc import Sequence

from medjax.errors import LabelError, UsageError, did_you_mean
from medjax.labels import Corpus

AUTO = "auto"
_SIDE = re.compile(r"(?<![a-z])(left|right|l|r)(?![a-z])", re.IGNORECASE)
_OTHER = {"left": "right", "right": "left", "l": "r", "r": "l"}

Pairs = tuple[tuple[str, str], ...]


def find_pairs(classes: Sequence[str]) -> Pairs:
    """Pairs of class names that differ only in left and right ("kidney_left", "left kidney",
    "kidney L").

    >>> find_pairs(["liver", "kidney_left", "kidney_right"])
    (('kidney_left', 'kidney_right'),)
    """
    by_name, found = {name.lower(): name for name in classes}, []
    for name in classes:
        partner = by_name.get(_SIDE.sub(lambda m: _OTHER[m[0].lower()], name.lower()), "")
        if partner and partner != name and (partner, name) not in found:
            found.append((name, partner))
    return tuple(found)


def swaps(
    corpora: Sequence[Corpus], pairs: str | Sequence[Sequence[str]]
) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Per corpus the pairs of dense ids that trade places.

    Args:
      pairs: pairs of class names, or "auto" for `find_pairs` in each corpus.

    Raises: `UsageError` for a class that no corpus has; `LabelError` if a corpus has an id whose
      mirrored class set no id has (for example one kidney of a pair is annotated and the other is
      not).
    """
    if pairs != AUTO:
        known = {name for corpus in corpora for name in corpus.classes}
        for name in (name for pair in pairs for name in pair):
            if name not in known:
                raise UsageError(
                    f"unknown class {name!r} in the left-right pairs", fix=did_you_mean(name, known)
                )
    return tuple(
        _swaps(corpus, find_pairs(corpus.classes) if pairs == AUTO else pairs) for corpus in corpora
    )


def _swaps(corpus: Corpus, pairs: Sequence[Sequence[str]]) -> tuple[tuple[int, int], ...]:
    partner = {a: b for left, right in pairs for a, b in ((left, right), (right, left))}
    sets = [frozenset(names) for _, names in corpus.labels]
    found = []
    for i, names in enumerate(sets):
        mirrored = frozenset(partner.get(name, name) for name in names)
        if mirrored == names:
            continue
        if mirrored not in sets:
            raise LabelError(
                "a lateral class without its partner cannot be mirrored",
                path=corpus.name,
                found=", ".join(sorted(names)),
                expected=f"also {', '.join(sorted(mirrored))}",
                fix="leave the left-right axis out of augment.mirror_axes",
            )
        if (other := sets.index(mirrored)) > i:
            found.append((i, other))
    return tuple(found)
