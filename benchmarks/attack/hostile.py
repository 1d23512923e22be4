"""Hostile bytes: pickles put together by hand (nothing of them is ever unpickled here), PyTorch
files, zip bombs, safetensors.
"""

import json
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path


def value(v: object) -> bytes:
    """The pickle words of a constant or a tuple of constants; bytes are taken as words."""
    if isinstance(v, bytes):
        return v
    if v is None:
        return b"N"
    if isinstance(v, bool):
        return b"\x88" if v else b"\x89"
    if isinstance(v, int):
        return b"L%dL\n" % v
    if isinstance(v, str):
        text = v.encode()
        return b"X" + struct.pack("<I", len(text)) + text
    return b"(" + b"".join(map(value, v)) + b"t"


def text_bytes(content: bytes) -> bytes:
    """The words of a bytes object."""
    return b"B" + struct.pack("<I", len(content)) + content


def name(module: str, attribute: str) -> bytes:
    """The words that ask for a name of a module (protocol 4: dots go deeper)."""
    return value(module) + value(attribute) + b"\x93"


def call(function: bytes, *arguments: object) -> bytes:
    """The words of a call."""
    return function + value(arguments) + b"R"


def built(thing: bytes, *state: object) -> bytes:
    """The words that set the state of an object."""
    return thing + value(state) + b"b"


def mapping(*pairs: tuple[object, object]) -> bytes:
    """The words of a dictionary."""
    return b"(" + b"".join(value(k) + value(v) for k, v in pairs) + b"d"


def pickled(words: bytes) -> bytes:
    """A whole pickle."""
    return b"\x80\x04" + words + b"."


def object_dtype(flags: int = 0) -> bytes:
    """A numpy dtype of one object field that claims, by its flags, to hold none."""
    pointer = built(
        call(name("numpy", "dtype"), "O8", False, True), 3, "|", None, None, None, -1, -1, 63
    )
    fields = mapping(("a", b"(" + pointer + value(0) + b"t"))
    return built(
        call(name("numpy", "dtype"), "V8", False, True),
        3,
        "|",
        None,
        value(("a",)),
        fields,
        8,
        1,
        flags,
    )


def storage(key: object = "0", count: int = 4, kind: str = "FloatStorage") -> bytes:
    """A reference to numbers of the file."""
    return value(("storage", name("torch", kind), value(key), "cpu", count)) + b"Q"


def tensor(where: bytes, offset: int = 0, shape=(2, 2), strides=(2, 1)) -> bytes:
    """A tensor of PyTorch."""
    hooks = call(name("collections", "OrderedDict"))
    return call(
        name("torch._utils", "_rebuild_tensor_v2"),
        where,
        offset,
        value(shape),
        value(strides),
        False,
        hooks,
    )


def torch_zip(path: Path, words: bytes, members: Mapping[str, bytes] | None = None) -> Path:
    """A file as `torch.save` writes it."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled(words))
        file.writestr("archive/byteorder", "little")
        for key, content in (
            {"0": struct.pack("<4f", 1, 2, 3, 4)} if members is None else members
        ).items():
            file.writestr(f"archive/data/{key}", content)
    return path


def bomb(path: Path, name: str, mebibytes: int, others: Mapping[str, bytes] | None = None) -> Path:
    """A zip whose member `name` inflates to so many MiB of zeros, which are never written out."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    data = first + again * (mebibytes - 1) + packer.flush(zlib.Z_FINISH)
    crc = 0
    for _ in range(mebibytes):
        crc = zlib.crc32(bytes(1 << 20), crc)
    sizes, encoded = (crc, len(data), mebibytes << 20), name.encode()
    with zipfile.ZipFile(path, "w") as file:
        for member, content in (others or {}).items():
            file.writestr(member, content)
    content = path.read_bytes()
    end = content.rindex(b"PK\5\6")
    count, length, start = struct.unpack("<HII", content[end + 10 : end + 20])
    local = (
        struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 20, 0, 8, 0, 33, *sizes, len(encoded), 0)
        + encoded
        + data
    )
    entry = (
        struct.pack(
            "<4sHHHHHHIIIHHHHHII",
            b"PK\1\2",
            20,
            20,
            0,
            8,
            0,
            33,
            *sizes,
            len(encoded),
            0,
            0,
            0,
            0,
            0o600 << 16,
            start,
        )
        + encoded
    )
    table = content[start : start + length] + entry
    tail = struct.pack(
        "<4sHHHHIIH", b"PK\5\6", 0, 0, count + 1, count + 1, len(table), start + len(local), 0
    )
    path.write_bytes(content[:start] + local + table + tail)
    return path


def safetensors(
    path: Path, header: object, data: bytes = bytes(64), length: int | None = None
) -> Path:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def npy(header: str, data: bytes = bytes(32)) -> bytes:
    """A .npy member with any header."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data
