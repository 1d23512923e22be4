"""What a pool is: a list of public corpora, and how a paper uses them.

A pool never changes a corpus: it says which of its cases, classes and modality names the paper
used, and which classes it held to be one. The papers' own pools are in `pools.py`.
"""

import dataclasses
from collections.abc import Mapping

from data_pipelines.catalogue import corpora
from data_pipelines.declare import PublicCorpus
from medjax.errors import UsageError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Member:
    """A corpus as a pool uses it.

    Attributes:
      corpus: its public name. name: what the paper calls it; default the public name.
      cases: number the paper counts, if not the published one. where: the `--where` of the
        ingestion that gives them.
      annotated: the classes the paper uses; default all annotated ones.
      group: members of one group count as one data set: one head, one weight in sampling.
      number: the paper's number of the data set.
      names: regular expression of the cases that are used (whole names); default all.
    """

    corpus: str
    name: str = ""
    cases: int = 0
    where: str = ""
    annotated: tuple[str, ...] = ()
    group: str = ""
    number: int = 0
    names: str = ""


@dataclasses.dataclass(frozen=True)
class Pool:
    """A paper's list of corpora.

    Attributes:
      title: what it is. members: in the paper's order.
      share: "by_name" or "per_corpus", see `medjax.labels.merge`. renamed: "member/class" ->
        channel name.
      exclusive: every voxel has one class (softmax heads): a nested value keeps only its innermost
        class.
      sides: member -> its classes that are split into a left and a right one.
    """

    title: str
    members: tuple[Member, ...]
    share: str = "by_name"
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    exclusive: bool = False
    sides: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for member in self.members:
            if member.corpus not in corpora():
                raise UsageError(
                    f"unknown corpus {member.corpus!r}",
                    path=self.title,
                    fix=did_you_mean(member.corpus, corpora()),
                )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the members, in order."""
        return tuple(member.name or member.corpus for member in self.members)

    @property
    def groups(self) -> dict[str, str]:
        """Member -> the data set it counts as."""
        return {
            member.name or member.corpus: member.group or member.name or member.corpus
            for member in self.members
        }

    @property
    def heads(self) -> dict[str, int]:
        """Member -> number of its data set, counted in order: members of one group share a head."""
        order = list(dict.fromkeys(self.groups.values()))
        return {name: order.index(group) for name, group in self.groups.items()}

    @property
    def modalities(self) -> dict[str, int]:
        """Member -> modality number, in order of first appearance, as `LabelSpace.modalities`
        counts.
        """
        words = [corpora()[member.corpus].modality for member in self.members]
        return {
            name: list(dict.fromkeys(words)).index(word)
            for name, word in zip(self.names, words, strict=True)
        }

    def corpus_of(self, name: str) -> PublicCorpus:
        """The declaration behind a member."""
        return corpora()[dict(zip(self.names, self.members, strict=True))[name].corpus]

    def declared(self) -> dict[str, dict]:
        """What `config.data.declared` holds."""
        found = {}
        for name, member in zip(self.names, self.members, strict=True):
            entry = corpora()[member.corpus].declared(
                annotated=member.annotated, cases=member.cases
            )
            if self.exclusive:
                entry["labels"] = innermost(corpora()[member.corpus])
                present = {c for names in entry["labels"].values() for c in names}
                entry["annotated"] = tuple(c for c in entry["annotated"] if c in present)
            entry["group"] = member.group or name
            found[name] = entry
        return found

    def rename(self) -> dict[str, str]:
        """What `config.data.rename` holds; members of one group share their channels."""
        merged = dict(self.renamed)
        if self.share == "per_corpus":
            for name, entry in self.declared().items():
                if self.groups[name] != name:
                    merged |= {
                        f"{name}/{c}": merged.get(f"{name}/{c}", f"{self.groups[name]}/{c}")
                        for c in entry["annotated"]
                    }
        return merged

    def data(self) -> dict:
        """Everything a config's `c.data` needs to know of the pool: declared, share, rename, and
        subset if a member uses only some of its cases, sides if it splits any.
        """
        found = {"declared": self.declared(), "share": self.share, "rename": self.rename()}
        chosen = {
            name: {"names": member.names}
            for name, member in zip(self.names, self.members, strict=True)
            if member.names
        }
        found |= {"subset": chosen} if chosen else {}
        return found | ({"sides": dict(self.sides)} if self.sides else {})

    def subset(self, *names: str) -> "Pool":
        """The pool with some of its members only."""
        for name in names:
            if name not in self.names:
                raise UsageError(
                    f"no member {name!r} in this pool",
                    path=self.title,
                    fix=did_you_mean(name, self.names),
                )
        kept = tuple(
            member for name, member in zip(self.names, self.members, strict=True) if name in names
        )
        return dataclasses.replace(
            self,
            members=kept,
            renamed={k: v for k, v in self.renamed.items() if k.split("/")[0] in names},
            sides={name: classes for name, classes in self.sides.items() if name in names},
        )

    def without(self, *names: str) -> "Pool":
        """The pool without some of its members."""
        self.subset(*names)  # which refuses unknown ones
        return self.subset(*(name for name in self.names if name not in names))

    def with_cases(self, name: str, pattern: str, cases: int) -> "Pool":
        """The pool with those cases of a member whose whole names match.

        Args:
          pattern: regular expression. cases: how many these are.
        """
        self.subset(name)
        members = tuple(
            dataclasses.replace(member, names=pattern, cases=cases) if found == name else member
            for found, member in zip(self.names, self.members, strict=True)
        )
        return dataclasses.replace(self, members=members)

    def summary(self) -> str:
        """One line for the catalogue."""
        counts = [member.cases or corpora()[member.corpus].cases for member in self.members]
        total = f"{sum(counts)} cases" if all(counts) else "an unpublished number of cases"
        return f"{self.title}: {len(self.members)} corpora, {total} ({', '.join(self.names)})"


def innermost(corpus: PublicCorpus) -> dict[str, tuple[str, ...]]:
    """Value -> the one class it stands for by itself: the last of the names declared for it,
    regions left out.
    """
    return {
        str(value): ((names,) if isinstance(names, str) else tuple(names))[-1:]
        for value, names in corpus.labels.items()
    }
