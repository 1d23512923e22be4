"""Raw folder + declaration -> cases: which files belong together, and what is missing.

Names only, no voxel is read.
"""

import dataclasses
import fnmatch
import os
import re
from collections.abc import Mapping
from pathlib import Path

from data_pipelines.anatomy import canonical
from data_pipelines.declare import Layout, PublicCorpus, filled, first_template, pattern
from medjax.corpora.inputs import Case, read_json, usable
from medjax.errors import DataError, MedjaxError, UsageError, did_you_mean
from medjax.scans.paths import Mask


@dataclasses.dataclass(frozen=True)
class Found:
    """The outcome of a search: usable cases, problems of the others, names left out on purpose with
    the reason, and hints.
    """

    cases: tuple[Case, ...]
    problems: tuple[MedjaxError, ...] = ()
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def find_cases(
    corpus: PublicCorpus,
    raw: str | os.PathLike,
    *,
    where: Mapping[str, str] | None = None,
    keep_suspects: bool = False,
    allow_missing_masks: bool = False,
) -> Found:
    """The cases of a corpus below a folder.

    Args:
      raw: the folder its layouts start from, or one above it.
      where: placeholder -> regular expression; only cases whose placeholder matches are taken.
      keep_suspects: also take cases the declaration knows to be bad.
      allow_missing_masks: a class without its file counts as absent instead of making the case
        unusable.

    Raises: `UsageError` saying which names were looked for if nothing is found, or one case is
      found twice.
    """
    raw = Path(raw)
    if not raw.is_dir():
        raise UsageError(
            "no such folder", path=raw, fix="give the folder that the download was unpacked into"
        )
    files = _tree(raw)
    cases, problems, unlabelled = {}, [], 0
    for layout in corpus.layouts:
        unknown = set(where or {}) - {
            name for template in layout.images for name in re.findall(r"\{(\w+)\}", template)
        }
        if unknown:
            raise UsageError(
                f"no placeholder {min(unknown)!r} in the layout",
                found=layout.images[0],
                expected="--where PLACEHOLDER=EXPRESSION",
            )
        for prefix, path, groups in _matches(layout, files, where or {}):
            try:
                case = _case(corpus, layout, raw, prefix, groups, files, allow_missing_masks)
            except _Unlabelled:
                unlabelled += 1
                continue
            except MedjaxError as error:
                problems.append(error)
                continue
            if case.name in cases:
                raise UsageError(
                    f"case {case.name!r} is found twice",
                    path=raw / path,
                    found=cases[case.name].images[0],
                    fix="give a folder that holds one copy of the corpus",
                )
            cases[case.name] = case
    if not cases and not problems:
        looked = " or ".join(
            template
            for layout in corpus.layouts
            for template in (
                *layout.images[:1],
                layout.label or first_template(next(iter(layout.masks.values()))),
            )
        )
        here = ", ".join(sorted(p.name for p in raw.iterdir() if not p.name.startswith("."))[:8])
        raise UsageError(
            f"no labelled case of {corpus.name} below this folder",
            path=raw,
            found=here or "nothing",
            expected=looked,
            fix=corpus.obtain,
        )
    named, wrong = usable(cases.values(), raw)
    cases, problems = {case.name: case for case in named}, problems + wrong
    left_out = (
        {}
        if keep_suspects
        else {name: why for name, why in corpus.suspects.items() if name in cases}
    )
    kept = tuple(case for name, case in sorted(cases.items()) if name not in left_out)
    notes = [f"{unlabelled} images without a label passed over"] if unlabelled else []
    if corpus.cases and len(cases) != corpus.cases and not where:
        notes.append(f"{len(cases)} cases found, {corpus.cases} published")
    return Found(kept, tuple(problems), left_out, tuple(notes))


class _Unlabelled(Exception):
    """An image that the corpus published without a label."""


class _Tree(dict):
    """Relative path -> is a folder; `children` lists a folder's members."""

    def __init__(self):
        super().__init__()
        self.children: dict[str, list[str]] = {}


def _tree(raw: Path) -> _Tree:
    """All files and folders below `raw` as relative paths with forward slashes; hidden and
    AppleDouble files are passed over.
    """
    found = _Tree()
    chains = {}  # folder -> the real folders above it: a link to one of them would never end
    for here, folders, names in os.walk(raw, followlinks=True):
        chain = chains.pop(here, frozenset()) | {os.path.realpath(here)}
        folders[:] = sorted(
            f
            for f in folders
            if not f.startswith((".", "__MACOSX")) and os.path.realpath(Path(here, f)) not in chain
        )
        chains |= {os.path.join(here, f): chain for f in folders}
        relative = os.path.relpath(here, raw).replace(os.sep, "/")
        start = "" if relative == "." else f"{relative}/"
        members = [start + name for name in sorted(names) if not name.startswith(".")]
        found.update(dict.fromkeys(members, False))
        found.update((start + f, True) for f in folders)
        found.children[start.rstrip("/")] = [*members, *(start + f for f in folders)]
    return found


def _matches(layout: Layout, files: _Tree, where: Mapping[str, str]):
    """(prefix, path, placeholders) of everything that looks like the first image of a case."""
    template = layout.images[0]
    expression = re.compile(
        r"(?:(?P<prefix_>.*)/)?" + pattern(template.rstrip("/"), layout.fields).pattern
    )
    for path, folder in files.items():
        match = expression.fullmatch(path) if folder == template.endswith("/") else None
        if match and all(re.fullmatch(rule, match[name]) for name, rule in where.items()):
            groups = match.groupdict()
            yield groups.pop("prefix_") or "", path, groups


def _case(
    corpus: PublicCorpus,
    layout: Layout,
    raw: Path,
    prefix: str,
    groups: dict[str, str],
    files: _Tree,
    allow_missing: bool,
) -> Case:
    """One case, or the reason why it cannot be used."""
    name = filled(layout.name, groups)
    patient = filled(layout.patient, groups) if layout.patient else name

    def look(template: str) -> list[str]:
        return _below(files, f"{prefix}/{filled(template, groups)}".lstrip("/"))

    images = []
    for channel, template in zip(corpus.channels, layout.images, strict=False):
        found = look(template)
        if len(found) != 1:
            raise DataError(
                f"channel {channel!r} of case {name!r} "
                + ("is missing" if not found else "is ambiguous"),
                path=raw / prefix,
                found=", ".join(found) or "no file",
                expected=filled(template, groups),
                fix="obtain the file, or remove the case",
            )
        images.append(str(raw / found[0]))
    common = dict(
        name=name,
        images=tuple(images),
        corpus=corpus.name,
        modality=corpus.modality,
        patient=patient,
    )
    if layout.label:
        found = look(layout.label)
        if not found:
            raise _Unlabelled
        if len(found) > 1:
            raise DataError(
                f"several labels for case {name!r}",
                path=raw / prefix,
                found=", ".join(found),
                expected=layout.label,
            )
        return Case(**common, label=str(raw / found[0]))
    frames = _frames(layout, raw, look, corpus) if layout.index else {}
    masks, missing = [], []
    for class_, entry in layout.masks.items():
        found = []
        for one in (entry,) if isinstance(entry, str) else entry:
            template, _, pick = one.partition("|")
            found += [
                Mask(class_, str(raw / path), frames.get(class_, pick)) for path in look(template)
            ]
        masks += found
        if not found and class_ not in layout.optional:
            missing.append(class_)
    if not masks and len(missing) == len(layout.masks):
        raise _Unlabelled
    if missing and not allow_missing:
        raise DataError(
            f"case {name!r} has no mask of "
            f"{', '.join(missing[:6])}{', ...' if len(missing) > 6 else ''}",
            path=raw / prefix,
            found=f"{len(layout.masks) - len(missing)} of {len(layout.masks)} masks",
            expected=filled(first_template(layout.masks[missing[0]]), groups),
            fix="obtain it, or say --allow-missing-masks to count the class as absent from the "
            "case",
        )
    return Case(**common, masks=tuple(masks))


def _below(files: _Tree, template: str) -> list[str]:
    """The paths a template with * stands for; one that ends in / means folders."""
    folder, template = template.endswith("/"), template.rstrip("/")
    if "*" not in template:
        return [template] if template in files and files[template] == folder else []
    paths = [""]
    for part in template.split("/"):
        paths = [
            m
            for path in paths
            for m in files.children.get(path, ())
            if fnmatch.fnmatchcase(m.rsplit("/", 1)[-1], part)
        ]
    return sorted(path for path in paths if files[path] == folder)


def _frames(layout: Layout, raw: Path, look, corpus: PublicCorpus) -> dict[str, str]:
    """Class -> "frame:N", from the subset's own list of labels."""
    found = look(layout.index)
    if len(found) != 1:
        raise UsageError(
            "the list of labels is missing",
            path=raw,
            expected=layout.index,
            fix="it comes with the download",
        )
    said = read_json(raw / found[0])
    labels = said.get("labels") if isinstance(said, dict) else None
    if not isinstance(labels, dict) or not all(str(v).isdecimal() for v in labels):
        raise UsageError(
            "no list of labels",
            path=raw / found[0],
            expected='"labels": {"1": "liver"}',
            fix="obtain the file again",
        )
    order = {
        layout.aliases.get(str(n), canonical(str(n))): int(v)
        for v, n in labels.items()
        if str(n).lower() != "background"
    }
    for name in layout.masks:
        if name not in order:
            raise UsageError(
                f"{corpus.name}: no class {name!r} in this list of labels",
                path=raw / found[0],
                fix=did_you_mean(name, order),
            )
    return {name: f"frame:{order[name] - 1}" if len(order) > 1 else "" for name in layout.masks}
