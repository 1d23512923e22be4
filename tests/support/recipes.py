"""A config as one flat table of values, with the defaults that the code would fill in, and how it
differs from another.

    resolved(plain(get_config("unet")))["optim.momentum"]  ->  0.99

What a config leaves open is looked up where it is decided: in the signatures of the network, the
losses, the optimizer and the task, and in the augmentation's settings. So a default that moves in
the code moves here as well.
"""

import dataclasses
import importlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from medjax.registry import plain

FROM_DATA = {
    "classes",
    "in_channels",
    "patch",
    "spacing_mm",
    "modalities",
    "corpus_channels",
    "tasks",
}
MASKED = (
    "ratio",
    "block",
    "patch_size",
)  # the arguments of the task "masked_image" that a config gives
WHOLE = {
    "data.declared",
    "data.rename",
    "data.views",
    "data.subset",
    "data.intensity",
    "evaluate.groups",
    "evaluate.regions",
    "text.sentences",
}  # one value each
ABSENT = "(absent)"


def flat(fields: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("optim.lr", 0.01), ...; an empty group is a value."""
    for name, value in fields.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping) and value and path not in WHOLE:
            yield from flat(value, f"{path}.")
        else:
            yield path, value


def resolved(fields: Mapping) -> dict[str, Any]:
    """Path -> value, of a config as plain values.

    Of `data.declared` there remain names and numbers of cases.
    """
    found: dict[str, Any] = {}
    found |= {f"model.{k}": v for k, v in _model(fields["model"]).items()}
    for name in fields["losses"]:
        found |= {f"losses.{name}.{k}": v for k, v in _defaults(f"medjax.losses.{name}").items()}
    optim = _defaults("medjax.train.optim")
    optim.pop("restarts")  # of a run that was continued
    found |= {f"optim.{k}": v for k, v in optim.items()}
    found |= {f"augment.{k}": v for k, v in _augment(fields["augment"]).items()}
    if fields["task"] == "masked_image":
        task = _defaults("medjax.tasks.masked_image")
        found |= {f"task_options.{name}": task[name] for name in MASKED}
    found |= dict(flat(fields))
    declared = {name: entry["cases"] for name, entry in fields["data"]["declared"].items()}
    return found | {"data.declared": declared}


def _defaults(module: str) -> dict[str, Any]:
    """Arguments of a module's `make` that have a default."""
    signature = inspect.signature(importlib.import_module(module).make).parameters
    return {n: plain(p.default) for n, p in signature.items() if p.default is not p.empty}


def _model(given: Mapping) -> dict[str, Any]:
    """Arguments of the network's `make` with its preset's values in place of None."""
    module = importlib.import_module(f"medjax.models.{given['name']}")
    found = _defaults(module.__name__)
    preset = {}
    if given["name"] == "resenc":
        preset = module.DEFAULTS | module.PRESETS[given.get("preset", found["preset"])]
    if given["name"] == "tsfm":
        preset = module.DEFAULTS | module.VARIANTS[given.get("variant", found["variant"])]
    found |= {name: plain(value) for name, value in preset.items()}
    return {n: v for n, v in found.items() if n not in FROM_DATA and not callable(v)}


def _augment(given: Mapping) -> dict[str, Any]:
    """Every setting of the kind of augmentation, "nnunet" unless the config has another."""
    kind = given.get("kind", "nnunet")
    place = {"nnunet": ("nnunet", "Augmentation"), "turns": ("turns", "Turns")}
    if kind not in place:
        return {}
    module, name = place[kind]
    settings = getattr(importlib.import_module(f"medjax.augment.{module}"), name)
    return {f.name: plain(f.default) for f in dataclasses.fields(settings)}


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """One line per field that differs; fields that only one of the two has count."""
    lines = []
    for path in sorted({*found, *expected}):
        a, b = found.get(path, ABSENT), expected.get(path, ABSENT)
        if _kind(a) != _kind(b) or a != b:
            lines.append(f"{path}: {a!r} instead of {b!r}")
    return lines


def _kind(value: Any) -> type:
    """True is not 1."""
    return bool if isinstance(value, bool) else object
