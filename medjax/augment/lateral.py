"""Label ids that are exchanged when a scan is mirrored across the body's midline.

In: the labels of the corpora and pairs of class names. Out: pairs of dense ids per corpus, for
`augment/nnunet.py`. Two ids form a pair if replacing every class by its partner turns the class set
of one into that of the other; ids without a lateral class are unchanged.
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
    """Pairs of class names that differ only in left and right.

    Recognised: "kidney_left", "left kidney", "kidney L".

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
    """Pairs of dense ids to exchange, per corpus.

    Args:
      pairs: pairs of class names, or "auto" for `find_pairs` in each corpus.

    Raises: `UsageError` for a class that no corpus has; `LabelError` if the mirrored class set of
      an id has no id (for example if only one kidney of a pair is annotated).
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
