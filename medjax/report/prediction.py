"""report.html: results of an evaluation or a prediction in one self-contained page.

In: a `Result`, or the folder that `infer.cases.predict_cases` filled. Out: the path of the page,
with a viewer of scans and masks. A scan that cannot be shown is listed in the page; the rest is
unaffected.
"""

import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medjax import files
from medjax.corpora.cases import failure
from medjax.corpora.inputs import Case, read_json
from medjax.errors import MedjaxError, UsageError
from medjax.infer import owned
from medjax.metrics import tables
from medjax.metrics.compare import Comparison
from medjax.metrics.result import Result
from medjax.report import charts, evaluation, figures, page, prompted, viewer
from medjax.report.page import Cell, number, text

REPORT = "report.html"
VOXELS = 3_000_000  # of one embedded volume
CASES = 8  # in the viewer
BUDGET_MB = 60.0  # of all embedded scans


def prediction_report(
    folder: str | os.PathLike,
    *,
    cases: int = CASES,
    voxels: int = VOXELS,
    budget_mb: float = BUDGET_MB,
    path: str | os.PathLike | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes `report.html` into a folder of predictions.

    It shows cases, volumes, seconds, failures, previews, and a viewer.

    Args:
      folder: with run.json and one sidecar `<case>.json` per mask, as `medjax predict` writes it.
      cases: most cases in the viewer. voxels: per embedded volume. budget_mb: for all of them; the
        page lists cases that do not fit.
      path: of the page; default `folder/report.html`. overwrite: also replace a page that medjax
        did not write.

    Returns: the path written. Raises: `UsageError` for a folder without run.json, or a page that
      medjax did not write.
    """
    folder = Path(folder)
    path = _page(path or folder / REPORT, overwrite)
    manifest = _manifest(folder)
    sidecars, broken = {}, []
    for name in manifest.get("cases", {}):
        try:
            sidecars[name] = _sidecar(folder, name)
        except MedjaxError as error:
            broken.append({"case": name} | error.record())
    failed = [*manifest.get("failed", []), *broken]
    shown = [
        viewer.Shown(
            name,
            name,
            tuple(p for p in side.get("images", ()) if Path(p).is_file())[:1],
            None,
            str(folder / f"{name}.nii.gz"),
            {int(v): label for v, label in side.get("labels", {}).items()},
            frame=side.get("settings", {}).get("frame", 0),
        )
        for name, side in sidecars.items()
        if (folder / f"{name}.nii.gz").is_file()
    ]
    payloads, left = embed(shown[:cases], voxels, budget_mb)
    seconds = [
        sum(v for v in c.get("seconds", {}).values() if isinstance(v, int | float))
        for c in manifest.get("cases", {}).values()
    ]
    facts = [
        ("cases predicted", len(sidecars)),
        ("failed", len(failed)),
        ("seconds per case (median)", number(statistics.median(seconds), 3) if seconds else "-"),
    ]
    facts += [(name, manifest[name]) for name in ("device", "corpus") if manifest.get(name)]
    content = []
    if doubtful := _warnings(sidecars):
        content.append(("warnings", "Warnings", doubtful))
    if payloads:
        content.append(
            ("viewer", "Scans and masks", _left_out(left, len(shown) - len(payloads)) + page.VIEWER)
        )
    content.append(("volumes", "Volumes and statistics", _statistics(sidecars)))
    content.append(("cases", "Cases", _predicted(manifest, sidecars)))
    if previews := _previews(folder, sidecars):
        content.append(("previews", "Previews", previews))
    if failed:
        content.append(("failed", "Failed", page.failures(failed)))
    versions = ", ".join(f"{k} {v}" for k, v in manifest.get("versions", {}).items())
    subtitle = os.path.realpath(folder) + (f" ({versions})" if versions else "")
    notes = (
        "Volumes are voxel counts times voxel size on the grid of the scan. Masks are "
        "predictions of a model, not findings."
    )
    return write(path, page.page("Prediction", subtitle, facts, content, payloads, notes))


def evaluation_report(
    result: Result,
    folder: str | os.PathLike,
    *,
    comparison: Comparison | None = None,
    pictures_of: Sequence[tuple[str, Path]] = (),
    cases: int = CASES,
    voxels: int = VOXELS,
    budget_mb: float = BUDGET_MB,
    overwrite: bool = False,
) -> Path:
    """Writes `report.html` into the folder of an evaluation.

    It shows scores, plots, comparison, viewer, cases, worst cases and failures.

    Args:
      comparison: from `compare.compare`. pictures_of: (title, PNG) of the worst cases, from
        `figures.montages`.
      cases, voxels, budget_mb, overwrite: see `prediction_report`; with 0 cases there is no viewer.

    Returns: the path written. A case whose files have moved since is missing from the viewer only.
    """
    folder = Path(folder)
    path = _page(folder / REPORT, overwrite)
    payloads, left = embed(figures.shown(result, cases), voxels, budget_mb)
    found = result.tables
    facts = [
        ("cases scored", len(result.pairs)),
        ("failed", len(result.failed)),
        ("classes", len(found["classes"])),
    ]
    measured = [m for m in ("Dice", "NSD", "HD95") if m in found["metrics"]]
    facts += [
        (f"mean {tables.TITLES.get(m, m)}", tables.mean(found["overall"][m], m)) for m in measured
    ]
    content = [("scores", "Scores", evaluation.scores(result))]
    if comparison is not None:
        content.append(("comparison", "Comparison", evaluation.comparison(comparison)))
    if asked := prompted.section(folder):
        content.append(("prompted", "Prompts", asked))
    if payloads or left:
        said = _left_out(left, len(result.pairs) - len(payloads))
        content.append(("viewer", "Scans and masks", said + (page.VIEWER if payloads else "")))
    content.append(
        (
            "plots",
            "Plots",
            "".join(f"<figure>{svg}</figure>" for svg in evaluation.figures(result).values()),
        )
    )
    content.append(("cases", "Cases", evaluation.cases(result)))
    if pictures_of:
        content.append(("worst", "Worst cases", evaluation.pictures(pictures_of)))
    if result.failed:
        content.append(("failed", "Not scored", page.failures(result.failed)))
    subtitle = f"{', '.join(result.corpora)}; {os.path.realpath(folder)}"
    return write(
        path,
        page.page("Evaluation", subtitle, facts, content, payloads, " ".join(tables.notes(result))),
    )


def report(folder: str | os.PathLike, **options: Any) -> list[Path]:
    """Writes the report of a folder: an evaluation, a prediction, or a run that contains either.

    Args:
      options: cases, voxels, budget_mb, overwrite; see `prediction_report`.

    Returns: the paths written. Raises: `UsageError` if there is nothing to report.
    """
    folder = Path(folder)
    if (folder / "summary.json").is_file():
        found = folder / "comparison.json"
        drawn = [(path.stem, path) for path in sorted((folder / "montages").glob("*.png"))]
        compared = Comparison.load(found) if found.is_file() else None
        return [
            evaluation_report(
                Result.load(folder), folder, comparison=compared, pictures_of=drawn, **options
            )
        ]
    if _predicted_here(folder):
        return [prediction_report(folder, **options)]
    inside = [folder / "evaluation", *sorted((folder / "predictions").glob("*"))]
    inside = [path for path in inside if (path / "summary.json").is_file() or _predicted_here(path)]
    if not inside:
        raise UsageError(
            "nothing to report",
            path=folder,
            expected="summary.json of an evaluation, run.json of a prediction, or a run folder "
            "with either",
        )
    return [path for part in inside for path in report(part, **options)]


def embed(
    shown: Sequence[viewer.Shown], voxels: int, budget_mb: float
) -> tuple[list[dict], list[dict]]:
    """Payloads of the cases that can be read and fit into the budget, in order.

    And records of those that cannot be shown.
    """
    payloads, left, used = [], [], 0
    for one in shown:
        try:
            made = viewer.payload(one, voxels) | {"title": one.title}
        except Exception as error:
            left.append(failure(Case(one.key, one.images), error))
            continue
        used += len(made["image"]) + sum(len(layer["data"]) for layer in made["layers"].values())
        if payloads and used > budget_mb * 1e6:
            break
        payloads.append(made)
    return payloads, left


def write(path: str | os.PathLike, content: str) -> Path:
    """Writes text atomically; creates the folder. Returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, content)
    return path


def _page(path: str | os.PathLike, overwrite: bool) -> Path:
    """The path, if a page may be written there."""
    path = Path(path)
    owned.refuse_foreign(
        path.parent,
        [path.name],
        lambda name: owned.is_marked(path),
        overwrite=overwrite,
        what="the page",
    )
    return path


def _sidecar(folder: Path, name: str) -> dict:
    """The sidecar of a case; names come from a file and must not lead elsewhere."""
    files.check_name(name, "case name", path=folder)
    found = read_json(folder / f"{name}.json")
    if not isinstance(found, dict):
        raise UsageError(
            "not the sidecar of a prediction", path=folder / f"{name}.json", expected="an object"
        )
    return found


def _warnings(sidecars: Mapping[str, Mapping]) -> str:
    """Warnings of the predictions, by case."""
    said = [
        (name, warning) for name, side in sidecars.items() for warning in side.get("warnings") or ()
    ]
    rows = "".join(
        f'<li><b>{text(name)}</b> <span class="bad">{text(str(warning))}</span></li>'
        for name, warning in said
    )
    return f"<ul>{rows}</ul>" if said else ""


def _predicted_here(folder: Path) -> bool:
    return (folder / "run.json").is_file() or any(folder.glob("run_part*.json"))


def _manifest(folder: Path) -> dict:
    """run.json; if several calls shared the cases, their manifests joined."""
    found_here = [
        path
        for path in (folder / "run.json", *sorted(folder.glob("run_part*.json")))
        if path.is_file()
    ]
    if not found_here:
        raise UsageError(
            "no prediction here",
            path=folder,
            expected="a folder with run.json",
            fix="give the output folder of `medjax predict`",
        )
    joined: dict = {"cases": {}, "failed": []}
    for path in found_here:
        found = read_json(path)
        if not isinstance(found, dict) or not isinstance(found.get("cases"), dict):
            raise UsageError(
                "not the manifest of a prediction", path=path, expected='an object with "cases"'
            )
        joined = found | {
            "cases": joined["cases"] | found["cases"],
            "failed": [*joined["failed"], *found.get("failed", [])],
        }
    return joined


def _first(channels: Any) -> float | None:
    """Mean intensity in the first channel."""
    return (channels[0] if channels else None) if isinstance(channels, list) else channels


def _left_out(left: Sequence[Mapping], others: int) -> str:
    """Text about cases that the viewer does not show."""
    said = (
        f'<p class="faint">{others} further cases are in the tables only.</p>'
        if others > len(left)
        else ""
    )
    return said + (f'<p class="bad">Cannot be shown:</p>{page.failures(left)}' if left else "")


def _statistics(sidecars: Mapping[str, Mapping]) -> str:
    """Per class: cases, volume (median, range), mean intensity; and box plots of volumes."""
    by_class: dict[str, list[tuple[str, Mapping]]] = {}
    for case, side in sidecars.items():
        for name, entry in side.get("classes", {}).items():
            by_class.setdefault(name, []).append((case, entry))
    rows = []
    for name, entries in by_class.items():
        volumes = [e["volume_ml"] for _, e in entries if e.get("voxels", 1)]
        grey = [_first(e.get("mean_intensity")) for _, e in entries]
        spread = Cell(
            f"{number(min(volumes))} to {number(max(volumes))}" if volumes else "-",
            max(volumes, default=None),
        )
        middle = statistics.median(volumes) if volumes else None
        rows.append(
            [
                name,
                len(volumes),
                len(entries) - len(volumes),
                middle,
                spread,
                statistics.fmean(seen) if (seen := [v for v in grey if v is not None]) else None,
            ]
        )
    heads = [
        "class",
        "found in",
        "not found in",
        "volume ml (median)",
        "volume ml (range)",
        "mean intensity",
    ]
    drawn = {
        name: [(case, e["volume_ml"]) for case, e in entries if e.get("voxels", 1)]
        for name, entries in by_class.items()
    }
    figure = (
        f"<figure>{charts.box_plot('volume (ml)', drawn)}</figure>"
        if any(len(v) > 1 for v in drawn.values())
        else ""
    )
    return (
        page.table(heads, rows) + figure
        if rows
        else '<p class="faint">no class volumes were recorded</p>'
    )


def _predicted(manifest: Mapping, sidecars: Mapping[str, Mapping]) -> str:
    rows = []
    for name, side in sidecars.items():
        entry = manifest["cases"][name]
        seconds = [v for v in entry.get("seconds", {}).values() if isinstance(v, int | float)]
        found = [k for k, e in side.get("classes", {}).items() if e.get("voxels", 1)]
        listing = Cell(f'<span title="{text(", ".join(found))}">{len(found)}</span>', len(found))
        inputs = ", ".join(Path(p).name for p in entry.get("inputs", {}))
        rows.append(
            [
                Cell(page.opener(name, name), name),
                inputs,
                listing,
                float(sum(seconds)) if seconds else None,
                len(entry.get("outputs", ())),
            ]
        )
    return page.table(
        ["case", "scan", "classes found", "seconds", "files"], rows, text_columns=(0, 1)
    )


def _previews(folder: Path, sidecars: Mapping[str, Mapping]) -> str:
    """The PNG files that `--preview` wrote beside the masks."""
    found = [
        (name, path)
        for name in sidecars
        for path in (folder / f"{name}.png", folder / f"{name}_preview.png")
        if path.is_file()
    ]
    return (
        "".join(page.picture(path.read_bytes(), name) for name, path in found[: 4 * CASES]).join(
            ('<div class="montages">', "</div>")
        )
        if found
        else ""
    )
