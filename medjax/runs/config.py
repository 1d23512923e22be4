"""Fills in the fields of a config that a plan file decides: patch, batch and network.

In: a config as plain values. Out: the same with the numbers filled in, so that the run folder holds
them and no other code needs the file. `config.data.plan` names the file;
`config.data.configuration` one of its configurations (empty: only spacing and normalisation are
taken from the plan); `config.model.name = "plan"` takes the network as well.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from medjax.errors import UsageError
from medjax.labels import Corpus
from medjax.prepare.plan import Plan
from medjax.prepare.presets import Configuration
from medjax.runs import folder
from medjax.runs.settings.schema import FROM_PLAN
from medjax.weights.foreign_plans.read import read_any_plan


def load(fields: Mapping) -> Plan | None:
    """The plan that the config names, at the spacing of its configuration; None if it names none.

    nnU-Net's plans are read too.
    """
    given = fields["data"]
    if not given.get("plan"):
        return None
    for name in ("size", "intensity"):
        if given.get(name):
            raise UsageError(
                f"config.data.{name} is decided by config.data.plan",
                found=given["plan"],
                fix=f"leave out one of both, or give `medjax plan` --{name}",
            )
    plan = read_any_plan(Path(given["plan"]).expanduser())
    return plan.at(given["configuration"]) if given.get("configuration") else plan


def schemes(fields: Mapping, workdir: Path) -> dict:
    """Channel -> intensity scheme and its options, where the channel's name does not decide.

    Those of `config.data.intensity`. A trained run also keeps its scheme of a channel called
    "mask", which earlier versions z-scored.
    """
    from medjax.train import stepfolder

    given = dict(fields["data"].get("intensity") or {})
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


def resolve(fields: Mapping) -> dict:
    """The config with the fields that its plan decides; unchanged without a plan.

    Raises: `UsageError` for a configuration or a network without a plan, or that the plan does not
      contain.
    """
    given, fields = fields["data"], dict(fields)
    wants_network = fields["model"]["name"] == FROM_PLAN
    if not given.get("plan") or not given.get("configuration"):
        if given.get("configuration") or wants_network:
            fix = (
                "medjax plan FOLDERS -o plan.json, then --config.data.plan=plan.json "
                "--config.data.configuration=3d_fullres"
            )
            raise UsageError(
                "the config asks for what a plan decides, but names no plan or no configuration "
                "of it",
                fix=fix,
            )
        return fields
    plan = load(fields)
    chosen = plan.configuration(given["configuration"])
    fields["train"] = dict(fields["train"]) | {"patch": chosen.patch, "batch": chosen.batch}
    if wants_network:
        fields["model"] = network_fields(chosen) | {
            k: v for k, v in fields["model"].items() if k != "name"
        }
    if (
        plan.transpose != (0, 1, 2)
        and fields["augment"].get("lateral")
        and "swap_axis" not in fields["augment"]
    ):
        axis = plan.transpose.index(2) - (3 - len(chosen.patch))
        fields["augment"] = dict(fields["augment"]) | {"swap_axis": axis}
    return fields


def with_masks(fields: Mapping, plan: Plan, corpora: Sequence[Corpus]) -> dict:
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
    given = fields["augment"]
    used = {"nnunet": tuple(found), "turns": ("spare_channels",)}.get(
        given.get("kind", "nnunet"), ()
    )
    added = {k: v for k, v in found.items() if v and k in used and k not in given}
    return dict(fields) | ({"augment": dict(given) | added} if added and given.get("on") else {})


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
