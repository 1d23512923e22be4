"""`--mode=crossval`: trains and scores every fold in its own folder, then all cases together.

In: a config. Out: RUN/fold_0, RUN/fold_1, ... (ordinary runs with one store:
together they are an ensemble), RUN/evaluation with every case scored once, by the network that did
not see it, and RUN/crossval.json with the folds and their means. Finished folds are not repeated.
"""

from collections.abc import Sequence
from pathlib import Path

from medjax.corpora.inputs import Case
from medjax.errors import EXIT_OK, EXIT_SOME_FAILED, UsageError
from medjax.labels import Corpus
from medjax.runs import folder as runfolder
from medjax.runs import hosts, stages, test, trained
from medjax.runs import open as corpora
from medjax.runs.config import with_fold
from medjax.runs.settings.schema import Config


def run(config: Config, workdir: Path, folds: Sequence[int] = ()) -> int:
    """Trains and scores `folds` (default all).

    The joint table is written by the call after which all folds are finished.

    Returns: the exit code. Raises: `UsageError` for a fold that does not exist, or for several
      processes (run each fold separately).
    """
    import jax

    if jax.process_count() > 1:
        raise UsageError(
            "cross-validation runs in one process",
            fix="train each fold with --mode=train --config.data.split.fold=K",
        )
    count = int(config.data.split.folds)
    if wrong := [fold for fold in folds if not 0 <= fold < count]:
        raise UsageError(
            f"no fold {wrong[0]}",
            expected=f"0 to {count - 1}",
            fix="see --folds and config.data.split.folds",
        )
    code = EXIT_OK
    for fold in folds or range(count):
        stages.say(f"fold {fold} of {count}")
        with hosts.holding(folder_of(workdir, fold), "cross-validation"):
            experiment = stages.open_run(
                with_fold(config, fold, workdir / "store"), folder_of(workdir, fold)
            )
            stages.train(experiment)
            code = max(code, stages.evaluate(experiment))
    missing = [
        fold
        for fold in range(count)
        if not (folder_of(workdir, fold) / "evaluation" / "summary.json").is_file()
    ]
    if missing:
        stages.say(f"the joint table waits for folds {', '.join(map(str, missing))}")
        return code
    return max(code, _together(config, workdir, count))


def folder_of(workdir: Path, fold: int) -> Path:
    """The run folder of one fold."""
    return workdir / f"fold_{fold}"


def _together(config: Config, workdir: Path, count: int) -> int:
    """Scores the masks of all folds: every case once."""
    data = corpora.open_data(with_fold(config, 0, workdir / "store").data, folder_of(workdir, 0))
    space = data.space.unveiled()
    held: dict[str, tuple[Corpus, list[tuple[Case, Path]]]] = {}
    for corpus in space.corpora:
        found = []
        for fold in range(count):
            masks = folder_of(workdir, fold) / "predictions" / corpus.name
            wanted = {
                name.split("/", 1)[1]
                for name in data.splits[fold][data.scored]
                if name.startswith(f"{corpus.name}/")
            }
            found += [
                (c, masks / f"{c.name}.nii.gz")
                for c in data.cases[corpus.name]
                if c.name in wanted and c.label
            ]
        held[corpus.name] = (corpus, [(case, mask) for case, mask in found if mask.is_file()])
    failed, result = test.score(held, config.evaluate)
    if result is None:
        return EXIT_SOME_FAILED
    test.publish(result, workdir, config.evaluate)
    means = {}
    for fold in range(count):
        means[f"fold_{fold}"] = _foreground(folder_of(workdir, fold) / "evaluation")
    runfolder.write_json(
        workdir / "crossval.json", {"folds": means, "together": result.summary()["foreground_mean"]}
    )
    return EXIT_SOME_FAILED if failed else EXIT_OK


def _foreground(folder: Path) -> dict:
    found = runfolder.read_json(folder, "summary.json")
    if not isinstance(found, dict) or "foreground_mean" not in found:
        raise UsageError(
            "no scores of a fold",
            path=folder / "summary.json",
            expected="a field foreground_mean",
            fix="evaluate the fold again",
        )
    return found["foreground_mean"]


def ensemble(workdir: Path, **options) -> object:
    """A predictor over the networks of all folds; `options` as for `trained.load_predictor`."""
    folders = sorted(p for p in workdir.glob("fold_*") if (p / runfolder.CONFIG).is_file())
    if not folders:
        raise UsageError("no folds here", path=workdir, fix="run --mode=crossval first")
    return trained.load_predictor(folders, **options)
