"""Mutants of model files: what `benchmarks/fuzz.py` feeds to the readers, and how each kind is
read.

In: a kind, its seeds (whole files) and a random generator. Out: bytes. Damage is done at the layer
that matters: bits and lengths of the whole file, instructions of PyTorch's byte code built from
names that are allowed, fields of headers and of JSON, bytes of StableHLO. The hashes of archives
are computed again, so that the mutation reaches the code behind the check.
"""

import collections
import contextlib
import hashlib
import io
import json
import pickle
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

ENDINGS = {"torch": ".pth", "npz": ".npz", "archive": ".medjax", "stablehlo": ".medjax"}
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


def name_of(kind: str, index: int) -> str:
    """A file name that shows the kind."""
    return f"{kind}-{index}{ENDINGS[kind]}"


def kind_of(path: Path) -> str:
    """The kind of a file that `name_of` named."""
    return next(kind for kind in ENDINGS if f"{kind}-" in path.name)


# -- reading ---------------------------------------------------------------------------------------


def read(kind: str, path: Path) -> None:
    """Reads a file as medjax does; raises what that raises."""
    {"torch": _read_torch, "npz": _read_npz, "archive": _read_archive, "stablehlo": _read_function}[
        kind
    ](path)


def _read_torch(path: Path) -> None:
    from medjax.runs import imported
    from medjax.weights import accounts, plans_v1

    if b"plans_per_stage" in path.read_bytes():
        plans_v1.read_plans_v1(path)
        return
    structure = accounts.read(path)
    with imported._understood(path, "nnunet"):
        imported._describe(structure, path, None, (), "3d_fullres", "")
        accounts.tensors_of(structure)


def _read_npz(path: Path) -> None:
    """As weights, and as a mask of a corpus (whose name holds the shape)."""
    from medjax.errors import MedjaxError
    from medjax.runs import imported
    from medjax.scans import arrays
    from medjax.weights import accounts

    as_mask = path.parent / path.stem / "mask_(2, 3, 4, 5).npz"
    as_mask.parent.mkdir(exist_ok=True)
    as_mask.write_bytes(path.read_bytes())
    try:
        with contextlib.suppress(MedjaxError):
            np.asarray(arrays.read(str(as_mask)).array)
    finally:
        as_mask.unlink()
        as_mask.parent.rmdir()
    with imported._understood(path, "nnunet"):
        accounts.tensors_of(accounts.read(path))


def _read_archive(path: Path) -> None:
    from medjax.runs.trained import load_predictor

    load_predictor(path)


_VERIFIER: list[Any] = []


def _read_function(path: Path) -> None:
    """Verified by one process that stays, then called here on zeros."""
    import jax
    import jax.numpy as jnp

    from medjax.runs import trained
    from medjax.weights.formats import stablehlo
    from medjax.weights.formats.verification import Verifier

    if not _VERIFIER:
        _VERIFIER.append(Verifier(patience=100.0))
    one = trained.read_model(path)
    apply, window = stablehlo.function(one.archive, verifier=_VERIFIER[0])
    channels = max(len(corpus.channels) for corpus in one.space.corpora)
    context = {
        "corpus": jnp.zeros(1, jnp.int32),
        "modality": jnp.zeros(1, jnp.int32),
        "spacing_mm": jnp.ones((1, 3)),
    }
    np.asarray(
        jax.jit(lambda image: apply({}, image, context)["logits"])(
            jnp.zeros((1, *window, channels))
        )
    )


# -- seeds -----------------------------------------------------------------------------------------


def seeds(folder: Path, kinds: list[str]) -> dict[str, list[bytes]]:
    """Whole files of each kind, made here."""
    found = {}
    if "torch" in kinds:
        found["torch"] = [
            *(_torch_zip(body) for body in (_state(), _state(3))),
            _plan(2),
            _plan(4),
            _stream(),
        ]
    if "npz" in kinds:
        found["npz"] = _npz_files()
    if "archive" in kinds or "stablehlo" in kinds:
        from medjax.runs.export import export
        from tests.support.run import make_run

        run = make_run(folder / "run")
        forms = [("archive", "weights")] * ("archive" in kinds) + [("stablehlo", "function")] * (
            "stablehlo" in kinds
        )
        for kind, form in forms:
            export(run, folder / f"{form}.medjax", form, platforms=("cpu",))
            found[kind] = [(folder / f"{form}.medjax").read_bytes()]
    return found


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def _tensor(key: str, shape: tuple[int, ...]) -> bytes:
    count, strides = (
        int(np.prod(shape)),
        tuple(int(np.prod(shape[a + 1 :])) for a in range(len(shape))),
    )
    sizes = [
        b"(" + b"".join(b"J" + struct.pack("<i", n) for n in values) + b"t"
        for values in (shape, strides)
    ]
    reference = (
        b"("
        + _text("storage")
        + _name("torch", "FloatStorage")
        + _text(key)
        + _text("cpu")
        + b"J"
        + struct.pack("<i", count)
        + b"tQ"
    )
    return (
        _name("torch._utils", "_rebuild_tensor_v2")
        + b"("
        + reference
        + b"K\x00"
        + sizes[0]
        + sizes[1]
        + b"\x89"
        + _ORDERED
        + b")RtR"
    )


_ORDERED = _name("collections", "OrderedDict")
_PLAIN = b"(K\x03" + _text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


def _state(layers: int = 2) -> bytes:
    """The byte code of a checkpoint: tensors, a numpy number, an array, plain values."""
    dtype = _name("numpy", "dtype") + _text("f8") + b"\x89\x88\x87Rq\x07" + _PLAIN
    number = (
        _name("numpy.core.multiarray", "scalar")
        + dtype
        + b"C\x08"
        + struct.pack("<d", 0.5)
        + b"\x86R"
    )
    unfilled = (
        _name("numpy.core.multiarray", "_reconstruct")
        + _name("numpy", "ndarray")
        + b"K\x00\x85C\x01b\x87Rq\x08"
    )
    array = unfilled + b"(K\x01K\x02\x85h\x07\x89C\x10" + struct.pack("<2d", 1, 2) + b"tb"
    weights = (
        _ORDERED
        + b")R("
        + b"".join(_text(f"layer{k}.weight") + _tensor(str(k), (4, 2)) for k in range(layers))
        + b"u}b"
    )
    plain = (
        b"}("
        + _text("epoch")
        + b"K\x03"
        + _text("best")
        + number
        + _text("log")
        + array
        + _text("name")
        + _text("trainer")
        + b"u"
    )
    return b"\x80\x02}(" + _text("network_weights") + weights + _text("facts") + plain + b"u."


def _torch_zip(body: bytes, storages: int = 3, compress: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", body)
        archive.writestr("archive/byteorder", "little")
        for k in range(storages):
            archive.writestr(f"archive/data/{k}", np.arange(8, dtype="<f4").tobytes(), compress)
    return out.getvalue()


def _stream() -> bytes:
    body = _state()
    parts = [pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    data = b"".join(struct.pack("<q", 8) + np.arange(8, dtype="<f4").tobytes() for _ in range(2))
    return b"".join(parts) + body + pickle.dumps(["0", "1"], 2) + data


def _plan(protocol: int) -> bytes:
    """A plan of nnU-Net v1."""
    stage = {
        "batch_size": 2,
        "patch_size": np.array([16, 32, 32]),
        "current_spacing": np.array([1.5, 1.0, 1.0]),
        "median_patient_size_in_voxels": np.array([18, 41, 41]),
        "pool_op_kernel_sizes": [[2, 2, 2], [1, 2, 2]],
        "conv_kernel_sizes": [[3, 3, 3]] * 3,
    }
    properties = {
        "mean": np.float64(63.4),
        "sd": np.float32(175.4),
        "percentile_00_5": -927.0,
        "percentile_99_5": 275.0,
    }
    return pickle.dumps(
        {
            "modalities": {0: "CT"},
            "normalization_schemes": collections.OrderedDict({0: "CT"}),
            "transpose_forward": [0, 1, 2],
            "use_mask_for_norm": collections.OrderedDict({0: False}),
            "base_num_features": 30,
            "conv_per_stage": 2,
            "dataset_properties": {"intensityproperties": collections.OrderedDict({0: properties})},
            "plans_per_stage": {0: stage},
        },
        protocol,
    )


def _npz_files() -> list[bytes]:
    from scipy import sparse

    files = []
    for save in (np.savez, np.savez_compressed):
        files.append(io.BytesIO())
        save(
            files[-1],
            a=np.arange(6, dtype=np.float32).reshape(2, 3),
            b=np.asfortranarray(np.ones((3, 2))),
            c=np.int16(3),
        )
    for form in (sparse.csr_matrix, sparse.coo_matrix, sparse.csc_matrix):
        files.append(io.BytesIO())
        sparse.save_npz(files[-1], form(np.eye(2, 60, dtype=np.uint8)))
    return [file.getvalue() for file in files]


# -- mutation --------------------------------------------------------------------------------------


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
        return _name(*rng.choice(sorted(ALLOWED)))
    if what == 3:
        return bytes(
            [rng.choice(b"()0123NRbtaeusdlQ]}.\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x93\x94")]
        )
    if what == 4:
        return rng.choice((b"h", b"q")) + bytes([rng.randrange(12)])
    if what == 5:
        return b"\x8a\x08" + (rng.choice(NUMBERS) & (2**64 - 1)).to_bytes(8, "little")
    if what == 6:
        return _text(
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
        return _PLAIN
    if what == 10:
        return (
            b"(K\x03"
            + _text("|")
            + b"N"
            + _text("a")
            + b"\x85}"
            + _text("a")
            + _name("numpy", "dtype")
            + _text("O")
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
