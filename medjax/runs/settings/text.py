"""The section `text` of a config: where the vectors of sentences come from."""

from collections.abc import Mapping

from medjax.runs.settings.section import Section, section, setting


@section
class Text(Section):
    """Vectors of the texts that a network reads, one per task (docs/mast_pro.md)."""

    source: str = setting("", "file, hash (of the sentences' words) or learned")
    file: str = setting("", "NAME.text.npz of `medjax text`, with a vector per task")
    sentences: Mapping[str, str] = setting(dict, "task -> sentence, for the source hash")
