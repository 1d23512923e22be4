"""The section `text` of a config."""

from collections.abc import Mapping

from medjax.runs.settings.section import Section, section, setting


@section
class Text(Section):
    """Vectors of class names, for networks that read texts."""

    source: str = setting("", "clip, file, hash or learned; empty: the network reads no texts")
    file: str = setting("", "CLIP's weights, or NAME.text.npz made by `medjax text`")
    template: str = setting(
        "A computerized tomography of a {}.", 'text of a name, with "{}" for it, of clip'
    )
    pooled: bool = setting(True, "vectors before CLIP's projection (SegVol), not behind it (MAST)")
    sentences: Mapping[str, str] = setting(
        dict, "name -> its text in place of the template, of clip and hash", listed=False
    )
