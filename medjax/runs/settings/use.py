"""The sections of a config for the use of a trained network: prediction and evaluation.

See `schema.py`, which holds the other sections and puts all together.
"""

from collections.abc import Mapping

from medjax.runs.settings.section import Section, section, setting

Number = float | int
Words = tuple[str, ...]
ROWS = (
    "text",
    "box",
    *(f"box@{share}" for share in ("0.05", "0.1", "0.2", "0.3", "0.5")),
    "box@translate0.1",
    "box@scale0.1",
    "box@5mm",
    "points1",
    "points5",
    "points5+-",
    "box+text",
    "points+text",
    "clicks",
    "clicks@points1",
)  # of a prompted evaluation


@section
class Postprocess(Section):
    """Rules for predicted masks; classes by name, or "*" for all."""

    holes: Words = setting((), "classes whose holes are filled")
    largest: Words = setting((), "classes of which only the largest component stays")
    min_ml: Mapping[str, Number] = setting(dict, "class -> millilitres below which components go")
    inside: Mapping[str, Words] = setting(
        dict, "class -> its organs: what lies outside of them goes", listed=False
    )
    organ_filter: Words = setting(
        (), "classes of which only components that touch the given organ mask stay", listed=False
    )


@section
class Zoom(Section):
    """How a promptable network finds an object (docs/segvol.md)."""

    zoom: str = setting("in", "look again at full resolution, or out: at the overview only")
    roi: str = setting("prediction", "where: around it, the box, or union")
    overlap: int | float = setting(0.5, "share of neighbouring windows")
    blend: str = setting("constant", "weights of windows, or gaussian")
    scores: str = setting("trilinear", "of the overview at full resolution, or nearest")
    overview: str = setting("area", "how the scan is shrunk, or nearest")
    pad: bool = setting(True, "a scan smaller than the frame gets margins")
    map_pad: bool = setting(True, "prompts move with a padded window; the published code: no")
    points: str = setting("redraw", "five points per window are drawn from those given, or own")
    empty: str = setting("mask", "a window without point or box gets none, or encode: -1")
    both: bool = setting(True, "a box and points together are allowed")
    max_windows: int = setting(128, "per object")
    seed: int = setting(0, "of points that are drawn again")


@section
class Infer(Section):
    """Prediction."""

    checkpoint: str = setting("last", "or best, or a step")
    ema: str = setting(
        "auto", "the moving average of the parameters if the run keeps one; off: never"
    )
    overlap: Number = setting(0.5, "share of neighbouring windows")
    mirror_axes: tuple[int, ...] = setting((), "axes of test-time mirroring")
    average: str = setting("prob", "what overlapping windows and mirrors average, or logit")
    activation: str = setting("sigmoid", "or softmax: exclusive classes, background implied")
    conflicts: str = setting(
        "ordered",
        "of exclusive classes in a voxel the last is shown; argmax: the most probable one; "
        "calibrated: that at the temperatures of `medjax calibrate`",
        listed=False,
    )
    batch_windows: int = setting(2, "windows that the network sees at once; 0: as many as fit")
    backend: str = setting(
        "auto",
        "where windows are blended: device, host, or auto: on the device unless it is a CPU",
        listed=False,
    )
    half: bool = setting(
        False, "blended scores on the device are float16 (within 2e-3)", listed=False
    )
    precision: str = setting(
        "", "of matrix products: highest, high or default; empty: the device's own"
    )
    postprocess: Postprocess = setting(Postprocess, "rules for the masks")
    fast: str = setting(
        "", "a run with a coarser spacing, relative to this one, for `medjax predict --fast`"
    )
    zoom: Zoom = setting(Zoom, Zoom.__doc__, listed=False)


@section
class Prompted(Section):
    """How a promptable network is asked for the held-out cases (docs/segvol.md)."""

    on: bool = setting(False, "whether a training ends with a prompted evaluation as well")
    rows: Words = setting(ROWS, "ways to ask, e.g. text, box@0.1, points5+-, clicks, box/out")
    draws: int = setting(5, "of prompts that depend on random numbers")
    cases: int = setting(0, "of each corpus; 0: all")
    clicks: int = setting(5, "corrections after the first prompt of a row with clicks")
    classes: Words = setting((), "that are asked for; empty: all that are annotated")
    largest: int = setting(0, "> 0: only so many of a scan's classes, the largest ones")
    seed: int = setting(0, "of the random numbers")


@section
class Evaluate(Section):
    """Scores of the held-out cases."""

    OPEN = True  # evaluations that installed packages offer

    on: bool = setting(True, "whether a training ends with an evaluation")
    surface: bool = setting(True, "NSD, HD95 and ASSD as well")
    montages: int = setting(8, "number of pictures")
    during: int = setting(
        0,
        "> 0: steps of a training between predictions of a few whole held-out cases, whose Dice is "
        "shown",
        listed=False,
    )
    during_cases: int = setting(2, "of each corpus, for `during`", listed=False)
    groups: Mapping[str, Words] = setting(
        dict,
        "group -> classes (CLASS or CORPUS/CLASS) whose mean is an additional row of the table",
    )
    regions: Mapping[str, Words] = setting(
        dict,
        "region -> classes of a corpus: their union is scored as well, e.g. whole tumour",
        listed=False,
    )
    alone: bool = setting(
        False, "also score classes without those nested in them, as a label map holds", listed=False
    )
    resampled: str = setting(
        "",
        "or standard, released: also score on the network's grid, with that rule for empty classes",
    )
    baseline: str = setting(
        "",
        "run folder of a baseline: classes with a Dice below difficult_below there form the group "
        "difficult",
    )
    difficult_below: Number = setting(0.75, "see baseline")
    prompted: Prompted = setting(Prompted, Prompted.__doc__, listed=False)
