"""One colour per class, the same in every picture: previews, montages, viewer, curves.

In: names of classes. Out: (r, g, b) from 0 to 1. A common structure has a colour of its own; any
other class gets one by its name, which depends on the other classes only where two of them would
have the same.
"""

import hashlib
from collections.abc import Iterable, Mapping

RGB = tuple[float, float, float]
# Okabe and Ito's seven, then colours as far as possible from all before them in CIELAB (lightness
# 42 to 93, chroma above 28), so that they stand out on a grey scan: 26 apart at least
PALETTE = (
    "#E69F00 #56B4E9 #009E73 #F0E442 #D55E00 #CC79A7 #0072B2 #870FFF #00FF00 #FF00C3 "
    "#FF005A #9678FF #78692D #4BA500 #E1F0B4 #00FF96 #00FFFF #FFA587 #FF0000 #B4FF3C "
    "#B43C3C #A53CA5 #C3B4FF #F000FF #D20078 #96960F #FF96FF #A5F087 #FFD278 #007878"
).split()
COMMON = (  # the names at their place in the palette
    "liver",
    "spleen",
    "right kidney",
    "left kidney",
    "stomach",
    "pancreas",
    "portal and splenic vein",
    "bladder",
    "gallbladder",
    "aorta",
    "liver tumour",
    "inferior vena cava",
    "bone",
    "spine",
    "right lung",
    "left lung",
    "oesophagus",
    "duodenum",
    "kidney tumour",
    "colon",
    "heart",
    "prostate",
    "right adrenal gland",
    "left adrenal gland",
    "pancreas tumour",
    "kidney",
    "uterus",
    "lung",
    "hippocampus",
    "brain",
)
SAME = {  # other spellings
    "esophagus": "oesophagus",
    "liver tumor": "liver tumour",
    "kidney tumor": "kidney tumour",
    "pancreas tumor": "pancreas tumour",
    "postcava": "inferior vena cava",
    "ivc": "inferior vena cava",
    "gall bladder": "gallbladder",
    "kidney right": "right kidney",
    "kidney left": "left kidney",
    "lung right": "right lung",
    "lung left": "left lung",
    "right adrenal": "right adrenal gland",
    "left adrenal": "left adrenal gland",
    "adrenal gland right": "right adrenal gland",
    "adrenal gland left": "left adrenal gland",
    "urinary bladder": "bladder",
}


def of_classes(names: Iterable[str]) -> dict[str, RGB]:
    """Name -> colour, each another one for up to 30 names; further ones are shades of them.

    Args:
      names: all classes of a label space or corpus, not those alone that a picture shows. Order and
        repetition do not matter.
    """
    wanted, found, taken = sorted(set(names)), {}, set()
    for known in (True, False):  # common structures keep their colours
        for name in wanted:
            word = _plain(name)
            if (word in COMMON) != known:
                continue
            place = COMMON.index(word) if known else _number(word)
            found[name] = _free(place, taken)
            taken.add(found[name])
    return {name: shade(place) for name, place in found.items()}


def of_labels(names: Mapping[int, str], ids: Iterable[int] = ()) -> dict[int, RGB]:
    """Label value -> the colour of its class.

    Args:
      names: value -> class. ids: further values, which are called "label 7".
    """
    called = {**{int(i): f"label {i}" for i in ids if int(i) not in names}, **names}
    colour = of_classes(called.values())
    return {i: colour[name] for i, name in called.items()}


def shade(place: int) -> RGB:
    """The colour at a place of the palette; behind its end the same ones, darker and darker."""
    text = PALETTE[place % len(PALETTE)]
    share = 0.72 ** (place // len(PALETTE))
    red, green, blue = (int(text[k : k + 2], 16) / 255 * share for k in (1, 3, 5))
    return red, green, blue


def _plain(name: str) -> str:
    word = " ".join(name.lower().replace("_", " ").split())
    return SAME.get(word, word)


def _number(word: str) -> int:
    """A place in the palette that depends on the word alone."""
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big") % len(PALETTE)


def _free(place: int, taken: set[int]) -> int:
    """The first free place from this one on: in the palette, else in its next, darker copy."""
    size = len(PALETTE)
    start = 0
    while True:
        for k in range(size):
            found = start + (place + k) % size
            if found not in taken:
                return found
        start += size
