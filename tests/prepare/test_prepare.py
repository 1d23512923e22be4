"""Preparation: the numbers in the store, what makes a case outdated, and that nothing half-done
ever has a final name.
"""

import dataclasses
import errno
import json
import os
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medjax.corpora import cases as case_tools
from medjax.corpora.cases import MemoryGate, bytes_needed, each, load
from medjax.corpora.sources import read_corpus
from medjax.errors import DataError, UsageError
from medjax.prepare import store
from medjax.prepare.fingerprint import fingerprint
from medjax.prepare.geometry import Transform, fit
from medjax.prepare.normalise import network_image, quantisation, quantise
from medjax.prepare.plan import Intensity, Plan, make_plan
from medjax.prepare.prepare import prepare
from tests.support.raw import save, write_corpus

SHAPE = (12, 14, 13)
CT = Intensity("ct", (-60.0, 90.0), 20.0, 40.0)


def plan_of(corpus, spacing=(1.0, 1.0, 1.0), **kinds):
    return Plan(
        {corpus.store: spacing}, {c: kinds.get(c, Intensity("zscore")) for c in corpus.channels}
    )


@pytest.fixture
def raw(tmp_path):
    return write_corpus(tmp_path / "Task01_A", 3, SHAPE)


def prepared(root, corpus, name="case_000"):
    return store.open_case(root / corpus.store / name)


def values(case):
    """Normalised float32 (z, y, x, m) as the device makes it."""
    gain, bias = (np.asarray(case.meta[k], np.float32) for k in ("gain", "bias"))
    return case.image().astype(np.float32) * gain + bias


def leftovers(root):
    return [p for p in root.rglob("*") if p.name.startswith(".")]


# ---------------------------------------------------------------- what is stored


def test_a_stored_case(raw, tmp_path):
    corpus, cases = read_corpus(raw)
    seen = []
    result = prepare(
        corpus,
        cases,
        plan_of(corpus),
        tmp_path / "s",
        workers=2,
        progress=lambda *a: seen.append(a),
    )
    assert (
        result.ok == ["case_000", "case_001", "case_002"] == store.list_cases(tmp_path / "s", "A")
    )
    assert result.failed == [] and result.skipped == 0 and leftovers(tmp_path / "s") == []
    assert [a[:2] for a in seen] == [(1, 3), (2, 3), (3, 3)] and {a[3] for a in seen} == {
        "prepared"
    }
    case = prepared(tmp_path / "s", corpus)
    image, ids = load(cases[0], corpus)
    assert (
        case.image().dtype == np.int16
        and case.label().dtype == np.uint8
        and case.image().shape == (*SHAPE, 1)
    )
    np.testing.assert_array_equal(case.label(), ids)
    normal = (image.array - image.array.mean()) / image.array.std()
    np.testing.assert_allclose(values(case), normal, atol=1e-5)
    meta = case.meta
    assert (
        meta["name"] == "case_000"
        and meta["corpus"] == "A"
        and meta["modality"] == "MR"
        and meta["patient"] == "case_000"
    )
    assert meta["shape"] == list(SHAPE) and meta["spacing_mm"] == [1, 1, 1]
    assert Transform.from_json(meta["transform"]) == fit(image, (1, 1, 1))
    assert meta["voxels"] == {str(i): int((ids == i).sum()) for i in range(3)}
    assert (
        all(len(digest) == 64 for digest in meta["sources"].values()) and len(meta["sources"]) == 2
    )


@pytest.mark.parametrize("packed", [False, True])
def test_parts_are_read_and_cases_travel(raw, tmp_path, packed):
    corpus, cases = read_corpus(raw)
    prepare(corpus, cases[:1], plan_of(corpus), tmp_path / "s", packed=packed)
    case = pickle.loads(pickle.dumps(prepared(tmp_path / "s", corpus)))
    part = slice(2, 7), slice(0, 14), slice(5, 6)
    np.testing.assert_array_equal(case.image(part), case.image()[part])
    np.testing.assert_array_equal(case.label(part), case.label()[part])
    assert case.image(part).shape == (5, 14, 1, 1)


def test_both_layouts_are_zarr_and_a_cut_file_is_named(raw, tmp_path):
    import tensorstore as ts

    corpus, cases = read_corpus(raw)
    for packed in (False, True):
        prepare(corpus, cases[:1], plan_of(corpus), tmp_path / f"s{packed}", packed=packed)
    flat, packed = (prepared(tmp_path / f"s{p}", corpus) for p in (False, True))
    for name in ("image", "label"):
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": f"{flat.folder}/{name}.zarr"},
        }
        np.testing.assert_array_equal(
            ts.open(spec).result().read().result(), getattr(packed, name)()
        )
    np.testing.assert_array_equal(flat.image(), packed.image())
    file = store.flat_file(tmp_path / "sFalse" / "A" / "case_000" / "label.zarr", 3)
    file.write_bytes(file.read_bytes()[:-1])
    store._handle.cache_clear()
    with pytest.raises(DataError, match=r"label\.zarr cannot be read: \d+ bytes, expected"):
        flat.label()


@pytest.mark.parametrize("shape", [(5, 6, 7), (64, 65, 130), (1, 200, 128)])
def test_chunks_cover_evenly(shape):
    chunk = store.chunk_shape((*shape, 2))
    assert chunk[3] == 1 and all(
        1 <= c <= 64 and c <= n for c, n in zip(chunk, shape, strict=False)
    )
    assert all(-(-n // c) == -(-n // 64) for c, n in zip(chunk, shape, strict=False))


def test_ct_is_clipped_before_resampling(tmp_path):
    folder = write_corpus(tmp_path / "A", 1, SHAPE, channels=("CT",), spacing_mm=(2, 1, 1))
    corpus, cases = read_corpus(folder)
    plan = plan_of(corpus, (1.5, 1.2, 0.8), CT=CT)
    prepare(corpus, cases, plan, tmp_path / "s")
    case = prepared(tmp_path / "s", corpus)
    volume, ids = load(cases[0], corpus)
    transform = fit(volume, (1.5, 1.2, 0.8))
    raw = transform.resample_image(np.clip(transform.image(volume.array), -60, 90))
    assert case.meta["shape"] == list(transform.shape) == [16, 12, 16]
    np.testing.assert_allclose(values(case), (raw - 20) / 40, atol=2e-5 * 150 / 40)
    np.testing.assert_allclose(
        network_image(transform, volume.array, [CT]), (raw - 20) / 40, atol=1e-6
    )
    stored = case.image() * np.asarray(case.meta["scale"]) + np.asarray(case.meta["offset"])
    np.testing.assert_allclose(stored, raw, atol=2e-5 * 150)
    np.testing.assert_array_equal(case.label(), transform.label(ids))


@pytest.mark.parametrize(
    ("scheme", "low", "high"),
    [("nonorm", None, None), ("rescale_to_0_1", 0.0, 1.0), ("zscore", None, None)],
    ids=lambda v: str(v),
)
def test_schemes(tmp_path, scheme, low, high):
    corpus, cases = read_corpus(write_corpus(tmp_path / "A", 1, SHAPE, channels=("X", "Y")))
    prepare(
        corpus, cases, plan_of(corpus, X=Intensity(scheme), Y=Intensity(scheme)), tmp_path / "s"
    )
    found, image = values(prepared(tmp_path / "s", corpus)), load(cases[0], corpus)[0].array
    assert found.shape == (*SHAPE, 2)
    for c in range(2):
        if scheme == "nonorm":
            np.testing.assert_allclose(found[..., c], image[..., c], atol=1e-3)
        elif scheme == "zscore":
            assert abs(found[..., c].mean()) < 1e-5 and found[..., c].std() == pytest.approx(
                1, abs=1e-5
            )
        else:
            assert found[..., c].min() == pytest.approx(low, abs=1e-6) and found[
                ..., c
            ].max() == pytest.approx(high, abs=1e-6)


def test_statistics_come_from_the_crop(tmp_path):
    corpus, cases = read_corpus(write_corpus(tmp_path / "A", 1, SHAPE, margin=2))
    prepare(corpus, cases, plan_of(corpus), tmp_path / "s")
    case = prepared(tmp_path / "s", corpus)
    assert case.meta["shape"] == [8, 10, 9] and case.meta["transform"]["box"] == [
        [2, 10],
        [2, 12],
        [2, 11],
    ]
    assert abs(values(case).mean()) < 1e-5


def test_constant_image_warns_and_becomes_zero(tmp_path):
    folder = write_corpus(tmp_path / "A", 1, SHAPE)
    save(folder / "imagesTr" / "case_000.nii.gz", np.full(SHAPE, 4.25, np.float32))
    corpus, cases = read_corpus(folder)
    with pytest.warns(UserWarning, match="constant image"):
        assert prepare(corpus, cases, plan_of(corpus), tmp_path / "s").failed == []
    assert not values(prepared(tmp_path / "s", corpus)).any()


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float32, (3, 4, 5), elements=st.floats(-1e4, 1e4, width=32)))
def test_quantisation_error(array):
    low, high = float(array.min()), float(array.max())
    scale, offset = quantisation(low, high)
    stored = quantise(array, scale, offset)
    assert stored.dtype == np.int16
    assert np.abs(stored * scale + offset - array).max() <= 2e-5 * (high - low) + 1e-12


def test_integers_are_kept_exactly():
    array = np.arange(-30000, 30000, 10, dtype=np.float32).reshape(10, 20, 30)
    scale, offset = quantisation(-30000, 29990, True)
    assert scale == 1 and np.array_equal(quantise(array, scale, offset) + offset, array)


def test_locations(tmp_path):
    corpus, cases = read_corpus(
        write_corpus(tmp_path / "A", 1, (40, 40, 40), "nnunet", {"big": 1, "small": 5, "ignore": 9})
    )
    label = np.ones((40, 40, 40), np.uint8)
    label[3:5, 7, 30:33], label[20:30] = 5, 9
    save(tmp_path / "A" / "labelsTr" / "case_000.nii.gz", label)
    prepare(corpus, cases, plan_of(corpus), tmp_path / "s")
    case = prepared(tmp_path / "s", corpus)
    assert (
        sorted(case.locations) == ["1", "2"]
        and "3" not in case.locations
        and len(case.locations) == 2
    )
    small, big = case.locations["2"], case.locations["1"]
    assert small.dtype == np.int32 and np.array_equal(small, np.argwhere(label == 5))
    assert (
        big.shape == (10_000, 3)
        and len(np.unique(big, axis=0)) == 10_000
        and (label[tuple(big.T)] == 1).all()
    )
    assert case.meta["voxels"] == {"1": int((label == 1).sum()), "2": 6, "3": 16_000}
    with pytest.raises(KeyError):
        case.locations["3"]
    prepare(corpus, cases, plan_of(corpus), tmp_path / "t")
    np.testing.assert_array_equal(prepared(tmp_path / "t", corpus).locations["1"], big)


def test_one_per_cent_of_large_structures(monkeypatch):
    from medjax.prepare.prepare import _locations

    label = np.zeros((101, 101, 102), np.uint8)
    label[:, :, :100] = 1
    found = _locations(label, (-2,))["1"]
    assert len(found) == -(-101 * 101 * 100 // 100)
    monkeypatch.setattr("medjax.prepare.prepare.LARGE_BOX", 1000)
    np.testing.assert_array_equal(
        _locations(label, (-2,))["1"], found
    )  # slice by slice: the same voxels


def test_view_shares_the_store(raw, tmp_path):
    corpus, cases = read_corpus(raw)
    view = corpus.view(["tumour"])
    prepare(view, cases, plan_of(corpus), tmp_path / "s")
    again = prepare(corpus, cases, plan_of(corpus), tmp_path / "s")
    assert again.skipped == 3 and prepared(tmp_path / "s", corpus).meta["voxels"].keys() == {
        "0",
        "1",
        "2",
    }


def test_unlabelled_case(raw, tmp_path):
    corpus, cases = read_corpus(raw)
    prepare(corpus, [dataclasses.replace(cases[0], label=None)], plan_of(corpus), tmp_path / "s")
    case = prepared(tmp_path / "s", corpus)
    assert case.meta["labelled"] is False and not case.label().any() and len(case.locations) == 0


def test_turned_files_give_the_same_store(tmp_path):
    stores = []
    for codes in ("RAS", "PIR"):
        corpus, cases = read_corpus(
            write_corpus(tmp_path / codes, 1, SHAPE, spacing_mm=(2, 1, 1.5), axcodes=codes)
        )
        prepare(corpus, cases, plan_of(corpus, (1.0, 1.0, 1.0)), tmp_path / "s")
        stores.append(prepared(tmp_path / "s", corpus))
    np.testing.assert_allclose(values(stores[0]), values(stores[1]), atol=1e-4)
    np.testing.assert_array_equal(stores[0].label(), stores[1].label())


# ---------------------------------------------------------------- what is outdated


def test_only_what_changed_is_made_again(raw, tmp_path):
    corpus, cases = read_corpus(raw)
    root, plan = tmp_path / "s", plan_of(corpus)
    prepare(corpus, cases, plan, root)
    stamps = {
        name: (root / "A" / name / "case.json").stat().st_mtime_ns
        for name in store.list_cases(root, "A")
    }
    again = prepare(corpus, cases, plan, root)
    assert again.ok == [] and again.skipped == 3 and again.stale == {}
    assert stamps == {name: (root / "A" / name / "case.json").stat().st_mtime_ns for name in stamps}

    os.utime(cases[0].images[0], (1, 1))  # touched, not changed
    assert prepare(corpus, cases, plan, root).skipped == 3
    old = prepared(root, corpus, "case_001")
    before = old.image().copy()
    image = load(cases[1], corpus)[0].array[..., 0].copy()
    image[0] += 100
    save(raw / "imagesTr" / "case_001.nii.gz", image)
    result = prepare(corpus, cases, plan, root)
    assert (
        result.ok == ["case_001"]
        and result.skipped == 2
        and result.stale == {"case_001": "sources"}
    )
    assert not np.array_equal(prepared(root, corpus, "case_001").image(), before)  # no stale handle

    result = prepare(corpus, cases, plan_of(corpus, (2.0, 1.0, 1.0)), root)
    assert len(result.ok) == 3 and set(result.stale.values()) == {"plan"}
    assert prepared(root, corpus, "case_001").image().shape == (6, 15, 13, 1)

    more = dataclasses.replace(corpus, labels=(*corpus.labels, (7, ("new",))), annotated=())
    result = prepare(more, cases, plan_of(corpus, (2.0, 1.0, 1.0)), root)
    assert set(result.stale.values()) == {"labels"}
    assert prepare(more, cases, plan_of(corpus, (2.0, 1.0, 1.0)), root, force=True).ok == [
        "case_000",
        "case_001",
        "case_002",
    ]
    assert leftovers(root) == []


def test_a_patient_or_modality_is_only_rewritten(raw, tmp_path):
    corpus, cases = read_corpus(raw)
    prepare(corpus, cases[:1], plan_of(corpus), tmp_path / "s")
    result = prepare(
        corpus,
        [dataclasses.replace(cases[0], patient="p9", modality="PET")],
        plan_of(corpus),
        tmp_path / "s",
    )
    meta = prepared(tmp_path / "s", corpus).meta
    assert result.skipped == 1 and (meta["patient"], meta["modality"]) == ("p9", "PET")


def test_a_store_of_another_version_is_refused_and_made_again(raw, tmp_path):
    corpus, cases = read_corpus(raw)
    prepare(corpus, cases[:1], plan_of(corpus), tmp_path / "s")
    path = tmp_path / "s" / "A" / "case_000" / "case.json"
    meta = json.loads(path.read_text())
    path.write_text(
        json.dumps(meta | {"version": 1, "inputs": meta["inputs"] | {"version": 1}, "key": "old"})
    )
    with pytest.raises(
        DataError, match=r"another version of medjax; found 1; expected 2.*medjax prepare"
    ):
        prepared(tmp_path / "s", corpus).meta  # noqa: B018
    assert prepare(corpus, cases[:1], plan_of(corpus), tmp_path / "s").stale == {
        "case_000": "version"
    }
    assert prepared(tmp_path / "s", corpus).meta["version"] == store.VERSION


def test_damaged_case_json_is_made_again(raw, tmp_path):
    corpus, cases = read_corpus(raw)
    prepare(corpus, cases[:1], plan_of(corpus), tmp_path / "s")
    (tmp_path / "s" / "A" / "case_000" / "case.json").write_text("{")
    with pytest.raises(DataError, match=r"case\.json is damaged"):
        prepared(tmp_path / "s", corpus).meta  # noqa: B018
    assert prepare(corpus, cases[:1], plan_of(corpus), tmp_path / "s").ok == ["case_000"]


# ---------------------------------------------------------------- what goes wrong


def test_one_bad_case_does_not_stop_the_others(raw, tmp_path):
    corpus, cases = read_corpus(raw)
    image = raw / "imagesTr" / "case_001.nii.gz"
    image.write_bytes(image.read_bytes()[:200])
    label = load(cases[2], corpus)[1]
    label[1, 2, 3] = 77
    save(raw / "labelsTr" / "case_002.nii.gz", label)
    result = prepare(corpus, cases, plan_of(corpus), tmp_path / "s")
    assert result.ok == ["case_000"] == store.list_cases(tmp_path / "s", "A")
    first, second = result.failed
    assert (
        first["case"] == "case_001"
        and "truncated" in first["message"]
        and first["path"] == str(image)
    )
    assert (
        second["error"] == "LabelError"
        and "77 (1 voxels, first at (1, 2, 3) z, y, x)" in second["found"]
    )
    assert leftovers(tmp_path / "s") == []


def test_an_outdated_case_that_fails_is_taken_away(raw, tmp_path):
    corpus, cases = read_corpus(raw)
    prepare(corpus, cases, plan_of(corpus), tmp_path / "s")
    (raw / "imagesTr" / "case_001.nii.gz").write_bytes(b"gone")
    assert [f["case"] for f in prepare(corpus, cases, plan_of(corpus), tmp_path / "s").failed] == [
        "case_001"
    ]
    assert store.list_cases(tmp_path / "s", "A") == ["case_000", "case_002"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), MemoryError(), ValueError("odd")]
)
def test_a_full_disk_leaves_nothing_under_a_final_name(raw, tmp_path, monkeypatch, error):
    corpus, cases = read_corpus(raw)
    write = store.write_array

    def full(path, array, packed=False):
        if path.name == "label.zarr" and "case_001" in str(path):
            raise error
        write(path, array, packed)

    monkeypatch.setattr(store, "write_array", full)
    result = prepare(corpus, cases, plan_of(corpus), tmp_path / "s")
    assert result.ok == ["case_000", "case_002"] == store.list_cases(tmp_path / "s", "A")
    failed = result.failed[0]
    if isinstance(error, OSError):
        assert (
            failed["error"] == "WriteError"
            and failed["path"] == str(tmp_path / "s" / "A" / "case_001")
            and "free some space" in failed["fix"]
        )
        assert "No space left on device" in failed["message"] and "traceback" not in failed
    else:
        assert failed["error"] == type(error).__name__ and "full" in failed["traceback"]
    assert leftovers(tmp_path / "s") == []


def test_usage_errors_come_first(raw, tmp_path):
    corpus, cases = read_corpus(raw)
    with pytest.raises(UsageError, match="does not cover corpus 'A'"):
        prepare(corpus, cases, Plan({}, {"MRI": Intensity("zscore")}), tmp_path / "s")
    with pytest.raises(UsageError, match="does not cover channel 'MRI'"):
        prepare(corpus, cases, Plan({"A": (1.0, 1.0, 1.0)}, {}), tmp_path / "s")
    with pytest.raises(UsageError, match="unusable case name"):
        prepare(
            corpus, [dataclasses.replace(cases[0], name="../x")], plan_of(corpus), tmp_path / "s"
        )
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="the store cannot be made"):
        prepare(corpus, cases, plan_of(corpus), tmp_path / "file")
    with pytest.raises(UsageError, match="medjax prepare"):
        store.list_cases(tmp_path, "nothing")
    with pytest.raises(DataError, match="medjax prepare"):
        store.open_case(tmp_path / "nothing")


def test_wrong_number_of_channels(raw, tmp_path):
    corpus, cases = read_corpus(raw)
    two = dataclasses.replace(corpus, channels=("MRI", "T2"))
    result = prepare(two, cases[:1], plan_of(two), tmp_path / "s")
    assert (
        "wrong number of channels" in result.failed[0]["message"]
        and result.failed[0]["expected"] == "2 (MRI, T2)"
    )


# ---------------------------------------------------------------- threads, kills, rivals


def test_memory_gate():
    gate, inside, most = MemoryGate(100), [], []

    def work(case):
        with gate(60):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    outcomes = each(work, [case_tools.Case(str(i), ("absent",)) for i in range(6)], workers=4)
    assert max(most) == 1 and all(o.failure is None for o in outcomes)
    with gate(1000):  # alone, anything may enter
        assert gate.used == 1000
    assert gate.used == 0


def test_bytes_needed(raw):
    case = read_corpus(raw)[1][0]
    voxels = 12 * 14 * 13
    assert (
        bytes_needed(case) >= voxels * 12 and bytes_needed(case, (0.5, 0.5, 0.5)) > 8 * 8 * voxels
    )
    assert bytes_needed(dataclasses.replace(case, images=("/absent.nii.gz",))) == 0
    assert case_tools.free_memory() > 1 << 27


SCRIPT = """
import os, signal, sys
from medjax.prepare import store
from medjax.prepare.plan import Intensity, Plan
from medjax.prepare.prepare import prepare
from medjax.corpora.sources import read_corpus
folder, root, when = sys.argv[1], sys.argv[2], sys.argv[3]
corpus, cases = read_corpus(folder)
written, write = [], store.write_array
def counted(path, array, packed=False):
    write(path, array, packed)
    written.append(path)
    if when == "writing" and len(written) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
def progress(done, total, name, status):
    if when == "between" and done == 2:
        os.kill(os.getpid(), signal.SIGKILL)
store.write_array = counted
plan = Plan({"A": (1.0, 1.0, 1.0)}, {"MRI": Intensity("zscore")})
result = prepare(corpus, cases, plan, root, workers=2, progress=progress)
print(len(result.ok), result.skipped, len(result.failed))
"""


@pytest.mark.parametrize("when", ["writing", "between"])
def test_killed_and_resumed(tmp_path, when, repository):
    folder, root = write_corpus(tmp_path / "A", 6, SHAPE), tmp_path / "s"
    command = [sys.executable, "-c", SCRIPT, str(folder), str(root), when]
    killed = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    done = store.list_cases(root, "A")
    assert len(done) < 6 and (len(done) >= 2 or when == "writing")
    for name in done:  # complete
        case = store.open_case(root / "A" / name)
        assert (
            case.image().shape == (*case.meta["shape"], 1)
            and case.label().any()
            and len(case.locations) == 2
        )
    assert {p.name for p in (root / "A").iterdir() if not p.name.startswith(".")} == set(done)
    corpus, cases = read_corpus(folder)
    result = prepare(corpus, cases, plan_of(corpus), root)
    assert result.skipped == len(done) and set(result.ok) == {c.name for c in cases} - set(done)
    assert leftovers(root) == [] and result.failed == []


def test_two_processes_share_a_store(tmp_path, repository):
    folder, root = write_corpus(tmp_path / "A", 6, SHAPE), tmp_path / "s"
    command = [sys.executable, "-c", SCRIPT, str(folder), str(root), "never"]
    rivals = [
        subprocess.Popen(
            command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [rival.communicate(timeout=120) for rival in rivals]
    assert [rival.returncode for rival in rivals] == [0, 0], outputs
    for out, _ in outputs:
        ok, skipped, failed = map(int, out.split())
        assert ok + skipped == 6 and failed == 0
    assert len(store.list_cases(root, "A")) == 6 and leftovers(root) == []


def test_rival_with_the_same_result_and_with_another(raw, tmp_path, monkeypatch):
    """Another process gives the case its name while ours is being written."""
    corpus, cases = read_corpus(raw)
    root, write = tmp_path / "s", store.write_case
    for spacing, other in (((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)), ((2.0, 1.0, 1.0), (3.0, 1.0, 1.0))):

        def late(*args, other=other, **how):
            write(*args, **how)
            monkeypatch.setattr(store, "write_case", write)
            prepare(corpus, cases[:1], plan_of(corpus, other), root, locked=False)

        monkeypatch.setattr(store, "write_case", late)
        assert prepare(corpus, cases[:1], plan_of(corpus, spacing), root).ok == ["case_000"]
        assert prepared(root, corpus).meta["spacing_mm"] == list(spacing) and leftovers(root) == []


def test_store_opens_without_jax(repository):
    script = (
        "import sys, medjax.prepare.prepare, medjax.corpora.verify; print([m for m in "
        "('jax', 'tensorstore', 'grain') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", script], cwd=repository, capture_output=True, text=True, check=True
    ).stdout
    assert out.strip() == "[]"


# ---------------------------------------------------------------- real scans and the reference


@pytest.mark.data
def test_real_hearts(real_data, tmp_path):
    corpus, cases = read_corpus(real_data / "Task02_Heart")
    plan = make_plan({"Heart": fingerprint(corpus, cases[:3], samples=1000)}, spacing=(4, 4, 4))
    result = prepare(corpus, cases[:3], plan, tmp_path)
    assert result.failed == [] and len(result.ok) == 3
    case = store.open_case(tmp_path / "Heart" / cases[0].name)
    raw = load(cases[0], corpus)[1]
    volume = case.meta["voxels"]["1"] * 64 / ((raw == 1).sum() * 2.74 * 2.5 * 2.5)
    assert volume == pytest.approx(1, abs=0.02)  # the structure keeps its millilitres


def reference(images, label, spacing, intensities, schemes, folder):
    """nnU-Net v2's own preprocessor on one case: image (z, y, x, m) and labels, stored axes,
    nothing transposed.
    """
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    def resampling(order):
        return {"is_seg": order == 1, "order": order, "order_z": 0, "force_separate_z": None}

    configuration = {
        "architecture": {},
        "patch_size": [8, 8, 8],
        "spacing": list(spacing),
        "normalization_schemes": schemes,
        "use_mask_for_norm": [False] * len(schemes),
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling(3),
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": resampling(1),
    }
    plans = PlansManager(
        {
            "dataset_name": "A",
            "plans_name": "p",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "foreground_intensity_properties_per_channel": intensities,
            "label_manager": "LabelManager",
            "image_reader_writer": "SimpleITKIO",
            "configurations": {"3d_fullres": configuration},
        }
    )
    data, properties = SimpleITKIO().read_images([str(p) for p in images])
    seg, _ = SimpleITKIO().read_seg(str(label))
    described = {
        "labels": {"background": 0, "a": 1, "b": 2},
        "channel_names": {"0": "x"},
        "file_ending": ".nii.gz",
    }
    image, seg, _ = DefaultPreprocessor(verbose=False).run_case_npy(
        data, seg, properties, plans, plans.get_configuration("3d_fullres"), described
    )
    return np.moveaxis(image, 0, -1), np.maximum(seg[0], 0)


def assert_equal_to_reference(case, expected, labels, fraction=1e-3):
    spread = np.ptp(expected)
    found = values(case)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= fraction * spread
    assert (case.label() == labels).mean() > 0.9999


@pytest.mark.parity
@pytest.mark.data
@pytest.mark.parametrize("index", [0, 100])
def test_hippocampus_equals_nnunet(real_data, tmp_path, index):
    pytest.importorskip("nnunetv2")
    corpus, cases = read_corpus(real_data / "Task04_Hippocampus")
    case, spacing = cases[index], (0.8, 1.3, 0.9)
    prepare(
        corpus,
        [case],
        dataclasses.replace(plan_of(corpus, spacing), orientation="stored"),
        tmp_path,
    )
    expected, labels = reference(
        case.images, case.label, spacing, {"0": {}}, ["ZScoreNormalization"], tmp_path
    )
    assert_equal_to_reference(
        store.open_case(tmp_path / "Hippocampus" / case.name), expected, labels
    )


@pytest.mark.parity
@pytest.mark.parametrize(
    ("native", "spacing"), [((5.0, 0.8, 0.8), (3.5, 1.0, 0.7)), ((2.0, 1.0, 1.0), (1.3, 1.1, 1.0))]
)
def test_ct_equals_nnunet(tmp_path, native, spacing):
    pytest.importorskip("nnunetv2")
    folder = write_corpus(
        tmp_path / "A",
        1,
        (14, 40, 36),
        channels=("CT",),
        spacing_mm=native,
        axcodes="LPS",
        margin=1,
    )
    corpus, cases = read_corpus(folder)
    plan = make_plan(
        {"A": fingerprint(corpus, cases, samples=10_000)}, spacing=spacing, orientation="stored"
    )
    prepare(corpus, cases, plan, tmp_path / "s")
    found = plan.intensity["CT"]
    numbers = {
        "mean": found.mean,
        "std": found.std,
        "percentile_00_5": found.clip[0],
        "percentile_99_5": found.clip[1],
    }
    expected, labels = reference(
        cases[0].images, cases[0].label, spacing, {"0": numbers}, ["CTNormalization"], tmp_path
    )
    assert_equal_to_reference(prepared(tmp_path / "s", corpus), expected, labels)
