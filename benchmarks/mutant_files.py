"""Model files that `benchmarks/fuzz.py` damages: whole files of every kind, their names, and how
medjax reads each kind.
"""

import collections
import contextlib
import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

ENDINGS = {"torch": ".pth", "npz": ".npz", "archive": ".medjax", "stablehlo": ".medjax"}


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
    from medjax.runs.exchange import imported
    from medjax.weights import accounts
    from medjax.weights.foreign_plans import read as plans

    if b"plans_per_stage" in path.read_bytes():
        plans.read_plans_v1(path)
        return
    structure = accounts.read(path)
    with imported._understood(path, "nnunet"):
        imported._describe(structure, path, None, (), "3d_fullres", "")
        accounts.tensors_of(structure)


def _read_npz(path: Path) -> None:
    """As weights, and as a mask of a corpus (whose name holds the shape)."""
    from medjax.errors import MedjaxError
    from medjax.runs.exchange import imported
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
        from medjax.runs.exchange.export import export
        from tests.support.run import make_run

        run = make_run(folder / "run")
        forms = [("archive", "weights")] * ("archive" in kinds) + [("stablehlo", "function")] * (
            "stablehlo" in kinds
        )
        for kind, form in forms:
            export(run, folder / f"{form}.medjax", form, platforms=("cpu",))
            found[kind] = [(folder / f"{form}.medjax").read_bytes()]
    return found


def text(value: str) -> bytes:
    """Byte code that pushes a text."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def code_name(module: str, attribute: str) -> bytes:
    """Byte code that pushes what a module calls by a name."""
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
        + text("storage")
        + code_name("torch", "FloatStorage")
        + text(key)
        + text("cpu")
        + b"J"
        + struct.pack("<i", count)
        + b"tQ"
    )
    return (
        code_name("torch._utils", "_rebuild_tensor_v2")
        + b"("
        + reference
        + b"K\x00"
        + sizes[0]
        + sizes[1]
        + b"\x89"
        + _ORDERED
        + b")RtR"
    )


_ORDERED = code_name("collections", "OrderedDict")
PLAIN = b"(K\x03" + text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


def _state(layers: int = 2) -> bytes:
    """The byte code of a checkpoint: tensors, a numpy number, an array, plain values."""
    dtype = code_name("numpy", "dtype") + text("f8") + b"\x89\x88\x87Rq\x07" + PLAIN
    number = (
        code_name("numpy.core.multiarray", "scalar")
        + dtype
        + b"C\x08"
        + struct.pack("<d", 0.5)
        + b"\x86R"
    )
    unfilled = (
        code_name("numpy.core.multiarray", "_reconstruct")
        + code_name("numpy", "ndarray")
        + b"K\x00\x85C\x01b\x87Rq\x08"
    )
    array = unfilled + b"(K\x01K\x02\x85h\x07\x89C\x10" + struct.pack("<2d", 1, 2) + b"tb"
    weights = (
        _ORDERED
        + b")R("
        + b"".join(text(f"layer{k}.weight") + _tensor(str(k), (4, 2)) for k in range(layers))
        + b"u}b"
    )
    plain = (
        b"}("
        + text("epoch")
        + b"K\x03"
        + text("best")
        + number
        + text("log")
        + array
        + text("name")
        + text("trainer")
        + b"u"
    )
    return b"\x80\x02}(" + text("network_weights") + weights + text("facts") + plain + b"u."


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
