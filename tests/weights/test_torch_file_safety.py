"""Weight files made to harm: what they ask for beyond numbers is refused with file and reason, and
nothing is inflated for it.
"""

import collections
import os
import pickle
import pickletools
import resource
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from medjax import cli
from medjax.errors import DataError, MedjaxError, ModelError, UsageError
from medjax.runs.exchange import imported
from medjax.runs.exchange.imported import import_weights
from medjax.scans import arrays, zipped
from medjax.weights import accounts
from medjax.weights.foreign_plans import description
from medjax.weights.formats import torch_file

EVIL = b"A" * 8


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def dtype(code: str, state: bytes = b"") -> bytes:
    return (
        name("numpy", "dtype")
        + text(code)
        + b"\x89\x88\x87R"
        + (b"(" + state + b"tb" if state else b"")
    )


OBJECT_FIELD = (
    b"K\x03"
    + text("|")
    + b"N"
    + text("a")
    + b"\x85"
    + b"}"
    + text("a")
    + dtype("O")
    + b"K\x00\x86sK\x08K\x01K\x00"
)
PLAIN = b"K\x03" + text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00"
SCALAR, ARRAY = (
    name("numpy.core.multiarray", "scalar"),
    name("numpy.core.multiarray", "_reconstruct"),
)
BYTES = b"C\x08" + EVIL
UNFILLED = ARRAY + name("numpy", "ndarray") + b"K\x00\x85" + b"C\x01b" + b"\x87R"


def program(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def array_of(kind: bytes, shape: bytes = b"K\x01\x85", data: bytes = BYTES) -> bytes:
    return UNFILLED + b"(K\x01" + shape + kind + b"\x89" + data + b"tb"


DEEP = b"]" * 5000 + b"a" * 4999
SHARED = b"]q\x00" + b"".join(
    b"]q" + bytes([k + 1]) + b"(" + b"h" + bytes([k]) + b"h" + bytes([k]) + b"e" for k in range(60)
)
ATTACKS = {
    "dtype with an object field, then a scalar as a key": b"}"
    + SCALAR
    + dtype("V8", OBJECT_FIELD)
    + BYTES
    + b"\x86RK\x01s",
    "numeric dtype rebuilt with fields, then a scalar as a key": b"}"
    + SCALAR
    + dtype("i8", OBJECT_FIELD)
    + BYTES
    + b"\x86RK\x01s",
    "array of a dtype with an object field": array_of(dtype("V8", OBJECT_FIELD)),
    "array of a numeric dtype rebuilt with fields": array_of(dtype("f8", OBJECT_FIELD)),
    "object dtype": array_of(dtype("O")),
    "object dtype with its byte order": array_of(dtype("|O8")),
    "array with a list of objects": array_of(dtype("f8"), data=b"]" + dtype("f8") + b"a"),
    "subarray dtype": array_of(
        dtype(
            "f8",
            b"K\x03"
            + text("|")
            + dtype("f8")
            + b"K\x02\x85\x86NNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00",
        )
    ),
    "fields in the code of the dtype": array_of(dtype("i4,O")),
    "dtype of a list": name("numpy", "dtype") + b"]" + text("O") + b"a" + b"\x85R",
    "text array": array_of(dtype("U2")),
    "time array": array_of(dtype("M8")),
    "array left without numbers": UNFILLED,
    "array in a list before its numbers": b"]"
    + UNFILLED
    + b"q\x01ah\x01"
    + b"(K\x01K\x01\x85"
    + dtype("f8")
    + b"\x89"
    + BYTES
    + b"tb0",
    "array of more numbers than bytes": array_of(
        dtype("f8", PLAIN), shape=b"\x8a\x06\x00\x00\x00\x00\x00\x01\x85"
    ),
    "array of negative shape": array_of(
        dtype("f8"), shape=b"J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86"
    ),
    "array as a key": b"}" + array_of(dtype("f8", PLAIN)) + b"K\x01s",
    "dictionary in a set": name("builtins", "set") + b"](}e\x85R",
    "name as a key": b"}" + name("numpy", "dtype") + b"K\x01s",
    "name in a set": b"\x8f(" + name("numpy", "dtype") + b"\x90",
    "calling a storage type": name("torch", "FloatStorage") + b"K\x05\x85R",
    "calling ndarray": name("numpy", "ndarray") + b"\x8a\x06\x00\x00\x00\x00\x00\x01\x85\x85R",
    "calling a value": text("x") + b")R",
    "state of a scalar": SCALAR + dtype("f8", PLAIN) + BYTES + b"\x86R}b",
    "state of a list": b"]}b",
    "state of a set": b"\x8f}b",
    "state of a name": name("collections", "OrderedDict") + b"}b",
    "class with keywords": name("collections", "OrderedDict") + b")}\x92",
    "instance": b"(i" + b"collections\nOrderedDict\n",
    "object": b"(" + name("collections", "OrderedDict") + b"o",
    "extension": b"\x82\x01",
    "reference by text": b"Px\n",
    "buffer out of the file": b"\x97",
    "dotted name": name("collections", "OrderedDict.fromkeys"),
    "dotted name from the stack": text("numpy") + text("ndarray.tofile") + b"\x93",
    "name that is no text": b"K\x01K\x02\x93",
    "whole number of many digits": b"\x8b\x00\x00\x00\x10",
    "whole number of many decimals": b"I" + b"9" * 5000 + b"\n",
    "bytes beyond the file": b"\x8e" + b"\xff" * 8,
    "text beyond the file": b"\x8d" + b"\x00" * 6 + b"\x01\x00",
    "nested too deeply": DEEP,
    "itself inside": b"]q\x00h\x00a",
    "itself inside through a dictionary": b"}q\x00" + text("a") + b"h\x00s",
    "small file that stands for 2^60 values": SHARED,
    "key of nested tuples": b"}" + b")" + b"2\x86" * 40 + b"K\x01s",
    "key that is a giant number": b"}\x8a\x20" + b"\x7f" * 32 + b"K\x01s",
    "unknown codec": name("_codecs", "encode") + text("x") + text("zip") + b"\x86R",
    "empty stack": b"0",
    "mark as a value": b"(\x85",
    "memo that is not there": b"h\x07",
    "no pairs": name("collections", "OrderedDict") + b"]" + text("ab") + b"a\x85R",
    "slice of lists": name("builtins", "slice") + b"]\x85R",
    "storage without a file": b"(" + text("storage") + b"ttQ",
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("form", ["zip", "stream", "plan"])
def test_what_is_more_than_numbers_is_refused_with_file_and_reason(tmp_path, attack, form):
    path = tmp_path / ("plans.pkl" if form == "plan" else "evil.pth")
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", program(ATTACKS[attack]))
    else:
        path.write_bytes(program(ATTACKS[attack]))
    with pytest.raises(ModelError, match=path.name) as refusal:
        torch_file.read_plain(path) if form == "plan" else accounts.read(path)
    assert len(str(refusal.value)) < 700 and "\n" not in str(refusal.value)


@pytest.mark.slow
@pytest.mark.parametrize("attack", list(ATTACKS)[:3:2])
def test_commands_end_with_a_sentence(tmp_path, attack):
    """In a process of their own: what these files did was a crash."""
    (tmp_path / "plans.pkl").write_bytes(program(ATTACKS[attack]))
    for given in (
        ["plan", "--import", "plans.pkl", "-o", "plan.json"],
        ["import", "plans.pkl", "--family", "nnunet", "-o", "run"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "medjax.cli", *given],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert done.returncode in (1, 2), done.stderr
        assert "Traceback" not in done.stderr and "plans.pkl" in done.stderr, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plans.pkl"]


STORAGE = name("torch", "FloatStorage")


def tensor(
    key: str = "0",
    count: int = 4,
    shape=(4,),
    strides=(1,),
    offset: int = 0,
    storage: bytes = STORAGE,
) -> bytes:
    """The byte code of {"w": a tensor}."""

    def whole(n: int) -> bytes:
        return b"\x8a\x08" + n.to_bytes(8, "little", signed=True)

    def sizes(values) -> bytes:
        return b"(" + b"".join(map(whole, values)) + b"t"

    reference = b"(" + text("storage") + storage + text(key) + text("cpu") + whole(count) + b"tQ"
    built = (
        name("torch._utils", "_rebuild_tensor_v2")
        + b"("
        + reference
        + whole(offset)
        + sizes(shape)
        + sizes(strides)
        + b"\x89}tR"
    )
    return b"}" + text("w") + built + b"s"


def torch_archive(path, body: bytes, data: bytes = b"\x00" * 16, compress=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program(body))
        archive.writestr("archive/data/0", data, compress)
    return path


def test_a_right_one_is_read(tmp_path):
    data = np.arange(4, dtype="<f4").tobytes()
    found = accounts.tensors_of(accounts.read(torch_archive(tmp_path / "w.pth", tensor(), data)))
    np.testing.assert_array_equal(found["w"], [0, 1, 2, 3])
    strided = accounts.tensors_of(
        accounts.read(
            torch_archive(tmp_path / "s.pth", tensor(shape=(2, 3), strides=(1, 0), offset=1), data)
        )
    )
    np.testing.assert_array_equal(strided["w"], [[1, 1, 1], [2, 2, 2]])


TENSORS = {
    "2^40 elements of stride 0": (
        tensor(shape=(1 << 40,), strides=(0,)),
        "much larger than the file",
    ),
    "2^60 elements of two axes": (
        tensor(shape=(1 << 30, 1 << 30), strides=(0, 0)),
        "much larger than the file",
    ),
    "a path as key": (tensor(key="../../etc/passwd"), "does not hold"),
    "storage longer than its member": (tensor(count=1 << 30), "does not hold"),
    "negative stride": (tensor(strides=(-1,)), "outside of its storage"),
    "negative offset": (tensor(offset=-1), "outside of its storage"),
    "offset beyond": (tensor(offset=100), "outside of its storage"),
    "more strides than sizes": (tensor(strides=(1, 1)), "outside of its storage"),
    "another storage type": (tensor(storage=name("torch", "device")), "unknown kind of storage"),
    "65 axes": (tensor(shape=(1,) * 65, strides=(1,) * 65), "outside of its storage"),
}


@pytest.mark.parametrize("attack", TENSORS)
def test_tensors_that_their_file_does_not_hold_are_refused(tmp_path, attack):
    body, message = TENSORS[attack]
    with pytest.raises(ModelError, match=message) as refusal:
        accounts.tensors_of(accounts.read(torch_archive(tmp_path / "evil.pth", body)))
    assert "evil.pth" in str(refusal.value)


def test_many_tensors_of_one_storage_do_not_add_up(tmp_path):
    one = tensor(count=1 << 22, shape=(1 << 22,))[1 + len(text("w")) : -1]
    body = b"}" + b"".join(text(f"w{k}") + one + b"s" for k in range(30))
    with pytest.raises(ModelError, match=r"evil\.pth: the tensors are much larger than the file"):
        accounts.read(torch_archive(tmp_path / "evil.pth", body, bytes(1 << 24)))


@pytest.fixture
def little_memory():
    """8 GiB of address space and no more, so that a bomb fails rather than the machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def test_files_that_inflate_are_refused_before_they_do(tmp_path, little_memory):
    for path, member in (
        (tmp_path / "bomb.pth", "archive/data/0"),
        (tmp_path / "bomb.npz", "a.npy"),
    ):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            if path.suffix == ".pth":
                archive.writestr(
                    "archive/data.pkl", program(tensor(count=1 << 26, shape=(1 << 26,)))
                )
            with archive.open(member, "w", force_zip64=True) as file:
                for _ in range(300):
                    file.write(bytes(1 << 20))
        assert path.stat().st_size < 1 << 20
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(ModelError, match=rf"{path.name}: a zip file that inflates"):
            accounts.read(path)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_a_member_that_is_longer_than_promised_is_refused(tmp_path):
    raw = bytearray(
        torch_archive(
            tmp_path / "w.pth", tensor(), bytes(1 << 20), zipfile.ZIP_DEFLATED
        ).read_bytes()
    )
    at = raw.rfind(b"archive/data/0") - 46
    raw[at + 24 : at + 28] = (16).to_bytes(4, "little")
    (tmp_path / "liar.pth").write_bytes(raw)
    with pytest.raises(ModelError, match=r"liar\.pth"):
        accounts.tensors_of(accounts.read(tmp_path / "liar.pth"))


def npy(head: str, data: bytes = b"\x00" * 16, version: int = 1) -> bytes:
    head = head.encode() + b"\n"
    return (
        b"\x93NUMPY"
        + bytes([version, 0])
        + len(head).to_bytes(2 if version == 1 else 4, "little")
        + head
        + data
    )


HEADERS = {
    "2^40 numbers": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }"),
    "2^80 numbers": npy(
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 1099511627776), }"
    ),
    "fewer numbers than bytes": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }"),
    "negative": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-4,), }"),
    "objects": npy("{'descr': '|O', 'fortran_order': False, 'shape': (2,), }"),
    "code": npy("{'descr': __import__('os').system('x'), 'fortran_order': False, 'shape': (4,), }"),
    "fields": npy("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (2,), }"),
    "deep": npy("(" * 20000),
    "other version": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }", version=9),
    "truncated": b"\x93NUMPY\x01",
    "header beyond": b"\x93NUMPY\x01\x00\xff\xffabc",
    "text": npy("{'descr': '<U2', 'fortran_order': False, 'shape': (2,), }"),
}


@pytest.mark.parametrize("attack", HEADERS)
def test_headers_of_arrays_promise_no_more_than_is_there(tmp_path, attack):
    with zipfile.ZipFile(tmp_path / "evil.npz", "w") as archive:
        archive.writestr("a.npy", HEADERS[attack])
    with pytest.raises(ModelError, match=r"evil\.npz: an array that cannot be read"):
        accounts.read(tmp_path / "evil.npz")


@pytest.mark.parametrize(
    "value",
    [
        np.arange(6.0).reshape(2, 3).T,
        np.float16(2),
        np.zeros((0, 3), np.uint8),
        np.arange(3, dtype=">i4"),
        np.array([True]),
    ],
)
def test_every_numeric_array_of_numpy_is_read(tmp_path, value):
    np.savez(tmp_path / "a.npz", a=value)
    found = zipped.read_npz(tmp_path / "a.npz")["a"]
    assert found.dtype == np.asarray(value).dtype
    np.testing.assert_array_equal(found, value)


def test_weights_that_are_not_finite_or_no_real_numbers_are_refused():
    target = {"w": np.zeros(3, np.float32)}
    rows = [accounts.Row("w", "w")]
    for bad, message in (
        (np.array([1, np.nan, 2]), "1 values that are not finite"),
        (np.array([1e300] * 3), "3 values"),
        (np.arange(3), "int64"),
    ):
        with pytest.raises(ModelError, match=message):
            accounts.convert({"w": bad}, rows, target)
    assert accounts.convert({"w": np.ones(3)}, rows, target)[0]["w"].dtype == np.float32


STAGE = {
    "patch_size": [8, 8, 8],
    "spacing": [1, 1, 1],
    "normalization_schemes": ["ZScoreNormalization"],
    "batch_size": 2,
}
PLANS = {
    "dataset_name": "D",
    "configurations": {"3d_fullres": STAGE},
    "foreground_intensity_properties_per_channel": {"0": {}},
    "transpose_forward": [0, 1, 2],
}
LABELS = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "a": 1}}
SAID = {
    "no plan": ({}, LABELS),
    "plan is a number": (3, LABELS),
    "no labels": (PLANS, {}),
    "labels are a list": (PLANS, LABELS | {"labels": [1]}),
    "label of text": (PLANS, LABELS | {"labels": {"a": "x"}}),
    "channels are numbers": (PLANS, LABELS | {"channel_names": {"x": 1}}),
    "a name that is a path": (PLANS | {"dataset_name": "../../pwn"}, LABELS),
    "NUL in the name": (PLANS | {"dataset_name": "a\0b"}, LABELS),
    "spacing NaN": (
        PLANS | {"configurations": {"3d_fullres": STAGE | {"spacing": [float("nan"), 1, 1]}}},
        LABELS,
    ),
    "spacing of text": (
        PLANS | {"configurations": {"3d_fullres": STAGE | {"spacing": "abc"}}},
        LABELS,
    ),
    "configuration inherits from itself": (
        PLANS | {"configurations": {"3d_fullres": {"inherits_from": "3d_fullres"}}},
        LABELS,
    ),
    "axes": (PLANS | {"transpose_forward": [0, 0, 7]}, LABELS),
    "unknown normalisation": (
        PLANS | {"configurations": {"3d_fullres": STAGE | {"normalization_schemes": ["zzz"]}}},
        LABELS,
    ),
}


@pytest.mark.parametrize("case", SAID)
def test_what_a_checkpoint_says_of_itself_wrongly_is_a_sentence(tmp_path, case):
    plans, dataset = SAID[case]
    value = {
        "network_weights": {"w": np.ones(3)},
        "init_args": {"plans": plans, "dataset_json": dataset, "configuration": "3d_fullres"},
    }
    with zipfile.ZipFile(tmp_path / "evil.pth", "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(value, 2))
    with pytest.raises((ModelError, UsageError), match=r"evil\.pth: "):
        import_weights(tmp_path / "evil.pth", "nnunet", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_names_in_a_checkpoint_never_become_paths(tmp_path, monkeypatch):
    """Everything else fits: the name alone is the reason."""
    given = PLANS | {"dataset_name": "../../pwn"}, "3d_fullres", LABELS
    monkeypatch.setattr(imported, "_describe", lambda *_: description.from_v2(*given))
    from tests.weights.test_families import _vit_tensors

    np.savez(tmp_path / "vit.npz", **_vit_tensors())
    with pytest.raises(
        MedjaxError, match=r"vit\.npz: unusable corpus name: it contains a path separator"
    ):
        import_weights(tmp_path / "vit.npz", "vit", tmp_path / "run")
    assert not (tmp_path / "run").exists()


ROWS = {
    "data": np.ones(2, np.uint8),
    "indices": np.array([0, 59]),
    "indptr": np.array([0, 1, 2]),
    "shape": np.array([2, 60]),
}
MASKS = {
    "index beyond": {"indices": np.array([0, 60])},
    "index far beyond": {"indices": np.array([0, 1 << 40])},
    "negative index": {"indices": np.array([0, -1])},
    "rows beyond": {"indptr": np.array([0, 1, 1 << 40])},
    "rows that go back": {"indptr": np.array([0, 5, 2])},
    "rows from another start": {"indptr": np.array([1, 1, 2])},
    "too few rows": {"indptr": np.array([0, 2])},
    "another shape": {"shape": np.array([2, 61])},
    "other format": {"format": np.bytes_("bsr")},
    "real indices": {"indices": np.array([0.0, 1.0])},
    "more data": {"data": np.ones(3)},
    "no data": {"data": None},
}


@pytest.mark.parametrize("attack", MASKS)
def test_sparse_masks_write_nowhere_else(tmp_path, attack):
    """SciPy trusts the indices of a file and would write beyond the array."""
    path = tmp_path / "mask_(2, 3, 4, 5).npz"
    sparse.save_npz(path, sparse.csr_matrix(np.eye(2, 60, dtype=np.uint8)))
    assert arrays.read(str(path)).array.sum() == 2
    fields = {"format": np.bytes_("csr")} | ROWS | MASKS[attack]
    np.savez(path, **{name: value for name, value in fields.items() if value is not None})
    with pytest.raises(DataError, match=r"mask_.*npz: not a readable array"):
        arrays.read(str(path))


def test_a_mask_whose_name_promises_more_than_memory_is_refused(tmp_path):
    path = tmp_path / "mask_(1, 99999, 99999, 99999).npz"
    np.savez(path, format=np.bytes_("csr"), **ROWS)
    with pytest.raises(
        DataError,
        match="the name promises 999970000299999 voxels".replace(
            "999970000299999", "999,970,000,299,999"
        ),
    ):
        arrays.read(str(path))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_every_plain_value_is_read_in_every_version_of_the_format(tmp_path, protocol):
    value = {
        "text": "å",
        "bytes": b"\x00\xff",
        "numbers": [1, -1, 300, 1 << 40, -(1 << 100), 0.5, True, False, None],
        3: (1,),
        (1, 2): {1, 2},
        "frozen": frozenset([1]),
        "ordered": collections.OrderedDict([("a", 1)]),
        "slice": slice(1, None),
        "scalars": [np.float32(0.5), np.int64(3), np.bool_(True), np.float16(1)],
        "arrays": [
            np.arange(6).reshape(2, 3),
            np.ones((2, 2), ">f4"),
            np.zeros(0),
            np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        ],
    }
    shared = np.arange(3.0)
    value["shared"] = [shared, shared, np.arange(2.0)]
    (tmp_path / "v.pkl").write_bytes(pickle.dumps(value, protocol))
    found = torch_file.read_plain(tmp_path / "v.pkl")
    assert list(found) == list(value)
    for key in ("arrays", "shared", "scalars"):
        for ours, theirs in zip(found.pop(key), value.pop(key), strict=True):
            np.testing.assert_array_equal(ours, theirs)
            assert np.asarray(ours).dtype == np.asarray(theirs).dtype
    assert found == value and type(found["ordered"]) is collections.OrderedDict


def test_the_instructions_are_those_of_the_format():
    """Every instruction the format has is either built or refused by name; none was forgotten by a
    typing error.
    """
    from medjax.weights.formats.opcodes import _STEPS_OF

    known = {op.code.encode("latin1"): op.name for op in pickletools.opcodes}
    assert set(_STEPS_OF) <= set(known)
    refused = {
        "NEXT_BUFFER",
        "READONLY_BUFFER",
        "PERSID",
        "INST",
        "OBJ",
        "EXT1",
        "EXT2",
        "EXT4",
        "NEWOBJ_EX",
    }
    assert {known[c] for c in set(known) - set(_STEPS_OF)} == refused


def test_a_plan_with_code_in_it_is_a_usage_error(tmp_path, capsys):
    (tmp_path / "plans.pkl").write_bytes(program(ATTACKS["dotted name"]))
    assert (
        cli.main(["plan", "--import", str(tmp_path / "plans.pkl"), "-o", str(tmp_path / "p.json")])
        == UsageError.exit_code
    )
    assert "OrderedDict.fromkeys" in capsys.readouterr().err
