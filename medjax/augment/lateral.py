"""Left and right under mirroring: which classes have a side, and the label ids that are exchanged
when a scan is mirrored across the body's midline.

In: the corpora, and `augment.lateral`: "auto", or pairs of class names. Out: `Sides`: pairs of
dense ids per corpus for the augmentation, or the reason why left and right are not mirrored at all.
Two ids form a pair if replacing every class by its partner turns the class set of one into that of
the other; ids without a lateral class are unchanged.

A class has a side if its name holds a word of `WORDS`, in any case, between separators or capitals:
"kidney_left", "Left Kidney", "KidneyLeft", "kidney L", "Niere links". Not counted are structures
named after a side whose shape tells them apart, and which keep their name in a mirrored body
(`KEEPING`): a left ventricle has the thicker wall wherever it lies.
"""

import dataclasses
import itertools
import re
from collections.abc import Sequence

from medjax.errors import LabelError, UsageError, did_you_mean
from medjax.labels import Corpus

AUTO = "auto"
WORDS = (  # (left, right); of some languages the forms that go with a noun's gender
    (("left", "lt", "lh", "l"), ("right", "rt", "rh", "r")),
    (("links",), ("rechts",)),
    (("linke",), ("rechte",)),
    (("linker",), ("rechter",)),
    (("linkes",), ("rechtes",)),
    (("sinister",), ("dexter",)),
    (("gauche", "gauche"), ("droit", "droite")),
    (("izquierdo",), ("derecho",)),
    (("izquierda",), ("derecha",)),
    (("sinistro",), ("destro",)),
    (("sinistra",), ("destra",)),
)
KEEPING = (  # heart, coronary vessels, lobes and vessels of the liver, colon
    r"(?<!lateral[ _-])ventric",
    "atri",
    "auric",
    "coronar",
    "hepat",
    "liver",
    "colon",
    "colic",
)

Pairs = tuple[tuple[str, str], ...]
Swaps = tuple[tuple[tuple[int, int], ...], ...]


def _opposites() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for one, other in WORDS:
        for left, right in zip(one, other, strict=True):
            found[left] = (*found.get(left, ()), right)
            found[right] = (*found.get(right, ()), left)
    return found


_OTHER = _opposites()
_LETTER = r"[^\W\d_]"
# abbreviations do not count before a number: the vertebra L5 has no side
_SIDE = re.compile(
    rf"(?<!{_LETTER})(?:"
    + "|".join(
        rf"{word}(?!{_LETTER})" if len(word) > 2 else rf"{word}(?!{_LETTER}|\d)"
        for word in sorted(_OTHER, key=len, reverse=True)
    )
    + ")"
)
_KEEPS = re.compile("|".join(KEEPING))


@dataclasses.dataclass(frozen=True)
class Sides:
    """What mirroring left and right does to a run's labels.

    Attributes:
      swap: pairs of dense ids to exchange, per corpus.
      pairs: the names of the classes that change places, over all corpora.
      reason: why left and right are not mirrored; empty if they are.
    """

    swap: Swaps = ()
    pairs: Pairs = ()
    reason: str = ""

    def __bool__(self) -> bool:
        return bool(self.pairs or self.reason)


def has_side(name: str) -> bool:
    """Whether a class lies on one side of the body, as far as its name says."""
    key = _key(name)
    return bool(_SIDE.search(key)) and not _KEEPS.search(key)


def find_pairs(classes: Sequence[str]) -> Pairs:
    """Pairs of class names that differ only in left and right; see the module's text.

    >>> find_pairs(["liver", "kidney_left", "kidney_right", "left ventricle", "right ventricle"])
    (('kidney_left', 'kidney_right'),)
    """
    by_key, found = {_key(name): name for name in classes}, []
    for name in filter(has_side, classes):
        for key in _mirrored(_key(name)):
            partner = by_key.get(key, "")
            if partner and partner != name and not any(name in pair for pair in found):
                found.append((name, partner))
    return tuple(found)


def sides(
    corpora: Sequence[Corpus], given: str | Sequence[Sequence[str]], axis_known: bool = True
) -> Sides:
    """What `augment.lateral` means for some corpora.

    With "auto", left and right are not mirrored where the result could not be labelled: a class
    with a side whose partner the corpus does not annotate, a set of classes whose mirror image has
    no label value, or an unknown left-right axis.

    Args:
      given: pairs of class names, "auto" for `find_pairs` in each corpus, or nothing.
      axis_known: whether it is known which axis is left-right.

    Raises: `UsageError` for other words, for pairs that name a class of no corpus, or with pairs
      and an unknown axis; `LabelError` if the mirrored class set of an id has no id.
    """
    if not given:
        return Sides()
    if isinstance(given, str):
        if given != AUTO:
            raise UsageError(
                f"unknown augment.lateral {given!r}",
                expected="auto, or pairs of class names",
                fix=did_you_mean(given, [AUTO]),
            )
        return _automatic(corpora, axis_known)
    pairs = tuple((left, right) for left, right in given)
    if not axis_known:
        raise UsageError(
            "left and right are known in RAS orientation only",
            fix="name the axis: --config.augment.swap_axis=2",
        )
    return Sides(swaps(corpora, pairs), pairs)


def sentence(
    corpora: Sequence[Corpus], given: str | Sequence[Sequence[str]], axis_known: bool = True
) -> str:
    """What `augment.lateral` does to a run, in one line; empty if no class has a side.

    Arguments and errors: see `sides`.
    """
    found, named = sides(corpora, given, axis_known), sided(corpora)
    if found.reason:
        return f"left and right: not mirrored, because {found.reason}"
    if found.pairs:
        return "left and right: exchanged in mirrored images: " + _some(
            [f"{left} and {right}" for left, right in found.pairs]
        )
    if named:
        return (
            f"left and right: labels stay as they are in mirrored images: {_some(named)} "
            "(augment.lateral=auto exchanges them)"
        )
    return ""


def sided(corpora: Sequence[Corpus]) -> tuple[str, ...]:
    """The annotated classes of all corpora that have a side, by name."""
    names = (name for corpus in corpora for name in corpus.annotated if has_side(name))
    return tuple(dict.fromkeys(names))


def swaps(corpora: Sequence[Corpus], pairs: Sequence[Sequence[str]]) -> Swaps:
    """Pairs of dense ids to exchange, per corpus.

    Args:
      pairs: pairs of class names.

    Raises: `UsageError` for a class that no corpus has; `LabelError` if the mirrored class set of
      an id has no id (for example if only one kidney of a pair is annotated).
    """
    known = {name for corpus in corpora for name in corpus.classes}
    for name in (name for pair in pairs for name in pair):
        if name not in known:
            raise UsageError(
                f"unknown class {name!r} in the left-right pairs", fix=did_you_mean(name, known)
            )
    return tuple(_swaps(corpus, pairs) for corpus in corpora)


def _automatic(corpora: Sequence[Corpus], axis_known: bool) -> Sides:
    found, names = [], []
    for corpus in corpora:
        pairs = tuple(
            pair for pair in find_pairs(corpus.classes) if set(pair) <= set(corpus.annotated)
        )
        paired = {name for pair in pairs for name in pair}
        for name in corpus.annotated:
            if has_side(name) and name not in paired:
                return Sides(reason=f"{name} of {corpus.name} has no annotated partner")
        try:
            found.append(_swaps(corpus, pairs))
        except LabelError as error:
            return Sides(
                reason=f"{error.found} of {corpus.name} has no counterpart among its label values"
            )
        names += [pair for pair in pairs if pair not in names and pair[::-1] not in names]
    if not names:
        return Sides()
    if not axis_known:
        return Sides(reason="the axis is unknown in this orientation (augment.swap_axis names it)")
    return Sides(tuple(found), tuple(names))


def _key(name: str) -> str:
    """A name in lower case, with a space before the capitals within a word."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).casefold()


def _mirrored(key: str) -> list[str]:
    """The names that a key may have on the other side."""
    parts, words = _SIDE.split(key), _SIDE.findall(key)
    return [
        "".join(itertools.chain(*itertools.zip_longest(parts, chosen, fillvalue="")))
        for chosen in itertools.product(*(_OTHER[word] for word in words))
    ]


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


def _some(names: Sequence[str], most: int = 6) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more
