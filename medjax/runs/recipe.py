"""The recipe of a run: everything that determines the weights, and the refusal to continue a run
with another one.

In: the config, cases and plan of a call, and the run folder. Out: JSON-ready fields, kept in every
checkpoint; errors that list what differs. Paths and numbers of threads are not part of a recipe.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from medjax.corpora.splits import digest
from medjax.errors import DataError, TrainError, UsageError, sentence
from medjax.labels import LabelSpace
from medjax.prepare.plan import Plan
from medjax.runs import folder as runfolder
from medjax.runs import open as corpora
from medjax.runs import sampling
from medjax.runs.settings.schema import Config
from medjax.sample.stream import Pool
from medjax.train import stepfolder


def fields(config: Config) -> dict:
    """The part of a config that determines the weights."""
    kept = ("seed", "model", "losses", "deep_weights", "task", "task_options")
    kept += ("mask_padding", "augment", "optim")
    given = config.as_given()  # not the defaults: recipes of earlier versions stay as they are
    left_out = (("source", config.init.source), ("head_prior", ""), ("also", config.init.also))
    left_out += (("twins", config.init.twins), ("intensity", ""), ("topology", "source"))
    begun = {k: v for k, v in config.init.as_given().items() if (k, v) not in left_out}
    trained = {k: getattr(config.train, k) for k in ("steps", "batch", "patch")}
    if config.train.continued:  # continuations are declared in config.json
        trained["steps"] = config.train.continued[0]
    if config.train.accumulate != 1:
        trained["accumulate"] = config.train.accumulate
    found = {k: given.get(k, {}) for k in kept}
    # older runs have none of the fields below
    found["optim"] = {k: v for k, v in found["optim"].items() if (k, v) != ("ema", 0.0)}
    found["losses"] = {
        name: {k: v for k, v in loss.items() if (name, k, v) != ("softmax_dice", "pool", "sample")}
        for name, loss in found["losses"].items()
    }
    found |= {"init": begun, "sampler": sampling.decisive(config.sampler), "train": trained}
    optional = {
        "precision": config.train.precision,
        "reduce": config.train.reduce if config.train.reduce != "auto" else "",
        "tasks": config.data.tasks,
        "adapters": given.get("adapters"),
        "text": {k: v for k, v in given.get("text", {}).items() if k != "file"},
    }
    return found | {k: v for k, v in optional.items() if v}


def complete(
    config: Config, space: LabelSpace, splits: Sequence[Mapping], plan: Plan, drawn: Sequence[Pool]
) -> dict:
    """The fields of the config, and the plan, label space and cases that are trained on, for the
    loop's own check on resume.
    """
    return fields(config) | {
        "plan": plan.key(),
        "splits": digest(splits),
        "labels": space.to_json(),
        "cases": {space.corpora[p.corpus].name: digest([{"train": list(p.cases)}]) for p in drawn},
    }


def refuse_another(config: Config, data: corpora.Data, workdir: Path) -> None:
    """`UsageError` if the folder holds a trained run of another config, other corpora or splits."""
    stepfolder.require_readable(workdir / "checkpoints")
    if stepfolder.latest_step(workdir / "checkpoints") is None:
        return
    runfolder.check(workdir)
    old = runfolder.read_config(workdir)
    changed = runfolder.differences(fields(old), fields(config))
    if runfolder.read_space(workdir) != data.space:
        changed.append("labels.json: other corpora, views or classes")
    if digest(runfolder.read_json(workdir, runfolder.SPLITS)) != digest(data.splits):
        changed.append("splits_final.json: other cases or folds")
    if changed:
        raise UsageError(
            "this folder holds a run with another recipe",
            path=workdir,
            found="; ".join(changed[:12]),
            fix="use another --workdir (--config.init.source begins there with these parameters), "
            "or go back to the first recipe; --config.train.steps=+N continues a finished run",
        )


def refuse_other_data(
    workdir: Path, recipe: Mapping, failed: Sequence[Mapping], altered: Sequence[str]
) -> None:
    """`UsageError` if a trained run would continue with other cases or another plan.

    The message lists the cases that are the reason.

    Args:
      recipe: see `complete`. failed: records of cases that are left out. altered: cases whose files
        differ from those that the run started with.
    """
    folder = workdir / "checkpoints"
    if (step := stepfolder.latest_step(folder)) is None:
        return
    try:
        began = stepfolder.read_facts(folder, step)["recipe"]
        cases = dict(began["cases"])
    except (DataError, TrainError, KeyError, TypeError, ValueError):
        return  # the loop raises the error of the checkpoint
    changed = [
        f"the training cases of {name}"
        for name in recipe["cases"]
        if name in cases and cases[name] != recipe["cases"][name]
    ]
    if "plan" in began and began["plan"] != recipe["plan"]:
        changed.append("spacing or normalisation, which follow from the images")
    if not changed:
        return
    reasons = [f"{entry['case']}: {sentence(entry)}" for entry in failed]
    reasons += [f"{name}: its files changed since the run began" for name in altered]
    raise UsageError(
        "the data are not those that this run began with",
        path=workdir,
        found="; ".join(changed),
        fix="restore the data, or use another --workdir"
        + (f". Concerned: {'; '.join(reasons[:4])}" if reasons else ""),
    )
