"""Descriptions of data sets: dataset.json, or medjax.json for layouts without one.

In: a JSON file. Out: the `Corpus` it describes, its other fields, and the patient of each case.
Only JSON is read here.

The block "medjax" of dataset.json holds what the common layouts have no field for:

    "medjax": {"annotated": ["liver"],              classes whose absence means background;
                                                    default all
               "modality": "CT",                    default: CT if a channel is called CT, else MR
               "patients": {"case_01": "p1"},       or {"regex": "^(p\\d+)"}: a split never
                                                    separates the cases of one patient
               "regions": {"liver": [1, 2]},        more classes, each a set of label values
               "name": "Liver",                     default: the folder's name without TaskXX_
                                                    or DatasetXXX_
               "tolerance_mm": {"kidney": 2.0},     of the surface Dice in scoring; or one number
                                                    for all; default 1
               "meanings": {"kidney": "both, ..."}, what a class means, if its name may mislead
               "twins": [                           scans shared with other corpora
                   {"corpus": "LiTS", "cases": "liver_(\\d+)", "other": "volume-\\1"}]}

medjax.json, for layouts without a dataset.json, holds the same keys at its top level, and

    "labels": {"liver": 1}        name -> value, or value -> name, of label maps
    "channels": ["CT"]            or "channel_names": {"0": "CT"}
    "classes": ["liver"]          classes of the masks, in order; or with their names in the
                                  files: {"liver": ["Liver", "liver_gtv"]}
    "absent": "background"        a missing mask means that the class is absent from the case;
                                  by default a missing mask is an error
    "select": "desc-manual"       of several label files of one scan, use the one whose name
                                  contains this text
    "layout": "folders"           the layout, if it cannot be detected

`assets/medjax.schema.json` is the JSON schema of medjax.json; the known keys are read from it.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from medjax import files
from medjax.corpora import description
from medjax.corpora.inputs import read_json
from medjax.corpora.patterns import Pattern
from medjax.errors import LabelError, UsageError, did_you_mean
from medjax.labels import BACKGROUND, Corpus

BLOCK_KEYS, HINT_KEYS = description.keys(block=True), description.keys()
HINT_FILE = "medjax.json"

Labels = tuple[tuple[int, tuple[str, ...]], ...]


def describe(path: Path) -> tuple[Corpus, dict, dict]:
    """dataset.json -> the corpus, all its fields, and its "medjax" block.

    Raises: `LabelError` for labels that make no sense, `UsageError` for anything else; each names
      file, value and fix.
    """
    spec = read_json(path)
    block = spec.get("medjax", {}) if isinstance(spec, dict) else None
    if not isinstance(block, dict):
        raise UsageError(
            'the file and its "medjax" block must be objects', path=path, found=str(spec)[:60]
        )
    for key in set(block) - set(BLOCK_KEYS):
        raise UsageError(
            f'unknown key "{key}" in "medjax"', path=path, fix=did_you_mean(key, BLOCK_KEYS)
        )
    channels = channel_names(spec.get("channel_names", spec.get("modality")), path)
    labels, ignore = parse_labels(spec.get("labels", {}), block.get("regions", {}), path)
    annotated = annotated_classes(block.get("annotated", []), labels, path)
    name = corpus_name(block.get("name"), Path(os.path.realpath(path)).parent, path)
    modality = str(
        block.get("modality") or ("CT" if any(c.lower() == "ct" for c in channels) else "MR")
    )
    return (
        Corpus(
            name, labels, annotated, modality, channels, ignore, meanings=meanings_of(block, path)
        ),
        spec,
        block,
    )


def channel_names(value: object, path: Path) -> tuple[str, ...]:
    """{"0": "CT", "1": "PET"} or ["CT", "PET"] -> names in order."""
    if isinstance(value, list) and value:
        value = {str(i): name for i, name in enumerate(value)}
    if not isinstance(value, dict) or not value or not all(str(k).isdigit() for k in value):
        expected = '"channel_names": {"0": "CT"}, or "modality" in MSD'
        raise UsageError("no usable channel names", path=path, found=value, expected=expected)
    if strange := next((n for n in value.values() if isinstance(n, dict | list)), None):
        raise UsageError(
            "a channel name that is not text",
            path=path,
            found=repr(strange)[:80],
            expected='"channel_names": {"0": "CT"}',
        )
    return tuple(str(value[k]) for k in sorted(value, key=int))


def annotated_classes(annotated: object, labels: Labels, path: Path) -> tuple[str, ...]:
    """The checked "annotated" list; () means all."""
    named = {name for _, names in labels for name in names}
    if not isinstance(annotated, list) or not all(isinstance(name, str) for name in annotated):
        raise LabelError(
            '"annotated" must be a list of class names',
            path=path,
            found=annotated,
            expected=f'["{annotated}"]',
        )
    for unknown in (name for name in annotated if name not in named):
        raise LabelError(
            f'"annotated" names the unknown class {unknown!r}',
            path=path,
            fix=did_you_mean(unknown, named),
        )
    return tuple(annotated)


def meanings_of(block: Mapping, path: Path) -> tuple[tuple[str, str], ...]:
    """The checked "meanings" of a description."""
    meanings = block.get("meanings", {})
    if not isinstance(meanings, dict) or not all(isinstance(v, str) for v in meanings.values()):
        raise LabelError(
            '"meanings" must be an object of text',
            path=path,
            found=meanings,
            expected='{"kidney": "both kidneys"}',
        )
    return tuple(meanings.items())


def corpus_name(given: object, folder: Path, path: Path) -> str:
    """The name in the description, or the folder's name without TaskXX_ or DatasetXXX_.

    Raises `LabelError` for a name that cannot be a folder name.
    """
    return files.check_name(
        given or re.sub(r"^(Task|Dataset)\d+_", "", folder.name),
        "corpus name",
        path=path,
        error=LabelError,
    )


def hints(folder: Path) -> tuple[dict, Path]:
    """Contents of medjax.json of a folder (or else dataset.json), flattened, and the file's path.

    {} if the folder has neither.
    """
    for name in (HINT_FILE, "dataset.json"):
        path = folder / name
        if path.is_file():
            spec = read_json(path)
            if not isinstance(spec, dict) or not isinstance(spec.get("medjax", {}), dict):
                raise UsageError("the file must be an object", path=path, found=str(spec)[:60])
            if name == HINT_FILE:
                if "medjax" in spec:
                    raise UsageError(
                        'the key "medjax" belongs to dataset.json',
                        path=path,
                        fix=f"write its fields at the top level of {HINT_FILE}",
                    )
                for key in set(spec) - set(HINT_KEYS):
                    raise UsageError(
                        f"unknown key {key!r}", path=path, fix=did_you_mean(key, HINT_KEYS)
                    )
                description.check(spec, path)
            found = {k: v for k, v in spec.items() if k in HINT_KEYS} | spec.get("medjax", {})
            if isinstance(found.get("modality"), dict):  # MSD's word for channel names
                found["channel_names"] = found.pop("modality")
            return found, path
    return {}, folder / HINT_FILE


def parse_labels(labels: object, regions: object, path: Path) -> tuple[Labels, int | None]:
    """`labels` (either direction) and `regions` -> (value, class names) entries, ignore value."""
    if (
        not isinstance(labels, dict)
        or not isinstance(regions, dict)
        or not all(isinstance(v, list) for v in regions.values())
    ):
        found = repr(regions if isinstance(labels, dict) else labels)[:80]
        expected = '{"background": 0, "liver": 1}, and regions {"whole": [1, 2]}'
        raise LabelError(
            '"labels" and "regions" must be objects', path=path, found=found, expected=expected
        )
    if labels and all(isinstance(v, str) for v in labels.values()):  # MSD: value -> name
        labels = [(str(name), value) for value, name in labels.items()]
    else:  # nnU-Net: name -> value or values
        labels = list(labels.items())
    declared = {
        _integer(v, name, path)
        for name, value in labels
        for v in (value if isinstance(value, list) else [value])
    }
    holders: dict[int, dict[str, None]] = {}  # names in order, each once
    plain, ignore = {}, None
    for name, value in [*labels, *((name, list(values)) for name, values in regions.items())]:
        region = isinstance(value, list)
        values = [_integer(v, name, path) for v in (value if region else [value])]
        if name == "ignore":
            if region:
                raise LabelError("the ignore label must be one value", path=path, found=value)
            ignore = values[0]
            continue
        if values == [0] and not region:
            continue  # value 0 is background, under any name
        if name.lower() == BACKGROUND or 0 in values or not values:
            raise LabelError(
                f"value 0 is background and belongs to no class ({name!r})",
                path=path,
                found=value,
                fix="use values from 1 on",
            )
        if not region and plain.setdefault(values[0], name) != name:
            both = f"{plain[values[0]]!r} and {name!r}"
            raise LabelError(
                f"{both} share one value",
                path=path,
                found=value,
                fix="give each its own, or write one as a list (a region)",
            )
        if stray := set(values) - declared:
            fix = f"some of {sorted(declared - {0})}"
            raise LabelError(
                f"region {name!r} uses undeclared values",
                path=path,
                found=sorted(stray),
                expected=fix,
            )
        for v in values:
            holders.setdefault(v, {})[name] = None
    if ignore is not None and ignore in {0, *holders}:
        raise LabelError(
            "the ignore value is also a label",
            path=path,
            found=ignore,
            fix="use a value of its own, such as the highest + 1",
        )
    return tuple((value, tuple(holders[value])) for value in sorted(holders)), ignore


def _integer(value: object, name: str, path: Path) -> int:
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 9:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 65535:
        raise LabelError(
            f"label {name!r} has no integer value",
            path=path,
            found=repr(value)[:80],
            expected="0 to 65535, or a list of those",
        )
    return value


def patients_of(rule: Mapping | str, names: Sequence[str], path: Path) -> dict[str, str]:
    """Case -> patient; cases that a mapping does not list are their own patient."""
    pattern = patient_pattern(rule, path)
    if pattern is None:
        for case in set(rule) - set(names):
            raise UsageError(
                f'"patients" names the unknown case {case!r}',
                path=path,
                fix=did_you_mean(case, names),
            )
        return {name: str(rule.get(name, name)) for name in names}
    matches = {name: pattern.search(name) for name in names}
    for name, match in matches.items():
        if match is None:
            raise UsageError(
                f'the "patients" expression does not match case {name!r}',
                path=path,
                found=pattern.text,
            )
    return {
        name: (match[1] if pattern.groups else match[0]) or name for name, match in matches.items()
    }


def patient_pattern(rule: object, path: Path) -> Pattern | None:
    """The expression of a "patients" field, or None for a mapping case -> patient.

    Raises `UsageError` for anything else.
    """
    if isinstance(rule, str) or (isinstance(rule, Mapping) and set(rule) == {"regex"}):
        return Pattern(
            rule if isinstance(rule, str) else rule["regex"], '"patients"', path, UsageError
        )
    if not isinstance(rule, Mapping) or any(isinstance(v, list | dict) for v in rule.values()):
        expected = '{"case_01": "p1"}, or {"regex": "^(p[0-9]+)"}'
        raise UsageError(
            '"patients" is neither an object nor an expression',
            path=path,
            found=repr(rule)[:80],
            expected=expected,
        )
    return None
