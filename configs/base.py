"""The fields every experiment has, with nnU-Net's defaults. A paper's config starts here and states
what differs.

Every field can be given on the command line: `--config.optim.lr=1e-3 --config.train.steps=500`.
"""

import ml_collections


def ordered(fields=()) -> ml_collections.ConfigDict:
    """A ConfigDict that keeps the order its fields are given in: corpora and phases have one
    (ml_collections would sort them).
    """
    return ml_collections.ConfigDict(dict(fields), sort_keys=False)


def base_config() -> ml_collections.ConfigDict:
    """Defaults shared by all experiments (spacings, patches and axes are z, y, x)."""
    c = ordered()
    c.name = "base"
    c.seed = 0

    c.data = ordered()
    c.data.folders = ""  # comma-separated corpora in MSD or nnU-Net raw layout
    # > 0: generate the embedded corpora with this many cases each, in addition to the folders
    c.data.phantom_cases = 0
    c.data.phantom_seed = 0
    c.data.declared = ordered()  # corpora of a paper: name -> labels, channels, modality, cases
    c.data.root = ""  # folder that holds the declared corpora
    c.data.store = ""  # prepared volumes; empty: <workdir>/store
    c.data.views = ordered()  # name -> corpus, annotated, part: hides annotations
    # comma-separated corpora and views to train and score; empty: all. The others still share
    # preparation and splits
    c.data.only = ""
    # corpus -> count and seed, or file (a case name per line): restricts it to those cases
    c.data.subset = ordered()
    c.data.share = "by_name"  # or "per_corpus": liver of one corpus is not liver of another
    c.data.rename = ordered()  # "corpus/class" -> global class
    c.data.precedence = ()  # classes painted last in the exported label map, weakest first
    # a plan of `medjax plan`, nnUNetPlans.json or plans.pkl instead of the rules below; see
    # docs/prepare.md
    c.data.plan = ""
    # a configuration of that plan, e.g. "3d_fullres": sets patch and batch; with
    # model.name = "plan" the network as well
    c.data.configuration = ""
    c.data.tasks = ordered()  # corpus -> name of its task; a corpus without one is its own task
    c.data.allow_absent = False  # accept that a declared class occurs in no case
    c.data.spacing_mm = ()  # target spacing; empty: nnU-Net's median rule over all corpora
    # or "per_corpus"; "native": each case keeps its own. Used where spacing_mm is empty
    c.data.spacing_rule = "median"
    # (z, y, x) voxels: each cropped volume is resampled to this fixed frame, whatever its spacing
    c.data.size = ()
    # channel -> dict(scheme="window", clip=(-175, 250)), or another scheme of docs/prepare.md;
    # for all others the channel's name decides
    c.data.intensity = ordered()
    c.data.orientation = "RAS"
    c.data.crop = "nonzero"  # or "foreground": the box above the lower intensity limit; "none"
    c.data.workers = 0  # of the preparation; 0: one per core
    # fold -1 trains on every case
    c.data.split = ordered(dict(file="", folds=5, fold=0, seed=12345))

    c.sampler = ordered()
    # a case is drawn with probability ~ n^-exponent, n = cases of its corpus
    c.sampler.exponent = 0.5
    c.sampler.draw = "iid"
    c.sampler.foreground = 0.33
    c.sampler.oversample = "last"
    # or "class": a forced sample draws its class first, then a case that has it
    c.sampler.balance = "case"
    # classes are drawn as label sets, or "class": as classes, nested ones sharing voxels (nnU-Net's
    # regions)
    c.sampler.by = "set"
    c.sampler.whole = 0.0  # share of samples that show the whole case, resampled to the patch
    c.sampler.version = 0  # of the stream; 0: that of the run folder, the newest in a new run
    c.sampler.threads = 2
    c.sampler.workers = 0

    # plus any field of medjax.augment.nnunet.Augmentation; kind="turns", "flips": see
    # medjax/augment/turns.py; lateral="auto" or pairs of class names: left and right classes are
    # swapped when the left-right axis is mirrored
    c.augment = ordered(dict(on=True))

    c.model = ordered(dict(name="unet"))
    c.losses = ordered()
    c.losses.cross_entropy = ordered(dict(weight=1.0))
    c.losses.dice = ordered(dict(weight=1.0))
    c.deep_weights = ()  # empty: halving per level, last level off
    c.mask_padding = False
    c.task = "supervised"
    # further arguments of the task, e.g. ratio and block of "masked_image"
    c.task_options = ordered()

    c.optim = ordered()
    c.optim.name = "sgd"
    c.optim.lr = 0.01
    c.optim.momentum = 0.99
    c.optim.nesterov = True
    c.optim.weight_decay = 3e-5
    c.optim.schedule = "poly"
    c.optim.power = 0.9
    c.optim.steps_per_epoch = 1  # 250 changes the rate once in 250 steps, as nnU-Net does
    c.optim.warmup_steps = 0
    c.optim.clip_norm = 12.0
    c.optim.trainable = ((".*", True),)
    c.optim.lr_scale = ((".*", 1.0),)
    c.optim.decay = ((".*", True),)
    c.optim.only = ()  # (regex, (axis, indices)): only these slices of the leaves are trained
    c.optim.ema = 0.0  # > 0, e.g. 0.999: decay of a moving average of the parameters
    # name -> steps, and differences from the fields above; see medjax/train/phases.py
    c.optim.phases = ordered()

    c.init = ordered()
    c.init.source = ""  # run folder or archive whose parameters this run starts from; empty: random
    c.init.checkpoint = "last"  # or "best", or a step
    c.init.rename = ()  # (regex, replacement) over the source's parameter paths
    # (regex, axis, "classes", "modalities", "tasks" or "corpora"; empty: classes): entries of the
    # same name along the axis are copied; axis None: never
    c.init.heads = ((r"^(head|out)_?\d*/", -1),)
    # class of this run -> class of the source, if the names differ ("" initialises it)
    c.init.classes = ordered()
    c.init.resize = ()  # (regex, "trilinear") for position tables on another grid
    c.init.widen = "repeat"  # leaves that read the image, if channels differ; or "average", "fresh"
    c.init.fresh = ""  # regex over parameter paths that stay as initialised
    # (regex, replacement): copies source leaves to a second path as well
    c.init.copy = ()
    c.init.upcycle = False  # copy the plain MLPs of the source to every expert
    # expert of this run (a modality) -> expert of the source, if names differ ("" initialises it)
    c.init.experts = ordered()
    c.init.experts_from = ordered()  # expert -> another run folder that provides it
    # gate columns of added experts; or "apart", "split", "closed": the old function is unchanged
    # (medjax/weights/experts.py)
    c.init.gate = "fresh"

    c.train = ordered()
    c.train.steps = 250_000
    c.train.batch = 2
    c.train.accumulate = 1  # micro-batches of a step, for batches that do not fit in memory
    c.train.patch = (128, 128, 128)
    c.train.validate_every = 250
    c.train.validation_batches = 50
    # of matrix products, "highest", "high" or "default"; empty: the device's own
    c.train.precision = ""
    c.train.patience = 0  # > 0: stop after that many validations without a better one
    c.train.checkpoint_every = 250
    c.train.checkpoint_minutes = 10.0
    c.train.log_every = 50

    c.sharding = ordered()
    # devices that share one copy of parameters and optimizer state; the rest is data parallel
    c.sharding.fsdp = 1
    c.sharding.rules = ((".*", "replicate"),)

    c.infer = ordered()
    c.infer.checkpoint = "last"  # or "best"
    c.infer.ema = "auto"  # the moving average of the parameters if the run keeps one; or "off"
    c.infer.overlap = 0.5
    c.infer.mirror_axes = ()
    c.infer.average = "prob"
    c.infer.activation = "sigmoid"  # or "softmax": exclusive classes, background implied
    c.infer.batch_windows = 2
    # classes, or "*"
    c.infer.postprocess = ml_collections.ConfigDict(
        dict(largest=(), holes=(), min_ml=ml_collections.ConfigDict())
    )
    # a run with a coarser spacing, relative to this one, for `medjax predict --fast`
    c.infer.fast = ""

    c.evaluate = ordered(dict(on=True, surface=True, montages=8))  # surface: NSD, HD95, ASSD
    # group -> classes ("class" or "corpus/class") whose mean is an additional row of the table
    c.evaluate.groups = ordered()
    # or "standard", "released": also score on the network's grid, with that rule for empty classes
    c.evaluate.resampled = ""
    # run folder of a baseline: classes with a Dice below `difficult_below` there form the group
    # "difficult"
    c.evaluate.baseline = ""
    c.evaluate.difficult_below = 0.75
    return c.lock()


def for_two_cores(c) -> None:
    """Settings of the small recipes on real corpora: each corpus on its own spacing, AdamW, 1500
    steps.
    """
    # 1 mm crops of a hippocampus and 2.5 mm hearts share no sensible grid
    c.data.spacing_rule = "per_corpus"
    # after 200 steps SGD with momentum 0.99 segments no hippocampus, AdamW has Dice 0.69
    c.optim.name = "adamw"
    c.optim.lr = 2e-3
    c.train.patch, c.train.batch = (40, 56, 40), 2
    c.train.steps = 1500
    c.train.validate_every = c.train.checkpoint_every = 250
    c.train.validation_batches = 20
    c.train.log_every = 25
