"""A trained model as one file: `.medjax`, a zip of arrays and JSON without executable contents.

    manifest.json          format, kind, sha256 and size of every other member, provenance,
                           licences of the training corpora
    config.json            the resolved config, without the paths of the machine that trained it
    labels.json plan.json  label space; spacing and normalisation
    weights.safetensors    parameters, name -> array (kind "weights")
    function.stablehlo     the network with its parameters as one function (kind "function",
                           see `weights/formats/stablehlo.py`)
    environment.json splits_final.json summary.json postprocess.json
                           if the run has them

`write`: a run folder -> the file. `read`: a file from anywhere -> its members, after every check,
or a `ModelError`. Members are read into memory and never unpacked, so no name in an archive becomes
a path on disk.
"""

import dataclasses
import hashlib
import json
import re
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medjax import files
from medjax.errors import ModelError
from medjax.scans import zipped

FORMAT, VERSION = "medjax-archive", 1
KINDS = {"weights": "weights.safetensors", "function": "function.stablehlo"}
MANIFEST = "manifest.json"
REQUIRED = ("config.json", "labels.json", "plan.json")
OPTIONAL = ("environment.json", "splits_final.json", "summary.json", "postprocess.json")
JSON_LIMIT = 1 << 24  # bytes of all JSON members together, unpacked
VALUES_LIMIT, DEPTH_LIMIT = (
    1 << 21,
    64,
)  # of one JSON member: commas and brackets, and how deep it nests
DIRECTORY_LIMIT = 1 << 14  # bytes of the table of contents
MEMBERS_LIMIT = 32
_NAME = re.compile(r"[a-z_]+\.(json|safetensors|stablehlo)")


@dataclasses.dataclass(frozen=True)
class Archive:
    """The checked contents of an archive.

    Attributes:
      kind: "weights" or "function". manifest: its manifest. documents: member name without ending
        -> parsed JSON.
      payload: bytes of the one member that is no JSON.
      path, sha256: its path, and the digest of the whole file.
    """

    kind: str
    manifest: Mapping[str, Any]
    documents: Mapping[str, Any]
    payload: bytes
    path: str
    sha256: str


def write(
    path: Path,
    kind: str,
    documents: Mapping[str, Any],
    payload: bytes,
    facts: Mapping[str, Any],
    *,
    overwrite: bool = True,
) -> str:
    """Writes an archive under a temporary name, then renames it; returns its sha256.

    Args:
      documents: member name without ending -> JSON-ready value; config, labels and plan at least.
      payload: the member that `kind` names.
      facts: further fields of the manifest: provenance, licences, ...
      overwrite: an existing file is replaced rather than refused.
    """
    members = {
        f"{name}.json": (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
        for name, value in documents.items()
    }
    members[KINDS[kind]] = payload
    listing = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in sorted(members.items())
    }
    manifest = {"format": FORMAT, "version": VERSION, "kind": kind, "members": listing, **facts}
    members[MANIFEST] = (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()
    _check_documents(
        path, {name: content for name, content in members.items() if name.endswith(".json")}
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.refused(path, error, error=ModelError) from error
    with files.replacing(path, error=ModelError, exclusive=not overwrite) as file:
        with zipfile.ZipFile(file, "w") as archive:
            for name in (MANIFEST, *sorted(set(members) - {MANIFEST})):
                entry = zipfile.ZipInfo(
                    name, (1980, 1, 1, 0, 0, 0)
                )  # the same model gives the same file
                entry.compress_type = (
                    zipfile.ZIP_DEFLATED if name.endswith(".json") else zipfile.ZIP_STORED
                )
                entry.external_attr = (stat.S_IFREG | 0o644) << 16
                archive.writestr(entry, members[name])
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_documents(path: Path, documents: Mapping[str, bytes]) -> None:
    """`ModelError` for documents that `read` would refuse, so that they are not written."""
    largest = max(documents, key=lambda name: len(documents[name]))
    if sum(map(len, documents.values())) > JSON_LIMIT or any(
        _values(content) > VALUES_LIMIT for content in documents.values()
    ):
        raise ModelError(
            "the run's documents are too large for an archive",
            path=path,
            found=f"{largest}: {len(documents[largest]):,} bytes",
            expected=f"at most {JSON_LIMIT:,} bytes and {VALUES_LIMIT:,} values",
            fix="move that file out of the run folder for the export",
        )


def is_archive(path: Path) -> bool:
    """Whether a path is a file to be read with `read`."""
    return path.is_file()


def is_ours(path: Path) -> bool:
    """Whether medjax (any version) wrote this archive; `--overwrite` may replace it."""
    try:
        if path.is_symlink() or not path.is_file():
            return False
        zipped.check_directory(path, error=ModelError, limit=DIRECTORY_LIMIT)
        with zipfile.ZipFile(path) as archive:
            manifest = json.loads(_limited(path, archive, MANIFEST, JSON_LIMIT))
        return isinstance(manifest, dict) and manifest.get("format") == FORMAT
    except (*zipped.DAMAGES, ModelError):
        return False


def read(path: Path) -> Archive:
    """Reads and checks an archive.

    Raises: `ModelError` for anything that `write` does not write: another format or a newer
      version, unknown, repeated, missing, linked, encrypted or oversize members, names with a
      folder or `..`, code or pickles, wrong sizes and hashes, damaged JSON, bytes before, between
      or after the members.
    """
    try:
        size = path.stat().st_size
        zipped.check_directory(path, error=_refusal, limit=DIRECTORY_LIMIT, exact=True)
        with zipfile.ZipFile(path) as archive:
            _check_entries(path, archive.infolist(), size)
            manifest = _manifest(path, archive)
            contents = {
                name: _content(path, archive, name, facts)
                for name, facts in manifest["members"].items()
            }
        digest = files.sha256(path)
    except zipped.DAMAGES as error:
        raise _refused(
            path, f"not a readable model archive ({error})", fix="obtain the file again"
        ) from error
    documents = {
        Path(name).stem: _parsed(path, name, content)
        for name, content in contents.items()
        if name.endswith(".json")
    }
    return Archive(
        manifest["kind"], manifest, documents, contents[KINDS[manifest["kind"]]], str(path), digest
    )


def _check_entries(path: Path, entries: list[zipfile.ZipInfo], size: int) -> None:
    """Checks the table of contents, before a byte is unpacked."""
    if len(entries) > MEMBERS_LIMIT:
        raise _refused(
            path, "too many members", found=len(entries), expected=f"at most {MEMBERS_LIMIT}"
        )
    seen, documents = set(), 0
    for entry in entries:
        name, mode = entry.orig_filename, entry.external_attr >> 16
        if not _NAME.fullmatch(name) or name not in {
            MANIFEST,
            *REQUIRED,
            *OPTIONAL,
            *KINDS.values(),
        }:
            raise _refused(
                path, "a member that does not belong in a model archive", found=repr(name)[:120]
            )
        if name in seen:
            raise _refused(path, "a member that occurs twice", found=name)
        seen.add(name)
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise _refused(path, "a member that is no plain file (a link or device)", found=name)
        if entry.flag_bits & 1:
            raise _refused(path, "an encrypted member", found=name)
        documents += entry.file_size if name.endswith(".json") else 0
        if documents > JSON_LIMIT:
            raise _refused(
                path,
                "oversize JSON members",
                found=f"{documents:,} bytes",
                expected=f"at most {JSON_LIMIT:,} together",
            )
        limit = (
            JSON_LIMIT if name.endswith(".json") else size
        )  # arrays are stored as they are: never more than the file
        if entry.file_size > limit or entry.compress_size > size:
            raise _refused(
                path,
                "an oversize member",
                found=f"{name}: {entry.file_size:,} bytes",
                expected=f"at most {limit:,}",
            )
        if not name.endswith(".json") and entry.compress_type != zipfile.ZIP_STORED:
            raise _refused(path, "compressed arrays", found=name, expected="stored members")


def _manifest(path: Path, archive: zipfile.ZipFile) -> dict:
    names = set(archive.namelist())
    if MANIFEST not in names:
        raise _refused(
            path, "no manifest", expected=MANIFEST, fix="is this a model made by `medjax export`?"
        )
    manifest = _parsed(path, MANIFEST, _limited(path, archive, MANIFEST, JSON_LIMIT))
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise _refused(
            path,
            "another format",
            found=str(manifest.get("format") if isinstance(manifest, dict) else manifest)[:80],
            expected=FORMAT,
        )
    if manifest.get("version") != VERSION:
        raise _refused(
            path,
            "another version of the format",
            found=manifest.get("version"),
            expected=VERSION,
            fix="update medjax",
        )
    if manifest.get("kind") not in list(KINDS):
        raise _refused(
            path,
            "an unknown kind of model",
            found=str(manifest.get("kind"))[:80],
            expected=" or ".join(KINDS),
        )
    listed = manifest.get("members")
    wanted = {*REQUIRED, KINDS[manifest["kind"]]}
    if not isinstance(listed, dict) or set(listed) != names - {MANIFEST} or not wanted <= names:
        found = sorted(
            set(listed if isinstance(listed, dict) else ()) ^ (names - {MANIFEST})
        ) or sorted(wanted - names)
        raise _refused(
            path, "members and manifest do not agree", found=", ".join(map(str, found))[:200]
        )
    for field in ("provenance", "licences"):
        if not isinstance(manifest.get(field, {}), dict):
            raise _refused(
                path, f"the manifest's {field} are no object", found=type(manifest[field]).__name__
            )
    return manifest


def _content(path: Path, archive: zipfile.ZipFile, name: str, facts: Any) -> bytes:
    declared = facts.get("bytes") if isinstance(facts, dict) else None
    if declared != archive.getinfo(name).file_size:
        raise _refused(path, "a member of another size than the manifest says", found=name)
    content = _limited(path, archive, name, declared)
    if hashlib.sha256(content).hexdigest() != facts.get("sha256"):
        raise _refused(
            path,
            "a member that was changed (sha256 differs)",
            found=name,
            fix="obtain the file again",
        )
    return content


def _limited(path: Path, archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """At most `limit` bytes of a member, whatever its header promises."""
    with archive.open(name) as member:
        content = member.read(limit + 1)
    if len(content) > limit:
        raise _refused(path, "an oversize member", found=name, expected=f"at most {limit:,} bytes")
    return content


def _parsed(path: Path, name: str, content: bytes) -> Any:
    if _values(content) > VALUES_LIMIT:
        raise _refused(
            path,
            f"oversize {name}",
            found=f"{_values(content):,} values",
            expected=f"at most {VALUES_LIMIT:,}",
        )
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _refused(path, f"damaged {name} ({str(error)[:200]})") from error
    if _is_deep(found):
        raise _refused(
            path, f"{name} is nested too deeply", expected=f"at most {DEPTH_LIMIT} levels"
        )
    return found


def _values(content: bytes) -> int:
    """Upper bound for the number of values in JSON, without reading it."""
    return content.count(b",") + content.count(b"[") + content.count(b"{") + 1


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEPTH_LIMIT):
        level = [
            part
            for v in level
            if isinstance(v, dict | list)
            for part in (v.values() if isinstance(v, dict) else v)
        ]
        if not level:
            return False
    return True


def _refused(
    path: Path,
    message: str,
    *,
    found: object = None,
    expected: object = None,
    fix: str = "do not use it",
) -> ModelError:
    return ModelError(
        f"model archive refused: {message}", path=path, found=found, expected=expected, fix=fix
    )


def _refusal(message: str, *, path: Path, **given: Any) -> ModelError:
    return _refused(path, message, **given)


def pack_arrays(arrays: Mapping[str, Any]) -> bytes:
    """Name -> array as a safetensors file."""
    import numpy as np
    from safetensors.numpy import save

    return save(
        {name: np.ascontiguousarray(value) for name, value in arrays.items()}, {"format": FORMAT}
    )


def unpack_arrays(content: bytes, path: str = "") -> dict[str, Any]:
    """Inverse of `pack_arrays`; `ModelError` for damaged bytes."""
    from safetensors.numpy import load

    try:
        return load(content)
    except Exception as error:  # the library raises its own errors, and numpy's for unknown types
        raise ModelError(
            f"damaged arrays ({type(error).__name__}: {str(error)[:200]})",
            path=path,
            fix="obtain the file again",
        ) from error
