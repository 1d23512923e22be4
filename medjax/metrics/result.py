"""The result of an evaluation and its files: summary.json, cases.csv and table.md.

In: rows of scores from `evaluate`. Out: tables and text. summary.json holds nnU-Net's keys, then
medjax' own; cases.csv is in long form. Results of several corpora are joined without mixing their
cells.
"""

import csv
import dataclasses
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from medjax import files
from medjax.corpora.inputs import Case, read_json
from medjax.errors import MetricError, UsageError
from medjax.infer import outputs
from medjax.infer.names import from_spreadsheet, spreadsheet
from medjax.infer.owned import mark
from medjax.labels import Corpus
from medjax.metrics import confidence, tables, written
from medjax.metrics import counts as overlap
from medjax.metrics.aggregate import Row, aggregate
from medjax.scans.paths import Mask

COLUMNS = ("case", "dataset", "class", "metric", "value")  # of cases.csv
COUNT_KEYS = ("TP", "FP", "FN", "TN", "n_ref", "n_pred")


@dataclasses.dataclass(frozen=True)
class Pair:
    """The two label files of one case (or folders with one mask per class).

    A missing prediction is None and becomes a failed case. `source` is the case they belong to: its
    scan for pictures, and its masks if the reference is not a single label map. `channels`: counts
    of the classes' own channels, if they are known (`metrics.channels`).
    """

    case: str
    reference: str
    prediction: str | None
    patient: str = ""
    source: Case | None = None
    channels: Mapping[str, overlap.Counts] | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """Result of an evaluation.

    Attributes:
      corpora: the corpora scored, by name.
      classes: corpus name -> classes scored.
      rows: one per case and class, in input order.
      pairs: (corpus name, pair) of every case scored.
      failed: [{"case", "corpus", "error", "message", ...}].
      unmatched: prediction files without a reference.
      tables: see `aggregate.aggregate`.
      settings: settings that determine the numbers (tolerance, definition, ...).
      conflicts: corpus -> voxels of two exclusive classes, predicted foreground, share, and the
        rule that painted the label map; empty if unknown. See `metrics.channels`.
    """

    corpora: Mapping[str, Corpus]
    classes: Mapping[str, tuple[str, ...]]
    rows: tuple[Row, ...]
    pairs: tuple[tuple[str, Pair], ...]
    failed: tuple[dict, ...]
    unmatched: tuple[str, ...]
    tables: dict
    settings: dict
    conflicts: dict = dataclasses.field(default_factory=dict)

    def summary(self) -> dict:
        """Contents of summary.json: nnU-Net's keys, then medjax'; None in place of nan."""
        by_case: dict[tuple[str, str], dict] = {}
        for row in self.rows:
            entry = {m: row.scores.get(m) for m in self.tables["metrics"]} | _count_fields(
                row.counts
            )
            by_case.setdefault((row.corpus, row.case), {})[
                _label_key(self.corpora[row.corpus], row.name)
            ] = entry
        statuses: dict[tuple[str, str], dict] = {}
        told: dict[tuple[str, str], dict] = {}
        voxel_ml = {(row.corpus, row.case): row.voxel_ml for row in self.rows}
        for row in self.rows:
            statuses.setdefault((row.corpus, row.case), {})[
                _label_key(self.corpora[row.corpus], row.name)
            ] = row.status
            if row.confidence is not None:
                told.setdefault((row.corpus, row.case), {})[row.name] = row.confidence
        cases = [
            {
                "reference_file": pair.reference,
                "prediction_file": pair.prediction,
                "metrics": by_case[corpus, pair.case],
            }
            | {
                "case": pair.case,
                "corpus": corpus,
                "patient": pair.patient or pair.case,
                "status": statuses[corpus, pair.case],
            }
            | {
                "images": list(pair.source.images) if pair.source else [],
                "voxel_ml": voxel_ml[corpus, pair.case],
            }
            | (
                {"masks": [dataclasses.astuple(mask) for mask in pair.source.masks]}
                if pair.source and pair.source.masks
                else {}
            )
            | ({"confidence": t} if (t := told.get((corpus, pair.case))) else {})
            for corpus, pair in self.pairs
        ]
        from medjax.infer.write import versions  # imports jax, which scoring does not need

        several, numbers = len(self.corpora) > 1, (*self.tables["metrics"], *COUNT_KEYS)
        mean = {}
        for corpus, names in self.classes.items():
            for name in names:
                key = _label_key(self.corpora[corpus], name)
                found = [case["metrics"][key] for case in cases if case["corpus"] == corpus]
                cell = self.tables["cells"][corpus][name]
                counted = {"n": cell[self.tables["metrics"][0]]["n"], "n_missing": cell["n_missed"]}
                counted |= {
                    "n_false_positive": cell["n_false_positive"],
                    "n_absent": cell["n_absent"],
                }
                intervals = {"intervals": {m: cell[m]["interval"] for m in self.tables["metrics"]}}
                mean[f"{corpus}/{key}" if several else key] = (
                    {m: _mean(f[m] for f in found) for m in numbers} | counted | intervals
                )
        apart = {
            (f"{corpus}/" if several else "") + _label_key(self.corpora[corpus], name)
            for corpus, name in self.tables.get("apart", ())
        }
        counted = [entry for key, entry in mean.items() if key not in apart]
        foreground = {m: _mean(entry[m] for entry in counted) for m in numbers}
        names = {
            c: {_label_key(self.corpora[c], n): n for n in names}
            for c, names in self.classes.items()
        }
        ours = {
            "labels": names,
            "n_failed": len(self.failed),
            "failed": list(self.failed),
            "unmatched": list(self.unmatched),
        }
        ours |= {
            "descriptions": {name: corpus.to_json() for name, corpus in self.corpora.items()},
            "versions": versions(),
        }
        return (
            {"metric_per_case": cases, "mean": mean, "foreground_mean": foreground}
            | ours
            | self.tables
            | {"settings": self.settings}
            | ({"conflicts": self.conflicts} if self.conflicts else {})
        )

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Result":
        """The result that `write` wrote into a folder.

        Raises: `UsageError` without a summary.json of medjax (nnU-Net's own lacks fields that the
          report needs).
        """
        path = Path(folder) / "summary.json"
        if not path.is_file():
            raise UsageError(
                "no evaluation here",
                path=folder,
                expected="a folder with summary.json",
                fix="run `medjax evaluate` first",
            )
        found = read_json(path)
        try:
            return _restored(found)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"not a summary that medjax wrote ({error!r})",
                path=path,
                fix="run `medjax evaluate` again",
            ) from error

    def csv(self) -> str:
        """Long form: case, dataset (the corpus), class, metric, value; a metric left out of the
        means (both empty) has an empty value.

        Names that a spreadsheet would take for formulas begin with an apostrophe; `read_cases`
        takes it off.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in self.rows:
            fields = (
                {m: row.scores.get(m, "") for m in self.tables["metrics"]}
                | _count_fields(row.counts)
                | {"status": row.status}
            )
            names = [spreadsheet(name) for name in (row.case, row.corpus, row.name)]
            writer.writerows([*names, metric, value] for metric, value in fields.items())
        return text.getvalue()

    def markdown(self) -> str:
        """The tables for a reader; see `tables.markdown`."""
        return tables.markdown(self)

    def write(self, folder: str | os.PathLike, *, overwrite: bool = False) -> None:
        """Writes summary.json, cases.csv and table.md into `folder`, each complete or not at all.

        Raises: `UsageError` if one of them is there and medjax did not write it, unless
          `overwrite`; `WriteError` for a full disk.
        """
        folder = Path(folder)
        written.check(folder, written.NUMBERS, overwrite=overwrite)
        owned = {"files": sorted({*written.listed(folder), "cases.csv"})} | mark("evaluation")
        outputs.make_folder(folder)
        files.write_text(
            folder / "summary.json", json.dumps(self.summary() | owned, indent=2, allow_nan=False)
        )
        files.write_text(folder / "cases.csv", self.csv())
        files.write_text(folder / "table.md", self.markdown())


def read_cases(path: str | os.PathLike) -> list[dict[str, str]]:
    """The rows of cases.csv, names as they were."""
    with open(path, newline="", encoding="utf-8") as file:
        return [
            row | {name: from_spreadsheet(row[name]) for name in COLUMNS[:3]}
            for row in csv.DictReader(file)
        ]


def join(results: Sequence[Result], groups: Mapping[str, Iterable[str]] | None = None) -> Result:
    """One result over several corpora: cells stay separate, means and intervals are macro.

    Macro: over corpora and classes.

    Raises: `MetricError` if a corpus is repeated or the settings differ (numbers of different
      definitions must not share a table).
    """
    if not results:
        raise UsageError("nothing to join")
    corpora = [name for r in results for name in r.corpora]
    if len(set(corpora)) < len(corpora):
        raise MetricError("a corpus occurs in two results", found=corpora)
    first = results[0]
    for other in results[1:]:
        if other.settings | {"tolerance_mm": None} != first.settings | {"tolerance_mm": None}:
            raise MetricError(
                "results with different settings", found=other.settings, expected=first.settings
            )
    tolerance = (
        {c: r.settings["tolerance_mm"] for r in results for c in r.corpora}
        if first.settings["surface"]
        else None
    )
    boot = first.tables["bootstrap"]
    return build_result(
        {n: c for r in results for n, c in r.corpora.items()},
        {n: c for r in results for n, c in r.classes.items()},
        [row for r in results for row in r.rows],
        [p for r in results for p in r.pairs],
        [f for r in results for f in r.failed],
        [u for r in results for u in r.unmatched],
        first.settings | {"tolerance_mm": tolerance},
        groups,
        boot["resamples"],
        boot["seed"],
        [tuple(cell) for r in results for cell in r.tables.get("apart", ())],
    )


def build_result(
    corpora: Mapping[str, Corpus],
    classes: Mapping[str, tuple[str, ...]],
    rows: Sequence[Row],
    pairs: Sequence[tuple[str, Pair]],
    failed: Sequence[dict],
    unmatched: Sequence[str],
    settings: dict,
    groups: Mapping[str, Iterable[str]] | None,
    resamples: int,
    seed: int,
    apart: Sequence[tuple[str, str]] = (),
) -> Result:
    """A `Result` with its tables; for `apart` see `aggregate.aggregate`."""
    cells = [(corpus, name) for corpus, names in classes.items() for name in names]
    found = aggregate(rows, groups=groups, resamples=resamples, seed=seed, cells=cells, apart=apart)
    found |= {"confidence": table} if (table := confidence.table(rows)) else {}
    return Result(
        corpora,
        classes,
        tuple(rows),
        tuple(pairs),
        tuple(failed),
        tuple(unmatched),
        found,
        settings,
    )


def _restored(summary: Mapping) -> Result:
    corpora = {name: Corpus.from_json(fields) for name, fields in summary["descriptions"].items()}
    metrics, rows, pairs = summary["metrics"], [], []
    for case in summary["metric_per_case"]:
        corpus, names = case["corpus"], summary["labels"][case["corpus"]]
        own = tuple(Mask(*mask) for mask in case.get("masks", ()))
        label = None if own else case["reference_file"]
        source = Case(
            case["case"], tuple(case["images"]), label, corpus, patient=case["patient"], masks=own
        )
        pairs.append(
            (
                corpus,
                Pair(
                    case["case"],
                    case["reference_file"],
                    case["prediction_file"],
                    case["patient"],
                    source,
                ),
            )
        )
        for key, values in case["metrics"].items():
            scores = {m: values[m] for m in metrics if values[m] is not None}
            counts = overlap.Counts(*(int(values[k]) for k in COUNT_KEYS[:4]))
            rows.append(
                Row(
                    case["case"],
                    case["patient"],
                    corpus,
                    names[key],
                    case["status"][key],
                    scores,
                    counts,
                    case["voxel_ml"],
                    case.get("confidence", {}).get(names[key]),
                )
            )
    classes = {corpus: tuple(names.values()) for corpus, names in summary["labels"].items()}
    kept = {
        k: summary[k]
        for k in ("metrics", "cells", "classes", "corpora", "groups", "overall", "bootstrap")
    }
    kept |= {
        k: summary[k] for k in ("over_corpora", "apart", "confidence") if k in summary
    }  # newer fields
    return Result(
        corpora,
        classes,
        tuple(rows),
        tuple(pairs),
        tuple(summary["failed"]),
        tuple(summary["unmatched"]),
        kept,
        summary["settings"],
        dict(summary.get("conflicts", {})),
    )


def _label_key(corpus: Corpus, name: str) -> str:
    """nnU-Net's key of a class: its label value, or the tuple of a region's values."""
    values = tuple(corpus.values[i] for i in corpus.ids_of(name))
    return str(values[0]) if len(values) == 1 else str(values)


def _count_fields(counts: overlap.Counts) -> dict[str, int]:
    return dict(zip(COUNT_KEYS, (*counts, counts.n_reference, counts.n_prediction), strict=True))


def _mean(values: Iterable[float | None]) -> float | None:
    used = [v for v in values if v is not None]
    return float(np.mean(used)) if used else None
