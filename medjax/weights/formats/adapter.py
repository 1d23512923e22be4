"""An adapter as a small file: `NAME.adapter.safetensors`, bound to its base by a hash.

Tensors stand under their paths in the parameter tree: the low-rank pairs, and the leaves that were
trained whole. The header's metadata is one JSON text: format and version, the hash of the base's
leaves that the adapter needs, settings, experts, the run's config, labels and plan, origin and
licences. A sha256 over all of it stands beside. Nothing in the format can be executed.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medjax import files
from medjax.errors import ModelError, UsageError, did_you_mean
from medjax.weights import adapters
from medjax.weights.adapters import Adapters

FORMAT, VERSION = "medjax-adapter", 1
SUFFIX = ".adapter.safetensors"
HEADER_LIMIT = 1 << 26  # bytes
REQUIRED = ("base", "settings", "experts", "documents")
DOCUMENTS = ("config", "labels", "plan")


@dataclasses.dataclass(frozen=True)
class Adapter:
    """The contents of an adapter file.

    Attributes:
      arrays: path in the parameter tree -> array: adapters and whole leaves.
      settings: scale, routing and experts.
      base: sha256 of the base's leaves that stay as they are (`adapters.digest`), their number, and
        the name of the base's experiment.
      experts: of every stored expert its name and the modalities, corpora and tasks it was trained
        on.
      documents: config, labels and plan of the run that trained it.
      facts: origin and licences.
      path, checksum: of the file, and `files.checksum` of its bytes, once it has been read.
    """

    arrays: Mapping[str, np.ndarray]
    settings: Adapters
    base: Mapping[str, Any]
    experts: tuple[Mapping[str, Any], ...]
    documents: Mapping[str, Any]
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    path: str = ""
    checksum: str = ""

    @property
    def numbers(self) -> int:
        """How many numbers its arrays hold."""
        return sum(array.size for array in self.arrays.values())

    def expert(self, name: str) -> int:
        """Position of a stored expert by name, from 0; `UsageError` for an unknown one."""
        names = [str(expert["name"]) for expert in self.experts]
        if name not in names:
            raise UsageError(
                f"the adapter has no expert {name!r}",
                path=self.path,
                fix=did_you_mean(name, names),
            )
        return names.index(name)


def write(path: Path, adapter: Adapter, *, overwrite: bool = False) -> int:
    """Writes the file atomically; returns its bytes.

    Raises: `UsageError` for another ending, and for a file that exists unless `overwrite` and it is
      an adapter.
    """
    from safetensors.numpy import save

    if not path.name.endswith(SUFFIX) or path.name == SUFFIX:
        raise UsageError("unusable name", path=path, expected=f"NAME{SUFFIX}")
    if os.path.lexists(path) and not (overwrite and is_adapter(path)):
        raise UsageError(
            "exists already" if is_adapter(path) else "exists and is no adapter",
            path=path,
            fix="choose another name" + (", or add --overwrite" if is_adapter(path) else ""),
        )
    said = {
        "format": FORMAT,
        "version": VERSION,
        "base": dict(adapter.base),
        "settings": dataclasses.asdict(adapter.settings),
        "experts": [dict(expert) for expert in adapter.experts],
        "documents": dict(adapter.documents),
        "facts": dict(adapter.facts),
    }
    arrays = {name: np.ascontiguousarray(array) for name, array in adapter.arrays.items()}
    text = json.dumps(said, separators=(",", ":"), sort_keys=True)
    content = save(arrays, {FORMAT: text, "sha256": _seal(text, arrays)})
    files.write_bytes(path, content)
    return len(content)


def is_adapter(path: Path | str) -> bool:
    """Whether a file carries this format's metadata; its arrays are not read."""
    path = Path(path)
    try:
        return path.is_file() and FORMAT in _header(path).get("__metadata__", {})
    except (ModelError, OSError):
        return False


def read(path: Path | str) -> Adapter:
    """Reads and checks a file.

    Raises: `ModelError` for anything that is no adapter, damaged bytes, numbers that are not finite
      or another version.
    """
    from safetensors.numpy import load

    path = Path(path)
    metadata = _header(path).get("__metadata__", {})
    text = metadata.get(FORMAT) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise _refused(path, "it is no adapter file", f"a file written by medjax, NAME{SUFFIX}")
    try:
        said = json.loads(text)
        content = path.read_bytes()
        arrays = load(content)
    except Exception as error:  # the library raises its own errors, and numpy's for unknown types
        raise _refused(path, f"damaged ({type(error).__name__}: {str(error)[:200]})") from error
    if metadata.get("sha256") != _seal(text, arrays):
        raise _refused(path, "its contents do not have the hash that it states")
    if not isinstance(said, dict) or said.get("format") != FORMAT or said.get("version") != VERSION:
        raise _refused(path, "another format or version", f"{FORMAT} {VERSION}")
    wrong = [name for name in REQUIRED if name not in said]
    wrong += [f"documents/{name}" for name in DOCUMENTS if name not in said.get("documents", {})]
    if wrong:
        raise _refused(path, f"its metadata lacks {', '.join(wrong)}")
    for name, array in arrays.items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise _refused(path, f"{name} holds no finite float32 numbers")
    try:
        given = dict(said["settings"])
        given["rules"] = tuple((str(p), v) for p, v in given["rules"])
        given["expert_of"] = tuple(given["expert_of"])
        settings = Adapters(**given)
        experts = tuple(dict(expert) for expert in said["experts"])
        names = [expert["name"] for expert in experts]
    except (TypeError, ValueError, KeyError, UsageError) as error:
        raise _refused(path, f"unusable settings ({error})") from error
    if len(names) != settings.stored or len(set(names)) != len(names):
        raise _refused(path, f"{len(names)} experts are named, {settings.stored} are stored")
    return Adapter(
        arrays,
        settings,
        said["base"],
        experts,
        said["documents"],
        said.get("facts", {}),
        str(path),
        files.checksum(content),
    )


def join(base: Mapping, adapter: Adapter, *, force: bool = False) -> dict:
    """A base's parameters and an adapter's as the tree of the adapted network.

    Leaves that the adapter brings whole replace the base's.

    Args:
      base: parameters without adapters. force: accept another base of the same shape.

    Raises: `ModelError` for another base than the one the adapter was trained on, or one that has
      adapters itself.
    """
    from flax import traverse_util

    flat = traverse_util.flatten_dict(base, sep="/")
    if adapters.has_adapters(base):
        raise ModelError(
            "the model has an adapter already",
            path=adapter.path,
            fix="merge it first (`medjax adapter merge`), or take the model it was trained on",
        )
    kept = {path: leaf for path, leaf in flat.items() if path not in adapter.arrays}
    if not force:
        found = adapters.digest(kept)
        if found != adapter.base["sha256"]:
            raise ModelError(
                "this adapter was trained on another base",
                path=adapter.path,
                found=f"parameters {found[:16]}",
                expected=f"parameters {adapter.base['sha256'][:16]} of "
                f"{adapter.base.get('name', '')}",
                fix="give that model; --force-base takes this one in spite of it",
            )
    return traverse_util.unflatten_dict(kept | dict(adapter.arrays), sep="/")


def stack(
    given: Sequence[Adapter], route: str, documents: Mapping[str, Any] | None = None
) -> Adapter:
    """Several adapters of one base as the experts of one adapter, the identity first.

    Ranks are padded with zeros; every expert keeps its own scale. Its numbers are unchanged.

    Args:
      given: with the same base. route: "modality", "corpus" or "task": what decides the expert of a
        sample; whatever no expert was trained on gets the base's answer.
      documents: of the result; default those of the first, whose labels all must share.

    Raises: `UsageError` for other routes, adapters of other bases or labels, whole leaves that
      differ, or equal names.
    """
    if route not in ("modality", "corpus", "task") or len(given) < 2:
        raise UsageError(
            "adapters cannot be stacked",
            found=f"{len(given)} files, route {route!r}",
            expected="two or more files; modality, corpus or task",
        )
    first, *others = given
    for other in others:
        for what, mine, theirs in (
            ("base", first.base["sha256"], other.base["sha256"]),
            ("labels", first.documents["labels"], other.documents["labels"]),
        ):
            if mine != theirs and (what == "base" or documents is None):
                raise UsageError(
                    f"adapters of another {what} cannot be stacked",
                    path=other.path,
                    found=f"not the {what} of {first.path}",
                )
    experts = [expert for one in given for expert in one.experts]
    names = [expert["name"] for expert in experts]
    if len(set(names)) != len(names):
        raise UsageError(
            "experts have the same name",
            found=", ".join(names),
            fix="give each its name when it is extracted (--name)",
        )
    arrays: dict[str, np.ndarray] = {}
    owners = {}
    for one in given:
        for path, array in one.arrays.items():
            *owner, name = path.split("/")
            if name in (adapters.A, adapters.B, adapters.SCALE):
                owners["/".join(owner)] = None
            elif path.startswith(adapters.ROUTER + "/"):
                raise UsageError("an adapter with a learned gate cannot be stacked", path=one.path)
            elif path in arrays and not np.array_equal(arrays[path], array):
                raise UsageError(
                    f"two adapters trained {path} itself, which only one can bring",
                    path=one.path,
                    fix="train it in neither, or merge one adapter into the base first",
                )
            else:
                arrays[path] = array
    for owner in owners:
        arrays |= _side_by_side(given, owner)
    settings = dataclasses.replace(
        first.settings, experts=1 + len(experts), routing=route, expert_of=(), expert=0, top_k=1
    )
    facts = {"stacked": [dict(one.facts) for one in given]}
    documents = documents or first.documents
    return Adapter(arrays, settings, first.base, tuple(experts), documents, facts)


def _side_by_side(given: Sequence[Adapter], owner: str) -> dict[str, np.ndarray]:
    """The pair of one kernel for the experts of all adapters; zeros where one has none."""
    a_path, b_path, scale_path = (f"{owner}/{n}" for n in (adapters.A, adapters.B, adapters.SCALE))
    rank = max(one.arrays[a_path].shape[-1] for one in given if a_path in one.arrays)
    like = next(one for one in given if a_path in one.arrays)
    inputs, outputs = like.arrays[a_path].shape[1:-1], like.arrays[b_path].shape[-1]
    found: list[list[np.ndarray]] = [[], [], []]
    for one in given:
        stored = one.settings.stored
        a = np.zeros((stored, *inputs, rank), np.float32)
        b = np.zeros((stored, rank, outputs), np.float32)
        scale = np.zeros(stored, np.float32)
        if a_path in one.arrays:
            own = one.arrays[a_path].shape[-1]
            a[..., :own], b[:, :own] = one.arrays[a_path], one.arrays[b_path]
            scale[:] = one.arrays.get(scale_path, one.settings.scale(own))
        for into, value in zip(found, (a, b, scale), strict=True):
            into.append(value)
    return dict(zip((a_path, b_path, scale_path), (np.concatenate(v) for v in found), strict=True))


def expert_of(adapter: Adapter, names: Sequence[str]) -> tuple[int, ...]:
    """The expert of every modality, corpus or task of a label space, by name; 0 (the identity) for
    those that no expert was trained on.

    Raises: `ModelError` if two experts claim one.
    """
    word = adapter.settings.routing
    claims: dict[str, int] = {}
    for number, expert in enumerate(adapter.experts, 1):
        for name in expert.get(word, ()):
            if name in claims:
                raise ModelError(
                    f"two experts were trained on the {word} {name!r}",
                    path=adapter.path,
                    fix="route by another word, or name one: --expert NAME",
                )
            claims[str(name)] = number
    return tuple(claims.get(name, 0) for name in names)


def _seal(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    """sha256 of metadata and arrays together."""
    return hashlib.sha256(f"{text}\n{adapters.digest(arrays)}".encode()).hexdigest()


def _header(path: Path) -> dict:
    """The JSON header of a safetensors file, with its size checked."""
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 2 <= size <= min(HEADER_LIMIT, max(path.stat().st_size - 8, 0)):
                raise _refused(path, "it is no adapter file", f"NAME{SUFFIX}")
            found = json.loads(file.read(size))
    except OSError as error:
        raise ModelError("cannot be read", path=path, found=error.strerror) from error
    except (ValueError, RecursionError) as error:
        raise _refused(path, "it is no adapter file", f"NAME{SUFFIX}") from error
    return found if isinstance(found, dict) else {}


def _refused(path: Path, message: str, expected: str | None = None) -> ModelError:
    return ModelError(
        f"adapter refused: {message}", path=path, expected=expected, fix="obtain the file again"
    )
