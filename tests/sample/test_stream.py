"""The stream: enlarged patches, bounds, probabilities, forced foreground, padding, resume, hosts,
threads, workers, errors.
"""

import functools
import itertools
import shutil
import threading

import numpy as np
import pytest

from medjax.errors import DataError, UsageError
from medjax.prepare import store
from medjax.sample import draw as samples
from medjax.sample import patches
from medjax.sample.stream import (
    Pool,
    Recipe,
    Samples,
    case_probabilities,
    corpus_probabilities,
    dataset,
    enlarged_patch,
    stream,
)

SHAPE = (12, 14, 10)
N_TRAIN = (104, 50, 224, 242, 32, 100, 24, 24, 58, 40, 32, 65, 168)  # MultiTalent, fold 0
P_CORPUS = (
    0.089560,
    0.062099,
    0.131439,
    0.136618,
    0.049679,
    0.087821,
    0.043023,
    0.043023,
    0.066883,
    0.055543,
    0.049679,
    0.070804,
    0.113829,
)
P_CASE = (
    8.61157e-4,
    1.241978e-3,
    5.86780e-4,
    5.64536e-4,
    1.552473e-3,
    8.78211e-4,
    1.792641e-3,
    1.792641e-3,
    1.153148e-3,
    1.388574e-3,
    1.552473e-3,
    1.089287e-3,
    6.77555e-4,
)


def write(folder, number, shape=SHAPE, channels=1, ids=(1, 2)):
    """A case whose voxels tell where they are: value = 1000 number + running index; one cube of 8
    voxels per id.
    """
    folder.mkdir(parents=True)
    image = np.arange(np.prod(shape), dtype=np.int16).reshape(*shape, 1) + np.int16(1000 * number)
    label = np.zeros(shape, np.uint8)
    for k, i in enumerate(ids):
        label[1 + 3 * k : 3 + 3 * k, 2:4, 1:3] = i
    locations = {str(i): np.argwhere(label == i).astype(np.int32) for i in ids}
    meta = {
        "name": folder.name,
        "shape": list(shape),
        "spacing_mm": [2.0, 1.0, 0.5],
        "gain": [0.5] * channels,
        "bias": [3.2 + c for c in range(channels)],
        "voxels": {str(i): int((label == i).sum()) for i in (0, *ids)},
    }
    store.write_case(
        folder,
        np.concatenate([image + np.int16(c) for c in range(channels)], -1),
        label,
        locations,
        meta,
    )


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    """Two corpora, 4 cases and 1 case; id 2 of the second is hidden by a view, and its case also
    lacks id 3.
    """
    root = tmp_path_factory.mktemp("store")
    for n in range(4):
        write(root / "many" / f"case_{n}", n)
    write(root / "one" / "case_9", 9)
    many = Pool(0, str(root / "many"), tuple(store.list_cases(root, "many")), (1, 2), 0)
    return many, Pool(1, str(root / "one"), ("case_9",), (1, 3), 1)


RECIPE = Recipe((6, 6, 6), 4, seed=3)


def take(n, pools, recipe=RECIPE, **how):
    batches = stream(pools, recipe, **how)
    out = list(itertools.islice(batches, n))
    batches.close()
    return out


def same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_array_equal(x[name], y[name], err_msg=name)


@pytest.mark.parametrize(
    ("patch", "cut"),
    [
        ((96, 192, 192), (210, 308, 252)),
        ((128, 128, 128), (205, 205, 205)),
        ((40, 56, 40), (73, 80, 64)),
        ((192, 192, 192), (308, 308, 308)),
        ((112, 256, 224), (264, 392, 294)),
        ((20, 320, 256), (20, 376, 376)),
        ((256, 256), (301, 301)),
        ((56, 40), (65, 65)),
        ((320, 100), (394, 117)),
    ],
)
def test_enlarged_patch(patch, cut):
    """3D at 30 degrees from nnU-Net; (20, 320, 256) is thin; 2D turns within the plane by 90 (180
    capped) or, if oblong, 15 degrees.
    """
    assert enlarged_patch(patch) == cut


@pytest.mark.parity
def test_parity_enlarged_patch_and_bounds():
    peer = pytest.importorskip(
        "nnunetv2.training.data_augmentation.compute_initial_patch_size"
    ).get_patch_size
    rng = np.random.default_rng(0)
    for axes, _ in itertools.product((2, 3), range(20)):
        patch = tuple(int(v) for v in rng.integers(8, 300, axes))
        limit = patches.rotation_limit(patch)
        wanted = peer(patch, *[(-limit, limit)] * 3, (0.85, 1.25))
        wanted[0] = patch[0] if patches.is_anisotropic(patch) else wanted[0]
        assert enlarged_patch(patch) == tuple(wanted)


def test_start_bounds_by_hand():
    # need 33, 24, 24: lower floor(-need / 2), upper image + floor(need / 2) + need mod 2 - cut
    low, high = patches.start_bounds((100, 90, 80), (73, 80, 64), (40, 56, 40))
    assert low.tolist() == [-17, -12, -12] and high.tolist() == [
        100 + 16 + 1 - 73,
        90 + 12 - 80,
        80 + 12 - 64,
    ]
    # a case smaller than the cut: need becomes cut - image
    low, high = patches.start_bounds((10, 10, 10), (73, 80, 64), (40, 56, 40))
    assert low.tolist() == [-32, -35, -27] and high.tolist() == [
        10 + 31 + 1 - 73,
        10 + 35 - 80,
        10 + 27 - 64,
    ]
    assert patches.centred_start(
        (0, 50, 79), (100, 90, 80), (73, 80, 64), (40, 56, 40)
    ).tolist() == [-17, 10, 47]
    starts = np.array(
        [
            patches.random_start(np.random.default_rng(k), (8, 9, 9), (4, 4, 4), (4, 4, 3))
            for k in range(300)
        ]
    )
    assert starts.min(0).tolist() == [0, 0, -1] and starts.max(0).tolist() == [4, 5, 6]


def test_multitalent_probabilities():
    np.testing.assert_allclose(corpus_probabilities(N_TRAIN), P_CORPUS, atol=5.1e-7)
    np.testing.assert_allclose(case_probabilities(N_TRAIN), P_CASE, atol=5.1e-10)
    np.testing.assert_allclose(corpus_probabilities((30, 10), 0.0), (0.75, 0.25))
    np.testing.assert_allclose(corpus_probabilities((30, 10), 1.0), (0.5, 0.5))
    # CT and MR of one data set: together sqrt(40 + 9) beside sqrt(36), shared by their cases
    np.testing.assert_allclose(
        corpus_probabilities((40, 36, 9), 0.5, ("a", "", "a")) * 13, (7 * 40 / 49, 6, 7 * 9 / 49)
    )


@pytest.mark.parametrize("draw", ["iid", "mix"])
def test_mixture_frequencies(pools, draw):
    """4 cases against 1 with exponent 0.5: corpora 2 to 1, cases of the first 1/6 each."""
    batches = take(300, pools, Recipe((1, 1, 1), 8, draw=draw, foreground=0.0))
    cases = np.concatenate([b["case"] for b in batches])
    share = np.bincount(cases, minlength=5) / cases.size
    np.testing.assert_allclose(share, [1 / 6] * 4 + [1 / 3], atol=0.04 if draw == "iid" else 2e-3)
    assert {
        (int(c), int(k), int(m))
        for b in batches
        for c, k, m in zip(b["case"], b["corpus"], b["modality"], strict=True)
    } == {
        (0, 0, 0),
        (1, 0, 0),
        (2, 0, 0),
        (3, 0, 0),
        (4, 1, 1),
    }
    drawn = np.stack([np.bincount(b["case"], minlength=5)[:4] for b in batches]).cumsum(0)
    evenly = np.ptp(drawn, 1) <= 1  # without replacement: no case is ahead by more than one epoch
    assert evenly.all() if draw == "mix" else evenly.mean() < 0.3


def test_patches_are_what_the_store_holds(pools):
    """Values, labels, padding, gain, bias and spacing of every sample, from the value that names
    its voxel.
    """
    for batch in take(12, pools, Recipe((7, 9, 15), 4, final=(5, 6, 9), seed=1)):
        for b in range(4):
            number = {0: 0, 1: 1, 2: 2, 3: 3, 4: 9}[int(batch["case"][b])]
            image, label = batch["image"][b, ..., 0].astype(int), batch["label"][b]
            inside = label >= 0
            assert (
                inside.any() and (image[~inside] == -6).all()
            )  # -6 * 0.5 + 3.2 = 0.2 is the nearest to 0
            where = np.argwhere(inside)
            start = np.array(np.unravel_index(image[inside][0] - 1000 * number, SHAPE)) - where[0]
            index = np.ravel_multi_index(tuple((where + start).T), SHAPE)
            np.testing.assert_array_equal(image[inside] - 1000 * number, index)
            whole = np.zeros(SHAPE, int)
            whole[1:3, 2:4, 1:3], whole[4:6, 2:4, 1:3] = 1, 2
            np.testing.assert_array_equal(label[inside], whole.ravel()[index])
            assert inside.sum() == np.prod(
                np.minimum(start + np.array([7, 9, 15]), SHAPE) - np.maximum(start, 0)
            )
        assert {k: (v.dtype, v.shape) for k, v in batch.items()} == {
            "image": (np.int16, (4, 7, 9, 15, 1)),
            "label": (np.int16, (4, 7, 9, 15)),
            "gain": (np.float32, (4, 1)),
            "bias": (np.float32, (4, 1)),
            "corpus": (np.int32, (4,)),
            "modality": (np.int32, (4,)),
            "case": (np.int32, (4,)),
            "spacing_mm": (np.float32, (4, 3)),
        }
        assert (
            (batch["gain"] == 0.5).all()
            and np.allclose(batch["bias"], 3.2)
            and (batch["spacing_mm"] == (2, 1, 0.5)).all()
        )


def test_patch_larger_than_the_volume_in_every_axis(pools):
    for batch in take(3, pools, Recipe((30, 31, 32), 3, foreground=0.5)):
        inside = batch["label"] >= 0
        assert (
            inside.sum((1, 2, 3)) == np.prod(SHAPE)
        ).all()  # the whole case, and padding around it
        assert (batch["image"][..., 0][~inside] == -6).all()


def test_forced_share_is_exact_and_only_of_visible_classes(pools):
    assert [samples.forced_positions(b, 0.33) for b in (1, 2, 3, 4, 8, 9, 12)] == [
        1,
        1,
        2,
        3,
        5,
        6,
        8,
    ]
    recipe = Recipe((1, 1, 1), 4)  # a patch of the forced voxel itself
    batches = take(150, pools, recipe)
    forced = np.concatenate([b["label"][3:].ravel() for b in batches])
    corpus = np.concatenate([b["corpus"][3:] for b in batches])
    assert (forced > 0).all()  # the last of four, always
    assert set(forced[corpus == 1]) == {1}  # id 2 is hidden by the view, id 3 is not in the case
    assert set(forced[corpus == 0]) == {1, 2} and 0.3 < (forced[corpus == 0] == 1).mean() < 0.7
    free = np.concatenate([b["label"][:3].ravel() for b in batches])
    assert (free > 0).mean() < 0.05  # 16 of 1680 voxels


def test_probabilistic_oversampling(pools):
    batches = take(200, pools, Recipe((1, 1, 1), 4, foreground=0.5, oversample="probabilistic"))
    hit = np.stack([b["label"].ravel() > 0 for b in batches])
    assert abs(hit.mean() - 0.505) < 0.07 and hit.mean(0).min() > 0.35  # every position alike


def test_cases_without_foreground_are_cut_at_random(tmp_path):
    write(tmp_path / "empty", 0, ids=())
    (batch,) = take(
        1, [Pool(0, str(tmp_path), ("empty",), (1, 2), 0)], Recipe((3, 3, 3), 5, foreground=1.0)
    )
    assert np.unique(batch["image"][:, 0, 0, 0, 0]).size > 1 and (batch["label"] == 0).all()


def test_class_balance_finds_rare_classes(tmp_path):
    for n in range(6):
        write(tmp_path / f"c{n}", n, ids=(1, 2) if n == 5 else (1,))
    pool = Pool(0, str(tmp_path), tuple(f"c{n}" for n in range(6)), (1, 2), 0)
    share = {}
    for balance in ("case", "class"):
        batches = take(60, [pool], Recipe((1, 1, 1), 4, foreground=1.0, balance=balance))
        share[balance] = (np.concatenate([b["label"].ravel() for b in batches]) == 2).mean()
    assert abs(share["case"] - 1 / 12) < 0.06 and abs(share["class"] - 1 / 2) < 0.12


def test_draws_by_class_share_the_voxels_of_nested_classes(tmp_path):
    """Ids 1 (organ), 2 (organ and tumour), 3 (cyst), of 8 voxels each: by set each gets a third, by
    class the organ's third is shared.
    """
    write(tmp_path / "c", 0, ids=(1, 2, 3))
    pool = Pool(0, str(tmp_path), ("c",), (1, 2, 3), 0, classes=((1, 2), (2,), (3,)))
    for by, wanted in (("set", (1 / 3, 1 / 3, 1 / 3)), ("class", (1 / 6, 1 / 2, 1 / 3))):
        for balance in ("case", "class"):
            batches = take(
                120, [pool], Recipe((1, 1, 1), 4, foreground=1.0, by=by, balance=balance)
            )
            labels = np.concatenate([b["label"].ravel() for b in batches])
            share = [(labels == i).mean() for i in (1, 2, 3)]
            np.testing.assert_allclose(
                share, wanted, atol=0.09
            )  # four standard deviations of 480 draws


def test_voxels_outside_the_normalisation_mask_are_padding(tmp_path):
    import json

    write(tmp_path / "c", 0)
    path = tmp_path / "c" / "case.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"outside_id": 2}))
    (batch,) = take(1, [Pool(0, str(tmp_path), ("c",), (1,), 0)], Recipe(SHAPE, 2, foreground=0.0))
    assert batch["label"].dtype == np.int16 and set(np.unique(batch["label"])) == {-1, 0, 1}


def test_two_dimensions(pools):
    batches = take(60, pools, Recipe((1, 1), 4, dims=2))
    assert (
        batches[0]["image"].shape == (4, 1, 1, 1)
        and batches[0]["label"].shape == (4, 1, 1)
        and batches[0]["spacing_mm"].shape == (4, 3)
    )
    assert all((b["label"][3:] > 0).all() for b in batches)  # the voxel's own slice
    large = take(40, pools, Recipe((20, 6), 4, dims=2, final=(12, 4)))
    rows = np.concatenate([b["label"] for b in large])
    assert rows.shape == (160, 20, 6) and (rows >= 0).any((1, 2)).all()
    values = np.concatenate(
        [
            b["image"][..., 0] - 1000 * np.where(b["case"] == 4, 9, b["case"])[:, None, None]
            for b in large
        ]
    )
    z = {int(v[r >= 0][0]) // 140 for v, r in zip(values, rows, strict=True)}
    assert z == set(range(12))  # every slice is drawn


def test_several_channels_and_their_padding(tmp_path):
    write(tmp_path / "two", 0, channels=2)
    (batch,) = take(1, [Pool(0, str(tmp_path), ("two",), (1,), 0)], Recipe((20, 20, 20), 2))
    outside = batch["label"] < 0
    assert (
        batch["image"][outside] == (-6, -8)
    ).all()  # bias 3.2 and 4.2 at gain 0.5: -6.4 and -8.4
    np.testing.assert_array_equal(
        batch["image"][~outside][:, 1], batch["image"][~outside][:, 0] + 1
    )


@pytest.mark.parametrize("draw", ["iid", "mix"])
def test_resume_threads_and_random_access(pools, draw):
    recipe = Recipe((6, 6, 6), 4, draw=draw, seed=3)
    whole = take(9, pools, recipe)
    same(take(4, pools, recipe, start=5), whole[5:])
    same(take(9, pools, recipe, threads=0), whole)
    same(take(9, pools, recipe, threads=5), whole)
    same([dataset(pools, recipe)[k] for k in (8, 0)], [whole[8], whole[0]])
    assert not np.array_equal(
        take(1, pools, Recipe((6, 6, 6), 4, draw=draw, seed=4))[0]["image"], whole[0]["image"]
    )


@pytest.mark.parametrize("draw", ["iid", "mix"])
def test_two_hosts_share_the_batches_of_one(pools, draw):
    recipe = Recipe((6, 6, 6), 4, draw=draw)
    one = take(6, pools, recipe)
    two = [take(6, pools, recipe, host=h, hosts=2) for h in (0, 1)]
    for h in (0, 1):
        same(two[h], [{name: value[h::2] for name, value in batch.items()} for batch in one])
    same(take(2, pools, recipe, host=1, hosts=2, start=4), two[1][4:])


def test_memory_cache_changes_nothing(pools, monkeypatch):
    reads, here = [], threading.get_ident()

    def note(slices):
        if threading.get_ident() == here:  # other streams' threads may still be reading ahead
            reads.append(slices)

    real = store.StoredCase.image
    monkeypatch.setattr(
        store.StoredCase, "image", lambda self, slices: note(slices) or real(self, slices)
    )
    held = take(5, pools, threads=0)
    assert len(reads) == len({int(c) for b in held for c in b["case"]})  # every case once, whole
    reads.clear()
    same(take(5, pools, threads=0, cache_bytes=0), held)
    assert (
        len(reads) == 20 and max(s.stop - s.start for slices in reads for s in slices) <= 6
    )  # every patch, and no more than it
    assert min(s.start for slices in reads for s in slices) >= 0
    reads.clear()
    case_bytes = int(np.prod(SHAPE)) * 4
    same(take(5, pools, threads=0, cache_bytes=2 * case_bytes), held)  # room for two of five cases
    assert 2 < len(reads) < 20
    reads.clear()
    monkeypatch.setattr(samples, "SMALL_CASE_BYTES", case_bytes - 1)
    same(take(5, pools, threads=0), held)
    assert len(reads) == 20  # large cases are never held


@pytest.mark.slow
def test_worker_processes_change_nothing(pools):
    whole = take(6, pools)
    for workers in (1, 2, 3):
        same(take(4, pools, workers=workers, start=2), whole[2:])


@pytest.mark.parametrize(
    "how", [{"threads": 0}, {"threads": 3}, pytest.param({"workers": 1}, marks=pytest.mark.slow)]
)
def test_a_bad_case_is_named(tmp_path, pools, how):
    shutil.copytree(pools[1].folder, tmp_path / "one")
    for chunk in (tmp_path / "one" / "case_9" / "label.zarr" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"not a chunk")
    bad = Pool(1, str(tmp_path / "one"), ("case_9",), (1,), 1)
    with pytest.raises(
        DataError, match=r"label\.zarr cannot be read: 11 bytes, expected"
    ) as caught:
        take(1, [bad], **how)
    assert str(tmp_path / "one" / "case_9") in str(caught.value)
    with pytest.raises(DataError, match="no prepared case") as caught:
        take(1, [Pool(0, str(tmp_path), ("gone",), (1,), 0)], **how)
    assert str(tmp_path / "gone") in str(caught.value)


def test_any_other_failure_names_the_case_too(pools, monkeypatch):
    def fail(self, slices, **how):
        raise RuntimeError("disk on fire")

    monkeypatch.setattr(store.StoredCase, "label", fail)
    with pytest.raises(DataError, match=r"case_\d: cannot cut a patch: RuntimeError: disk on fire"):
        take(1, pools)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"draw": "idd"}, "did you mean iid"),
        ({"oversample": "first"}, "unknown oversample"),
        ({"dims": 4}, "unknown dims"),
        ({"patch": (4, 4)}, "wrong sides"),
        ({"final": (4, 4, 0)}, "wrong sides"),
        ({"foreground": 1.2}, "out of range"),
        ({"batch": 0}, "out of range"),
        ({"balance": "class", "draw": "mix"}, "chooses the case itself"),
    ],
)
def test_impossible_recipes(change, message):
    with pytest.raises(UsageError, match=message):
        Recipe(**({"patch": (4, 4, 4), "batch": 2} | change))


def test_impossible_streams(pools):
    for broken, message in [
        (functools.partial(stream, [], RECIPE), "nothing to draw from"),
        (functools.partial(stream, [Pool(0, "x", (), (1,), 0)], RECIPE), "pool without cases"),
        (functools.partial(stream, pools, RECIPE, host=2, hosts=2), "no such host"),
        (functools.partial(stream, pools, RECIPE, hosts=3), "divide among the hosts"),
        (functools.partial(stream, pools, RECIPE, start=-1), "cannot be negative"),
    ]:
        with pytest.raises(UsageError, match=message):
            broken()


def test_the_sample_depends_on_seed_and_number_only(pools):
    recipe, number = Recipe((4, 4, 4), 4, seed=11), 123_456_789_012
    one, other = (
        Samples(pools, recipe),
        Samples(pools, Recipe((4, 4, 4), 4, seed=11), cache_bytes=0),
    )
    other(5), other(6)
    same([one(number)], [other(number)])
