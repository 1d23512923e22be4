"""Names: what that of a file says (image or label, which case), and several in a sentence."""

import re
from collections.abc import Sequence

IMAGE_WORDS = r"img|image|images|imgs|volume|vol|scan|imaging|ct|mr|mri|orig|data"
LABEL_WORDS = (
    r"label|labels|lbl|seg|segm|segs|segmentation|segmentations|mask|masks|gt|groundtruth"
    r"|annotation|annotations|manual|gtv"
)


def key_of(name: str) -> str:
    """A file's stem without the words for image or label: label0001 -> 0001; volume-3 -> 3."""
    name = re.sub(r"_0000$", "", name)
    parts = [
        p
        for p in re.split(r"[_\-. ]+", name)
        if p and not re.fullmatch(f"(?:{IMAGE_WORDS}|{LABEL_WORDS})", p, re.IGNORECASE)
    ]
    parts = [
        re.sub(rf"^(?:{IMAGE_WORDS}|{LABEL_WORDS})(?=\d)", "", p, flags=re.IGNORECASE)
        for p in parts
    ]
    return "_".join(parts).lower()


def is_label_name(name: str) -> bool:
    """Whether a file's stem names a label: segmentation-3, BraTS_001_seg, mask."""
    parts = re.split(r"[_\-. ]+", name)
    word = rf"(?:{LABEL_WORDS})\d*"
    return bool(
        re.fullmatch(word, parts[0], re.IGNORECASE) or re.fullmatch(word, parts[-1], re.IGNORECASE)
    )


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names, separated by commas, and "..." if there are more."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
