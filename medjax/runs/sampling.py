"""The sampler section of a config: what it decides, and its recipe.

In: `config.sampler`. Out: the part that determines the weights; the arguments of
`sample.draw.Recipe`.
"""

import dataclasses

from medjax.runs.settings.schema import Sampler
from medjax.runs.settings.section import fields_of
from medjax.sample import draw

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


def recipe_arguments(sampler: Sampler) -> dict:
    """The arguments of `sample.draw.Recipe` that the section decides."""
    known = {field.name for field in dataclasses.fields(draw.Recipe)}
    found = {name: getattr(sampler, name) for name in fields_of(Sampler) if name in known}
    return found | {"version": sampler.version or ADDED["version"]}
