"""The store itself: damage is found where it is read, old stores are read and said to be unhashed,
files and threads without end.
"""

import io
import json
import logging
import shutil
import subprocess
import sys
import threading
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medjax import cli
from medjax.corpora.sources import read_corpus
from medjax.errors import DataError
from medjax.prepare import hashes, store
from medjax.prepare.plan import Intensity, Plan
from medjax.prepare.prepare import prepare
from medjax.sample.draw import Pool, Recipe, Samples
from medjax.scans import zipped
from tests.support.old_run import extract
from tests.support.raw import write_corpus

SHAPE = (12, 9, 10)


def clear():
    """What a new process would know: nothing."""
    for function in (
        store._meta,
        store._handle,
        store._check,
        store._location_keys,
        store._voxels,
        store._tell_unhashed,
    ):
        function.cache_clear()


@pytest.fixture(params=[False, True], ids=["flat", "packed"])
def case(tmp_path, request):
    corpus, cases = read_corpus(write_corpus(tmp_path / "Task01_A", 1, SHAPE))
    plan = Plan({"A": (1.0, 1.0, 1.0)}, {"MRI": Intensity("zscore")})
    assert prepare(corpus, cases, plan, tmp_path / "s", packed=request.param).ok == ["case_000"]
    clear()
    return store.open_case(tmp_path / "s" / "A" / "case_000"), lambda **how: prepare(
        corpus, cases, plan, tmp_path / "s", **how
    )


def chunk_of(case, name):
    return next(p for p in sorted((store.Path(case.folder) / name / "c").rglob("*")) if p.is_file())


def flip(path, place=-1):
    content = bytearray(path.read_bytes())
    content[place if place >= 0 else len(content) // 2] ^= 1
    path.write_bytes(content)


READS = {
    "image.zarr": lambda c: c.image(),
    "label.zarr": lambda c: c.label(),
    "locations.npz": lambda c: c.locations["1"],
    "case.json": lambda c: store.open_case(c.folder).meta,
}


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("name", ["image.zarr", "label.zarr"])
def test_one_flipped_bit_of_an_array_is_found_and_named(case, name):
    case, make = case
    whole = READS[name](case)
    flip(path := chunk_of(case, name))
    clear()
    with pytest.raises(
        DataError,
        match=r"is not what was prepared: the file is damaged; found xxh3:\w{32}; expected xxh3:",
    ) as caught:
        READS[name](case)
    assert str(caught.value.path) == str(path) and caught.value.fix.endswith(
        "/s --force --cases case_000`"
    )
    with pytest.raises(DataError, match="damaged"):
        Samples(
            [
                Pool(
                    0,
                    str(path.parents[[p.name for p in path.parents].index("A")]),
                    ("case_000",),
                    (1,),
                    0,
                )
            ],
            Recipe((4, 4, 4), 2),
        )(0)
    assert make(force=True).ok == ["case_000"]
    np.testing.assert_array_equal(READS[name](store.open_case(case.folder)), whole)


@pytest.mark.parametrize("name", ["image.zarr", "label.zarr"])
def test_metadata_that_tells_of_another_shape_is_found(case, name):
    """As many voxels in another order would read without an error."""
    case, _ = case
    path = store.Path(case.folder) / name / "zarr.json"
    text = path.read_text()
    swapped = (
        text.replace("[12, 9, 10", "[9, 12, 10")
        if "[12, 9, 10" in text
        else text.replace("[12,9,10", "[9,12,10")
    )
    assert swapped != text
    path.write_text(swapped)
    clear()
    with pytest.raises(DataError, match="damaged") as caught:
        READS[name](case)
    assert str(caught.value.path) == str(path)


def test_a_missing_chunk_is_not_background(case):
    """To zarr an absent chunk is 0 everywhere."""
    case, _ = case
    for name in ("image.zarr", "label.zarr"):
        chunk_of(case, name).unlink()
        clear()
        with pytest.raises(DataError, match=r"damaged|cannot be read"):
            READS[name](case)


def test_damaged_locations_are_found_and_named(case):
    case, make = case
    path = store.Path(case.folder) / "locations.npz"
    with zipfile.ZipFile(path) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:  # a zip file without fault, of other voxels
        for name, content in found.items():
            archive.writestr(name, content[:-4] + b"\7\0\0\0")
    clear()
    with pytest.raises(DataError, match=r"locations\.npz: its content is not what was prepared"):
        case.locations["1"]
    assert make(force=True).ok == ["case_000"] and len(case.locations["1"]) > 10


@pytest.mark.parametrize("field", ["gain", "spacing_mm", "voxels", "labels", "hashes"])
def test_an_edited_description_of_a_case_is_found(case, field):
    case, make = case
    path = store.Path(case.folder) / "case.json"
    meta = json.loads(path.read_text())
    meta[field] = {
        "gain": [1.0],
        "spacing_mm": [3.0, 3.0, 3.0],
        "voxels": {"0": 5},
        "labels": [],
        "hashes": {},
    }[field]
    path.write_text(json.dumps(meta))
    with pytest.raises(DataError, match=r"case\.json is damaged: other content than was written"):
        store.open_case(case.folder).meta  # noqa: B018
    result = make()
    assert result.ok == ["case_000"] and result.stale == {"case_000": "files (damaged)"}


@pytest.mark.parametrize("what", ["image.zarr", "label.zarr", "locations.npz"])
def test_a_case_whose_files_are_cut_or_gone_is_made_again(case, what):
    case, make = case
    path = store.Path(case.folder) / what
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    clear()
    with pytest.raises(DataError, match=rf"{what} cannot be read.*--force --cases case_000"):
        READS[what](case)
    result = make()
    assert result.ok == ["case_000"] and result.stale == {"case_000": "files (damaged)"}
    assert len(READS[what](store.open_case(case.folder))) > 0


def test_only_what_a_patch_touches_is_compared_and_once(tmp_path, monkeypatch):
    monkeypatch.setattr(hashes, "SLAB_BYTES", 4 * 9 * 10 * 2)  # four rows of the image
    corpus, cases = read_corpus(write_corpus(tmp_path / "Task01_A", 1, SHAPE))
    prepare(
        corpus, cases, Plan({"A": (1.0, 1.0, 1.0)}, {"MRI": Intensity("zscore")}), tmp_path / "s"
    )
    case = store.open_case(tmp_path / "s" / "A" / "case_000")
    found = case.meta["hashes"]["image.zarr"]
    assert (
        found["rows"] == 4
        and len(found["slabs"]) == 3
        and case.meta["hashes"]["label.zarr"]["rows"] == 8
    )
    whole = case.image().copy()
    clear()
    flip(chunk_of(case, "image.zarr"), place=9 * 9 * 10 * 2)  # row 9
    counted, real = [], hashes.checksum
    monkeypatch.setattr(
        hashes, "checksum", lambda content: counted.append(len(content)) or real(content)
    )
    for rows in (slice(0, 3), slice(2, 8), slice(5, 5)):
        np.testing.assert_array_equal(case.image((rows,)), whole[rows])
    assert counted == [4, 4]  # slabs 0 and 1, each once
    with pytest.raises(DataError, match="rows 8 to 11 is not what was prepared"):
        case.image((slice(7, 9),))
    with pytest.raises(DataError, match="rows 8 to 11"):  # and not forgotten
        case.image((slice(11, 12), slice(0, 1)))


# ---------------------------------------------------------------- stores of earlier versions


@pytest.fixture
def old(tmp_path):
    """A store made by a version that wrote no hashes, with its raw data."""
    extract(tmp_path, "Task01_Blobs/", "store/")
    clear()
    return tmp_path


def test_an_old_store_is_read_and_said_to_be_unhashed_once(old, caplog):
    names = store.list_cases(old / "store", "Blobs")
    with caplog.at_level(logging.WARNING, "medjax.store"):
        for name in names:
            case = store.open_case(old / "store" / "Blobs" / name)
            assert case.image().shape == (*case.meta["shape"], 1) and len(case.locations) == 2
    assert (
        len(names) == 4
        and len(caplog.records) == 1
        and "without hashes by an earlier version" in caplog.text
    )


def test_preparation_adds_hashes_to_an_old_store_and_says_so(old, capsys):
    before = {
        n: store.open_case(old / "store" / "Blobs" / n).image()
        for n in store.list_cases(old / "store", "Blobs")
    }
    command = [
        "prepare",
        str(old / "Task01_Blobs"),
        "-o",
        str(old / "store"),
        "--quiet",
        "--plan",
        str(old / "store" / "plan.json"),
    ]
    plan = (
        json.loads((old / "store" / "plan.json").read_text())
        if (old / "store" / "plan.json").exists()
        else None
    )
    if plan is None:
        command = command[:-2]
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    if (
        "4 already there" in out
    ):  # raw files lie elsewhere than they did, but their content is the same
        assert "4 cases were prepared by a version without hashes" in out
    for name, image in before.items():
        case = store.open_case(old / "store" / "Blobs" / name)
        np.testing.assert_array_equal(case.image(), image)
        assert (
            set(case.meta["hashes"]) == {"image.zarr", "label.zarr", "locations.npz"}
            and "checksum" in case.meta
        )
    assert cli.main(command) == 0 and "without hashes" not in capsys.readouterr().out
    flip(chunk_of(store.open_case(old / "store" / "Blobs" / name), "label.zarr"))
    clear()
    with pytest.raises(DataError, match="damaged"):
        store.open_case(old / "store" / "Blobs" / name).label()


def strip(case):
    """What an earlier version would have written."""
    path = store.Path(case.folder) / "case.json"
    path.write_text(
        json.dumps(
            {
                k: v
                for k, v in json.loads(path.read_text()).items()
                if k not in ("hashes", "checksum")
            }
        )
    )
    clear()


@pytest.mark.parametrize(
    "field",
    ["shape", "voxels", "sources", "stat", "inputs", "cropped_labels", "labels", "gain", "key"],
)
@pytest.mark.parametrize("value", [5, None, [], "x", {"a": []}])
def test_odd_fields_of_a_case_never_end_in_a_traceback(case, field, value):
    case, make = case
    strip(case)
    path = store.Path(case.folder) / "case.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    clear()
    if isinstance(json.loads(path.read_text())["key"], str):
        result = make()
        assert result.failed == [] and len(result.ok) + result.skipped == 1
    else:  # not even known to be a prepared case, but it holds nothing else
        assert make().ok == ["case_000"]
    found = store.open_case(case.folder)
    assert found.image().shape[:3] == found.label().shape == tuple(found.meta["shape"]) == SHAPE


def test_hashes_are_not_put_on_a_label_that_is_damaged(case):
    case, make = case
    strip(case)
    assert make().hashed == ("case_000",) and make().hashed == ()
    packed = "chunks" in case.meta["hashes"]["label.zarr"]
    strip(case)
    path = chunk_of(case, "label.zarr")
    if packed:
        path.write_bytes(path.read_bytes()[:-3])
    else:
        content = bytearray(path.read_bytes())
        content[::3] = b"\xc8" * len(content[::3])
        path.write_bytes(content)
    result = make()
    assert (
        result.ok == ["case_000"]
        and result.stale == {"case_000": "files (damaged)"}
        and result.hashed == ()
    )
    assert case.label().max() == 2


# ---------------------------------------------------------------- what nobody annotated


@pytest.mark.parametrize("packed", [False, True])
def test_the_label_never_shows_internal_ids(tmp_path, packed):
    """Masked z-scores keep an id for the voxels outside the mask; whoever reads the label gets
    background, or what it asks for.
    """
    folder = tmp_path / "c"
    folder.mkdir()
    label = np.array([[[0, 1, 2, 3]]], np.uint8)
    meta = {"shape": [1, 1, 4], "outside_id": 3, "voxels": {}}
    store.write_case(folder, np.zeros((1, 1, 4, 1), np.int16), label, {}, meta, packed=packed)
    case = store.open_case(folder)
    assert case.label().tolist() == [[[0, 1, 2, 0]]] and case.label().dtype == np.uint8
    assert case.label((slice(0, 1), slice(0, 1), slice(2, 4)), outside=-1).tolist() == [[[2, -1]]]
    assert (
        case.label(outside=-1).dtype == np.int16
        and case.label((slice(0, 1), slice(0, 1), slice(0, 2)), outside=-1).dtype == np.uint8
    )


# ---------------------------------------------------------------- many files, many threads

MANY = """
import json, resource, sys
from pathlib import Path
if sys.argv[2] == "before":
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
import numpy as np
from medjax.prepare import store
if sys.argv[2] == "after":
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
total = 0
for k in range(700):
    folder = Path(sys.argv[1]) / f"case_{k}"
    folder.mkdir()
    image, label = np.full((2, 3, 4, 1), k, np.int16), np.full((2, 3, 4), k % 3, np.uint8)
    locations = {"1": np.zeros((1, 3), np.int32)}
    store.write_case(folder, image, label, locations, {"shape": [2, 3, 4], "voxels": {}})
for turn in range(2):
    for k in range(700):
        case = store.open_case(Path(sys.argv[1]) / f"case_{k}")
        assert case.image((slice(0, 1),)).max() == k and case.label().min() == k % 3
        assert case.locations["1"].shape == (1, 3)
        total += 1
print(total)
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_more_cases_than_a_process_may_open_files(tmp_path, repository, when):
    """A soft limit of 256, set before medjax could know of it or after."""
    done = subprocess.run(
        [sys.executable, "-c", MANY, str(tmp_path), when],
        cwd=repository,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "1400", done.stderr


def test_many_threads_read_locations_at_the_same_time(tmp_path):
    """numpy's own reader evaluates headers with `ast`, which two threads of CPython 3.11 cannot do
    at once.
    """
    folder = tmp_path / "c"
    folder.mkdir()
    voxels = {str(i): np.full((40 + i, 3), i, np.int32) for i in range(1, 30)}
    meta = {"shape": [40, 40, 40], "voxels": {}}
    store.write_case(
        folder, np.zeros((40, 40, 40, 1), np.int16), np.zeros((40, 40, 40), np.uint8), voxels, meta
    )
    wrong, interval = [], sys.getswitchinterval()

    def work():
        for i in voxels:
            store._voxels.cache_clear()
            found = store.open_case(folder).locations[i]
            if not np.array_equal(found, voxels[i]) or found.dtype != np.int32:
                wrong.append(i)

    def guarded():
        try:
            for _ in range(8):
                work()
        except BaseException as error:
            wrong.append(repr(error))

    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=guarded) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []


def test_locations_are_read_without_evaluating_their_header(case, monkeypatch):
    import ast

    def forbidden(*args, **how):
        raise AssertionError("a header was evaluated")

    monkeypatch.setattr(ast, "literal_eval", forbidden)
    monkeypatch.setattr(ast, "parse", forbidden)
    assert case[0].locations["1"].shape[1] == 3


# ---------------------------------------------------------------- numpy's format


def npy_bytes(array, **how):
    out = io.BytesIO()
    np.lib.format.write_array(out, array, **how)
    return out.getvalue()


def parsed(content):
    return zipped.array(content)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from("<i4 >i2 |u1 <f8 <f4 |b1".split()),
    st.lists(st.integers(0, 4), max_size=4),
    st.booleans(),
    st.integers(1, 3),
)
def test_arrays_are_numpys(kind, shape, fortran, version):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(kind)
    array = np.asfortranarray(array) if fortran else array
    found = parsed(npy_bytes(array, version=(version, 0)))
    assert (
        found.dtype == array.dtype and found.shape == array.shape and np.array_equal(found, array)
    )


def header(text, body=b"\0" * 12):
    text = text.encode() + b"\n"
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + body


@pytest.mark.parametrize(
    "content",
    [
        npy_bytes(np.array([{}], object), allow_pickle=True),
        npy_bytes(np.zeros(2, [("a", "<i4")])),
        npy_bytes(np.array(["text"])),
        header("{'descr': '|O', 'fortran_order': False, 'shape': (3,), }"),
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\1\0\xff\xff",
        header("{'descr': '<i4', 'fortran_order': False, 'shape': (-3,), }"),
        header("__import__('os').system('true')"),
        header("{'descr': '<i4', 'fortran_order': False, 'shape': (4,), }"),
        header("{'descr': '<i4', 'fortran_order': False, 'shape': (2,), }"),
        header("{'descr': '<i4', 'fortran_order': False, 'shape': (99999999999999999999,), }"),
        header("{'descr': '<i9', 'fortran_order': False, 'shape': (3,), }"),
        header("{'descr': '<i4', 'shape': (3,), }"),
        b"\x93NUMPY\2\0\xff\xff\xff\xff" + b" " * 64,
        header("(" * 5000),
        b"\x93NUMPY\7\0\0\0",
    ],
)
def test_anything_but_plain_numbers_is_refused(content):
    with pytest.raises(ValueError):
        parsed(content)


def test_a_member_that_would_fill_the_memory_is_refused(tmp_path):
    folder = tmp_path / "c"
    folder.mkdir()
    store.write_case(
        folder,
        np.zeros((2, 2, 2, 1), np.int16),
        np.zeros((2, 2, 2), np.uint8),
        {},
        {"shape": [2, 2, 2], "voxels": {}},
    )
    meta = json.loads((folder / "case.json").read_text())
    del meta["hashes"]
    (folder / "case.json").write_text(json.dumps(meta))
    np.savez_compressed(folder / "locations.npz", **{"1": np.zeros((1 << 20, 3), np.int32)})
    with pytest.raises(DataError, match="plausible"):
        store.open_case(folder).locations["1"]
