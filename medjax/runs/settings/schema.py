"""The fields of a config: type, default and meaning of each, in one place.

In: a config as plain values (`registry.plain`). Out: `Config`, a frozen value; missing fields have
their defaults, so configs of earlier versions are read as well. `configs/base.py` is `listed()`.

To add a field, add one line here, or in `use.py` for prediction and evaluation: configs, flags,
checks and `--help` then know it. A field with `listed=False` is written into a config only where
somebody gives it, so configs and recipes of earlier runs stay as they are.
"""

from collections.abc import Mapping
from typing import Any

from medjax.errors import UsageError
from medjax.runs.settings import section as sections
from medjax.runs.settings.section import REQUIRED, Section, section, setting
from medjax.runs.settings.text import Text
from medjax.runs.settings.use import Evaluate, Infer

FROM_PLAN = "plan"  # the name of the network that a plan chooses
Number = float | int
Rules = tuple[tuple[str, Any], ...]
Words = tuple[str, ...]
NamedAxes = tuple[tuple[Any, ...], ...]  # (regex, axis) or (regex, axis, word)


@section
class Declared(Section):
    """A corpus of a paper, which needs no files for a dry run (`data_pipelines`)."""

    source: str = setting(
        "", "folder below data.root if it is not called as the corpus", listed=False
    )
    cases: int = setting(0, "number of cases", listed=False)
    modality: str = setting(REQUIRED, "of its scans, e.g. CT")
    channels: Words = setting(REQUIRED, "their names, e.g. CT")
    labels: Mapping[str, Any] = setting(REQUIRED, "label value -> classes")
    annotated: Words = setting((), "classes that are annotated; empty: all", listed=False)
    meanings: Mapping[str, str] = setting(
        dict, "class -> its definition, where corpora differ", listed=False
    )
    twins: tuple = setting((), "rules for scans that other corpora share", listed=False)
    group: str = setting("", "corpora of one group count as one in sampling", listed=False)


@section
class View(Section):
    """A corpus with a part of its annotation, or of its cases."""

    corpus: str = setting(REQUIRED, "the corpus that is looked at")
    annotated: Words = setting(REQUIRED, "classes that stay annotated")
    part: str = setting(
        "", "share of the training cases: 0/2 and 1/2 are halves; empty: all", listed=False
    )


@section
class Subset(Section):
    """Restricts a corpus to some of its cases."""

    file: str = setting(
        "", "file with a case name per line; empty: draw `count` cases", listed=False
    )
    count: int = setting(0, "number of cases", listed=False)
    seed: int = setting(12345, "of the draw", listed=False)
    names: str = setting(
        "",
        "regular expression: only cases whose whole name matches; all of them, or `count` of them",
        listed=False,
    )


@section
class Split(Section):
    """Training and validation cases."""

    file: str = setting("", "splits_final.json to use; empty: draw folds")
    folds: int = setting(5, "number of folds")
    fold: int = setting(0, "the fold that is held out; -1 trains on every case")
    seed: int = setting(12345, "of the draw")
    test: bool = setting(
        False,
        "the next fold is a test part: neither trained nor validated on, and what is evaluated",
        listed=False,
    )


@section
class Data(Section):
    """Corpora, cases, label space and preparation."""

    folders: str = setting("", "comma-separated corpora (docs/data.md lists the layouts)")
    tfds: str = setting(
        "",
        "comma-separated data sets built with tensorflow-datasets, in addition to folders: names "
        "below $TFDS_DATA_DIR, or folders of builders",
        listed=False,
    )
    phantom_cases: int = setting(
        0, "> 0: generate the embedded corpora with this many cases each, in addition to folders"
    )
    phantom_seed: int = setting(0, "of the embedded corpora")
    declared: Mapping[str, Declared] = setting(dict, "corpora of a paper, by name")
    root: str = setting("", "folder that holds the declared corpora")
    store: str = setting("", "folder of prepared volumes; empty: WORKDIR/store")
    views: Mapping[str, View] = setting(dict, "views that hide annotations, by name")
    only: str = setting(
        "",
        "comma-separated corpora and views to train and score; empty: all. The others still share "
        "preparation and splits",
    )
    subset: Mapping[str, Subset] = setting(dict, "corpus -> the cases it is restricted to")
    sides: Mapping[str, Words] = setting(dict, "corpus -> classes to split by side", listed=False)
    share: str = setting("by_name", "or per_corpus: liver of one corpus is not liver of another")
    rename: Mapping[str, str] = setting(dict, "CORPUS/CLASS -> global class")
    precedence: Words = setting((), "classes painted last in the exported label map, weakest first")
    plan: str = setting(
        "",
        "a plan of `medjax plan`, nnUNetPlans.json or plans.pkl instead of the rules below "
        "(docs/prepare.md)",
    )
    configuration: str = setting(
        "",
        "a configuration of that plan, e.g. 3d_fullres: sets patch and batch; with model.name=plan "
        "the network as well",
    )
    tasks: Mapping[str, str] = setting(
        dict, "corpus -> name of its task; a corpus without one is its own task"
    )
    allow_absent: bool = setting(False, "accept that a declared class occurs in no case")
    spacing_mm: tuple[Number, ...] = setting(
        (), "target spacing (z, y, x); empty: nnU-Net's median rule over all corpora"
    )
    spacing_rule: str = setting(
        "median",
        "or per_corpus, or native: each case keeps its own; used where spacing_mm is empty",
    )
    size: tuple[int, ...] = setting(
        (),
        "(z, y, x) voxels: each cropped volume is resampled to this fixed frame, whatever its "
        "spacing; -1 keeps its own number, as in (-1, 224, 224) for slices; empty: spacings decide",
    )
    intensity: Mapping[str, Any] = setting(
        dict,
        "channel -> its scheme, e.g. dict(scheme='window', clip=(-175, 250)) (docs/prepare.md); "
        "for all others the channel's name decides",
    )
    orientation: str = setting("RAS", "of the prepared volumes, or stored")
    crop: str = setting(
        "nonzero",
        "what is kept before resampling; foreground: the box above the lower intensity limit; none",
    )
    workers: int = setting(0, "processes of the preparation; 0: one per core")
    split: Split = setting(Split, "training and validation cases")


@section
class Sampler(Section):
    """Which patches a batch holds."""

    exponent: Number = setting(
        0.5, "a case is drawn with probability ~ n^-exponent, n = cases of its corpus"
    )
    draw: str = setting(
        "iid", "iid: cases with replacement, or mix: without; see medjax/sample/draw.py"
    )
    foreground: Number = setting(0.33, "share of samples that contain foreground for certain")
    oversample: str = setting("last", "which samples of a batch these are, or probabilistic")
    balance: str = setting(
        "case", "or class: a forced sample draws its class first, then a case that has it"
    )
    by: str = setting(
        "set",
        "classes are drawn as label sets, or class: as classes, nested ones sharing voxels "
        "(nnU-Net's regions)",
    )
    whole: Number = setting(0.0, "share of samples that show the whole case, shrunk to the patch")
    whole_image: str = setting("spline", "how it is shrunk, or area, nearest", listed=False)
    whole_label: str = setting("vote", "its label; or with area: nearest, area", listed=False)
    weigh: str = setting("cases", "or slices: cases weigh by their slices", listed=False)
    ratios: Mapping[str, Mapping[str, Number]] = setting(
        dict, "corpus -> class or background -> weight of patches centred there", listed=False
    )
    still: Words = setting((), "corpora that are neither rotated nor scaled", listed=False)
    version: int = setting(0, "of the stream; 0: that of the run folder, the newest in a new run")
    threads: int = setting(-1, "that read patches; -1: cores per local device, 12 at most")
    workers: int = setting(0, "processes that read patches; 0: none beside this one")


@section
class Augment(Section):
    """Augmentation on the device, with the fields of its kind."""

    OPEN = True

    on: bool = setting(True, "whether training batches are augmented")
    kind: str = setting("nnunet", "or turns, flips: see medjax/augment/turns.py", listed=False)
    lateral: str | tuple[tuple[str, str], ...] = setting(
        (),
        "auto, or pairs of class names: left and right classes are exchanged when the left-right "
        "axis is mirrored; auto mirrors it only where every class with a side has a partner",
        listed=False,
    )


@section
class Model(Section):
    """The network, with the fields that its `make` takes."""

    OPEN = True

    name: str = setting("unet", "a module of medjax/models, or plan: the network of data.plan")


@section
class Socket(Section):
    """What fills a place inside a network, with the fields of its kind; or the kind alone."""

    OPEN = True

    kind: str = setting(REQUIRED, "what fills it, see medjax/models/parts/sockets.py")


@section
class Loss(Section):
    """One loss, with the fields that its `make` takes."""

    OPEN = True

    weight: Number = setting(1.0, "factor of this loss in the sum", listed=False)


@section
class TaskOptions(Section):
    """The fields that the task's `make` takes."""

    OPEN = True


@section
class Optimizer(Section):
    """Optimizer and schedule; see medjax/train/optim.py for the formulas."""

    name: str = setting("sgd", "or adamw, lamb")
    lr: Number = setting(0.01, "learning rate")
    momentum: Number = setting(0.99, "of sgd")
    nesterov: bool = setting(True, "of sgd")
    weight_decay: Number = setting(3e-5, "coupled (sgd) or decoupled (adamw)")
    schedule: str = setting("poly", "or cosine, linear, constant")
    power: Number = setting(0.9, "of the schedule poly")
    steps_per_epoch: int = setting(1, "250 changes the rate once in 250 steps, as nnU-Net does")
    warmup_steps: int = setting(0, "linear rise to lr; a multiple of steps_per_epoch")
    clip_norm: Number = setting(12.0, "largest norm of the gradients; 0: no limit")
    trainable: Rules = setting(((".*", True),), "(regex over parameter paths, trained or frozen)")
    lr_scale: Rules = setting(((".*", 1.0),), "(regex, factor of the learning rate)")
    decay: Rules = setting(((".*", True),), "(regex, whether or by what factor weights decay)")
    only: Rules = setting(
        (), "(regex, (axis, indices)): only these slices of the leaves are trained"
    )
    ema: Number = setting(
        0.0, "> 0, e.g. 0.999: decay of a moving average of the parameters; 0: none"
    )
    final: Number = setting(0.0, "share of lr at the end of the schedule", listed=False)
    span: int = setting(
        0,
        "steps of the schedule if it is longer or shorter than the run; 0: as the run",
        listed=False,
    )
    shift: int = setting(0, "epochs by which the schedule is ahead (negative: late)", listed=False)
    b1: Number = setting(0.9, "of adamw and lamb", listed=False)
    b2: Number = setting(0.999, "of adamw and lamb", listed=False)
    eps: Number = setting(1e-8, "of adamw and lamb", listed=False)
    amsgrad: bool = setting(False, "of adamw: v never decreases", listed=False)


@section
class Phase(Section):
    """One of several optimizers in sequence; further fields differ from those of `optim`."""

    OPEN = True

    steps: int = setting(REQUIRED, "number of updates")
    continues: bool = setting(False, "keep the momentum of the phase before", listed=False)


@section
class Optim(Optimizer):
    """Optimizer and schedule, in phases if there are any."""

    phases: Mapping[str, Phase] = setting(
        dict, "in order: steps, and differences from the fields above (medjax/train/phases.py)"
    )


@section
class Adapters(Section):
    """Low-rank adapters beside the kernels of a network that stays as it is (docs/adapters.md)."""

    kernels: str = setting(
        "", "kernels that get one: every, unet, swin, vit or segvol; empty: as `rules` say"
    )
    rank: int = setting(8, "of the adapters beside `kernels`", listed=False)
    whole: str = setting(
        "",
        "with `kernels`: regex over parameters that are trained themselves, e.g. ^head",
        listed=False,
    )
    rules: Rules = setting(
        (),
        "(regex over parameter paths, rank, whole or 0) in place of `kernels`; empty: no adapters",
        listed=False,
    )
    scaling: str = setting("rslora", "alpha / sqrt(rank), or classic: alpha / rank", listed=False)
    alpha: Number = setting(16.0, "see scaling", listed=False)
    experts: int = setting(1, "adapters per kernel; from 2 on the first is the base", listed=False)
    routing: str = setting(
        "one", "what chooses a sample's expert: modality, corpus, task or image", listed=False
    )
    expert_of: tuple[int, ...] = setting(
        (), "expert of every modality, corpus or task; empty: its index", listed=False
    )
    expert: int = setting(0, "of routing one with several experts", listed=False)
    top_k: int = setting(1, "experts of a sample, with routing image", listed=False)
    from_scratch: bool = setting(False, "train adapters without init.source", listed=False)
    merged: Words = setting((), "adapters that these parameters contain", listed=False)


@section
class Init(Section):
    """Where the parameters come from."""

    source: str = setting(
        "", "run folder or archive whose parameters this run starts from; empty: random"
    )
    checkpoint: str = setting("last", "of the source, or best, or a step")
    rename: Rules = setting((), "(regex, replacement) over the source's parameter paths")
    heads: NamedAxes = setting(
        ((r"^(head|out)_?\d*/", -1),),
        "(regex, axis, classes, modalities, tasks or corpora; left out: classes): entries of the "
        "same name along the axis are copied; axis None: never",
    )
    classes: Mapping[str, str] = setting(
        dict, "class of this run -> class of the source, if names differ (empty: re-initialised)"
    )
    resize: Rules = setting((), '(regex, "trilinear") for position tables on another grid')
    widen: str = setting(
        "repeat", "leaves that read the image, if channels differ; or average, fresh"
    )
    fresh: str = setting("", "regex over parameter paths that stay as initialised")
    new: str = setting(
        "", "regex over those that stay as initialised where the source has none", listed=False
    )
    head_prior: str = setting(
        "",
        "prevalence: the outputs of fresh heads start at the share of their class in the patches "
        "that the sampler draws (docs/training.md); empty: as the network starts them",
        listed=False,
    )
    intensity: str = setting(
        "",
        "source: CT is normalised with the statistics of the source's training data; empty: with "
        "those of this run's (not used with data.plan)",
        listed=False,
    )
    topology: str = setting(
        "source",
        "strides and kernels that the config leaves open are the source's; or own: those that "
        "patch and spacing of this run lead to",
        listed=False,
    )
    twins: str = setting(
        "report",
        "scans that the source was trained on and this run holds out: report, refuse, or leave_out",
        listed=False,
    )
    copy: Rules = setting((), "(regex, replacement): copies source leaves to a second path as well")
    also: NamedAxes = setting(
        (),
        "(regex, path, run): leaves of further runs, e.g. an organ encoder of its own",
        listed=False,
    )
    upcycle: bool = setting(False, "copy the plain MLPs of the source to every expert")
    experts: Mapping[str, str] = setting(
        dict,
        "expert of this run (a modality) -> expert of the source, if names differ (empty: "
        "re-initialised)",
    )
    experts_from: Mapping[str, str] = setting(dict, "expert -> another run folder that provides it")
    gate: str = setting(
        "fresh",
        "gate columns of added experts; or apart, split, closed: the old function is unchanged "
        "(medjax/weights/experts.py)",
    )


@section
class Train(Section):
    """The training loop."""

    steps: int = setting(250_000, "number of updates; +N: so many more of a finished run")
    more: int = setting(0, "the same as steps=+N", listed=False)
    continued: tuple[int, ...] = setting(
        (), "steps after which the run was continued; written by medjax", listed=False
    )
    batch: int = setting(2, "patches per update, over all devices")
    accumulate: int = setting(1, "micro-batches of a step, for batches that do not fit in memory")
    patch: tuple[int, ...] = setting((128, 128, 128), "voxels (z, y, x), or (y, x) for slices")
    validate_every: int = setting(250, "steps between validations; 0: never")
    validation_batches: int = setting(50, "batches of a validation")
    precision: str = setting(
        "", "of matrix products: highest, high or default; empty: the device's own"
    )
    conv_layout: str = setting(
        "auto", "channels last on NVIDIA cards (auto, nhwc), or xla: as XLA prefers", listed=False
    )
    reduce: str = setting("auto", "type of sums of gradients: float32, bfloat16", listed=False)
    patience: int = setting(0, "> 0: stop after that many validations without a better one")
    checkpoint_every: int = setting(250, "steps between checkpoints")
    checkpoint_minutes: Number = setting(10.0, "minutes between checkpoints; 0: by steps only")
    log_every: int = setting(50, "steps between lines of metrics.jsonl")
    keep: int = setting(2, "newest checkpoints to keep, beside the best", listed=False)
    print_seconds: Number = setting(
        30.0, "between lines on a log that is no terminal", listed=False
    )
    picture: bool = setting(True, "draw progress.png", listed=False)


@section
class Sharding(Section):
    """How parameters lie on several devices."""

    fsdp: int = setting(
        1,
        "devices that share one copy of parameters and optimizer state; the rest is data parallel",
    )
    rules: Rules = setting(((".*", "replicate"),), "(regex over parameters, replicate or fsdp)")


def _losses() -> dict[str, Loss]:
    return {name: Loss(given=("weight",)) for name in ("cross_entropy", "dice")}


@section
class Config(Section):
    """Everything a run is made from."""

    name: str = setting("base", "of the experiment")
    seed: int = setting(0, "of parameters, draws and augmentation")
    log: str = setting(
        "", "comma-separated trackers: wandb, mlflow, ... (docs/training.md)", listed=False
    )
    data: Data = setting(Data, Data.__doc__)
    sampler: Sampler = setting(Sampler, Sampler.__doc__)
    augment: Augment = setting(Augment, Augment.__doc__)
    model: Model = setting(Model, Model.__doc__)
    losses: Mapping[str, Loss] = setting(
        _losses, "The losses, by name, whose weighted sum is trained."
    )
    deep_weights: str | tuple[Number, ...] = setting(
        (), "weight of each level of deep supervision; empty: halving, last level off"
    )
    mask_padding: bool = setting(
        False, "ignore voxels outside the image instead of treating them as background"
    )
    task: str = setting("supervised", "a module of medjax/tasks")
    task_options: TaskOptions = setting(TaskOptions, TaskOptions.__doc__)
    optim: Optim = setting(Optim, Optim.__doc__)
    adapters: Adapters = setting(Adapters, Adapters.__doc__, listed=False)
    text: Text = setting(Text, Text.__doc__, listed=False)
    init: Init = setting(Init, Init.__doc__)
    train: Train = setting(Train, Train.__doc__)
    sharding: Sharding = setting(Sharding, Sharding.__doc__)
    infer: Infer = setting(Infer, Infer.__doc__)
    evaluate: Evaluate = setting(Evaluate, Evaluate.__doc__)


def listed() -> dict[str, Any]:
    """The fields that every config has, with their defaults, as plain values."""
    return Config().to_json()


def resolve(fields: Mapping[str, Any] | Config) -> Config:
    """The config of a run as one frozen value; a value that is one already is returned.

    Raises: `UsageError` for a section that is none, or that lacks a field without a default.
    """
    return fields if isinstance(fields, Config) else Config.from_fields(fields)


def strict(fields: Mapping[str, Any]) -> Config:
    """As `resolve`, for the plain values of a new config: `UsageError` for unknown fields too."""
    if found := unknown(fields):
        section, _, name = f"config.{found[0]}".rpartition(".")
        raise UsageError(f"{section} has no field {name!r}", fix="leave it out, or see --help")
    return resolve(fields)


def unknown(fields: Mapping[str, Any]) -> list[str]:
    """Paths of the fields that no section has, such as those of another version."""
    return list(sections.unknown(Config, fields))
