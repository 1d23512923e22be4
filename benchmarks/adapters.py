r"""Adapters beside full fine-tuning and a new head: Dice, trained share, bytes, seconds per step,
and what the adapted network still knows of its first task.

    python -m benchmarks.adapters --data DIR --out DIR [--nets unet swin] [--steps 150]

DIR holds the corpora in the Decathlon layout. A base of each network learns the hippocampus
(`configs/hippocampus.py:full`; `configs/multitalent.py:swin_small`, Swin-UNETR). From there each
arm learns each target in equally many steps, on the same half of the cases, patches, optimizer and
rate: adapters of two ranks with a new head, all parameters, the new head alone. All are scored on
the other half. Forgetting: the adapted trunk with the head of the base, on the base's held-out
cases. `both` trains one network with an expert per corpus on batches of two corpora and compares it
with an adapter for each. Runs that have been scored are not repeated. Writes adapters.json and .md.
"""

import argparse
import contextlib
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import harness, training_step, trainings

SOURCE = "Task04_Hippocampus"
TARGETS = {  # folder -> grid, mm: coarse enough that a patch shows what surrounds an organ
    "Task02_Heart": "5,5,5",
    "Task92_SarcomaMR": "3.27,1.95,1.95",
    "Task93_AbdomenMR": "7.7,4,4",
}
NAMES = {folder: folder.split("_", 1)[1] for folder in (SOURCE, *TARGETS)}
HEAD = r"^(head|out)_?\d*/"
NETS = {
    "unet": {"config": "configs/hippocampus.py:full", "kernels": "unet", "base": {}},
    "swin": {
        "config": "configs/multitalent.py:swin_small",
        "kernels": "every",
        "base": {"train.patch": "32,64,32", "train.batch": 1, "optim.lr": 1e-3},
    },
}
LAID = {  # how a batch of the targets is laid out
    "unet": {"train.patch": "24,48,48", "train.batch": 2},
    "swin": {"train.patch": "32,64,32", "train.batch": 1},
}
BASE_STEPS = {"unet": 1500, "swin": 600}
RANKS = (4, 16)
PRIOR = -2  # start of the new heads' bias: foreground is rare


def arms(net: str, base: Path) -> dict[str, dict]:
    """Name of an arm -> its fields."""
    begun = {"init.source": base, "model.prior": PRIOR}
    found = {}
    for rank in RANKS:
        adapted = {"adapters.kernels": NETS[net]["kernels"], "adapters.rank": rank}
        found[f"lora{rank}"] = begun | adapted | {"adapters.whole": HEAD}
    found["full"] = begun
    found["head"] = begun | {"adapters.rules": f"((r'{HEAD}','whole'),('.*',0))"}
    return found


def shared(given: argparse.Namespace, net: str, seed: int, steps: int) -> dict[str, object]:
    """Fields of every run on a target."""
    return {
        "data.store": given.out / "store",
        "data.split.folds": 2,
        "seed": seed,
        "train.steps": steps,
        "train.validate_every": 0,
        "train.checkpoint_every": steps,
        "train.log_every": max(steps // 6, 1),
        "optim.lr": given.lr,
        "sampler.oversample": "probabilistic",
        "sampler.foreground": 0.67,
        "evaluate.surface": False,
        "evaluate.montages": 2,
    } | LAID[net]


def base_job(given: argparse.Namespace, net: str) -> trainings.Job:
    """The training of a base."""
    fields = {
        "data.folders": given.data / SOURCE,
        "data.store": given.out / "store",
        "train.steps": max(BASE_STEPS[net] * given.percent // 100, 1),
        "evaluate.surface": False,
        "evaluate.montages": 2,
    }
    fields |= NETS[net]["base"]
    return trainings.training(
        NETS[net]["config"], given.out, f"{net}_base", trainings.flags(fields)
    )


def jobs(given: argparse.Namespace) -> dict[str, trainings.Job]:
    """Every run that is not scored yet."""
    found = {}
    for net in given.nets:
        base, config = f"{net}_base", NETS[net]["config"]
        found[base] = base_job(given, net)
        for seed in given.seeds:
            for target in given.targets:
                for arm, own in arms(net, given.out / base).items():
                    fields = shared(given, net, seed, given.steps) | own
                    fields["data.folders"] = given.data / target
                    fields["data.spacing_mm"] = TARGETS[target]
                    name = run_name(net, target, arm, seed)
                    found[name] = trainings.training(
                        config, given.out, name, trainings.flags(fields), base
                    )
    if "unet" in given.nets and given.both:
        found |= both_jobs(given)
    done = {name for name in found if trainings.cells(given.out / name)}
    return {
        name: dataclasses.replace(job, after="" if job.after in done else job.after)
        for name, job in found.items()
        if name not in done
    }


BOTH = (SOURCE, "Task92_SarcomaMR")


def both_jobs(given: argparse.Namespace) -> dict[str, trainings.Job]:
    """One network with an expert for each of two corpora, and each of the two alone.

    The batch holds one patch of each corpus, so that every batch uses both experts; alone, the
    batch of a corpus is one patch, for as many updates.
    """
    net, base = "unet", given.out / "unet_base"
    own = arms(net, base)[f"lora{RANKS[0]}"]
    found = {}
    for name, folders, experts in (
        ("both", BOTH, {"adapters.experts": 3, "adapters.routing": "corpus"}),
        *((f"only_{NAMES[f]}", (f,), {}) for f in BOTH),
    ):
        fields = shared(given, net, given.seeds[0], given.steps) | own | experts
        fields["data.folders"] = ",".join(str(given.data / f) for f in folders)
        if experts:
            fields |= {"adapters.expert_of": "1,2", "sampler.draw": "mix", "sampler.exponent": 1}
        fields["train.batch"] = len(folders)
        found[name] = trainings.training(
            NETS[net]["config"], given.out, name, trainings.flags(fields), ""
        )
    return {n: dataclasses.replace(job, after="unet_base") for n, job in found.items()}


def run_name(net: str, target: str, arm: str, seed: int) -> str:
    """Name of a run's folder."""
    return f"{net}_{NAMES[target]}_{arm}_{seed}"


# -- what a run holds ------------------------------------------------------------------------------


def sizes(folder: Path) -> dict[str, Any]:
    """Parameters, those that are trained, and bytes of the newest checkpoint and the adapter."""
    from medjax.errors import UsageError
    from medjax.runs.exchange import adapters as exchange
    from medjax.runs.trained import read_model
    from medjax.train import stepfolder

    config, net = read_model(folder).config, read_model(folder).network
    state = abstract_state(config, net)
    step = stepfolder.latest_step(folder / "checkpoints")
    files = (folder / "checkpoints").glob(f"*{step}*/**/*")
    found = {
        "parameters": count(state["params"]) + count(state["frozen"]),
        "trained": count(state["params"]),
        "checkpoint_bytes": sum(p.stat().st_size for p in files if p.is_file()),
    }
    out = folder / f"{folder.name}.adapter.safetensors"
    with contextlib.suppress(UsageError):
        exchange.extract(folder, out, overwrite=True)
        found["adapter_bytes"] = out.stat().st_size
    return found


def abstract_state(config: Any, net: Any) -> Any:
    """Shapes of a run's training state."""
    import jax

    from medjax.runs import build
    from medjax.train import state as states

    maker = states.maker(net.init, build.make_optimizer(config))
    return jax.eval_shape(maker, jax.eval_shape(lambda: jax.random.key(0)))


def count(tree: Any) -> int:
    """Numbers in a tree."""
    from medjax.runs import build

    return build.count(tree)


def costs(folders: Mapping[str, Path], rounds: int) -> dict[str, dict]:
    """Seconds and bytes of a step of every arm, in turn in one process; ratios to `full`."""
    steps = {name: training_step.OfRun(folder) for name, folder in folders.items()}
    turns = harness.in_turns(steps, rounds, warm=2)
    return {
        name: step.facts
        | {
            "cpu_s": round(sorted(turns.seconds["cpu"][name])[rounds // 2], 3),
            "cpu_ratio_to_full": turns.ratio(name, "full", "cpu"),
            "wall_ratio_to_full": turns.ratio(name, "full", "wall"),
        }
        for name, step in steps.items()
    }


# -- forgetting ------------------------------------------------------------------------------------


def probe(base: Path, tuned: Path, left_away: bool) -> Any:
    """The base with the trunk of an adapted run, as a model to predict with: the head is the
    base's.

    Args:
      left_away: leave its adapters away, otherwise add them to the kernels.
    """
    from flax import traverse_util

    from medjax.runs import build
    from medjax.runs.trained import Adapted, read_model
    from medjax.weights import adapters

    first, second = read_model(base), read_model(tuned)
    settings, trunk = build.adapter_settings(second.config), second.params()
    if settings is not None:
        trunk = adapters.split(trunk)[0] if left_away else adapters.merge(trunk, settings)
    trunk = traverse_util.flatten_dict(trunk, sep="/")

    def joined(params: Any, _: Any) -> Any:
        flat = traverse_util.flatten_dict(params, sep="/")
        mixed = {k: v if re.search(HEAD, k) else trunk[k] for k, v in flat.items()}
        return traverse_util.unflatten_dict(mixed, sep="/")

    return dataclasses.replace(first, adapted=Adapted(first, None, tuned.name, joined))


def on_source(model: Any, out: Path, cases: int) -> dict:
    """Dice of a model on the first held-out cases of the base, and a hash of its masks."""
    import hashlib

    import nibabel as nib

    from medjax.runs import open as corpora
    from medjax.runs import test
    from medjax.runs.trained import load_predictor

    predictor = load_predictor(model)
    data = corpora.open_data(model.config.data, model.path)
    corpus = predictor.model.space.corpora[0]
    names = set(data.side(corpus.name, "val"))
    held = [case for case in data.cases[corpus.name] if case.name in names][:cases]
    settings = dataclasses.replace(model.config.evaluate, montages=0)
    test.predict_and_score(
        predictor, {corpus.name: (corpus, held)}, out, settings, lambda _: lambda *_: None
    )
    digest = hashlib.sha256()
    for path in sorted((out / "predictions").rglob("*.nii.gz")):
        digest.update(nib.load(path).get_fdata().tobytes())
    cells = trainings.cells(out)
    return {
        "masks": digest.hexdigest()[:16],
        "mean": mean(cell["mean"] for cell in cells.values()),
        "n": len(held),
    }


def forgetting(given: argparse.Namespace, net: str) -> dict[str, Any]:
    """What the base and the adapted trunks of the first seed reach on the first task."""
    from medjax.runs.trained import read_model

    base = given.out / f"{net}_base"
    found = {"base": on_source(read_model(base), given.out / "forgotten" / net, given.cases)}
    for target in given.targets:
        for arm in arms(net, base):
            name = run_name(net, target, arm, given.seeds[0])
            for away in (False, True) if arm.startswith("lora") else (False,):
                out = given.out / "forgotten" / (name + ("_away" if away else ""))
                one = on_source(probe(base, given.out / name, away), out, given.cases)
                one["same_masks"] = one["masks"] == found["base"]["masks"]
                found[f"{NAMES[target]} {arm}" + (" left away" if away else "")] = one
    return found


# -- the report ------------------------------------------------------------------------------------


def mean(values: Any) -> float | None:
    """Mean of what is a number, rounded; None of nothing."""
    kept = [v for v in values if v is not None]
    return round(sum(kept) / len(kept), 4) if kept else None


def scores(given: argparse.Namespace, net: str) -> dict[str, dict]:
    """Target -> arm -> the cells of every seed, and the mean over classes and seeds."""
    found: dict[str, dict] = {}
    for target in given.targets:
        for arm in arms(net, Path()):
            runs = [given.out / run_name(net, target, arm, seed) for seed in given.seeds]
            tables = [trainings.cells(run) for run in runs]
            per_seed = [mean(cell["mean"] for cell in table.values()) for table in tables]
            cells = [{name: cell for (_, name), cell in table.items()} for table in tables]
            row = {"seeds": per_seed, "mean": mean(per_seed), "cells": cells}
            found.setdefault(NAMES[target], {})[arm] = row
    return found


def report(given: argparse.Namespace, status: Mapping[str, dict]) -> None:
    """Tables from the run folders."""
    found: dict[str, Any] = {"status": dict(status), "steps": given.steps}
    text = [f"{given.steps} steps; half of the cases held out; mean Dice per seed."]
    for net in given.nets:
        table = scores(given, net)
        first = next(iter(given.targets))
        folders = {
            a: given.out / run_name(net, first, a, given.seeds[0]) for a in arms(net, Path())
        }
        ran = {arm: path for arm, path in folders.items() if trainings.cells(path)}
        held = {arm: sizes(path) for arm, path in ran.items()}
        cost = costs(ran, given.rounds) if "full" in ran and given.rounds else {}
        kept = forgetting(given, net) if given.cases else {}
        found[net] = {"scores": table, "sizes": held, "costs": cost, "forgetting": kept}
        text += ["", f"**{net}**", "", *_scores(table), "", *_sizes(held, cost)]
        text += ["", *_forgetting(kept)] if kept else []
    if given.both and "unet" in given.nets:
        runs = ("both", *(f"only_{NAMES[f]}" for f in BOTH))
        both = {name: trainings.cells(given.out / name) for name in runs}
        cells = {n: {"/".join(k): cell for k, cell in t.items()} for n, t in both.items()}
        found["both"] = cells
        text += ["", "| run | class | Dice |", "|---|---|---|"]
        text += [
            f"| {n} | {k} | {trainings.shown(c)} |" for n, t in cells.items() for k, c in t.items()
        ]
    text += [f"Failed: {name} (rc {e['rc']})" for name, e in status.items() if e["rc"] != 0]
    trainings.write(given.out, "adapters", found, "\n".join(text))


def _scores(table: Mapping[str, Mapping]) -> list[str]:
    lines = ["| target | class | " + " | ".join(next(iter(table.values()))) + " |"]
    lines.append("|---" * (2 + len(next(iter(table.values())))) + "|")
    for target, row in table.items():
        means = [f"{one['mean']} ({', '.join(map(str, one['seeds']))})" for one in row.values()]
        lines.append(f"| {target} | mean (seeds) | " + " | ".join(means) + " |")
        for name in next(iter(row.values()))["cells"][0]:
            cells = [trainings.shown(one["cells"][0].get(name)) for one in row.values()]
            lines.append(f"| | {name} | " + " | ".join(cells) + " |")
    return lines


def _sizes(held: Mapping[str, Mapping], cost: Mapping[str, Mapping]) -> list[str]:
    lines = [
        "| arm | trained | share | checkpoint | adapter file | CPU s per step | to full | "
        "temporary MB | state MB | GFLOP |",
        "|---" * 10 + "|",
    ]
    for arm, one in held.items():
        step = {"temporary_bytes": 0, "state_bytes": 0, "flops": 0} | cost.get(arm, {})
        lines.append(
            f"| {arm} | {one['trained']:,} | {one['trained'] / one['parameters']:.1%} | "
            f"{one['checkpoint_bytes']:,} | {one.get('adapter_bytes', 0):,} | "
            f"{step.get('cpu_s', '-')} | {step.get('cpu_ratio_to_full', '-')} | "
            f"{step['temporary_bytes'] / 1e6:.0f} | {step['state_bytes'] / 1e6:.1f} | "
            f"{step['flops'] / 1e9:.1f} |"
        )
    return lines


def _forgetting(kept: Mapping[str, Mapping]) -> list[str]:
    lines = ["| trunk, with the base's head, on the hippocampus | mean Dice | masks as before |"]
    lines.append("|---|---|---|")
    for name, one in kept.items():
        same = {True: "yes", False: "no"}.get(one.get("same_masks"), "-")
        lines.append(f"| {name} | {one['mean']} (n = {one['n']}) | {same} |")
    return lines


def main() -> None:
    """Runs and writes."""
    parser = harness.parser(
        __doc__,
        data=harness.flag(type=Path, required=True),
        out=harness.flag(type=Path, required=True),
        nets=harness.flag(tuple(NETS), nargs="+", choices=tuple(NETS)),
        targets=harness.flag(tuple(TARGETS), nargs="+", choices=tuple(TARGETS)),
        seeds=harness.flag((0, 1), nargs="+"),
        steps=150,
        percent=harness.flag(100, help="length of the bases, of their own"),
        lr=2e-3,
        both=harness.flag(True, action=argparse.BooleanOptionalAction, help="one for two corpora"),
        cases=harness.flag(20, help="held-out cases of the base that forgetting is scored on"),
        rounds=harness.flag(9, help="timed steps of every arm; 0: no timing"),
        parallel=harness.flag(1, help="trainings at a time"),
        timeout=harness.flag(7200.0, help="seconds for all trainings"),
    )
    given = parser.parse_args()
    given.out, given.data = given.out.resolve(), given.data.resolve()
    given.out.mkdir(parents=True, exist_ok=True)
    cache = str(given.out / "cache")
    status = trainings.run(
        jobs(given), given.out, given.parallel, given.timeout, JAX_COMPILATION_CACHE_DIR=cache
    )
    report(given, status)


if __name__ == "__main__":
    main()
