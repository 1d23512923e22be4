"""One training sample: which case, which patch. A pure function of (pools, recipe, sample number).

In: pools of prepared cases (`prepare/store.py`) and a recipe. Out: a dictionary of numpy arrays,
one row of a batch (`sample/batch.py`), which `sample/stream.py` stacks.

The way of drawing has a version. A change that gives other samples is a new class in `VERSIONS`;
the old one stays, and a run that began with it continues with it.
"""

import dataclasses
import functools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medjax.errors import DataError, MedjaxError, UsageError, did_you_mean
from medjax.sample import frame
from medjax.sample.batch import FIELDS, MOVED
from medjax.sample.patches import PADDING, centred_start, random_start, read_centre, read_patch
from medjax.sample.pool import Pool

# random numbers -> (angles (3,) rad, scale) of one sample; zeros and 1 where it does not move
Moves = Callable[[np.random.Generator], tuple[np.ndarray, float]]
MOVING = 3  # the version that draws rotation and scaling, and the number of their key
DRAWS = ("iid", "mix")
OVERSAMPLES = ("last", "probabilistic")
BALANCES = ("case", "class")
UNITS = ("set", "class")
WEIGHTS = ("cases", "slices")
CACHE_BYTES = 2 << 30
SMALL_CASE_BYTES = (
    8 << 20
)  # larger cases are never held whole: a patch of them is cheaper to read than the case


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How samples are drawn; all fields determine the stream.

    Attributes:
      patch: voxels to cut, (z, y, x), or (y, x) with `dims` 2; usually `enlarged_patch(final)`.
      batch: samples of one global batch, over all hosts.
      exponent: weight n^-exponent of each case of a corpus with n cases; 0.5 is MultiTalent's, 0
        draws cases evenly, 1 corpora evenly.
      draw: "iid" draws cases independently, with replacement; "mix" without replacement per epoch.
        "mix", and "iid" from version 2 on, interleave the corpora in the exact proportions
        (`grain.MapDataset.mix`), shuffled within each batch; version 1 of "iid" draws the corpus of
        every sample independently, and so does `weigh` "slices".
      foreground: share of samples forced to hold an annotated class.
      oversample: "last" forces the last round-half-even share of every global batch,
        "probabilistic" each sample with that probability.
      seed: seed of all draws.
      balance: "case" forces one of the classes of the drawn case; "class" draws a forced sample's
        class first, then a case that has it.
      by: what a forced sample draws: "set", one of the label sets (dense ids) with equal
        probability, or "class", one of the classes, where a nested class shares the voxels of the
        enclosing one (nnU-Net's region sampling).
      dims: 3, or 2 for slices of constant z, whose axis is dropped.
      final: the patch after augmentation, which bounds how far a patch leaves the image; None is
        `patch`.
      channels: image channels of a sample; a case with fewer is filled up with zeros. None: as
        stored, the same in all pools.
      whole: share of samples that show the whole case, resampled to `final` (see `sample/frame.py`)
        instead of a patch of it; 3D only. If it is 0 nothing is drawn for it.
      whole_image, whole_label: how its image and label are resampled, see `frame.whole`.
      weigh: "cases": the cases of a corpus are alike; "slices": a case, and a corpus, weighs by its
        number of slices along z, as if all slices were in one list (2D networks; the exponent still
        applies to the numbers of cases). Needs draw "iid" and balance "case".
      version: of the draw, see `VERSIONS`; None takes the newest.
    """

    patch: tuple[int, ...]
    batch: int
    exponent: float = 0.5
    draw: str = "iid"
    foreground: float = 0.33
    oversample: str = "last"
    seed: int = 0
    balance: str = "case"
    dims: int = 3
    final: tuple[int, ...] | None = None
    channels: int | None = None
    by: str = "set"
    whole: float = 0.0
    whole_image: str = "spline"
    whole_label: str = "vote"
    weigh: str = "cases"
    version: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "version", newest() if self.version is None else self.version)
        if self.version not in VERSIONS:
            raise UsageError(
                "unknown version of the stream in the sampling recipe",
                found=self.version,
                expected=", ".join(map(str, sorted(VERSIONS))),
                fix="continue this run with the version of medjax that began it",
            )
        for name, known in (
            ("draw", DRAWS),
            ("oversample", OVERSAMPLES),
            ("balance", BALANCES),
            ("by", UNITS),
            ("dims", (2, 3)),
            ("whole_image", frame.IMAGE_WAYS),
            ("whole_label", frame.LABEL_WAYS),
            ("weigh", WEIGHTS),
        ):
            value = getattr(self, name)
            if value not in known:
                raise UsageError(
                    f"unknown {name} {value!r} in the sampling recipe",
                    fix=did_you_mean(str(value), map(str, known)),
                )
        if (self.whole_image == "spline") != (self.whole_label == "vote"):
            raise UsageError(
                "whole_image and whole_label of the sampling recipe do not belong together",
                found=(self.whole_image, self.whole_label),
                expected="spline with vote, or area or nearest with nearest or area",
            )
        if self.balance == "class" and self.draw == "mix":
            raise UsageError(
                'balance "class" chooses the case itself', found='draw "mix"', fix='use draw "iid"'
            )
        if self.weigh == "slices" and (self.balance == "class" or self.draw == "mix"):
            raise UsageError(
                'weigh "slices" draws the case by its number of slices',
                found=f'draw "{self.draw}", balance "{self.balance}"',
                fix='use draw "iid" and balance "case"',
            )
        for name in ("patch", "final"):
            value = getattr(self, name)
            if value is not None and (len(value) != self.dims or min(value) < 1):
                raise UsageError(
                    f"the sampling recipe's {name} has the wrong sides",
                    found=tuple(value),
                    expected=f"{self.dims} positive sides",
                )
        if self.batch < 1 or self.seed < 0 or not 0 <= self.foreground <= 1:
            raise UsageError(
                "batch, seed or foreground share of the sampling recipe out of range",
                found=(self.batch, self.seed, self.foreground),
            )
        if not 0 <= self.whole <= 1 or (self.whole and self.dims == 2):
            raise UsageError(
                "the share of whole cases of the sampling recipe is not usable",
                found=f"{self.whole} in {self.dims}D",
                expected="0 to 1 in 3D, 0 in 2D",
            )
        object.__setattr__(self, "patch", tuple(map(int, self.patch)))
        object.__setattr__(self, "final", tuple(map(int, self.final)) if self.final else self.patch)


def corpus_probabilities(
    cases: Sequence[int], exponent: float = 0.5, groups: Sequence[str] = ()
) -> np.ndarray:
    """(corpora,) float64 probability of drawing from each corpus: n N^-exponent, normalised.

    MultiTalent: sqrt(n).

    Args:
      cases: n of each corpus.
      groups: name of the data set of each corpus; N is the number of cases in all corpora of that
        name. "" or nothing: N = n.
    """
    n = np.asarray(cases, float)
    names = [group or k for k, group in enumerate(groups or [""] * len(n))]
    together = np.array(
        [sum(m for m, other in zip(n, names, strict=True) if other == name) for name in names]
    )
    weights = n * together**-exponent
    return weights / weights.sum()


def case_probabilities(cases: Sequence[int], exponent: float = 0.5) -> np.ndarray:
    """(corpora,) float64 probability of drawing one given case of each corpus."""
    return corpus_probabilities(cases, exponent) / np.asarray(cases, float)


def forced_positions(batch: int, share: float) -> int:
    """First position of a global batch that is forced: round(batch (1 - share)), half to even."""
    return round(batch * (1 - share))


class Samples:
    """Random access to single samples: `samples(i, choice)` cuts the patch of global sample i.

    Versions 1 to 3 of the draw. Picklable; can be used from several threads.

    Args:
      pools, recipe: what is drawn and how.
      cache_bytes: memory for small cases (8 MiB at most each); 0 reads from the store every time.
        It never changes a sample.
      moves: draws rotation and scaling, as `angles` and `scale` of a sample; of one that does
        neither only the central `final` voxels are read. Before version 3 it is not used.
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        recipe: Recipe,
        cache_bytes: int = CACHE_BYTES,
        moves: Moves | None = None,
    ):
        self.pools, self.recipe, self.cache_bytes = tuple(pools), recipe, cache_bytes
        self.moves = moves if recipe.version >= MOVING else None
        flat = recipe.dims == 2
        self.patch, self.final = ((1, *p) if flat else p for p in (recipe.patch, recipe.final))
        counts = [len(pool.cases) for pool in self.pools]
        self.first = np.concatenate([[0], np.cumsum(counts)])[:-1]
        self.cumulative = np.cumsum(
            corpus_probabilities(counts, recipe.exponent, [pool.group for pool in self.pools])
        )
        self.forced_from = forced_positions(recipe.batch, recipe.foreground)
        self._reset()

    def _reset(self):
        self._held: dict[Path, tuple[np.ndarray, np.ndarray]] = {}
        self._frames: dict[Path, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        self._held_bytes, self._holders, self._lock = 0, {}, threading.Lock()
        self._by_slices: np.ndarray | None = None

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if not k.startswith("_")}

    def __setstate__(self, state: dict):
        self.__dict__.update(state)
        self._reset()

    def __call__(
        self, index: int, choice: tuple[int, int] | tuple[()] = ()
    ) -> dict[str, np.ndarray]:
        """The sample with number `index` of the global stream.

        `choice` is (pool, case) if the mixture has drawn it.
        """
        recipe, rng = self.recipe, np.random.default_rng((self.recipe.seed, int(index)))
        drawn = choice or self._draw(rng)
        chance = rng.random()
        whole = bool(recipe.whole) and rng.random() < recipe.whole
        forced = (
            index % recipe.batch >= self.forced_from
            if recipe.oversample == "last"
            else chance < recipe.foreground
        )
        pool, wanted = self.pools[drawn[0]], None
        moved = self._moved(index, pool.still)
        if forced and recipe.balance == "class" and not whole and not pool.ratios:
            drawn, wanted = self._draw_class(rng, drawn)
        folder = Path(pool.folder) / pool.cases[drawn[1]]
        try:
            case = _open(folder)
            if pool.ratios:
                wanted = pool.centre(chance, case.locations)
                forced = bool(wanted)
            sample = (
                self._whole(folder, case)
                if whole
                else self._cut(rng, folder, case, pool, forced, wanted, moved)
            )
        except MedjaxError:
            raise
        except Exception as error:  # any error of the store must name the case
            fix = "prepare this case again (`medjax prepare`) or leave it out"
            raise DataError(
                f"cannot cut a patch: {type(error).__name__}: {error}", path=folder, fix=fix
            ) from error
        numbers = {
            "corpus": pool.corpus,
            "modality": pool.modality,
            "case": self.first[drawn[0]] + drawn[1],
            "whole": whole,
        }
        sample |= {name: np.int32(value) for name, value in numbers.items()} | moved
        absent = {*(() if recipe.whole else ("whole",)), *(() if moved else MOVED)}
        return {
            name: np.asarray(sample[name], field.dtype)
            for name, field in FIELDS.items()
            if name not in absent
        }

    def _moved(self, index: int, still: bool) -> dict[str, Any]:
        """Rotation and scaling of a sample, from a key of their own; empty if not drawn."""
        if self.moves is None:
            return {}
        if still:
            return dict(zip(MOVED, (np.zeros(3, np.float32), np.float32(1)), strict=True))
        rng = np.random.default_rng((self.recipe.seed, int(index), MOVING))
        return dict(zip(MOVED, self.moves(rng), strict=True))

    def pool_of(self, index: int, choice: tuple[int, int] | tuple[()] = ()) -> int:
        """Position of the pool that the sample with number `index` comes from; reads nothing."""
        return (choice or self._draw(np.random.default_rng((self.recipe.seed, int(index)))))[0]

    def _draw(self, rng: np.random.Generator) -> tuple[int, int]:
        if self.recipe.weigh == "slices":
            return self._draw_by_slices(rng)
        k = min(
            int(np.searchsorted(self.cumulative, rng.random(), side="right")), len(self.pools) - 1
        )
        return k, int(rng.integers(len(self.pools[k].cases)))

    def _draw_by_slices(self, rng: np.random.Generator) -> tuple[int, int]:
        """A case with probability ~ its slices x (weight of a case of its corpus)."""
        with self._lock:
            if self._by_slices is None:
                counts = [len(pool.cases) for pool in self.pools]
                groups = [pool.group for pool in self.pools]
                shares = corpus_probabilities(counts, self.recipe.exponent, groups)
                weights = [
                    share / count * _open(Path(pool.folder) / name).meta["shape"][0]
                    for pool, share, count in zip(self.pools, shares, counts, strict=True)
                    for name in pool.cases
                ]
                self._by_slices = np.cumsum(weights) / np.sum(weights)
        found = int(np.searchsorted(self._by_slices, rng.random(), side="right"))
        found = min(found, len(self._by_slices) - 1)
        k = int(np.searchsorted(self.first, found, side="right")) - 1
        return k, found - int(self.first[k])

    def _draw_class(
        self, rng: np.random.Generator, drawn: tuple[int, int]
    ) -> tuple[tuple[int, int], tuple[int, ...] | None]:
        """A class of the drawn corpus, then a case that has it.

        The drawn case if the corpus has no foreground at all.
        """
        k = drawn[0]
        with self._lock:
            if k not in self._holders:
                pool, voxels = self.pools[k], []
                for name in pool.cases:
                    counts = _open(Path(pool.folder) / name).meta["voxels"]
                    voxels.append({int(i) for i, n in counts.items() if n})
                holders = {
                    group: [c for c, ids in enumerate(voxels) if ids & set(group)]
                    for group in pool.groups(self.recipe.by)
                }
                self._holders[k] = {group: cases for group, cases in holders.items() if cases}
            holders = self._holders[k]
        if not holders:
            return drawn, None
        wanted = list(holders)[rng.integers(len(holders))]
        return (k, holders[wanted][rng.integers(len(holders[wanted]))]), wanted

    def _cut(
        self,
        rng: np.random.Generator,
        folder: Path,
        case: Any,
        pool: Pool,
        forced: bool,
        wanted: tuple | None,
        moved: dict[str, Any],
    ) -> dict[str, np.ndarray]:
        shape = tuple(case.meta["shape"])
        gain, bias = (np.asarray(case.meta[name], np.float32) for name in ("gain", "bias"))
        groups = pool.groups(self.recipe.by) if wanted is None else (wanted,)
        voxel = self._foreground_voxel(rng, case, groups) if forced else None
        if voxel is None:
            start = random_start(rng, shape, self.patch, self.final)
        else:
            start = centred_start(voxel, shape, self.patch, self.final)
        image, label = self._readers(folder, case, shape, len(gain))
        still = bool(moved) and not np.any(moved["angles"]) and moved["scale"] == 1
        take = functools.partial(read_centre, final=self.final) if still else read_patch
        sample = {
            "image": take(image, shape, start, self.patch, fill=frame.stored_zero(gain, bias)),
            "label": take(label, shape, start, self.patch, fill=np.int16(PADDING)),
        }
        if self.recipe.dims == 2:
            sample = {name: array[0] for name, array in sample.items()}
        spacing = np.asarray(case.meta["spacing_mm"], np.float32)
        return self._filled(sample, gain, bias, spacing)

    def _whole(self, folder: Path, case: Any) -> dict[str, np.ndarray]:
        """The whole case at `final`, in the middle of the patch; kept while the cache has space."""
        with self._lock:
            held = self._frames.get(folder)
        if held is None:
            held = frame.whole(
                case, self.patch, self.final, self.recipe.whole_image, self.recipe.whole_label
            )
            size = sum(array.nbytes for array in held)
            with self._lock:
                if folder not in self._frames and size <= self.cache_bytes - self._held_bytes:
                    self._frames[folder] = held
                    self._held_bytes += size
        image, label, spacing = held
        gain, bias = (np.asarray(case.meta[name], np.float32) for name in ("gain", "bias"))
        return self._filled({"image": image, "label": label}, gain, bias, spacing)

    def _filled(
        self, sample: dict, gain: np.ndarray, bias: np.ndarray, spacing_mm: np.ndarray
    ) -> dict[str, np.ndarray]:
        """With gain, bias and spacing, and as many channels as the recipe wants."""
        if missing := (self.recipe.channels or len(gain)) - len(gain):
            sample["image"] = np.pad(
                sample["image"], [(0, 0)] * (sample["image"].ndim - 1) + [(0, missing)]
            )
            gain, bias = np.pad(gain, (0, missing), constant_values=1), np.pad(bias, (0, missing))
        return sample | {"gain": gain, "bias": bias, "spacing_mm": spacing_mm}

    @staticmethod
    def _foreground_voxel(
        rng: np.random.Generator, case: Any, groups: Sequence[tuple[int, ...]]
    ) -> np.ndarray | None:
        """A voxel of one of the groups that the case has.

        Within a group, every voxel has the same probability.
        """
        locations, voxels = case.locations, case.meta["voxels"]
        present = [
            found for group in groups if (found := [str(i) for i in group if str(i) in locations])
        ]
        while present:
            group = present.pop(rng.integers(len(present)))
            if len(group) > 1:
                weights = np.cumsum([voxels.get(i, 0) for i in group], dtype=float)
                group = [
                    group[int(np.searchsorted(weights, rng.random() * weights[-1], side="right"))]
                ]
            found = locations[group[0]]
            if len(found):
                return found[rng.integers(len(found))]
        return None

    def _readers(self, folder: Path, case: Any, shape: tuple[int, ...], channels: int):
        """Two functions slices -> array.

        Small cases are read whole once and then held, as long as the cache has space.
        """
        size = int(np.prod(shape)) * (2 * channels + 2)
        held = self._held.get(folder)
        if held is None and size <= min(SMALL_CASE_BYTES, self.cache_bytes - self._held_bytes):
            whole = tuple(slice(0, n) for n in shape)
            held = (
                np.asarray(case.image(whole)),
                np.asarray(case.label(whole, outside=PADDING), np.int16),
            )
            with self._lock:
                if folder not in self._held:
                    self._held[folder] = held
                    self._held_bytes += size
        if held is not None:
            return held[0].__getitem__, held[1].__getitem__
        return case.image, functools.partial(
            case.label, outside=PADDING
        )  # outside a normalisation mask: as outside the image


# version of the draw -> class like `Samples`; numbers are never reused. Version 2 differs in what
# `stream.choices` hands to it, version 3 in drawing rotation and scaling where it is told how.
VERSIONS: dict[int, type] = {1: Samples, 2: Samples, 3: Samples}


def newest() -> int:
    """The version of the draw that new runs begin with."""
    return max(VERSIONS)


def _open(folder: Path) -> Any:
    from medjax.prepare import store

    return store.open_case(folder)
