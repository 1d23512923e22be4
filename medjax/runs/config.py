"""Every change that a run makes to its config: what a plan, the folder or the data decide.

In: a config, which is frozen. Out: another one with the fields filled in, so that the run folder
holds them and no other code needs to decide again. `config.data.plan` names a plan file;
`config.data.configuration` one of its configurations (empty: only spacing and normalisation are
taken from the plan); `config.model.name = "plan"` takes the network as well.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medjax.errors import UsageError, did_you_mean
from medjax.labels import Corpus
from medjax.prepare.plan import Plan
from medjax.prepare.presets import BUDGETS, Configuration
from medjax.registry import plain
from medjax.runs import folder
from medjax.runs.settings.schema import FROM_PLAN, Adapters, Config, Model
from medjax.runs.settings.section import Section, fields_of, typed
from medjax.sample import draw
from medjax.weights.foreign_plans.read import read_any_plan

WIDTHS = ("base_features", "max_features", "features")


def load(config: Config) -> Plan | None:
    """The plan that the config names, at the spacing of its configuration; None if it names none.

    nnU-Net's plans are read too.
    """
    given = config.data
    if not given.plan:
        return None
    for name in ("size", "intensity"):
        if getattr(given, name):
            raise UsageError(
                f"config.data.{name} is decided by config.data.plan",
                found=given.plan,
                fix=f"leave out one of both, or give `medjax plan` --{name}",
            )
    plan = read_any_plan(Path(given.plan).expanduser())
    name = given.configuration or _for_budget(plan)
    return plan.at(name) if name else plan


def _for_budget(plan: Plan) -> str:
    """The configuration of `medjax plan --budget`, which is used without being named; else ""."""
    return next((name for name in plan.configurations if name in BUDGETS), "")


def schemes(config: Config, workdir: Path) -> dict:
    """Channel -> intensity scheme and its options, where the channel's name does not decide.

    Those of `config.data.intensity`. A trained run also keeps its scheme of a channel called
    "mask", which earlier versions z-scored.
    """
    from medjax.train import stepfolder

    given = dict(config.data.intensity)
    if stepfolder.latest_step(workdir / "checkpoints") is None:
        return given
    if not (workdir / folder.PLAN).is_file():
        return given
    for name, found in folder.read_plan(workdir).intensity.items():
        if name.lower() == "mask" and found.role == "image" and name not in given:
            given[name] = {"scheme": found.scheme}
            if found.scheme == "zscore":
                given[name]["masked"] = found.masked
    return given


def with_plan(config: Config) -> Config:
    """The config with the fields that its plan decides; unchanged without a plan.

    Raises: `UsageError` for a configuration or a network without a plan, or that the plan does not
      contain.
    """
    given, wants_network = config.data, config.model.name == FROM_PLAN
    plan = load(config)
    name = given.configuration or (_for_budget(plan) if plan else "")
    if not given.plan or not name:
        if given.configuration or wants_network:
            fix = (
                "medjax plan FOLDERS -o plan.json, then --config.data.plan=plan.json "
                "--config.data.configuration=3d_fullres"
            )
            raise UsageError(
                "the config asks for what a plan decides, but names no plan or no configuration "
                "of it",
                fix=fix,
            )
        return config
    chosen = plan.configuration(name)
    train = dataclasses.replace(config.train, patch=chosen.patch, batch=chosen.batch)
    model, augment = config.model, config.augment
    if chosen.steps:
        train = dataclasses.replace(train, steps=chosen.steps)
        if model.name == chosen.model:  # the width is part of the budget
            kept = {k: v for k, v in model.options.items() if k not in WIDTHS}
            fields = network_fields(chosen) | kept
            model = Model.from_fields(fields, "config.model")
    if wants_network:
        model = Model.from_fields(network_fields(chosen) | dict(model.options), "config.model")
    if plan.transpose != (0, 1, 2) and augment.lateral and "swap_axis" not in augment.options:
        axis = plan.transpose.index(2) - (3 - len(chosen.patch))
        if axis < 0:  # slices across the left-right axis: mirroring them exchanges no sides
            augment = dataclasses.replace(augment, lateral=())
        elif augment.kind != "turns":  # which mirror in every plane alike
            augment = dataclasses.replace(augment, options={**augment.options, "swap_axis": axis})
    return dataclasses.replace(config, train=train, model=model, augment=augment)


def with_field(section: Any, path: str, value: Any) -> Any:
    """A config, or a section of one, in which one field has another value.

    Args:
      path: its dotted path, such as "train.steps" or "model.mlp.experts".

    Raises: `UsageError` for a path that leads nowhere.
    """
    name, _, rest = path.partition(".")
    if isinstance(section, Mapping):
        return {**section, name: with_field(section.get(name), rest, value) if rest else value}
    if not isinstance(section, Section):
        raise UsageError("no section of a config", found=repr(section)[:80], expected=path)
    if name in fields_of(type(section)):
        kind, held = fields_of(type(section))[name].type, getattr(section, name)
        inner = with_field(held, rest, value) if rest else typed(kind, value, f"config.{path}")
        return dataclasses.replace(section, **{name: inner})
    if not section.OPEN:
        raise UsageError(
            f"config has no field {path!r}", fix=did_you_mean(name, fields_of(type(section)))
        )
    return dataclasses.replace(section, options=with_field(section.options, path, plain(value)))


def with_stream_version(config: Config, workdir: Path) -> Config:
    """The config with `sampler.version` as a number, where the config leaves it open (0).

    A trained run keeps the version that it began with, and a run folder that names none stays
    without the field, which means 1; any other run begins with the newest.
    """
    from medjax.train import stepfolder

    if config.sampler.version:
        return config
    begun = stepfolder.latest_step(workdir / "checkpoints") is not None
    if not begun or not (workdir / folder.CONFIG).is_file():
        return with_field(config, "sampler.version", draw.newest())
    if version := folder.read_config(workdir).sampler.version:
        return with_field(config, "sampler.version", version)
    given = tuple(name for name in config.sampler.given if name != "version")
    return dataclasses.replace(config, sampler=dataclasses.replace(config.sampler, given=given))


def with_fold(config: Config, fold: int, store: Path) -> Config:
    """The config of one fold: its number, and the store that all folds share if it names none."""
    split = dataclasses.replace(config.data.split, fold=fold)
    data = dataclasses.replace(config.data, split=split, store=config.data.store or str(store))
    return dataclasses.replace(config, data=data)


def with_batch(config: Config, batch: int) -> Config:
    """The config with another number of patches per update."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, batch=batch))


def with_merged_adapter(config: Config, name: str) -> Config:
    """The config of a network whose kernels contain an adapter, which is named."""
    adapters = Adapters.from_fields({"rules": (), "merged": (name,)}, "config.adapters")
    return dataclasses.replace(config, adapters=adapters)


def with_masks(config: Config, plan: Plan, corpora: Sequence[Corpus]) -> Config:
    """The config with the channels that the augmentation treats apart.

    `augment.mask_channels`: z-scored inside a mask. `augment.spare_channels`: of role "mask".
    Unchanged where the config sets these fields.

    Raises: `UsageError` if a position holds a mask in one corpus and an image in another.
    """
    masked = tuple(
        sorted(
            {
                c
                for corpus in corpora
                for c, name in enumerate(corpus.channels)
                if plan.intensity_of(name).masked
            }
        )
    )
    found = {"mask_channels": masked, "spare_channels": _masks(plan, corpora)}
    given = config.augment
    used = {"nnunet": tuple(found), "turns": ("spare_channels",)}.get(given.kind, ())
    added = {k: v for k, v in found.items() if v and k in used and k not in given.options}
    if not added or not given.on:
        return config
    augment = dataclasses.replace(given, options={**given.options, **added})
    return dataclasses.replace(config, augment=augment)


def _masks(plan: Plan, corpora: Sequence[Corpus]) -> tuple[int, ...]:
    """Positions of the channels of role "mask", the same in all corpora that have so many."""
    roles: dict[int, dict[str, str]] = {}
    for corpus in corpora:
        for c, name in enumerate(corpus.channels):
            roles.setdefault(c, {})[plan.intensity_of(name).role] = f"{corpus.name}/{name}"
    for c, names in roles.items():
        if len(names) > 1:
            raise UsageError(
                f"channel {c} is an image in one corpus and a mask in another",
                found=" and ".join(names.values()),
                fix="give masks the same position in all corpora, behind the images",
            )
    return tuple(sorted(c for c, names in roles.items() if "mask" in names))


def network_fields(chosen: Configuration) -> dict:
    """`config.model` for the network of a configuration."""
    common = {"features": chosen.features, "strides": chosen.strides, "kernels": chosen.kernels}
    common |= {"name": chosen.model, "convs_per_stage_decoder": chosen.decoder[0]}
    return common | (
        {"blocks": chosen.encoder}
        if chosen.model == "resenc"
        else {"convs_per_stage": chosen.encoder[0]}
    )
