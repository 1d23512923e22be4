"""Texts of a run: vectors of names by CLIP, from a file or as hashes, and the network's table.

In: `config.text` and the class names. Out: the rows of the leaf `text/table` (rows, width), put
into fresh or borrowed parameters. A network holds no text encoder.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from medjax.errors import UsageError, did_you_mean
from medjax.files import sha256
from medjax.labels import LabelSpace
from medjax.prompts import bpe, texts
from medjax.prompts.texts import Vectors
from medjax.runs import initial
from medjax.runs import trained as models
from medjax.runs.build import Network
from medjax.runs.settings.schema import Config
from medjax.weights import accounts
from medjax.weights.families import clip

TABLE = "text/table"
SOURCES = ("clip", "file", "hash", "learned")
SCOPE = "CLIP's model card calls deployment, and languages other than English, out of scope"


def encoded(
    tensors: accounts.Tensors,
    names: Sequence[str],
    sentences: Sequence[str],
    *,
    pooled: bool = True,
    facts: Mapping[str, Any] | None = None,
) -> Vectors:
    """Vectors of sentences by a text tower.

    Args:
      tensors: of a file, see `weights.families.clip`.
      pooled: the tower's own vectors, as SegVol takes them; otherwise those in the space shared
        with images.

    Raises: `ModelError` for a file without a tower, `UsageError` for one without projection.
    """
    tower, params, _ = clip.tower(tensors)
    if not pooled and not tower.projection:
        raise UsageError(
            "the text encoder has no projection",
            fix="take the file of a whole CLIP, or vectors before the projection",
        )
    tokens = jnp.asarray(bpe.padded(sentences, tower.length))
    found = jax.jit(tower.apply)({"params": params}, tokens)["pooled" if pooled else "projected"]
    kind = "clip-pooled" if pooled else "clip-projected"
    return Vectors(
        tuple(names), tuple(sentences), np.asarray(found), {**(facts or {}), "kind": kind}
    )


def by_encoder(
    path: Path, names: Sequence[str], sentences: Sequence[str], *, pooled: bool = True
) -> Vectors:
    """`encoded` with the tower of a file."""
    tensors = accounts.tensors_of(accounts.read(path))
    return encoded(tensors, names, sentences, pooled=pooled, facts={"encoder": sha256(path)})


def of_config(config: Config, names: Sequence[str], width: int) -> Vectors | None:
    """The vectors of `config.text` for these names; None if they are learned.

    Raises: `UsageError` for unknown sources, files that lack a name, and vectors of another kind or
      width.
    """
    given = config.text
    if given.source not in SOURCES:
        raise UsageError(
            f"config.text: unknown source {given.source!r}",
            fix=did_you_mean(given.source, SOURCES),
        )
    if given.source == "learned":
        return None
    sentences = tuple(given.sentences.get(name, "") for name in names)
    if given.sentences and not all(sentences):
        raise UsageError(
            f"config.text.sentences has no sentence for {names[sentences.index('')]!r}",
            expected=", ".join(given.sentences),
            fix="add it, or leave config.text.sentences out",
        )
    if given.source == "hash":
        return texts.hashed(names, width, sentences if given.sentences else None)
    if not given.file:
        raise UsageError(
            f"config.text: the source {given.source!r} needs a file",
            fix="give --config.text.file=FILE, made by `medjax text` or with CLIP's weights",
        )
    path = Path(given.file).expanduser()
    wanted = "clip-pooled" if given.pooled else "clip-projected"
    if given.source == "clip":
        if not given.sentences:
            sentences = texts.filled(given.template, names)
        found = by_encoder(path, names, sentences, pooled=given.pooled)
    else:
        found = texts.read(path)
        kind = found.facts["kind"]
        if kind.startswith("clip") and kind != wanted:
            raise UsageError(
                "the text vectors are not of the kind that the network expects",
                path=path,
                found=kind,
                expected=wanted,
                fix="make them again with medjax text, or change config.text.pooled",
            )
    rows = found.rows(names, path)
    if rows.shape[1] != width:
        raise UsageError(
            "the text vectors do not have the width of the network's table",
            path=path,
            found=rows.shape[1],
            expected=width,
            fix="change model.text_width",
        )
    return Vectors(tuple(names), tuple(names), rows, found.facts)


def with_table(params: Any, vectors: np.ndarray) -> Any:
    """The parameters with other rows of the table.

    Raises: `UsageError` for a network without a table, or of other rows.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    _check_table(flat)
    if flat[TABLE].shape != vectors.shape:
        raise UsageError(
            "the texts do not fit the network's table",
            found=vectors.shape,
            expected=flat[TABLE].shape,
            fix="change model.text_rows or the names",
        )
    return traverse_util.unflatten_dict(flat | {TABLE: jnp.asarray(vectors)}, sep="/")


def _check_table(flat: Mapping[str, Any]) -> None:
    if TABLE not in flat:
        raise UsageError(
            "config.text is given, and the network reads no texts",
            fix="leave config.text out, or take a network with texts",
        )


def filling(
    config: Config, space: LabelSpace, net: Network, workdir: Path
) -> Callable[[Any], Any] | None:
    """fresh parameters -> those to begin with: borrowed ones (`runs.initial`), then the table of
    `config.text`, a row per task or class in order (`Network.texts`). None: the fresh ones.

    Where `config.init.heads` has a rule for the table, its rows that the source has stay.

    Raises: `UsageError` for a network of tasks whose texts nothing says.
    """
    borrow, names = initial.borrower(config, space, net, workdir), net.texts or space.classes
    says = jax.process_index() == 0
    if net.texts and not config.text.source:
        raise UsageError(
            "this network reads texts, and config.text says nothing about their vectors",
            expected=f"config.text.source: {', '.join(SOURCES)}",
            fix="give --config.text.source=file --config.text.file=NAME.text.npz, or hash",
        )
    if not config.text.source or config.text.source == "learned":
        if config.text.source and says:
            print("text vectors are learned: only names of the training have one", flush=True)
        return borrow

    by_name = any(re.search(str(rule[0]), TABLE) for rule in config.init.heads)

    def fill(fresh: Any) -> Any:
        flat = traverse_util.flatten_dict(fresh, sep="/")
        _check_table(flat)
        found = of_config(config, names, flat[TABLE].shape[1])
        kind, about = found.facts["kind"], f"of {len(names)} names"
        if says:
            print(
                texts.HASH_NOTE if kind == "hash" else f"text vectors: {kind} {about}", flush=True
            )
        filled = with_table(fresh, found.vectors)
        if borrow is None:
            return filled
        params = borrow(filled)
        return params if by_name else with_table(params, found.vectors)

    return fill


def of_run(path: Path, names: Sequence[str] = ()) -> Vectors:
    """The table that a run holds, by class name; of `names` only, if any are given.

    Raises: `UsageError` for a run whose network reads no texts, and for unknown names.
    """
    found = models.read_model(path)
    flat = traverse_util.flatten_dict(found.params(), sep="/")
    classes = found.space.classes
    if TABLE not in flat or len(flat[TABLE]) != len(classes):
        raise UsageError(
            "the network of this run has no text of every class",
            path=path,
            fix="give a run of a promptable network",
        )
    source = found.config.text
    kind = {"hash": "hash", "clip": "clip-pooled"}.get(source.source, "learned")
    if source.source == "clip" and not source.pooled:
        kind = "clip-projected"
    whole = Vectors(classes, classes, np.asarray(flat[TABLE]), {"kind": kind, "run": path.name})
    wanted = tuple(names) or classes
    return Vectors(wanted, wanted, whole.rows(wanted, path), whole.facts)
