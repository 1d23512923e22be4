"""The sampler section of a config: which version of the stream a run draws, and its recipe.

In: `config.sampler` and the run folder. Out: the section with the version filled in, so that the
run folder records it; the part that determines the weights; the arguments of `sample.draw.Recipe`.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from medjax.runs import folder
from medjax.sample import draw

ON_HOST = ("threads", "workers")  # how fast the stream is read, never what it holds
# fields that earlier run folders lack, with the value that they were made with
ADDED = {"version": 1, "whole": 0.0}


def resolved(fields: Mapping, workdir: Path) -> dict:
    """The config with `sampler.version` as a number, where the config leaves it open (0).

    A trained run keeps the version that it began with, and a run folder that names none stays
    without the field, which means 1; any other run begins with the newest.
    """
    from medjax.train import stepfolder

    given = dict(fields["sampler"])
    if given.get("version", 0):
        return dict(fields)
    given["version"] = draw.newest()
    begun = stepfolder.latest_step(workdir / "checkpoints") is not None
    if begun and (workdir / folder.CONFIG).is_file():
        before = folder.read_config(workdir).get("sampler", {})
        del given["version"]
        given |= {"version": before["version"]} if before.get("version") else {}
    return dict(fields) | {"sampler": given}


def decisive(sampler: Mapping) -> dict:
    """The fields that determine the weights; equal for a run folder without the later fields."""
    return {
        name: value
        for name, value in sampler.items()
        if name not in ON_HOST and not (name in ADDED and value == ADDED[name])
    }


def recipe_arguments(sampler: Mapping) -> dict:
    """The arguments of `sample.draw.Recipe` that the section decides."""
    known = {field.name for field in dataclasses.fields(draw.Recipe)}
    return ADDED | {name: value for name, value in sampler.items() if name in known}
