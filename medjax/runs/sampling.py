"""The sampler section of a config: what it decides, and its recipe.

In: `config.sampler`. Out: the part that determines the weights; the arguments of
`sample.draw.Recipe` and `Pool`.
"""

import dataclasses
import os
from collections.abc import Sequence

from medjax.errors import UsageError, did_you_mean
from medjax.labels import Corpus
from medjax.runs.settings.schema import Sampler
from medjax.runs.settings.section import fields_of
from medjax.sample import draw, pool

MOST = 12  # threads by default
ON_HOST = ("threads", "workers")  # how fast the stream is read, never what it holds
# fields that earlier run folders lack, with the value that they were made with
ADDED = {"version": 1, "whole": 0.0, "whole_image": "spline", "whole_label": "vote"}
ADDED |= {"weigh": "cases", "ratios": {}, "still": ()}


def decisive(sampler: Sampler) -> dict:
    """The fields that determine the weights; equal for a run folder without the later fields."""
    return {
        name: value
        for name, value in sampler.as_given().items()
        if name not in ON_HOST and not (name in ADDED and value == ADDED[name])
    }


def threads(sampler: Sampler) -> int:
    """Threads that read patches; by default the cores per local device, `MOST` at most."""
    if sampler.threads >= 0:
        return sampler.threads
    import jax

    return min(max((os.cpu_count() or 1) // jax.local_device_count(), 1), MOST)


def pool_arguments(sampler: Sampler, corpus: Corpus) -> dict:
    """The arguments of `sample.draw.Pool` that the section decides."""
    given = sampler.ratios.get(corpus.name, {})
    return {
        "ratios": pool.ratios(corpus, given) if given else (),
        "still": corpus.name in sampler.still,
    }


def check_names(sampler: Sampler, corpora: Sequence[Corpus]) -> None:
    """`UsageError` for a corpus in `ratios` or `still` that is not trained on, and for `still` in a
    stream that leaves rotation and scaling to the device.
    """
    known = [corpus.name for corpus in corpora]
    for field in ("ratios", "still"):
        for name in getattr(sampler, field):
            if name not in known:
                raise UsageError(
                    f"config.sampler.{field} names an unknown corpus {name!r}",
                    fix=did_you_mean(name, known),
                )
    if sampler.still and (sampler.version or ADDED["version"]) < draw.MOVING:
        raise UsageError(
            "config.sampler.still needs a newer stream",
            found=f"sampler.version={sampler.version}",
            expected=f"{draw.MOVING} or newer, which a new run begins with",
        )


def recipe_arguments(sampler: Sampler) -> dict:
    """The arguments of `sample.draw.Recipe` that the section decides."""
    known = {field.name for field in dataclasses.fields(draw.Recipe)}
    found = {name: getattr(sampler, name) for name in fields_of(Sampler) if name in known}
    return found | {"version": sampler.version or ADDED["version"]}
