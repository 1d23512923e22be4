"""Mutants of model files: what `benchmarks/fuzz.py` feeds to the readers.

In: a kind, its seeds (whole files) and a random generator. Out: bytes. Damage is done at the layer
that matters: bits and lengths of the whole file, instructions of PyTorch's byte code built from
names that are allowed, fields of headers and of JSON, bytes of StableHLO. The hashes of archives
are computed again, so that the mutation reaches the code behind the check.
"""

import hashlib
import io
import json
import random
import struct
import zipfile
from typing import Any

from benchmarks.mutant_files import PLAIN, code_name, text

NUMBERS = (0, 1, -1, 2, 8, 255, 1 << 15, (1 << 31) - 1, 1 << 31, 1 << 40, -(1 << 40), (1 << 63) - 1)
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2**31,
    2**63,
    10**400,
    0.5,
    1e-9,
    1e300,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../../x",
    "*",
    "\x1b[2J",
    "a" * 300,
    [],
    {},
    [0],
    [[]],
    [None],
    [1, 2, 3],
    [1e9] * 3,
    {"a": 1},
    {"scheme": "zzz"},
    "os",
    "__init__",
    "NaN",
)


def mutant(kind: str, sources: list[bytes], rng: random.Random) -> bytes:
    """One mutant."""
    source = rng.choice(sources)
    if rng.random() < 0.25:
        return damaged(source, rng, rng.choice(sources))
    return {
        "torch": _torch_mutant,
        "npz": _zip_mutant,
        "archive": _archive_mutant,
        "stablehlo": _function_mutant,
    }[kind](source, rng)


def damaged(data: bytes, rng: random.Random, other: bytes | None = None) -> bytes:
    """Bits flipped, bytes replaced, cut, doubled, spliced with another file, or lengths changed."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(max(1, len(out)))
        what = rng.randrange(8)
        if not out:
            return bytes(out)
        if what == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            out[at] = rng.randrange(256)
        elif what == 2:
            del out[at:]
        elif what == 3:
            del out[at : at + rng.randrange(1, 16)]
        elif what == 4:
            out[at:at] = out[at : at + rng.randrange(1, 64)]
        elif what == 5 and other:
            out[at:] = other[rng.randrange(len(other)) :]
        elif what == 6:
            number = rng.choice(NUMBERS)
            size = rng.choice((1, 2, 4, 8))
            out[at : at + size] = (number & ((1 << 8 * size) - 1)).to_bytes(
                size, rng.choice(("little", "big"))
            )
        else:
            out[at : at + 1] = rng.choice(
                (b"", b"\x00", b"\xff", b"PK\x03\x04", b"PK\x05\x06", b"\x93NUMPY")
            )
    return bytes(out)


def _instruction(rng: random.Random) -> bytes:
    """One piece of byte code: existing instructions, allowed names, values at the edges."""
    from medjax.weights.formats.torch_file import ALLOWED

    what = rng.randrange(12)
    if what < 3:
        return code_name(*rng.choice(sorted(ALLOWED)))
    if what == 3:
        return bytes(
            [rng.choice(b"()0123NRbtaeusdlQ]}.\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x93\x94")]
        )
    if what == 4:
        return rng.choice((b"h", b"q")) + bytes([rng.randrange(12)])
    if what == 5:
        return b"\x8a\x08" + (rng.choice(NUMBERS) & (2**64 - 1)).to_bytes(8, "little")
    if what == 6:
        return text(
            rng.choice(
                (
                    "f8",
                    "O",
                    "<f4",
                    "V8",
                    "|O8",
                    "U2",
                    "i4,O",
                    "",
                    "storage",
                    "0",
                    "../../etc/passwd",
                    "<",
                    ">",
                    "|",
                    "b1",
                    "f2",
                )
            )
        )
    if what == 7:
        return b"C\x08" + bytes(rng.randrange(256) for _ in range(8))
    if what == 8:
        return rng.choice((b"\x8e", b"\x8d", b"B", b"X", b"T", b"\x96")) + (
            rng.choice(NUMBERS) & (2**64 - 1)
        ).to_bytes(8, "little")
    if what == 9:
        return PLAIN
    if what == 10:
        return (
            b"(K\x03"
            + text("|")
            + b"N"
            + text("a")
            + b"\x85}"
            + text("a")
            + code_name("numpy", "dtype")
            + text("O")
            + b"\x85RK\x00\x86sK\x08K\x01K?tb"
        )
    return bytes([rng.randrange(256)])


def _code(body: bytes, rng: random.Random) -> bytes:
    """Byte code with instructions put in, taken out, doubled or exchanged at their borders."""
    import pickletools

    try:
        borders = [at for *_, at in pickletools.genops(body) if at is not None]
    except Exception:
        return damaged(body, rng)
    parts = [body[a:b] for a, b in zip(borders, [*borders[1:], len(body)], strict=True)]
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        at = rng.randrange(1, len(parts))
        what = rng.randrange(6)
        if what == 0:
            parts.insert(at, _instruction(rng))
        elif what == 1:
            parts[at] = _instruction(rng)
        elif what == 2:
            parts[at : at + 1] = []
        elif what == 3:
            parts[at:at] = parts[at : at + rng.randrange(1, 8)] * rng.choice((1, 1, 2, 50))
        elif what == 4:
            other = rng.randrange(1, len(parts))
            parts[at], parts[other] = parts[other], parts[at]
        else:
            parts[at:at] = [_instruction(rng) for _ in range(rng.randrange(2, 6))]
        if len(parts) < 2:
            break
    return b"".join(parts)


def _torch_mutant(source: bytes, rng: random.Random) -> bytes:
    if source[:2] != b"PK":
        return _code(source, rng)
    members = _members(source)
    if rng.random() < 0.8:
        members["archive/data.pkl"] = _code(members["archive/data.pkl"], rng)
    else:
        members["archive/data/0"] = damaged(members["archive/data/0"], rng)
    return _zipped(members, rng)


def _members(source: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(source)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _zipped(members: dict[str, bytes], rng: random.Random, compress: int | None = None) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(
                zipfile.ZipInfo(name), content, rng.choice((0, 8)) if compress is None else compress
            )
    return out.getvalue()


def _zip_mutant(source: bytes, rng: random.Random) -> bytes:
    """One member changed: its header, its numbers, or all of it."""
    members = _members(source)
    name = rng.choice(sorted(members))
    what, content = rng.randrange(4), members[name]
    if what == 0:
        members[name] = damaged(content, rng, content)
    elif what == 1:
        head, end = content[:10], 10 + int.from_bytes(content[8:10], "little")
        text = content[10:end].decode("latin1")
        shape = tuple(rng.choice(NUMBERS) for _ in range(rng.randrange(4)))
        descr = rng.choice(
            ("<f4", "|O", "<U4", "|V8", "<i8", "[('a','|O')]", "<f3", "|S9", "<M8[s]", "<c8", ">i2")
        )
        text = rng.choice(
            (
                text.replace("(", f"({rng.choice(NUMBERS)}, "),
                str({"descr": descr, "fortran_order": rng.random() < 0.5, "shape": shape}),
            )
        )
        text = rng.choice(
            (text, text.replace("'shape'", "'shape': (1,), 'shape'"), text + "#", "(" * 500)
        )
        members[name] = (
            head[:8]
            + len(text + "\n").to_bytes(2, "little")
            + (text + "\n").encode()
            + content[end:]
        )
    elif what == 2:
        end = 10 + int.from_bytes(content[8:10], "little")
        members[name] = content[:end] + bytes(rng.choice((0, 1, 127, 255)) for _ in content[end:])
    else:
        other = rng.choice(sorted(members))
        members[name], members[other] = members[other], members[name]
    return _zipped(members, rng)


def _archive_mutant(source: bytes, rng: random.Random) -> bytes:
    """A field of the JSON, the arrays or the manifest changed, hashes made to fit."""
    members = _members(source)
    what = rng.randrange(5)
    if what < 3:
        name = rng.choice(("config.json", "labels.json", "plan.json"))
        content = _json_mutant(members[name], rng)
        members[name] = content
    elif what == 3:
        data = members["weights.safetensors"]
        size = int.from_bytes(data[:8], "little")
        head = data[8 : 8 + size]
        if rng.random() < 0.7:
            for old, new in rng.sample(
                [
                    (b"F32", b"I32"),
                    (b"F32", b"BF16"),
                    (b"[2]", b"[1099511627776]"),
                    (b"[0,", b"[9,"),
                    (b"kernel", b"k"),
                    (b"{", b"["),
                ],
                1,
            ):
                head = head.replace(old, new, rng.choice((1, 100)))
            members["weights.safetensors"] = (
                len(head).to_bytes(8, "little") + head + data[8 + size :]
            )
        else:
            body = bytearray(data[8 + size :])
            for _ in range(8):
                at = 4 * rng.randrange(len(body) // 4)
                body[at : at + 4] = struct.pack(
                    "<f", rng.choice((float("nan"), float("inf"), 1e38, 0.0))
                )
            members["weights.safetensors"] = data[: 8 + size] + bytes(body)
    else:
        return rehashed(members, rng, _json_mutant)
    return rehashed(members, rng)


def _function_mutant(source: bytes, rng: random.Random) -> bytes:
    """Bytes of the function changed."""
    members = _members(source)
    payload = bytearray(members["function.stablehlo"])
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(payload))
        payload[at] = rng.choice((payload[at] ^ (1 << rng.randrange(8)), rng.randrange(256)))
    if rng.random() < 0.1:
        payload = payload[: rng.randrange(len(payload))]
    members["function.stablehlo"] = bytes(payload)
    return rehashed(members, rng)


def rehashed(members: dict[str, bytes], rng: random.Random, change: Any = None) -> bytes:
    """An archive whose manifest fits its members; `change`: what is done to the manifest
    afterwards.
    """
    manifest = json.loads(members["manifest.json"])
    manifest["members"] = {
        n: {"sha256": hashlib.sha256(c).hexdigest(), "bytes": len(c)}
        for n, c in members.items()
        if n != "manifest.json"
    }
    members["manifest.json"] = json.dumps(manifest).encode()
    if change:
        members["manifest.json"] = change(members["manifest.json"], rng)
    return _zipped(members, rng, 0)


def _json_mutant(content: bytes, rng: random.Random) -> bytes:
    """Some value of a JSON document replaced, dropped or wrapped."""
    document = json.loads(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        node, path = document, []
        while isinstance(node, dict | list) and node and (not path or rng.random() < 0.8):
            key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
            path.append((node, key))
            node = node[key]
        if not path:
            return json.dumps(rng.choice(VALUES)).encode()
        parent, key = path[-1]
        what = rng.randrange(5)
        if what == 0:
            del parent[key]
        elif what == 1:
            parent[key] = [parent[key]]
        else:
            parent[key] = rng.choice(VALUES)
    return json.dumps(document).encode()
