"""The spacing for which a network is built before anything is prepared, for the rehearsal.

In: a config and its corpora. Out: the spacing that preparation will choose, from the plan, the
config, or the headers of the scans (no voxel is read); and one sentence about where it comes from.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medjax import files
from medjax.corpora.cases import each
from medjax.corpora.inputs import Case
from medjax.errors import MedjaxError
from medjax.labels import Corpus
from medjax.prepare import geometry
from medjax.prepare.plan import Fingerprint, Spacing, make_plan
from medjax.runs.config import load
from medjax.runs.open import Data
from medjax.runs.settings import schema
from medjax.scans import formats

ASSUMED: Spacing = (1.0, 1.0, 1.0)  # mm, where no scan is on disk
LARGE = 1 << 20  # voxels


@dataclasses.dataclass(frozen=True)
class Expected:
    """Attributes:
    spacing_mm: (z, y, x), the mean over the corpora. source: where it comes from, in words.
    assumed: scans are missing, so preparation may choose another one.
    """

    spacing_mm: Spacing
    source: str
    assumed: bool = False

    def sentence(self) -> str:
        """The spacing and its source in one line."""
        size = " x ".join(f"{s:.4g}" for s in self.spacing_mm)
        if self.assumed:
            return f"at an assumed spacing of {size} mm: {self.source}"
        return f"{size} mm, {self.source}"


def expected(config: schema.Config, data: Data, workdir: Path) -> Expected:
    """The spacing of a run that is not prepared yet.

    Args:
      config: with what its plan decides. data: its corpora, opened without files.
      workdir: of the run, whose store may hold fingerprints of an earlier preparation.

    Raises: `UsageError` for a plan or a rule that does not exist.
    """
    given = config.data
    if plan := load(config):
        return Expected(_mean(plan.spacing_of(c.name) for c in data.stores), "from the plan")
    size = given.size or None
    if given.spacing_mm and not size:
        return Expected(tuple(map(float, given.spacing_mm)), "from config.data.spacing_mm")
    store = Path(given.store or workdir / "store")
    prints, unread, exact = {}, 0, True
    for corpus in data.stores:
        cases = data.cases[corpus.name]
        found = from_headers(corpus, cases) if cases else None
        if found is None or not found.cases:
            continue
        kept = _kept(store / ".fingerprints" / f"{corpus.name}.json", found)
        exact = exact and kept is not None
        unread += len(cases) - len(found.cases)
        prints[corpus.name] = kept or found
    absent = [c.name for c in data.stores if c.name not in prints]
    if not prints:
        return Expected(ASSUMED, f"no scan of {_listed(absent)} is on disk", assumed=True)
    spacing = _by_rule(prints, given)
    source = f"from the headers of {sum(len(p.cases) for p in prints.values())} scans"
    if unread:
        source += f" ({unread} could not be read)"
    if absent:
        source = f"that of {_listed(list(prints))}; no scan of {_listed(absent)} is on disk"
        return Expected(spacing, source, assumed=True)
    if exact:
        return Expected(spacing, source)
    if size:
        return Expected(spacing, f"{source}, uncropped: smaller for the sizes after the crop")
    if others := {_by_rule(_shaped(prints, thin), given) for thin in (True, False)} - {spacing}:
        other = " x ".join(f"{s:.4g}" for s in min(others))
        source += f"; {other} mm if cropping changes the proportions of the scans"
    return Expected(spacing, source)


def from_headers(corpus: Corpus, cases: Sequence[Case]) -> Fingerprint:
    """Spacings and (uncropped) shapes of the cases whose headers can be read; no intensities."""

    def measure(case: Case) -> geometry.Transform:
        return geometry.fit(formats.read_geometry(case.images[0]), None, crop="none")

    outcomes = each(measure, cases, needs=lambda case: 0)
    good = [o for o in outcomes if o.failure is None]
    return Fingerprint(
        corpus=corpus.store,
        channels=("image",),  # a name without a rule of its own, which would need intensities
        cases=tuple(o.case.name for o in good),
        spacings_mm=tuple(o.value.spacing_mm for o in good),
        shapes=tuple(o.value.box_shape for o in good),
        stored_axes=tuple(o.value.axes for o in good),
        cropped=(1.0,) * len(good),
        intensity=(None,),
        failed=tuple(o.failure for o in outcomes if o.failure is not None),
    )


def _kept(path: Path, headers: Fingerprint) -> Fingerprint | None:
    """The headers with the cropped shapes of an earlier measurement of the same scans, if any."""
    if not path.is_file():
        return None
    try:
        kept = Fingerprint.from_json(dict(files.read_json(path))["fingerprint"])
    except (MedjaxError, KeyError, TypeError, ValueError, AttributeError):
        return None  # preparation reports it and measures again
    same = kept.cases == headers.cases and np.allclose(kept.spacings_mm, headers.spacings_mm)
    return dataclasses.replace(headers, shapes=kept.shapes) if same else None


def _by_rule(prints: Mapping[str, Fingerprint], given: schema.Data) -> Spacing:
    plan = make_plan(
        prints,
        spacing=given.spacing_rule,
        orientation=given.orientation,
        size=given.size or None,
    )
    return plan.mean_spacing()


def _shaped(prints: Mapping[str, Fingerprint], thin: bool) -> dict[str, Fingerprint]:
    """The same scans as cubes, or with very few voxels along their coarsest axis."""

    def shape(spacing: Spacing) -> tuple[int, ...]:
        return tuple(1 if thin and s == max(spacing) else LARGE for s in spacing)

    return {
        name: dataclasses.replace(found, shapes=tuple(shape(s) for s in found.spacings_mm))
        for name, found in prints.items()
    }


def _mean(spacings) -> Spacing:
    return tuple(float(v) for v in np.mean(list(spacings), 0))


def _listed(names: Sequence[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
