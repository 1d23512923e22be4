"""Config -> corpora, cases, label space and splits, before any voxel is read.

In: `config.data`. Out: `Data`, the resolved collection. Folders are read through `corpora.sources`;
phantoms are generated on request; corpora that a paper's config only *declares* may have no files
yet (enough for a dry run).
"""

import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from medjax import lines
from medjax.corpora import sides
from medjax.corpora.inputs import Case
from medjax.corpora.layouts import corpus_json
from medjax.corpora.layouts.common import UNNAMED
from medjax.corpora.patterns import Pattern
from medjax.corpora.sources import read_labels, scan_corpus
from medjax.corpora.splits import Split, make_splits, part_of, read_splits, sides_of, subset
from medjax.corpora.twins import Pair, Twin, by_name, read_rules, rules_of, straddling
from medjax.errors import MedjaxError, UsageError, did_you_mean
from medjax.labels import Corpus, LabelSpace, merge
from medjax.prepare.targets import check_outside, check_targets
from medjax.runs import folder as folder_of_run
from medjax.runs.settings import schema
from medjax.scans import records

EVERYTHING = -1  # the fold that trains on all cases and holds none out


@dataclasses.dataclass(frozen=True)
class Data:
    """The collection of one experiment.

    Attributes:
      stores: the corpora as annotated, one per folder.
      cases: store name -> its cases (empty for a corpus that is only declared).
      counts: store name -> number of cases, also for declared corpora.
      space: the label space of the training (views replace the corpora they hide).
      parts: corpus name in `space` -> share of the training cases it may use ("" = all).
      splits: folds of "store/case" names; empty in a dry run without files.
      fold: index into `splits`.
      problems: errors of the cases that were left out.
      twins: cases of different corpora that show the same scan, by the corpora's rules; splits made
        here keep them on one side.
      groups: store name -> the data set it is a part of, if several corpora count as one in
        sampling.
      rules: store name -> the corpus' rules for twins. public: store name -> the name that rules of
        other corpora know it by, if it is another one.
    """

    stores: tuple[Corpus, ...]
    cases: Mapping[str, tuple[Case, ...]]
    counts: Mapping[str, int]
    space: LabelSpace
    parts: Mapping[str, str]
    splits: tuple[Split, ...]
    fold: int
    problems: tuple[MedjaxError, ...] = ()
    twins: tuple[Pair, ...] = ()
    groups: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rules: Mapping[str, tuple[Twin, ...]] = dataclasses.field(default_factory=dict)
    public: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def side(self, store: str, side: str) -> list[str]:
        """Case names of a store on one side ("train", "val" or "test") of the chosen fold."""
        prefix = store + "/"
        return [
            name[len(prefix) :] for name in self.splits[self.fold][side] if name.startswith(prefix)
        ]

    @property
    def scored(self) -> str:
        """The side that is evaluated after training: "test" where the split has one, else "val"."""
        return "test" if self.splits and "test" in self.splits[self.fold] else "val"

    def leaks(self) -> tuple[Pair, ...]:
        """Twins on both sides of the chosen fold; only a split from a file can have any."""
        return straddling(self.splits[self.fold], self.twins) if self.splits else ()

    def held_out(self, space: LabelSpace, side: str = "") -> dict[str, tuple[Corpus, list[Case]]]:
        """Corpus name -> corpus and its labelled held-out cases, for a space without views.

        Args:
          side: of the split; default the one that is evaluated.
        """
        found = {}
        for corpus in space.corpora:
            wanted = set(self.side(corpus.name, side or self.scored))
            cases = [c for c in self.cases[corpus.name] if c.name in wanted and c.labelled]
            found[corpus.name] = (corpus, cases)
        return found

    def training_cases(self, corpus: Corpus) -> list[str]:
        """Cases a corpus of the space may train on.

        The training side of its store, or the view's share of it.
        """
        return part_of(self.side(corpus.store, "train"), self.parts.get(corpus.name, ""))


def open_data(data: schema.Data, workdir: Path, *, files: bool = True) -> Data:
    """Resolves `config.data`.

    Args:
      workdir: where phantoms are written.
      files: False for a dry run: declared corpora need no folder and phantoms are only described.

    Raises: `UsageError` if no corpus is named, a view or fold does not exist, a folder is missing,
      or the store would overwrite files that medjax did not write (see `prepare.targets`).
    """
    stores, cases, counts, problems, rules = [], {}, {}, [], {}
    for folder in _folders(data, workdir, files):
        corpus, members, wrong = scan_corpus(folder)
        if not members:
            raise wrong[0] if wrong else UsageError("no cases", path=folder)
        corpus = _as_trained(corpus, workdir)
        stores.append(corpus)
        problems += wrong
        rules[corpus.name] = rules_of(folder)
        cases[corpus.name], counts[corpus.name] = tuple(members), len(members)
    if data.phantom_cases and not files:
        for corpus in _described_phantoms(data.phantom_cases):
            stores.append(corpus)
            cases[corpus.name], counts[corpus.name] = (), data.phantom_cases
    for name, given in data.declared.items():
        corpus, members, wrong = _declared(name, given, data.root, files)
        stores.append(corpus)
        problems += wrong
        rules[name] = read_rules(given.twins)
        cases[name], counts[name] = members, len(members) or int(given.cases)
    if not stores:
        raise UsageError(
            "no corpora named",
            fix="give --config.data.folders=/path/Task04_X,/path/Dataset012_Y or "
            "--config.data.phantom_cases=10 for the embedded ones",
        )
    if repeated := {c.name for c in stores if sum(o.name == c.name for o in stores) > 1}:
        raise UsageError(
            f"two corpora are called {sorted(repeated)}",
            fix='give one "medjax": {"name": ...} in its dataset.json',
        )
    for corpus in stores if files else ():
        check_targets(corpus.store, cases[corpus.name], data.store or workdir / "store")
        check_outside(cases[corpus.name], workdir, "the run folder", "give another --workdir")
    for name, rule in data.subset.items():
        if name not in cases:
            raise UsageError(
                f"config.data.subset names an unknown corpus {name!r}",
                fix=did_you_mean(name, cases),
            )
        cases[name], counts[name] = _subset(name, rule, cases[name], counts[name])
    _split_sides(data, workdir, stores, cases, files)
    used, parts = _apply_views(stores, data.views)
    used = _only(used, data.only)
    space = merge(used, data.share, data.rename, data.precedence)
    present = {n: m for n, m in cases.items() if m}
    public = {n: d.source for n, d in data.declared.items() if d.source}
    twins = by_name(present, rules, public)
    splits, fold = _splits(present, data.split, twins)
    groups = {name: given.group for name, given in data.declared.items() if given.group}
    facts = {"groups": groups, "rules": rules, "public": public}
    wrong = tuple(problems)
    return Data(tuple(stores), cases, counts, space, parts, splits, fold, wrong, twins, **facts)


def _as_trained(corpus: Corpus, workdir: Path) -> Corpus:
    """The corpus with the channel names of a trained run: earlier versions called the channel of a
    CT without channel names "image".
    """
    from medjax.train import stepfolder

    if corpus.channels != ("CT",) or not (workdir / folder_of_run.LABELS).is_file():
        return corpus
    if stepfolder.latest_step(workdir / "checkpoints") is None:
        return corpus
    stored = {c.name: c.channels for c in folder_of_run.read_space(workdir).unveiled().corpora}
    if stored.get(corpus.name) != (UNNAMED,):
        return corpus
    return dataclasses.replace(corpus, channels=(UNNAMED,))


def _folders(data: schema.Data, workdir: Path, files: bool) -> list[str | Path]:
    named = [f.strip() for f in data.folders.split(",") if f.strip()]
    folders: list[str | Path] = [f if records.is_record(f) else Path(f).expanduser() for f in named]
    folders += [records.find(name.strip()) for name in data.tfds.split(",") if name.strip()]
    if data.phantom_cases and files:
        from medjax.phantom.corpora import write_corpora

        place = workdir / "phantoms"
        print(
            f"synthetic corpora, {data.phantom_cases} cases each, in {place} (drawn once)",
            flush=True,
        )
        with lines.busy("drawing the synthetic corpora"):
            drawn = write_corpora(place, seed=data.phantom_seed, cases=data.phantom_cases)
        folders += [Path(folder) for folder in drawn]
    return folders


def _described_phantoms(count: int) -> list[Corpus]:
    from medjax.phantom.corpora import descriptions

    with tempfile.TemporaryDirectory() as folder:
        for name, corpus_json in descriptions(count).items():
            (Path(folder) / name).mkdir()
            (Path(folder) / name / "dataset.json").write_text(json.dumps(corpus_json))
        return [read_labels(path) for path in sorted(Path(folder).iterdir())]


def _declared(
    name: str, given: schema.Declared, root: str, files: bool
) -> tuple[Corpus, tuple[Case, ...], list]:
    labels = tuple((int(value), tuple(classes)) for value, classes in given.labels.items())
    kind = {
        "modality": given.modality,
        "channels": tuple(given.channels),
        "meanings": tuple(given.meanings.items()),
    }
    corpus = Corpus(name, labels, tuple(given.annotated), **kind)
    folder = folder_of(name, given, root)
    if folder is None:
        if files:
            raise UsageError(
                "this corpus of the config is not on disk",
                path=" or ".join(map(str, _places(name, given, root))),
                fix="set --config.data.root to the folder that holds it, such as the --out of "
                "`medjax ingest` (data_pipelines)",
            )
        return corpus, (), []
    found, members, wrong = scan_corpus(folder)
    if {v for v, _ in labels} - set(found.values):
        raise UsageError(
            "the labels on disk are not those the config declares",
            path=folder,
            found=found.values,
            expected=corpus.values,
        )
    labels = (*corpus.labels, *_further_labels(corpus, found, any(c.masks for c in members)))
    corpus = dataclasses.replace(corpus, labels=labels, ignore=found.ignore)
    return corpus, tuple(dataclasses.replace(c, corpus=name) for c in members), wrong


def folder_of(name: str, given: schema.Declared, root: str) -> Path | None:
    """The folder of a declared corpus; None if it is not on disk."""
    places = _places(name, given, root)
    return next(
        (p for p in places if (p / "dataset.json").is_file() or corpus_json.detect(p)), None
    )


def _places(name: str, given: schema.Declared, root: str) -> list[Path]:
    return [Path(root or ".") / place for place in (name, given.source) if place]


def _further_labels(
    corpus: Corpus, found: Corpus, masks: bool
) -> list[tuple[int, tuple[str, ...]]]:
    """Values on disk that the config does not name.

    Overlaps of its masks, or structures it does not use (background, if of no class).
    """
    known, further = {frozenset(names) for _, names in corpus.labels}, []
    for value, names in found.labels:
        kept = tuple(name for name in names if name in corpus.classes)
        if value not in corpus.values and not (masks and frozenset(kept) in known):
            known.add(frozenset(kept))
            further.append((value, kept))
    return further


def _split_sides(
    data: schema.Data, workdir: Path, stores: list[Corpus], cases: dict, files: bool
) -> None:
    """Replaces corpora by those with left and right classes, whose label maps are written once,
    beside the store.
    """
    store = Path(data.store or workdir / "store")
    for name, classes in data.sides.items():
        corpus = next((c for c in stores if c.name == name), None)
        if corpus is None:
            raise UsageError(
                f"config.data.sides names an unknown corpus {name!r}",
                fix=did_you_mean(name, [c.name for c in stores]),
            )
        stores[stores.index(corpus)] = sides.split(corpus, classes)[0]
        if files and cases[name]:
            place = store.with_name(f"{store.name}_sides") / name
            made = sides.write(place, corpus, cases[name], classes, say=lines.say)
            cases[name] = made.described
            if made.new:
                lines.say(made.sentence())


def _subset(
    name: str, rule: schema.Subset, members: tuple[Case, ...], count: int
) -> tuple[tuple[Case, ...], int]:
    """The cases of a corpus that the run uses, and their number.

    The number is that of the rule if the corpus is only declared.
    """
    pattern = Pattern(rule.names, f"config.data.subset.{name}.names", error=UsageError)
    known = [c.name for c in members if not rule.names or pattern.fullmatch(c.name)]
    wanted = rule.count or (len(known) if rule.names else 0)
    if members and rule.names and not known:
        raise UsageError(
            f"no case of {name} matches config.data.subset.{name}.names",
            found=rule.names,
            expected=f"names like {members[0].name}",
        )
    if not rule.file and wanted < 1 and not rule.names:
        raise UsageError(
            f"config.data.subset.{name} restricts to nothing",
            expected="file, names, or count and seed",
        )
    if path := rule.file:
        try:
            chosen = Path(path).read_text(encoding="utf-8-sig").split()
        except (OSError, UnicodeDecodeError) as error:
            fix = "give a file with one case name per line"
            raise UsageError(
                f"cannot read the cases of {name}: {error}", path=path, fix=fix
            ) from error
        if missing := [case for case in chosen if members and case not in known]:
            raise UsageError(
                f"{len(missing)} cases are not in {name}, first {missing[0]!r}", path=path
            )
    elif not members:
        return (), min(count, wanted or count)
    else:
        chosen = subset(known, name, wanted, rule.seed)
    kept = set(chosen)
    return tuple(case for case in members if case.name in kept), len(kept)


def _apply_views(
    stores: list[Corpus], views: Mapping[str, schema.View]
) -> tuple[list[Corpus], dict[str, str]]:
    """Replaces corpora by the views of them; corpora without a view are unchanged."""
    by_name, parts, seen = {c.name: c for c in stores}, {}, []
    for name, view in views.items():
        if view.corpus not in by_name:
            raise UsageError(
                f"view {name!r} looks at an unknown corpus {view.corpus!r}",
                fix=did_you_mean(view.corpus, by_name),
            )
        parts[name] = view.part
        seen.append(by_name[view.corpus].view(view.annotated, name))
    hidden = {view.store for view in seen}
    return seen + [c for c in stores if c.name not in hidden], parts


def _only(used: list[Corpus], listed: str) -> list[Corpus]:
    """The corpora and views that are trained and scored.

    The others are prepared and split with them anyway.
    """
    known, names = (
        [corpus.name for corpus in used],
        [name.strip() for name in listed.split(",") if name.strip()],
    )
    if unknown := [name for name in names if name not in known]:
        raise UsageError(
            f"config.data.only names an unknown corpus {unknown[0]!r}",
            fix=did_you_mean(unknown[0], known),
        )
    return [corpus for corpus in used if not names or corpus.name in names]


def _splits(
    cases: Mapping[str, tuple[Case, ...]], split: schema.Split, twins: Sequence[Pair]
) -> tuple[tuple[Split, ...], int]:
    if not cases:
        return (), 0
    splits = (
        read_splits(Path(split.file), cases)
        if split.file
        else make_splits(cases, split.folds, split.seed, twins, split.test)
    )
    if split.fold == EVERYTHING:
        every = [name for side in sides_of(splits[0]) for name in splits[0][side]]
        return (*splits, {"train": sorted(every), "val": []}), len(splits)
    if not 0 <= split.fold < len(splits):
        expected = f"0 to {len(splits) - 1}, or {EVERYTHING} for training on every case"
        raise UsageError(
            f"no fold {split.fold}", expected=expected, fix="set --config.data.split.fold"
        )
    return tuple(splits), split.fold
