"""What a caller wants of a model: the protocol to follow, the classes, and what guides the network.

In: names and values from the Python interface or the command. Out: one frozen value that is handed
down to the network's inputs (`infer.model.Model.facts`). On the host; knows no network.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from medjax import files
from medjax.labels import LabelSpace
from medjax.prompts.read import Prompt


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """What is to be predicted of a scan.

    Attributes:
      corpus: name of the corpus whose annotation protocol is followed: its spacing, channels and
        label values. Only the border accepts an empty name, see `runs.predict.protocol`.
      classes: names of the classes to predict; None: those that the corpus annotates.
      task: name of the task, for networks that read one; empty: that of the corpus.
      prompts: inputs of the network beside the standard facts, by the name that the network
        declares (`models.context.Entry`): values of one case without a batch axis. Coordinates are
        voxels, and arrays of voxels have the shape, of the network's grid
        (`infer.scorer.Scorer.prepare`). None: none.
      text: class name -> its description, for networks that read words.
      adapter: name of the adapter to apply; empty: none.
      objects: what a promptable network is asked for, in the coordinates of the user; empty: the
        classes, by text.
    """

    corpus: str
    classes: tuple[str, ...] | None = None
    task: str = ""
    prompts: Mapping[str, Any] | None = None
    text: Mapping[str, str] = dataclasses.field(default_factory=dict)
    adapter: str = ""
    objects: tuple[Prompt, ...] = ()

    def __post_init__(self):
        if self.classes is not None:
            object.__setattr__(self, "classes", tuple(self.classes))

    def wanted(self, space: LabelSpace) -> tuple[str, ...]:
        """The classes asked for, by default those that the corpus annotates, in channel order.

        Raises: `LabelError` for a corpus or class that the label space does not have.
        """
        known = space.known[space.corpus_index(self.corpus)]
        for name in self.classes or ():
            space.class_index(name)
        return tuple(
            name
            for name, own in zip(space.classes, known, strict=True)
            if (own if self.classes is None else name in self.classes)
        )

    def settings(self) -> dict:
        """What a finished case must agree with to be left alone; JSON-ready.

        The classes are those of the files that are written, see `infer.cases.Files.settings`;
        fields that are not given are left out, so that predictions of earlier versions agree.
        """
        given = {"task": self.task, "text": dict(self.text), "adapter": self.adapter}
        given["prompts"] = {
            name: f"{array.dtype} {array.shape} {files.checksum(np.ascontiguousarray(array))}"
            for name, value in sorted((self.prompts or {}).items())
            for array in [np.asarray(value)]
        }
        given["objects"] = [one.settings() for one in self.objects]
        return {"corpus": self.corpus} | {name: value for name, value in given.items() if value}
