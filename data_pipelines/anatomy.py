"""One spelling per structure: corpora write "postcava", "gall bladder", "kidney_left"; label spaces
should not.
"""

import re

ALIASES = {
    "arota": "aorta",
    "esophagus": "oesophagus",
    "gall bladder": "gallbladder",
    "ivc": "inferior vena cava",
    "postcava": "inferior vena cava",
    "vena cava": "inferior vena cava",
    "portal vein and splenic vein": "portal and splenic vein",
    "prostate/uterus": "prostate or uterus",
    "urinary bladder": "bladder",
    "small intestine": "small bowel",
    "intestine": "small bowel",
    "right adrenal": "right adrenal gland",
    "left adrenal": "left adrenal gland",
}


def canonical(name: str) -> str:
    """The spelling of a structure in medjax: British, words apart, the side first.

    >>> [canonical(n) for n in ("kidney_left", "postcava", "rib_right_1")]
    ['left kidney', 'inferior vena cava', 'right rib 1']
    >>> [canonical(n) for n in ("lung_upper_lobe_left", "liver tumor")]
    ['left lung upper lobe', 'liver tumour']
    """
    words = name.replace("_", " ").replace("-", " ").split()
    sides = [w for w in words if w.lower() in ("left", "right")]
    text = " ".join(
        [s.lower() for s in sides] + [w for w in words if w.lower() not in ("left", "right")]
    )
    text = re.sub(r"\btumor(s?)\b", r"tumour\1", text)
    return ALIASES.get(text.lower(), text)
