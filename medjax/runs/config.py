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
from medjax.weights.foreign_plans.read import read_any_plan

FROM_PLAN = "plan"


def load(fields: Mapping) -> Plan | None:
    """The plan that the config names, at the spacing of its configuration; None if it names none.

    nnU-Net's plans are read too.
    """
    given = fields["data"]
    if not given.get("plan"):
        return None
    plan = read_any_plan(Path(given["plan"]).expanduser())
    return plan.at(given["configuration"]) if given.get("configuration") else plan


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
    """The config with `augment.mask_channels` for the channels that are z-scored inside a mask.

    Unchanged if the config sets the field.
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
    given = fields["augment"]
    if (
        not masked
        or not given.get("on")
        or given.get("kind", "nnunet") != "nnunet"
        or "mask_channels" in given
    ):
        return dict(fields)
    return dict(fields) | {"augment": dict(given) | {"mask_channels": masked}}


def network_fields(chosen: Configuration) -> dict:
    """`config.model` for the network of a configuration."""
    common = {"features": chosen.features, "strides": chosen.strides, "kernels": chosen.kernels}
    common |= {"name": chosen.model, "convs_per_stage_decoder": chosen.decoder[0]}
    return common | (
        {"blocks": chosen.encoder}
        if chosen.model == "resenc"
        else {"convs_per_stage": chosen.encoder[0]}
    )
