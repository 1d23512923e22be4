"""Normalisation of one channel: which scheme, with which numbers, and what role the channel has.

In: a channel's name, what the user says about it, fingerprints. Out: an `Intensity`, a part of the
plan. A channel is an image (normalised, changed by intensity augmentation) or a mask (0 or 1,
resampled by nearest neighbour, never changed but in space). As in nnU-Net the name of a channel
(case-insensitive) chooses its scheme: `CT`, `noNorm`, `rescale_to_0_1`, `rgb_to_0_1`, here also
`mask`; all others are z-scored. A config can choose for any name (`decide`).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medjax.errors import UsageError, did_you_mean, shown
from medjax.prepare import plan_json

QUANTILES = 2001  # so that percentiles 0.5 and 99.5 are nodes
# share of the voxels kept by the crop, below which z-scores are taken inside the non-zero voxels
MASK_BELOW = 0.75
PERCENTILES = (0.05, 99.95)  # of the voxels above the mean; SegVol's
SCHEMES = {
    "ct": "ct",
    "nonorm": "nonorm",
    "rescale_to_0_1": "rescale_to_0_1",
    "rgb_to_0_1": "rgb_to_0_1",
    "mask": "mask",
}
# what a user may say beside the scheme
OPTIONS = {
    "window": ("clip",),
    "foreground": ("percentiles",),
    "zscore": ("masked",),
    "ct": ("clip", "mean", "std"),
}
_NONE: Mapping[str, Any] = {}


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Pooled foreground intensities of one channel.

    Attributes:
      mean, median, std, min, max, percentile_00_5, percentile_99_5: of the pooled sample.
      cases: how many cases gave voxels; the weight when corpora are pooled.
      quantiles: the quantile function at 2001 equidistant levels from 0 to 1.
    """

    mean: float
    median: float
    std: float
    min: float
    max: float
    percentile_00_5: float
    percentile_99_5: float
    cases: int
    quantiles: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Intensity:
    """Normalisation of one channel: value -> (clipped value - mean) / std.

    Attributes:
      scheme: "ct" (clip, mean and std of the plan), "zscore" (mean and std of each case),
        "rescale_to_0_1" (each case), "rgb_to_0_1" (divided by 255), "nonorm", "window" (clip to two
        fixed numbers, then [0, 1]; MONAI's ScaleIntensityRange with clip), "foreground" (clip to
        two percentiles of each case's bright voxels, then [0, 1]; see `foreground_limits`), or
        "mask" (1 where the value is above 0, else 0).
      clip: "ct": percentiles 0.5 and 99.5 of the pooled foreground; "window": its two ends.
      mean, std: only for "ct": mean and standard deviation of the pooled foreground.
      masked: z-scores are taken inside the (hole-filled) non-zero voxels, and what is outside stays
        0.
      percentiles: only for "foreground"; None: 0.05 and 99.95.
    """

    scheme: str
    clip: tuple[float, float] | None = None
    mean: float | None = None
    std: float | None = None
    masked: bool = False
    percentiles: tuple[float, float] | None = None

    def __post_init__(self):
        object.__setattr__(self, "scheme", plan_json.scheme(self.scheme))

    @property
    def role(self) -> str:
        """ "image" or "mask"."""
        return "mask" if self.scheme == "mask" else "image"

    @classmethod
    def from_json(cls, fields: Mapping) -> "Intensity":
        """Inverse of `to_json`, for fields that `plan_json.check` has accepted.

        JSON has no difference between 3 and 3.0.
        """
        plain = {k: None if fields.get(k) is None else float(fields[k]) for k in ("mean", "std")}
        pairs = {
            k: tuple(map(float, fields[k])) if fields.get(k) else None
            for k in ("clip", "percentiles")
        }
        return cls(**{**fields, **plain, **pairs})

    def to_json(self) -> dict:
        """JSON-ready fields; without percentiles where there are none (as in earlier plans)."""
        found = dataclasses.asdict(self) | {"clip": self.clip and list(self.clip)}
        del found["percentiles"]
        return found | ({"percentiles": list(self.percentiles)} if self.percentiles else {})


def foreground_limits(
    channel: np.ndarray, percentiles: Sequence[float] | None = None
) -> tuple[float, float]:
    """The clip limits of scheme "foreground": percentiles of the voxels above the mean.

    SegVol's rule: threshold = mean of the whole volume; clip to the percentiles of the voxels above
    it; z-score with the mean and standard deviation of these; min-max to [0, 1]. The lower limit is
    above the mean and the upper one at most the maximum, so both limits occur in the clipped
    volume, and min-max undoes the z-score: the result is (clipped - low) / (high - low).

    Args:
      channel: (z, y, x), any real type, not cropped.

    Returns: (low, high); twice the same value for a constant channel.
    """
    mean = channel.mean(dtype=np.float64)
    bright = channel[channel > mean]
    if not bright.size:
        value = float(channel.flat[0])
        return value, value
    places = [(bright.size - 1) * p / 100 for p in percentiles or PERCENTILES]
    ranks = sorted({f(place) for place in places for f in (math.floor, math.ceil)})
    bright = np.partition(bright, ranks)

    def value_at(place: float) -> float:
        low, high = (float(bright[f(place)]) for f in (math.floor, math.ceil))
        return low + (high - low) * (place - math.floor(place))

    low, high = map(value_at, places)
    return low, high


def crop_limit(channel: np.ndarray, intensity: Intensity) -> float | None:
    """The value above which a voxel is inside the crop "foreground"; None for a mask.

    It is what the scheme maps to 0: MONAI's CropForeground after scaling to [0, 1]. For a "ct" it
    is the lower clip limit, for z-scores and unchanged values 0.
    """
    if intensity.role == "mask":
        return None
    if intensity.scheme == "foreground":
        return foreground_limits(channel, intensity.percentiles)[0]
    if intensity.scheme == "rescale_to_0_1":
        return float(channel.min())
    return 0.0 if intensity.clip is None else float(intensity.clip[0])


def scheme_of(channel: str, given: Mapping[str, Any] = _NONE) -> str:
    """The scheme of a channel: what the user says, else by its name.

    Args:
      given: channel name -> {"scheme": ..., ...}, see `decide`.
    """
    said = _said(channel, given)
    if said is None:
        return SCHEMES.get(channel.lower(), "zscore")
    return plan_json.scheme(said.get("scheme", SCHEMES.get(channel.lower(), "zscore")))


def masks_of(channels: Sequence[str], given: Mapping[str, Any] = _NONE) -> tuple[int, ...]:
    """Positions of the channels whose role is "mask"."""
    return tuple(c for c, name in enumerate(channels) if scheme_of(name, given) == "mask")


def check_given(given: Mapping[str, Any], channels: Sequence[str]) -> None:
    """`UsageError` if the user speaks of a channel that no corpus has."""
    for name in given:
        if name.lower() not in {channel.lower() for channel in channels}:
            raise UsageError(
                f"an intensity scheme is given for the unknown channel {shown(name)!r}",
                fix=did_you_mean(name, channels),
            )


def decide(
    channel: str, fingerprints: Mapping[str, Any], given: Mapping[str, Any] = _NONE
) -> Intensity:
    """The normalisation of a channel.

    Args:
      fingerprints: corpus -> `plan.Fingerprint`.
      given: channel name (case-insensitive) -> {"scheme": word} with the options of that scheme:
        "clip" (low, high) of "window"; "percentiles" (low, high) of "foreground"; "masked" of
        "zscore"; "clip", "mean" and "std" of "ct" (by default from the fingerprints). CT statistics
        are pooled over all corpora with a channel of that name, every case with the same weight.

    Raises: `UsageError` for unknown words and unusable numbers, or a CT channel without any
      foreground.
    """
    scheme, said = scheme_of(channel, given), dict(_said(channel, given) or {})
    said.pop("scheme", None)
    if unknown := [name for name in said if name not in OPTIONS.get(scheme, ())]:
        raise UsageError(
            f"scheme {scheme!r} of channel {shown(channel)!r} has no option {shown(unknown[0])!r}",
            expected=", ".join(OPTIONS.get(scheme, ())) or "no option",
        )
    if scheme == "zscore" and "masked" not in said:
        kept = [
            share
            for found in fingerprints.values()
            if channel in found.channels
            for share in found.cropped
        ]
        said["masked"] = bool(float(np.median(kept)) < MASK_BELOW)
    if scheme == "ct" and not said:
        return Intensity(scheme, **_ct(channel, fingerprints))
    fields = {"scheme": scheme, **said}
    plan_json.check_intensity(channel, fields)
    return Intensity.from_json(fields)


def _said(channel: str, given: Mapping[str, Any]) -> Mapping | None:
    for name, fields in given.items():
        if name.lower() != channel.lower():
            continue
        if not isinstance(fields, Mapping):
            raise UsageError(
                f"unusable intensity of channel {shown(channel)!r}",
                found=shown(repr(fields))[:80],
                expected='{"scheme": "window", "clip": (-175, 250)}, or another scheme',
            )
        return fields
    return None


def parse(texts: Sequence[str]) -> dict[str, dict]:
    """What a user gives on the command line -> the mapping that `decide` takes.

    "CT=window:-175,250", "MR=foreground", "MR=foreground:0.5,99.5", "organ=mask".

    >>> parse(["CT=window:-175,250", "organ=mask"])
    {'CT': {'scheme': 'window', 'clip': (-175.0, 250.0)}, 'organ': {'scheme': 'mask'}}
    """
    found: dict[str, dict] = {}
    for text in texts:
        name, equals, rest = text.partition("=")
        word, colon, numbers = rest.partition(":")
        refused = UsageError(
            "unusable intensity scheme",
            found=text,
            expected="CHANNEL=SCHEME or CHANNEL=SCHEME:LOW,HIGH, e.g. CT=window:-175,250",
        )
        if not (name and equals and word):
            raise refused
        found[name] = {"scheme": plan_json.scheme(word)}
        if colon:
            option = {"window": "clip", "foreground": "percentiles"}.get(found[name]["scheme"])
            try:
                pair = tuple(float(number) for number in numbers.split(","))
            except ValueError:
                raise refused from None
            if option is None or len(pair) != 2:
                raise refused
            found[name][option] = pair
    return found


def _ct(channel: str, fingerprints: Mapping[str, Any]) -> dict:
    parts = [
        statistics
        for found in fingerprints.values()
        for name, statistics in zip(found.channels, found.intensity, strict=True)
        if name.lower() == channel.lower() and statistics is not None
    ]
    if not parts:
        fix = "add a labelled corpus, or name the channel otherwise for z-scores"
        raise UsageError(
            "no foreground voxel to take CT statistics from", path=", ".join(fingerprints), fix=fix
        )
    weights = np.array([p.cases for p in parts], float) / sum(p.cases for p in parts)
    mean = float(weights @ [p.mean for p in parts])
    variance = float(weights @ [p.std**2 + p.mean**2 for p in parts]) - mean**2
    return {
        "clip": (pooled_quantile(parts, 0.005), pooled_quantile(parts, 0.995)),
        "mean": mean,
        "std": parts[0].std if len(parts) == 1 else math.sqrt(max(variance, 0.0)),
    }


def pooled_quantile(parts: Sequence[Statistics], level: float) -> float:
    """Quantile of a union of samples given by quantile functions, weighted by cases."""
    if len(parts) == 1:
        nodes = parts[0].quantiles
        return float(np.interp(level, np.linspace(0, 1, len(nodes)), nodes))
    values = np.unique(np.concatenate([p.quantiles for p in parts]))
    total = sum(p.cases for p in parts)
    below = sum(p.cases / total * _share_below(p.quantiles, values) for p in parts)
    return float(values[min(int(np.searchsorted(below, level)), len(values) - 1)])


def _share_below(quantiles: Sequence[float], values: np.ndarray) -> np.ndarray:
    """Distribution function at `values` of the sample with this quantile function.

    It has steps at repeated values.
    """
    nodes = np.asarray(quantiles)
    unique, last = np.unique(
        nodes[::-1], return_index=True
    )  # the highest level at which each value occurs
    levels = np.linspace(0, 1, len(nodes))[len(nodes) - 1 - last]
    return np.interp(values, unique, levels, left=0.0, right=1.0)
