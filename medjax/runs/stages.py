"""The stages of an experiment: open the run, prepare, train, predict held-out cases, score.

In: a config and a run folder. Out: the filled run folder. Every stage completes
before the next, and resumes from what an earlier call wrote.
"""

import dataclasses
import functools
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medjax import files
from medjax.corpora import organs
from medjax.corpora.inputs import Case
from medjax.corpora.splits import provenance
from medjax.errors import EXIT_OK, EXIT_SOME_FAILED, DataError, UsageError, sentence
from medjax.labels import Corpus, LabelSpace
from medjax.metrics import regions
from medjax.prepare.fingerprint import check_classes, fingerprint, make_plan
from medjax.prepare.plan import Plan
from medjax.prepare.prepare import prepare
from medjax.runs import build, during, evaluations, hosts, initial, recipe, sampling
from medjax.runs import config as configs
from medjax.runs import folder as runfolder
from medjax.runs import open as corpora
from medjax.runs.calibration import measure as calibration
from medjax.runs.info import environment
from medjax.runs.prompted import evaluation as prompted
from medjax.runs.prompted import texts as texts_of_run
from medjax.runs.settings import schema
from medjax.runs.settings.schema import Config
from medjax.runs.settings.section import fields_of
from medjax.runs.start import continued, head_prior, source, tracked
from medjax.runs.trained import load_predictor as load_predictor
from medjax.sample import stream


@dataclasses.dataclass
class Run:
    """An experiment in progress.

    Attributes:
      config: what it is made from. workdir: the run folder. data: corpora, cases, label
        space, splits.
      plan: spacing and normalisation, once prepared. failed: records of cases that could not be
        prepared, predicted or scored.
      altered: cases whose files differ from those that the run started with.
    """

    config: Config
    workdir: Path
    data: corpora.Data
    plan: Plan | None = None
    failed: list[dict] = dataclasses.field(default_factory=list)
    altered: list[str] = dataclasses.field(default_factory=list)

    @property
    def store(self) -> Path:
        """Path of the prepared volumes."""
        return Path(self.config.data.store or self.workdir / "store")


def say(text: str) -> None:
    """Prints a progress line."""
    print(text, flush=True)


def open_run(fields: Mapping | Config, workdir: Path) -> Run:
    """Resolves config and data, and writes the documents that define the run.

    Args:
      fields: the config, or its plain values.

    Raises: `UsageError` for plain values with a field that does not exist, or if the folder holds
      a trained run with another recipe or edited documents, `TrainError` if its checkpoints are
      damaged; the folder is then unchanged.
    """
    config = fields if isinstance(fields, Config) else schema.strict(fields)
    config = configs.with_plan(config)
    evaluations.chosen(config.evaluate)  # checked before the training, not after it
    head_prior.check(config)
    source.check(config)
    runfolder.check_target(workdir)
    config = continued.applied(config, workdir)
    config = initial.with_topology(configs.with_stream_version(config, workdir), workdir)
    data = corpora.open_data(config.data, workdir)
    scored, further = data.space.unveiled().corpora, config.evaluate
    regions.check(scored, data.cases, further.regions, further.alone)
    pairs = source.shared(config, data, workdir)
    data, about_source = source.applied(config, data, pairs)
    split = config.data.split
    settings = {k: getattr(split, k) for k in ("file", "folds", "fold", "seed")}
    settings |= {"test": True} if split.test else {}

    def write() -> None:
        recipe.refuse_another(config, data, workdir)
        runfolder.write_json(workdir / runfolder.CONFIG, config.as_given())
        runfolder.write_json(workdir / runfolder.LABELS, data.space.to_json())
        if pairs:
            runfolder.write_json(workdir / source.SHARED, source.to_json(config, pairs))
        runfolder.write_json(workdir / runfolder.SPLITS, data.splits)
        runfolder.write_json(
            workdir / runfolder.SPLITS_INFO,
            provenance(data.splits, data.cases, data.twins, **settings),
        )
        runfolder.write_json(workdir / runfolder.ENVIRONMENT, environment())

    hosts.first(write)
    for text in (*_about_twins(data), *filter(None, (about_source,))):
        say(text)
    left_out = [{"case": Path(str(e.path or "?")).name} | e.record() for e in data.problems]
    for entry in left_out:
        say(f"left out: {sentence(entry)}")
    return Run(config, workdir, data, failed=left_out)


def _about_twins(data: corpora.Data) -> list[str]:
    """Messages about scans that several corpora share, and about organ masks."""
    lines = (
        [
            f"{len(data.twins)} pairs of scans are shared between corpora and stay on one side of "
            "the split"
        ]
        if data.twins
        else []
    )
    if leaks := data.leaks():
        first = f"{leaks[0].first} is trained on, {leaks[0].second} validated on ({leaks[0].why})"
        lines = [
            f"LEAK: {len(leaks)} of {len(data.twins)} pairs of shared scans are split between "
            f"training and validation: {first}"
        ]
    return [*lines, *organs.about(data.cases)]


def prepare_stage(run: Run) -> None:
    """Fingerprint, plan and store.

    Cases that fail are reported and left out; a corpus without a usable case is an error.
    """
    import jax

    given = run.config.data
    workers, schemes = given.workers or None, configs.schemes(run.config, run.workdir)
    run.plan = configs.load(run.config)
    channels = {name for corpus in run.data.stores for name in corpus.channels}
    if run.plan is None:
        schemes = source.intensity(run.config, sorted(channels), run.workdir) | schemes
    prints, several = {}, not hosts.alone()
    for corpus in run.data.stores if run.plan is None else ():
        cache = (
            run.store / ".fingerprints" / f"{corpus.name}.json"
        )  # with the volumes: runs that share a store share them
        measure = functools.partial(
            fingerprint,
            corpus,
            run.data.cases[corpus.name],
            workers=workers,
            cache=cache,
            intensity=schemes,
        )
        if several:
            hosts.first(measure)  # the others read the result
        prints[corpus.name] = measure()
        if not given.allow_absent:
            check_classes(corpus, prints[corpus.name])
    if run.plan is None:
        spacing = given.spacing_mm or given.spacing_rule
        run.plan = make_plan(
            prints,
            spacing=spacing,
            orientation=given.orientation,
            crop=given.crop,
            size=given.size or None,
            intensity=schemes,
        )
    run.plan = dataclasses.replace(
        run.plan, spacing_mm={c.name: run.plan.spacing_of(c.name) for c in run.data.stores}
    )
    if run.plan.key() == _plan_key(
        run.workdir, run.plan.key()
    ):  # the plan of a trained network is never replaced
        hosts.first(lambda: runfolder.write_json(run.workdir / runfolder.PLAN, run.plan.to_json()))
    for corpus in run.data.stores:
        cases = run.data.cases[corpus.name]
        make = functools.partial(prepare, corpus, plan=run.plan, root=run.store, workers=workers)
        line = _line(f"prepare {corpus.name}")
        if several:  # each process prepares its share first; then all check that nothing is missing
            with hosts.holding(
                run.store / corpus.store, "preparing", wait=True, needed=False, say=say
            ):
                make(cases[jax.process_index() :: jax.process_count()], locked=False)
                hosts.first()
                result = make(cases, progress=line, locked=False)
        else:
            result = make(cases, progress=line)
        run.failed += result.failed
        say(
            f"{corpus.name}: {len(result.ok)} cases prepared at {run.plan.grid_of(corpus.name)}, "
            f"{result.skipped} already there, {len(result.failed)} failed"
        )
        for reason in sorted(set(result.stale.values())):
            again = sum(found == reason for found in result.stale.values())
            say(f"  {again} of them existed, but with other {reason}: prepared again")
        for text in result.remarks():
            say(text)
        for entry in result.failed:
            say(f"  left out: {entry['case']}: {sentence(entry)}")
        if len(result.failed) == len(cases):
            raise DataError(
                "no case could be prepared", path=corpus.name, fix="see `medjax verify`"
            )
    hosts.first(lambda: _note_sources(run))


def _plan_key(workdir: Path, default: str) -> str:
    """The key of the plan that a run was trained with; `default` without a checkpoint."""
    from medjax.train import stepfolder

    trained = (
        stepfolder.latest_step(workdir / "checkpoints") is not None
        and (workdir / runfolder.PLAN).is_file()
    )
    return runfolder.read_plan(workdir).key() if trained else default


def _note_sources(run: Run) -> None:
    """Writes which files the run is trained on; for a started run, reports files that differ."""
    from medjax.train import hashes, stepfolder

    found = {}
    for corpus in run.data.stores:
        for case in run.data.cases[corpus.name]:
            path = run.store / corpus.store / case.name / "case.json"
            if path.is_file():
                meta = files.read_json(path, error=DataError, fix="prepare it again")
                found[f"{corpus.store}/{case.name}"] = hashes.of_json(
                    sorted(map(str, dict(meta).get("sources", {}).values()))
                )
    path = run.workdir / runfolder.SOURCES
    if path.is_file() and stepfolder.latest_step(run.workdir / "checkpoints") is not None:
        before = runfolder.read_json(run.workdir, runfolder.SOURCES)
        run.altered = [name for name in found if name in before and before[name] != found[name]]
        for name in run.altered:
            print(
                f"medjax: {name}: its files are not those that this run began with",
                file=sys.stderr,
                flush=True,
            )
        return
    runfolder.write_json(path, found)


def pools(run: Run, side: str) -> list[stream.Pool]:
    """The corpora of the label space for the sampler.

    Views validate on all cases of their store.
    """
    bad = {(entry.get("corpus", ""), entry["case"]) for entry in run.failed}
    sampling.check_names(run.config.sampler, run.data.space.corpora)
    found = []
    for k, corpus in enumerate(run.data.space.corpora):
        names = (
            run.data.training_cases(corpus)
            if side == "train"
            else run.data.side(corpus.store, side)
        )
        names = [
            n
            for n in names
            if (corpus.store, n) not in bad
            and (run.store / corpus.store / n / "case.json").is_file()
        ]
        if names:
            modality = run.data.space.modalities.index(corpus.modality)
            folder = str(run.store / corpus.store)
            classes = tuple(corpus.ids_of(name) for name in corpus.annotated)
            group = run.data.groups.get(corpus.store, "")
            ids, own = corpus.foreground_ids, sampling.pool_arguments(run.config.sampler, corpus)
            found.append(stream.Pool(k, folder, tuple(names), ids, modality, classes, group, **own))
        elif side == "train":
            raise UsageError(
                f"corpus {corpus.name!r} has no case to train on",
                fix="check split, view and failed cases",
            )
    return found


def train(run: Run) -> None:
    """Prepares and trains, resuming from the newest checkpoint."""
    layout = hosts.layout(run.config)  # refused before anything is prepared
    with (
        build.precision(run.config.train.precision),
        tracked.started(run.config, run.workdir) as trackers,
    ):
        _train(run, layout, trackers)


def _train(run: Run, layout: Any, trackers: Any) -> None:
    from medjax.train import accumulate, loop, sharding, stepfolder

    mesh = layout.mesh()
    prepare_stage(run)
    space = run.data.space
    config = configs.with_masks(run.config, run.plan, space.corpora)
    net = build.make_network(config, space, run.plan.mean_spacing())
    if config.evaluate.prompted.on:
        prompted.check(config.evaluate.prompted, net.reads)
    given = config.sampler
    draw, checked = drawing(config, net)
    host, count = sharding.share(mesh, layout.batch_axes)
    shared = {"host": host, "hosts": count, "threads": sampling.threads(given)}
    drawn, held = pools(run, "train"), pools(run, "val")
    begun_with = recipe.complete(run.config, space, run.data.splits, run.plan, drawn)
    recipe.refuse_other_data(run.workdir, begun_with, run.failed, run.altered)
    if prior := head_prior.start(config, space, run.workdir, drawn, draw):
        net = build.make_network(config, space, run.plan.mean_spacing(), prior=prior)
    own = {field.name for field in dataclasses.fields(loop.Settings)}
    settings = {name: getattr(config.train, name) for name in own & set(fields_of(schema.Train))}
    say(
        f"{build.count(net.abstract()):,} parameters, {len(space.classes)} classes, "
        f"{config.train.steps:,} steps of {draw.batch}"
    )
    if text := build.about_sides(config, space):
        say(text)
    task = build.make_task(config, space, net, mesh, layout.batch_axes)
    if layout.used + layout.idle > 1 or layout.accumulate > 1:
        say(layout.sentence())
    if text := accumulate.sentence(task, layout.accumulate):
        say(text)
    resumes = stepfolder.latest_step(run.workdir / "checkpoints") is not None
    measure = None
    if run.config.evaluate.on and (every := run.config.evaluate.during):
        settings["measure_every"] = every
        cases = held_cases(run, space.unveiled(), "val")
        measure = during.Volumes(run.config, space, run.plan, run.workdir, list(cases.values()))
    loop.fit(
        task=task,
        init=net.init,
        optimizer=build.make_optimizer(config),
        stream=lambda start: stream.stream(
            drawn,
            draw,
            start=start,
            workers=given.workers,
            moves=build.moves(config),
            **shared,
        ),
        validation_stream=(lambda: stream.stream(held, checked, **shared)) if held else None,
        settings=loop.Settings(seed=config.seed, tensorboard=True, **settings),
        workdir=run.workdir,
        names=task.names,
        recipe=begun_with,
        borrow=None if resumes else texts_of_run.filling(config, space, net, run.workdir),
        mesh=mesh,
        batch_axes=layout.batch_axes,
        accumulate=layout.accumulate,
        conv_layout=config.train.conv_layout,
        sharding_rules=config.sharding.rules,
        measure=measure,
        trackers=trackers,
    )


def drawing(config: Config, net: build.Network) -> tuple[stream.Recipe, stream.Recipe]:
    """What the stream of a training draws, and that of its validation."""
    draw = stream.Recipe(
        patch=build.sampled_patch(config),
        seed=config.seed,
        batch=config.train.batch,
        final=net.patch,
        dims=len(net.patch),
        channels=net.channels,
        **sampling.recipe_arguments(config.sampler),
    )
    return draw, dataclasses.replace(draw, patch=net.patch, seed=config.seed + 1)


def batches(run: Run, side: str = "train", start: int = 0) -> Iterator[dict]:
    """The host batches of a prepared run, as its training ("train") or validation ("val") draws
    them; endless.

    Args:
      start: completed steps.

    Raises: `UsageError` without a case on that side.
    """
    config = configs.with_masks(run.config, run.plan, run.data.space.corpora)
    net = build.make_network(config, run.data.space, run.plan.mean_spacing())
    draw, checked = drawing(config, net)
    found = pools(run, side)
    if not found:
        raise UsageError("no held-out cases", path=run.workdir, fix="see config.data.split")
    given = config.sampler
    return stream.stream(
        found,
        draw if side == "train" else checked,
        start=start,
        threads=sampling.threads(given),
        workers=given.workers if side == "train" else 0,
        moves=build.moves(config) if side == "train" else None,
    )


def held_cases(run: Run, space: LabelSpace, side: str = "") -> dict[str, tuple[Corpus, list[Case]]]:
    """Corpus name -> corpus and its labelled held-out cases; see `Data.held_out`."""
    return run.data.held_out(space, side)


def evaluate(run: Run) -> int:
    """Predicts and scores the held-out cases of every corpus against all their labels.

    Returns the exit code.
    """
    import jax

    from medjax.runs import test

    if not run.config.evaluate.on:
        say(
            "no held-out case is predicted or scored: evaluation is switched off "
            "(config.evaluate.on=False)"
        )
        return EXIT_OK
    side = run.data.scored
    if run.data.splits and not any(run.data.side(c.name, side) for c in run.data.stores):
        say("no held-out cases: nothing to evaluate")
        return EXIT_OK
    calibration.ensure(run.workdir, run.config.infer.conflicts, jax.default_backend(), say)
    predictor = load_predictor(run.workdir, device=jax.default_backend())
    space: LabelSpace = predictor.model.space
    held = held_cases(run, space)
    run.failed += test.predict_and_score(predictor, held, run.workdir, run.config.evaluate, _line)
    if (asked := run.config.evaluate.prompted).on:
        found = prompted.evaluate(predictor, held, asked, progress=_line("ask"))
        run.failed += [e for e in found["failed"] if e["case"] not in _names(run.failed)]
        for text in prompted.write(found, run.workdir / "evaluation"):
            say(text)
    for name, (module, value) in evaluations.chosen(run.config.evaluate).items():
        path = run.workdir / "evaluation" / f"{name}.json"
        found, lines = module.evaluate(predictor.networks[0], held, run.store, value)
        known = {(entry["case"], entry["message"]) for entry in run.failed}
        run.failed += [
            entry
            for entry in found.get("failed", ())
            if (entry["case"], entry["message"]) not in known
        ]
        runfolder.write_json(path, found)
        for text in (*lines, f"  see {path}"):
            say(text)
    for entry in run.failed:
        say(f"failed: {entry['case']}: {sentence(entry)}")
    return EXIT_SOME_FAILED if run.failed else EXIT_OK


def _names(failed: list[dict]) -> set[str]:
    return {entry["case"] for entry in failed}


def _line(what: str):
    """A progress callback.

    On a terminal one updated line; otherwise a line per problem and one at the end.
    """
    live = sys.stderr.isatty() and not os.environ.get("CI")

    def show(done: int, total: int, name: str, status: str) -> None:
        if live:
            print(
                f"\r{what} {done}/{total} {name}: {status}".ljust(100),
                end="" if done < total else "\n",
                file=sys.stderr,
                flush=True,
            )
        elif status == "failed" or done == total:
            print(
                f"{what} {done}/{total}" + (f" {name}: failed" if status == "failed" else ""),
                file=sys.stderr,
                flush=True,
            )

    return show
