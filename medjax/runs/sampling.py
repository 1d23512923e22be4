"""The sampler section of a config: what it decides, and its recipe.

In: `config.sampler`. Out: the part that determines the weights; the arguments of
`sample.draw.Recipe`.
"""

import dataclasses
import os

from medjax.runs.settings.schema import Sampler
from medjax.runs.settings.section import fields_of
from medjax.sample import draw

MOST = 12  # threads by default
ON_HOST = ("threads", "workers")  # how fast the stream is read, never what it holds
# fields that earlier run folders lack, with the value that they were made with
ADDED = {"version": 1, "whole": 0.0, "whole_image": "spline", "whole_label": "vote"}
ADDED |= {"weigh": "cases"}


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


def recipe_arguments(sampler: Sampler) -> dict:
    """The arguments of `sample.draw.Recipe` that the section decides."""
    known = {field.name for field in dataclasses.fields(draw.Recipe)}
    found = {name: getattr(sampler, name) for name in fields_of(Sampler) if name in known}
    return found | {"version": sampler.version or ADDED["version"]}
