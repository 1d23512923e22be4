"""Finished models as predictors: run folders and archives become an `infer.segmenter.Segmenter`.

In: paths of run folders (a training's --workdir) or `.medjax` archives. Out: the facts of a model
(`Trained`), and a predictor. All code that loads a model calls `read_model` and `load_predictor`;
several models form an ensemble.
"""

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medjax.errors import MedjaxError, ModelError, UsageError
from medjax.files import check_name, is_within
from medjax.labels import LabelSpace
from medjax.prepare.plan import Plan
from medjax.registry import plain
from medjax.runs import build as network
from medjax.runs import fitted, folder, temperatures
from medjax.runs.prompted import prompting
from medjax.runs.settings.schema import Config
from medjax.scans.header import DataWarning
from medjax.weights.formats import archive as archives

POSTPROCESS = "postprocess.json"


@dataclasses.dataclass(frozen=True)
class Adapted:
    """An adapter file beside its base, see `runs.exchange.adapters.attach`.

    Attributes:
      base: the model it is joined to. settings: of its adapters. identity: of the file.
      joined: (base parameters, abstract parameters of the network) -> the tree with the adapter.
    """

    base: "Trained"
    settings: Any
    identity: str
    joined: Callable[[Any, Any], Any]


@dataclasses.dataclass(frozen=True)
class Trained:
    """The facts of a run folder or an archive, without its arrays.

    Attributes:
      path: its path. config: of its run. space: as trained, views included. plan: spacing and
        normalisation.
      postprocess: what `medjax postprocess` chose on validation data, if anything.
      archive: the checked archive it came from; None for a run folder.
      adapted: how an adapter file is joined to it; None: without one.
      current: parameters in memory, of a training that has not ended; None: those of the files.
    """

    path: Path
    config: Config
    space: LabelSpace
    plan: Plan
    postprocess: Mapping | None = None
    archive: archives.Archive | None = None
    adapted: Adapted | None = None
    current: Any = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """(z, y, x) mm: the common target spacing, or the mean if corpora have their own."""
        return self.plan.mean_spacing()

    @functools.cached_property
    def network(self) -> network.Network:
        """The network of its config.

        `UsageError` for an exported function, which has none; `ModelError` if none can be built.
        """
        if self.archive and self.archive.kind != "weights":
            raise UsageError(
                "an exported function holds no network",
                path=self.path,
                fix="use the run folder or a weights archive",
            )
        with _refusing(self):
            attached = self.adapted.settings if self.adapted else None
            made = network.make_network(self.config, self.space, self.spacing_mm, attached)
            if self.archive:
                made.abstract()
            return made

    def params(self, checkpoint: str = "") -> Any:
        """Its parameters, strictly: every array of the network, in its shape, and no other.

        Args:
          checkpoint: "last", "best" or a step of a run folder; default the config's.

        Raises: `ModelError` for arrays of other names, shapes or types, and for numbers that are
          not finite.
        """
        return self.weights(checkpoint)[0]

    def weights(self, checkpoint: str = "") -> tuple[Any, str]:
        """Its parameters, see `params`, and the hash of the files that hold them; empty for a
        checkpoint of a version that wrote no hashes.
        """
        from medjax.train import checkpoint as checkpoints
        from medjax.train import hashes

        if self.current is not None:
            return self.current, ""
        if self.adapted:
            base, identity = self.adapted.base.weights(checkpoint)
            joined = self.adapted.joined(base, self.network.abstract())
            return joined, f"{identity} adapter={self.adapted.identity}"
        if self.archive is None:
            which = checkpoint or self.config.infer.checkpoint
            ema = self.config.infer.ema
            step = checkpoints.find(self.path / "checkpoints", which)
            found = checkpoints.load_params(step, self.network.abstract(), ema=ema)
            digest = hashes.of_step(step)
            digest = f"{digest} ema={ema}" if digest and ema != "auto" else digest
            return fitted.check_finite(found, self.path), digest
        if checkpoint:
            raise UsageError(
                "an archive holds one set of parameters",
                path=self.path,
                fix="leave out --checkpoint",
            )
        arrays = archives.unpack_arrays(self.archive.payload, str(self.path))
        found = fitted.fitted(arrays, self.network.abstract(), self.path)
        return found, f"sha256:{self.archive.sha256}"


def read_model(path: Path | str) -> Trained:
    """Reads the facts of a model.

    Args:
      path: a run folder or an archive.

    Raises: `UsageError` for any other path, or a run without a checkpoint; `ModelError` for an
      archive that fails its checks.
    """
    path = Path(path)
    if archives.is_archive(path):
        return _of_archive(path, archives.read(path))
    fields = folder.read_fields(path)
    fitted.check_config(fields, path / folder.CONFIG, UsageError)
    config = folder.config_of(fields, path / folder.CONFIG)
    space, plan = folder.read_space(path), folder.read_plan(path)
    folder.require_checkpoint(path)
    chosen = folder.read_json(path, POSTPROCESS) if (path / POSTPROCESS).is_file() else None
    return Trained(path, config, space, plan, chosen)


def _of_archive(path: Path, found: archives.Archive) -> Trained:
    try:
        fields = plain(found.documents["config"])
        fitted.check_config(fields, path, ModelError)
        config = folder.config_of(fields, path)
        space, plan = (
            LabelSpace.from_json(found.documents["labels"]),
            Plan.from_json(found.documents["plan"]),
        )
        for corpus in space.corpora:
            plan.spacing_of(corpus.store)
            for channel in corpus.channels:
                plan.intensity_of(channel)
        chosen = found.documents.get("postprocess")
        if chosen is not None and not (
            isinstance(chosen, Mapping) and isinstance(chosen.get("rules"), Mapping)
        ):
            raise ModelError(
                "unusable postprocess.json",
                found=type(chosen).__name__,
                expected='{"rules": {...}}',
            )
    except MedjaxError as error:
        raise _refused(path, error) from error
    return Trained(path, config, space, plan, chosen, found)


def _refused(path: Path, error: MedjaxError) -> ModelError:
    return ModelError(
        f"model archive refused: {error.message}",
        path=path,
        found=error.found,
        expected=error.expected,
        fix=error.fix or "do not use it",
    )


@contextlib.contextmanager
def _refusing(one: Trained) -> Iterator[None]:
    """Converts errors of an archive's network to an error that names the archive."""
    try:
        yield
    except MedjaxError as error:
        if one.archive is None:
            raise
        raise _refused(one.path, error) from error
    except Exception as error:  # networks raise many types for unsuitable arguments
        what = "model archive refused" if one.archive else "unusable config"
        raise ModelError(
            f"{what}: no network can be made of its config ({type(error).__name__}: "
            f"{str(error)[:200]})",
            path=one.path,
            fix="export it again" if one.archive else "correct config.json",
        ) from error


def load_predictor(
    models: Path | str | Trained | Sequence[Path | str | Trained],
    *,
    checkpoint: str = "",
    tta: str = "",
    overlap: float | None = None,
    window: Sequence[int] = (),
    batch_windows: int | None = None,
    device: str = "",
    memory_gib: float | None = None,
    uncertainty: bool = False,
    postprocess: str = "",
    conflicts: str = "",
    fast: bool = False,
    every_task: bool = False,
    zoom: str = "",
    vectors: Callable | None = None,
    backend: str = "",
) -> Any:
    """A `Segmenter` from one or several models; defaults follow the first one's config.

    Its label space has every corpus as annotated (no views), under the name of its store. Members
    of one architecture run as one program; others are averaged on the scan's grid.

    Args:
      models: run folders, archives, or results of `read_model`.
      tta: "none" or "mirror". window: (z, y, x) or (y, x) in place of the training patch. device:
        "cpu", "gpu:1", ...
      memory_gib: memory limit of a case. uncertainty: also compute how far members disagree.
      postprocess: "" as configured, "none", "chosen" (on validation data) or a JSON file of rules.
      conflicts, backend: words in place of the config's, see `infer.conflicts` and `Scorer`.
      fast: use the coarser companion that the models name in `infer.fast`.
      every_task: the task of a scan is unknown: see `infer.tasks`.
      zoom: "in" or "out" in place of the config's, of a promptable model, which becomes an
        `infer.prompted.PromptedSegmenter`. vectors: of texts that are no class, see
        `runs.prompted.free`.

    Raises: `UsageError` for a folder that is no run, members that do not fit together, a window the
      network cannot take, rules or a companion that do not exist; `TrainError` or `ModelError` for
      weights that do not fit their config.
    """
    from medjax.infer.segmenter import Segmenter
    from medjax.infer.tasks import asking_all

    single = isinstance(models, Path | str | Trained)
    trained = [
        m if isinstance(m, Trained) else read_model(m) for m in ([models] if single else models)
    ]
    if not trained:
        raise UsageError("no model given")
    if fast:
        trained = [_companion(one) for one in trained]
    given, devices = trained[0].config.infer, named_devices(device)
    if prompting.promptable(trained[0]):
        refused = {"tta": tta not in ("", "none"), "window": window, "uncertainty": uncertainty}
        refused |= {"backend": backend}
        prompting.check(trained, [name for name, value in refused.items() if value])
        model, own = _model(trained[0], checkpoint, (), devices)
        return prompting.segmenter(
            model,
            given,
            zoom=zoom,
            overlap=overlap,
            vectors=vectors,
            memory_gib=memory_gib,
            postprocess=rules(trained[0], postprocess),
            conflicts=conflicts or given.conflicts,
            devices=devices,
            weights=[own],
        )
    if zoom:
        raise UsageError("only promptable models zoom", path=trained[0].path, found=f"zoom {zoom}")
    groups: dict[str, list[Trained]] = {}
    for one in trained:
        groups.setdefault(_architecture(one), []).append(one)

    def build(members: list[Trained], others: Sequence[Any]) -> Any:
        model, own = _model(members[0], checkpoint, tuple(window), devices)
        if every_task:
            count = len(network.tasks(members[0].config, members[0].space)[1])
            model = asking_all(model, count, members[0].path)
        ensemble = [member.weights(checkpoint) for member in members[1:]]
        with _refusing(trained[0]):
            configured = rules(trained[0], postprocess) if not postprocess else None
            configured = configured.checked(model.space) if configured else None
        axes = (
            {"none": (), "mirror": tuple(range(model.dims))}[tta]
            if tta
            else tuple(given.mirror_axes)
        )
        with _refusing(members[0]):
            axes = _upright(members[0], axes)
        return Segmenter(
            model,
            ensemble=[params for params, _ in ensemble],
            weights=[own, *(identity for _, identity in ensemble)],
            others=others,
            overlap=given.overlap if overlap is None else overlap,
            mirror_axes=axes,
            average=given.average,
            activation=given.activation,
            batch_windows=batch_windows or given.batch_windows or None,
            backend=backend or given.backend,
            half=given.half,
            precision=given.precision,
            devices=devices,
            memory_gib=memory_gib,
            **temperatures.rule(trained, conflicts or given.conflicts, own),
            uncertainty=uncertainty,
            postprocess=rules(trained[0], postprocess) if postprocess else configured,
        )

    first, *rest = groups.values()
    return build(first, [build(members, ()) for members in rest])


def rules(model: Trained, wanted: str = "") -> Any:
    """The postprocessing rules of a word (see `load_predictor`), or None."""
    from medjax.infer.postprocess import Rules

    if wanted == "none":
        return None
    if wanted == "chosen":
        if model.postprocess is None:
            fix = "run `medjax postprocess` on its validation cases first"
            raise UsageError("nothing was chosen on validation data", path=model.path, fix=fix)
        return Rules.from_json(model.postprocess["rules"]) or None
    if wanted:
        path = Path(wanted)
        found = folder.read_json(path.parent, path.name) if path.is_file() else None
        if not isinstance(found, dict):
            raise UsageError(
                f"no postprocessing {wanted!r}", expected="none, chosen, or a JSON file of rules"
            )
        return Rules.from_json(found.get("rules", found)) or None
    return Rules.from_json(model.config.infer.postprocess.to_json()) or None


def named_devices(name: str) -> list | None:
    """The jax devices of "cpu", "gpu" (all of this process) or "gpu:1"; None for an empty name.

    "cpu" is one device, as further ones would share its cores.
    """
    import jax

    if not name:
        return None
    platform, _, index = name.partition(":")
    try:
        devices = jax.devices(platform)
        if index or platform == "cpu":
            return [devices[int(index or 0)]]
        return jax.local_devices(backend=platform)
    except (RuntimeError, IndexError, ValueError) as error:
        known = [f"{d.platform}:{d.id}" for d in jax.devices()]
        raise UsageError(f"no device {name!r}", expected=", ".join(known)) from error


def _upright(one: Trained, axes: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of test-time mirroring without those that would mix left and right: trained with
    `augment.lateral`, a network sees the other side in a mirrored image.
    """
    mixed = set(axes) & set(network.exchanging_axes(one.config, one.space)) if axes else set()
    if mixed:
        warnings.warn(
            f"{one.path}: axes {sorted(mixed)} are not mirrored in prediction: it would mix left "
            "and right (augment.lateral)",
            DataWarning,
            stacklevel=3,
        )
    return tuple(axis for axis in axes if axis not in mixed)


def _model(
    one: Trained, checkpoint: str, window: tuple[int, ...], devices: Sequence[Any] | None = None
) -> tuple[Any, str]:
    """The `infer.model.Model`, and what identifies its parameters."""
    from medjax.infer.model import Model

    space, conditions = one.space.unveiled(), one.space.conditions()
    if one.archive and one.archive.kind == "function":
        from medjax.weights.formats import stablehlo

        apply, own = stablehlo.function(one.archive, devices[0].platform if devices else "")
        if window and window != own:
            raise UsageError(
                "an exported function has one window", path=one.path, found=window, expected=own
            )
        reads = stablehlo.reads(one.archive)
        found = Model(
            apply, {}, one.plan, space, own, len(own), conditions, reads, _tasks(one, conditions)
        )
        return found, f"sha256:{one.archive.sha256}"
    net = one.network
    window = window or net.patch
    _check_window(one, window)
    params, identity = one.weights(checkpoint)
    tasks = _tasks(one, conditions)
    found = Model(
        net.apply,
        params,
        one.plan,
        space,
        window,
        len(net.patch),
        conditions,
        net.reads,
        tasks,
        net.methods,
    )
    return found, identity


def _tasks(one: Trained, conditions: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """Task and corpus names -> task index, as the network was trained."""
    numbers, names = network.tasks(one.config, one.space)
    own = {corpus: numbers[index] for corpus, (index, _) in conditions.items()}
    return own | {name: k for k, name in enumerate(names)}


def _check_window(one: Trained, window: tuple[int, ...]) -> None:
    """`UsageError` for a window that the network cannot take."""
    import jax
    import jax.numpy as jnp

    from medjax.models import context

    net = one.network
    if len(window) != len(net.patch) or min(window) < 1:
        raise UsageError(
            "unusable window", found=window, expected=f"{len(net.patch)} sizes, e.g. {net.patch}"
        )
    if window == net.patch:
        return
    image = jax.ShapeDtypeStruct((1, *window, net.channels), jnp.float32)
    read = context.abstract(net.reads, 1, window)
    try:
        shape = jax.eval_shape(net.apply, net.abstract(), image, read)["logits"].shape[1:-1]
    except Exception as error:  # networks raise many types for unsuitable sizes
        raise UsageError(
            f"the network cannot take this window ({type(error).__name__})",
            found=window,
            expected=f"e.g. {net.patch}",
        ) from error
    if shape != window:
        raise UsageError(
            "the network changes the size of this window",
            found=f"{window} -> {shape}",
            expected=f"e.g. {net.patch}",
        )


def _companion(one: Trained) -> Trained:
    """The coarser model that a config names in `infer.fast`.

    Its path is relative to a run, and beside an archive, which may not name other folders.
    """
    name = one.config.infer.fast
    if not name:
        raise UsageError(
            "the model offers no fast version",
            path=one.path,
            fix="name a run with a coarser spacing in config.infer.fast",
        )
    if one.archive is None:
        return read_model(one.path / name)
    check_name(name, "fast version", path=one.path, error=ModelError)
    if not is_within(one.path.parent / name, one.path.parent):
        raise ModelError(
            "the fast version is a link to another folder",
            path=one.path,
            found=name,
            fix="give it with -m",
        )
    return read_model(one.path.parent / name)


def _architecture(one: Trained) -> str:
    """Equal for models whose parameters can be stacked into one program."""
    if one.archive and one.archive.kind == "function":
        return one.archive.sha256
    kept = {
        "model": one.config.model,
        "patch": one.config.train.patch,
        "plan": one.plan.key(),
        "space": one.space.to_json(),
        "adapters": one.adapted.identity if one.adapted else one.config.adapters,
    }
    return repr(sorted(kept.items()))
