"""`config.evaluate.during`: Dice of whole held-out volumes while a network trains.

In: the config, plan and some held-out cases, and the parameters of the moment. Out: class -> mean
Dice, for the loop's record. The validation of the loop scores patches, half of which are drawn for
their foreground; this is what the final evaluation will measure, on a few cases.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from medjax.corpora.inputs import Case
from medjax.errors import MedjaxError
from medjax.labels import Corpus, LabelSpace
from medjax.metrics import channels
from medjax.metrics.counts import Counts
from medjax.prepare.plan import Plan
from medjax.prompts.request import Request
from medjax.runs.settings.schema import Config
from medjax.runs.trained import Trained, load_predictor
from medjax.scans import formats


class Volumes:
    """Predicts the same cases at every call, with one compiled program for all of them.

    Args:
      config, space, plan: of the run. workdir: for messages.
      held: corpus and its labelled held-out cases; the first `evaluate.during_cases` of each are
        predicted.
    """

    def __init__(
        self,
        config: Config,
        space: LabelSpace,
        plan: Plan,
        workdir: Path,
        held: Sequence[tuple[Corpus, Sequence[Case]]],
    ):
        count = config.evaluate.during_cases
        self.facts = (workdir, config, space, plan)
        self.held = [(corpus, tuple(cases)[:count]) for corpus, cases in held if cases]
        self.segmenter: Any = None

    def __call__(self, params: Any) -> dict[str, float]:
        """Class (with several corpora CORPUS/CLASS) -> mean Dice of its own channel over the cases
        that have it in the reference or the prediction.

        All processes call it; the first one predicts, the others return nothing.
        """
        params = _whole(params)
        if jax.process_index():
            return {}
        if self.segmenter is None:
            workdir, config, space, plan = self.facts
            device = "cpu" if jax.default_backend() == "cpu" else ""
            current = Trained(workdir, config, space, plan, current=params)
            self.segmenter = load_predictor(current, device=device)
        else:
            self.segmenter.networks[0].renew(params)
        found: dict[str, list[float]] = {}
        for corpus, cases in self.held:
            for name, dice in self._scores(corpus, cases):
                key = f"{corpus.name}/{name}" if len(self.held) > 1 else name
                found.setdefault(key, []).append(dice)
        return {name: math.fsum(dice) / len(dice) for name, dice in found.items()}

    def _scores(self, corpus: Corpus, cases: Sequence[Case]) -> list[tuple[str, float]]:
        space = self.segmenter.model.space
        channel_of: Mapping[str, str] = dict(space.names[space.corpus_index(corpus.name)])
        found = []
        for case in cases:
            try:
                volume = formats.read_case(case.images)
                masks = self.segmenter.segment(volume, Request(corpus.name)).masks
                counted = channels.count(case, volume, masks, corpus, channel_of)
            except MedjaxError:  # reported by the evaluation; a training does not end for it
                continue
            scores = {name: Counts(*n).dice for name, n in counted.items()}
            found += [(name, dice) for name, dice in scores.items() if not math.isnan(dice)]
        return found


def _whole(params: Any) -> Any:
    """The parameters on the host, gathered if they are spread over processes."""

    def gathered(leaf: Any) -> np.ndarray:
        if leaf.is_fully_addressable:
            return np.asarray(leaf)
        spec = jax.sharding.PartitionSpec()
        everywhere = jax.sharding.NamedSharding(leaf.sharding.mesh, spec)
        return np.asarray(jax.jit(lambda x: x, out_shardings=everywhere)(leaf).addressable_data(0))

    return jax.tree.map(gathered, params)
