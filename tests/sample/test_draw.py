"""Versions of the draw: 1 is what it was, and a newer one changes no run that began with it;
whole cases among the patches.
"""

import dataclasses
import hashlib
import itertools
import types

import numpy as np
import pytest

from medjax.augment.movement import Movement
from medjax.errors import UsageError
from medjax.prepare import prepare, store
from medjax.sample import draw
from medjax.sample.stream import Pool, Recipe, Samples, choices, stream
from tests.sample.test_stream import RECIPE, same, take, write

# hash of the first six batches of version 1, computed by commit 11fea70
VERSION_1 = {
    "iid": ({"patch": (6, 6, 6), "seed": 3}, "e50f0737b2ce47bd"),
    "mix": ({"patch": (6, 6, 6), "seed": 3, "draw": "mix"}, "074b5fdaec3d2ccb"),
    "probabilistic": (
        {
            "patch": (6, 6, 6),
            "seed": 3,
            "oversample": "probabilistic",
            "balance": "class",
            "by": "class",
        },
        "1d9c58ef1be67b28",
    ),
    "slices": ({"patch": (6, 6), "seed": 5, "dims": 2, "foreground": 0.5}, "b052684ce91d1d5a"),
}
MOVEMENT = Movement(0.2, 0.5, 0.2, (0.7, 1.4))
LARGE = {"patch": (10, 11, 9), "final": (6, 6, 6), "seed": 3}


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    """As in `tests.sample.test_stream`."""
    root = tmp_path_factory.mktemp("store")
    for n in range(4):
        write(root / "many" / f"case_{n}", n)
    write(root / "one" / "case_9", 9)
    many = Pool(0, str(root / "many"), tuple(store.list_cases(root, "many")), (1, 2), 0)
    return many, Pool(1, str(root / "one"), ("case_9",), (1, 3), 1)


def digest(batches):
    found = hashlib.sha256()
    for batch in batches:
        for name in sorted(batch):
            array = np.ascontiguousarray(batch[name])
            found.update(f"{name}{array.dtype}{array.shape}".encode())
            found.update(array.tobytes())
    return found.hexdigest()[:16]


class Backwards(Samples):
    """A toy second version: the seed of a sample is another one."""

    def __call__(self, index, choice=()):
        return super().__call__(index + 1000, choice)


@pytest.fixture
def second(monkeypatch):
    """A version after the newest one."""
    monkeypatch.setitem(draw.VERSIONS, 4, Backwards)


@pytest.mark.parametrize("name", VERSION_1)
def test_version_1_is_what_it_was(pools, name):
    fields, known = VERSION_1[name]
    assert digest(take(6, pools, Recipe(batch=4, version=1, **fields), threads=0)) == known


def test_a_newer_version_leaves_older_runs_alone(pools, second):
    assert draw.newest() == 4 and Recipe((6, 6, 6), 4).version == 4
    old, new = (Recipe((6, 6, 6), 4, seed=3, version=version) for version in (1, None))
    assert digest(take(6, pools, old)) == VERSION_1["iid"][1]
    assert digest(take(6, pools, new)) != VERSION_1["iid"][1]
    same(take(3, pools, old, start=3), take(6, pools, old)[3:])
    same(take(2, pools, new, start=4), take(6, pools, new)[4:])


def _corpora(recipe, pools, count):
    """Pool of each of the first samples of the stream, by batch; reads nothing."""
    drawn, mixture = Samples(pools, recipe), choices(pools, recipe)
    found = [drawn.pool_of(i, mixture[i]) for i in range(count)]
    return np.array(found).reshape(-1, recipe.batch)


def test_version_2_mixes_the_corpora_in_their_proportions(pools):
    """The same probabilities as in version 1, 2 to 1 with 1 / sqrt(n) of 4 and 1 cases; but every
    part of the stream has them, not only the long run.
    """
    recipe = Recipe((6, 6, 6), 3, seed=3, version=2)
    mixed = _corpora(recipe, pools, 600)
    assert (mixed.sum(1) == 1).all()  # in every batch of three, one of the second corpus
    drawn = _corpora(dataclasses.replace(recipe, version=1), pools, 600)
    assert drawn.mean() == pytest.approx(1 / 3, abs=0.06) and (drawn.sum(1) != 1).any()
    # on all places of a batch alike, so that no corpus is forced more often than another
    np.testing.assert_allclose(mixed.mean(0), [1 / 3] * 3, atol=0.1)
    cases = [choices(pools, recipe)[i] for i in range(600)]
    own = np.bincount([case for pool, case in cases if pool == 0], minlength=4) / 400
    np.testing.assert_allclose(own, [1 / 4] * 4, atol=0.07)
    assert [choices(pools, recipe)[i] for i in (7, 400, 7)] == [cases[7], cases[400], cases[7]]
    by_class = dataclasses.replace(recipe, balance="class", seed=4)
    assert (_corpora(by_class, pools, 30).sum(1) == 1).all()


# hash of the first six batches of version 2, computed by commit 7468d73
VERSION_2 = "634e04ee3a10a43a"


def test_version_2_is_what_it_was(pools):
    old = Recipe(batch=4, version=2, **LARGE)
    assert digest(take(6, pools, old, threads=0)) == VERSION_2
    assert digest(take(6, pools, old, threads=0, moves=MOVEMENT)) == VERSION_2


def test_version_3_cuts_large_only_what_moves(pools):
    """The same cases and places as in version 2. What moves is the same patch; of the others the
    central voxels are, and the rest is what lies outside an image.
    """
    new = Recipe(batch=4, **LARGE)
    assert new.version == 3
    old = dataclasses.replace(new, version=2)
    assert digest(take(6, pools, new)) == VERSION_2  # nothing to draw
    moving, still = 0, 0
    for a, b in zip(take(8, pools, old), take(8, pools, new, moves=MOVEMENT), strict=True):
        assert set(b) - set(a) == {"angles", "scale"}
        assert b["angles"].shape == (4, 3) and b["angles"].dtype == b["scale"].dtype == np.float32
        for name in set(a) - {"image", "label"}:
            np.testing.assert_array_equal(a[name], b[name])
        for k in range(4):
            if b["angles"][k].any() or b["scale"][k] != 1:
                for name in ("image", "label"):
                    np.testing.assert_array_equal(a[name][k], b[name][k])
                moving += 1
                continue
            still += 1
            inner = (slice(2, 8), slice(2, 8), slice(1, 7))  # as `augment.spatial.crop_start`
            for name in ("image", "label"):
                np.testing.assert_array_equal(a[name][k][inner], b[name][k][inner])
            outside = b["label"][k].copy()
            outside[inner] = -1
            assert (outside == -1).all()
            outside = np.delete(b["image"][k].reshape(-1, 1), _flat(inner, (10, 11, 9)), 0)
            assert len(np.unique(outside)) == 1  # the stored zero
    assert moving >= 5 and still >= 12


def _flat(region, shape):
    return np.arange(np.prod(shape)).reshape(shape)[region].ravel()


def test_version_3_depends_on_nothing_but_its_number(pools):
    recipe = Recipe(batch=4, **LARGE)
    plain = take(4, pools, recipe, threads=0, moves=MOVEMENT)
    same(take(4, pools, recipe, threads=3, moves=MOVEMENT), plain)
    same(take(4, pools, recipe, cache_bytes=0, moves=MOVEMENT), plain)
    same(take(2, pools, recipe, start=2, moves=MOVEMENT), plain[2:])
    halves = [take(4, pools, recipe, host=h, hosts=2, moves=MOVEMENT) for h in range(2)]
    for whole, *parts in zip(plain, *halves, strict=True):
        for name in whole:
            together = np.stack([part[name] for part in parts], 1)
            np.testing.assert_array_equal(together.reshape(whole[name].shape), whole[name])


@pytest.mark.slow
def test_version_3_is_the_same_in_worker_processes(pools):
    recipe = Recipe(batch=4, **LARGE)
    plain = take(3, pools, recipe, threads=0, moves=MOVEMENT)
    same(take(3, pools, recipe, workers=2, moves=MOVEMENT), plain)


def test_whole_cases_and_slices_move_too(pools):
    whole = Recipe(batch=4, whole=1.0, **LARGE)
    old, new = take(2, pools, whole), take(2, pools, whole, moves=MOVEMENT)
    same([{n: b[n] for n in old[0]} for b in new], old)
    flat = Recipe((12, 12), 4, final=(6, 6), dims=2, seed=3)
    for batch in take(2, pools, flat, moves=MOVEMENT):
        assert batch["image"].shape == (4, 12, 12, 1) and batch["scale"].shape == (4,)


def test_unknown_versions_are_refused():
    with pytest.raises(UsageError, match=r"unknown version of the stream.*the version of medjax"):
        Recipe((6, 6, 6), 4, version=7)


# ---------------------------------------------------------------- whole cases


def test_cases_by_their_number_of_slices(tmp_path):
    """One list of all slices: of cases with 9, 3 and 6 slices, 3, 1 and 2 of 6 samples."""
    for corpus, number, depth in (("a", 0, 9), ("a", 1, 3), ("b", 2, 6)):
        write(tmp_path / corpus / f"case_{number}", number, shape=(depth, 10, 8))
    both = (
        Pool(0, str(tmp_path / "a"), ("case_0", "case_1"), (1, 2), 0),
        Pool(1, str(tmp_path / "b"), ("case_2",), (1, 2), 0),
    )
    recipe = Recipe(patch=(6, 6), batch=4, dims=2, exponent=0.0, foreground=0.0, weigh="slices")
    samples = Samples(both, recipe)
    drawn = np.bincount([int(samples(i)["case"]) for i in range(1200)], minlength=3) / 1200
    np.testing.assert_allclose(drawn, [1 / 2, 1 / 6, 1 / 3], atol=0.045)  # three deviations
    assert [samples.pool_of(i) for i in range(9)] == [int(samples(i)["corpus"]) for i in range(9)]
    # with exponent 1 a case of the first corpus has half the weight: 9/2, 3/2 and 6 of 12
    evenly = Samples(both, dataclasses.replace(recipe, exponent=1.0))
    drawn = np.bincount([int(evenly(i)["case"]) for i in range(1200)], minlength=3) / 1200
    np.testing.assert_allclose(drawn, [3 / 8, 1 / 8, 1 / 2], atol=0.045)
    for more in ({"draw": "mix"}, {"balance": "class"}):
        with pytest.raises(UsageError, match='weigh "slices" draws the case'):
            dataclasses.replace(recipe, **more)
    with pytest.raises(UsageError, match="unknown weigh"):
        dataclasses.replace(recipe, weigh="voxels")


def test_the_share_of_whole_cases_and_what_they_show(pools):
    recipe = Recipe((8, 8, 8), 4, seed=1, whole=0.3, final=(6, 6, 6))
    samples = [Samples(pools, recipe)(i) for i in range(400)]
    whole = np.array([sample["whole"] for sample in samples])
    assert whole.mean() == pytest.approx(0.3, abs=0.07)
    extent = np.array([2.0, 1.0, 0.5]) * (12, 14, 10)
    for sample in samples[:40]:
        if sample["whole"]:
            np.testing.assert_allclose(sample["spacing_mm"], extent / 6, rtol=1e-6)
            inside = sample["label"] >= 0
            assert inside.sum() == 6**3 and inside[1:7, 1:7, 1:7].all()
        else:
            np.testing.assert_array_equal(sample["spacing_mm"], [2.0, 1.0, 0.5])


def test_every_sample_whole_and_none(pools):
    none, every = (Recipe((6, 6, 6), 4, seed=3, whole=share) for share in (0.0, 1.0))
    same(take(2, pools, none), take(2, pools, RECIPE))
    for batch in take(2, pools, every):
        assert batch["whole"].all() and (batch["label"] >= 0).all()
    same(take(2, pools, every), take(2, pools, every, cache_bytes=0))
    same(take(2, pools, every, start=1), take(3, pools, every)[1:])


def test_whole_cases_change_only_what_they_replace(pools):
    """The draws of case and forced position precede; patches after them are others."""
    plain, some = (Recipe((6, 6, 6), 4, seed=3, whole=share) for share in (0.0, 0.5))
    first = [int(b) for batch in take(5, pools, plain) for b in batch["case"]]
    other = [int(b) for batch in take(5, pools, some) for b in batch["case"]]
    assert first == other


def test_unusable_shares_are_refused():
    for fields in ({"whole": 1.5}, {"whole": -0.1}, {"whole": 0.5, "dims": 2, "patch": (6, 6)}):
        with pytest.raises(UsageError, match="share of whole cases"):
            Recipe(**{"patch": (6, 6, 6), "batch": 4} | fields)


def test_ways_of_shrinking_belong_together(pools):
    for fields in ({"whole_image": "area"}, {"whole_label": "nearest"}):
        with pytest.raises(UsageError, match="belong together"):
            Recipe((6, 6, 6), 4, whole=0.5, **fields)
    with pytest.raises(UsageError, match="whole_image"):
        Recipe((6, 6, 6), 4, whole_image="areas", whole_label="nearest")
    recipe = Recipe((6, 6, 6), 4, seed=3, whole=1.0, whole_image="area", whole_label="nearest")
    assert all(batch["whole"].all() for batch in take(2, pools, recipe))


def test_hosts_share_whole_cases(pools):
    recipe = Recipe((6, 6, 6), 4, seed=3, whole=0.5)
    both = [itertools.islice(stream(pools, recipe, host=h, hosts=2), 2) for h in range(2)]
    for whole, first, second in zip(take(2, pools, recipe), *both, strict=True):
        np.testing.assert_array_equal(whole["image"][::2], first["image"])
        np.testing.assert_array_equal(whole["whole"][1::2], second["whole"])


def test_t25_every_voxel_of_every_object_can_be_the_centre_of_a_crop():
    """Two objects in two masks, of 256 voxels and of one. The published crop takes the first mask
    for the background, so that one voxel of 257 can be a centre; here all of them can.
    """
    label = np.zeros((8, 12, 12), np.uint8)
    label[2:6, 2:10, 2:10] = 1
    label[7, 11, 11] = 2
    masks = np.stack([label == 1, label == 2])
    assert (masks[1:].any(0).sum(), masks.any(0).sum()) == (1, 257)
    case = types.SimpleNamespace(
        locations=prepare._locations(label, ()), meta={"voxels": {"1": 256, "2": 1}}
    )
    assert sum(map(len, case.locations.values())) == 257
    rng = np.random.default_rng(0)
    for groups in (((1,), (2,)), ((1, 2),)):  # each object alike, or each voxel
        drawn = [Samples._foreground_voxel(rng, case, groups) for _ in range(6000)]
        seen = {tuple(int(v) for v in voxel) for voxel in drawn}
        assert seen == {tuple(v) for v in np.argwhere(label > 0).tolist()}
        share = np.mean([tuple(voxel) == (7, 11, 11) for voxel in drawn])
        assert share == pytest.approx(1 / 2 if len(groups) == 2 else 1 / 257, abs=0.02)
