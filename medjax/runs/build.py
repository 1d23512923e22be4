"""Config -> network, losses, task, optimizer: the objects of one training, built by name.

Facts of the data (numbers of classes, channels and modalities, target spacing, the channels each
corpus annotates) are offered to a model's `make` in addition to its config; a model takes those
that its signature names. The words of its sockets are resolved here (`models.parts.sockets`).
"""

import contextlib
import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medjax.augment import kinds
from medjax.errors import UsageError, did_you_mean
from medjax.infer.model import PRECISIONS
from medjax.labels import LabelSpace
from medjax.models import context as contexts
from medjax.models.parts import sockets
from medjax.registry import build
from medjax.runs.settings.schema import Config, Optimizer
from medjax.runs.settings.section import fields_of
from medjax.sample.draw import MOVING
from medjax.train import optim, phases, reducing
from medjax.train.sharding import AXES
from medjax.weights import adapters as adapter_weights
from medjax.weights.adapters import Adapters

# Arguments that weights are bound to although every shape fits without them; if they are open, a
# patch and a spacing decide the first two, and a source of weights all of them.
TOPOLOGY = ("strides", "kernels", "pe_order")


@dataclasses.dataclass(frozen=True)
class Network:
    """A model as functions.

    Attributes:
      apply: (params, image (b, *patch, m), context, train, key) -> outputs; the key is for random
        parts of training (stochastic depth).
      init: key -> params.
      patch: (z, y, x), or (y, x) for a 2D model.
      channels: m.
      reads: what the model reads beside the image (`models.context`).
      tasks: per corpus of the label space, the number of its task.
      texts: of networks with a table of text vectors (`runs.prompted.texts`), what its rows stand
        for: names of tasks or classes.
      topology: strides and kernels of every stage, and the order of positions, of networks that
        have them.
      methods: further functions of the network, (params, array (b, ...), context, train, key) ->
        outputs: those that its module lists in its attribute `programs` ("encode", "decode").
      module: the Flax module behind `apply`.
    """

    apply: Callable[..., dict]
    init: Callable[[Any], Any]
    patch: tuple[int, ...]
    channels: int
    reads: contexts.Spec = dataclasses.field(default_factory=lambda: contexts.DEFAULT)
    tasks: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()
    topology: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    methods: Mapping[str, Callable] = dataclasses.field(default_factory=dict)
    module: Any = None

    def abstract(self) -> Any:
        """Shapes of the parameters; allocates nothing."""
        return jax.eval_shape(self.init, jax.random.key(0))


def adapter_settings(config: Config) -> Adapters | None:
    """`config.adapters`, if it names kernels or has rules; `UsageError` for both."""
    given = config.adapters
    if given.kernels and given.rules:
        raise UsageError(
            "config.adapters: kernels and rules both say where adapters are", fix="give one of them"
        )
    rules = given.rules
    if given.kernels:
        rules = adapter_weights.rules_of(given.kernels, given.rank, given.whole)
    if not rules:
        return None
    names = [f.name for f in dataclasses.fields(Adapters) if f.name != "rules"]
    return Adapters(rules=rules, **{name: getattr(given, name) for name in names})


def make_network(
    config: Config,
    space: LabelSpace,
    spacing_mm: tuple[float, float, float],
    attached: Adapters | None = None,
    prior: Sequence[float] = (),
) -> Network:
    """Builds `config.model` for a label space, with the adapters of `config.adapters`.

    Args:
      spacing_mm: (z, y, x) of the prepared volumes; the mean if corpora have their own spacing.
      prior: where the outputs of fresh heads start (`runs.head_prior`); empty: as the config says.
      attached: settings of adapters that the parameters have already; fresh parameters then have
        none, whatever the config says.
    """
    given = dict(config.model.options)
    name, patch = config.model.name, tuple(config.train.patch)
    channels = max(len(corpus.channels) for corpus in space.corpora)
    own, names = tasks(config, space)
    offered = {
        "classes": len(space.classes),
        "in_channels": channels,
        "patch": patch,
        "spacing_mm": spacing_mm[3 - len(patch) :],
        "modalities": len(space.modalities),
        "corpora": len(space.corpora),
        "text_rows": len(space.classes),
        "tasks": len(names),
        "corpus_channels": tuple(tuple(np.flatnonzero(row).tolist()) for row in space.known),
    }
    known = accepted(name)
    if known:
        given = sockets.resolved(name, tuple(known), given, offered)
    given |= {"prior": tuple(prior)} if prior else {}
    module = build("models", name, **{k: v for k, v in offered.items() if k in known} | given)

    planned = None if attached else adapter_settings(config)
    settings = attached or planned
    reads = contexts.declared(module)
    if settings:
        more = {entry: contexts.STANDARD[entry] for entry in settings.reads}
        reads = contexts.union(reads, more)

    def apply(params, image, context=None, train=False, key=None):
        with precision(config.train.precision) if train else contextlib.nullcontext():
            outputs = module.apply(
                adapter_weights.variables(params, settings, image, context or {}),
                image,
                context,
                train,
                rngs=None if key is None else {"dropout": key},
            )
        if train and settings and (shares := adapter_weights.balance(params, image)):
            outputs = outputs | {"balance": {**outputs.get("balance", {}), **shares}}
        return outputs

    def method(name: str) -> Callable:
        def call(params, array, context=None, train=False, key=None):
            with precision(config.train.precision) if train else contextlib.nullcontext():
                return module.apply(
                    adapter_weights.variables(params, settings, array, context or {}),
                    array,
                    context,
                    train,
                    rngs=None if key is None else {"dropout": key},
                    method=name,
                )

        return call

    def init(key):
        fresh = contexts.initialise(module, key, jnp.zeros((1, *patch, channels), jnp.float32))
        if planned is None:
            return fresh
        key = jax.random.fold_in(key, 1)
        return adapter_weights.graft(fresh, planned, key, channels=channels)

    topology = {k: getattr(module, k) for k in TOPOLOGY if k in known and hasattr(module, k)}
    rows = {"tasks": names, "classes": tuple(space.classes)}
    texts = rows.get(getattr(module, "text_rows", ""), ())
    methods = {name: method(name) for name in getattr(module, "programs", ())}
    return Network(apply, init, patch, channels, reads, own, texts, topology, methods, module)


def tasks(config: Config, space: LabelSpace) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """(number of the task of every corpus, names of the tasks).

    A corpus is its own task unless `data.tasks` names one for it, or for the corpus it is a view
    of.

    Raises: `UsageError` if it names a corpus that does not exist (with `data.only`, some do not).
    """
    named = config.data.tasks
    known = {name for corpus in space.corpora for name in (corpus.name, corpus.store)}
    if (unknown := sorted(set(named) - known)) and not config.data.only:
        raise UsageError(
            f"config.data.tasks names an unknown corpus {unknown[0]!r}",
            fix=did_you_mean(unknown[0], sorted(known)),
        )
    words = [named.get(c.name, named.get(c.store, c.name)) for c in space.corpora]
    names = tuple(dict.fromkeys(words))
    return tuple(names.index(word) for word in words), names


def precision(word: str | None) -> contextlib.AbstractContextManager:
    """The precision of matrix products in training, `train.precision`; empty: jax's own.

    What is traced within it keeps it. Raises: `UsageError` for another word.
    """
    word = word or ""
    if word not in PRECISIONS:
        raise UsageError(
            f"unknown train.precision {word!r}",
            expected=" or ".join(repr(known) for known in PRECISIONS),
            fix=did_you_mean(str(word), PRECISIONS[1:]),
        )
    return jax.default_matmul_precision(word) if word else contextlib.nullcontext()


def accepted(name: str, package: str = "models") -> Mapping:
    """The arguments of a module's `make` by name; empty if there is none."""
    try:
        return inspect.signature(
            importlib.import_module(f"medjax.{package}.{name}").make
        ).parameters
    except (ModuleNotFoundError, AttributeError):
        return {}  # `build` raises the error


def make_task(
    config: Config,
    space: LabelSpace,
    network: Network,
    mesh: Any = None,
    batch_axes: tuple[str, ...] = AXES,
) -> Any:
    """The task that turns the sampler's batches into a loss (and validation counts).

    `mesh`, `batch_axes`: the devices over which a batch is split, see `train.sharding.Layout`.
    """
    losses = [
        (name, loss.weight, build("losses", name, **loss.options))
        for name, loss in config.losses.items()
    ]
    stores = tuple(corpus.store for corpus in space.corpora)

    def on_mesh(f: Callable) -> Callable:
        return reducing.reduced(f, mesh, batch_axes, config.train.reduce)

    methods = {k: on_mesh(f) for k, f in network.methods.items()}
    offered = {"modalities": space.modalities, "methods": methods, "corpora": stores}
    known = accepted(config.task, "tasks")
    named = {name: value for name, value in offered.items() if name in known}
    return build(
        "tasks",
        config.task,
        **named | dict(config.task_options.options),
        apply=on_mesh(network.apply),
        reads=network.reads,
        tasks=network.tasks,
        losses=losses,
        table=space.table,
        known=space.known,
        ignore_ids=space.ignore_ids,
        augment=_augmenter(config, network.patch, mesh, space, batch_axes),
        patch=network.patch,
        mask_padding=config.mask_padding,
        deep_weights=config.deep_weights or "halving",
        activation=config.infer.activation,
        classes=space.classes,
    )


def _augmenter(
    config: Config,
    patch: tuple[int, ...],
    mesh: Any,
    space: LabelSpace,
    batch_axes: tuple[str, ...] = AXES,
) -> Callable | None:
    facts = dataclasses.replace(
        _augmented(config, space), patch=patch, mesh=mesh, batch_axes=batch_axes
    )
    return kinds.make(config.augment.to_json(), facts)


def _augmented(config: Config, space: LabelSpace) -> kinds.Facts:
    orientation = config.data.orientation or "stored"
    return kinds.Facts(tuple(config.train.patch), space.corpora, orientation)


def exchanging_axes(config: Config, space: LabelSpace) -> tuple[int, ...]:
    """Axes whose test-time mirroring would mix left and right, see `kinds.exchanging_axes`."""
    return kinds.exchanging_axes(config.augment.to_json(), _augmented(config, space))


def about_sides(config: Config, space: LabelSpace) -> str:
    """What training does to left and right, in one line; empty if no class has a side."""
    if config.task == "masked_image":  # uses no labels
        return ""
    return kinds.sentence(config.augment.to_json(), _augmented(config, space))


def sampled_patch(config: Config) -> tuple[int, ...]:
    """The patch that the sampler cuts: enlarged if it will be rotated and scaled."""
    return kinds.cut(config.augment.to_json(), config.train.patch)


def moves(config: Config) -> kinds.Movement | None:
    """What draws rotation and scaling for the sampler, if its version does that."""
    drawn = (config.sampler.version or 1) >= MOVING
    return kinds.moves(config.augment.to_json(), config.train.patch) if drawn else None


def make_optimizer(config: Config) -> optim.Optimizer:
    """`config.optim` over the run's number of steps, in phases if it lists any.

    Raises: `UsageError` for phases with unknown fields or that do not fill the run.
    """
    given = {name: getattr(config.optim, name) for name in fields_of(Optimizer)}
    in_turn = tuple(phase.as_given() for phase in config.optim.phases.values())
    if settings := adapter_settings(config):
        others = [given["trainable"], *(phase.get("trainable") for phase in in_turn)]
        if any(rules not in (None, ((".*", True),)) for rules in others):
            raise UsageError(
                "config.optim.trainable and config.adapters both say what is trained",
                fix="leave optim.trainable as it is; adapters.rules train leaves with a rank or "
                '"whole"',
            )
        given["trainable"] = adapter_weights.trainable(settings)
    if in_turn:
        return phases.make(in_turn, given, config.train.steps, config.train.continued)
    return optim.make(**given, steps=config.train.steps, restarts=config.train.continued)


def count(tree: Any) -> int:
    """Number of parameters in a (possibly abstract) tree."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def bytes_of(tree: Any) -> int:
    """Bytes of a (possibly abstract) tree."""
    return sum(
        int(np.prod(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if hasattr(leaf, "dtype")
    )
