"""The embedded corpora: deterministic, anatomically plausible, partially and conflictingly
annotated, readable by the rest of the house.
"""

import json
import time

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from medjax.corpora.sources import read_corpus
from medjax.errors import UsageError
from medjax.labels import merge
from medjax.phantom.anatomy import T, draw_patient
from medjax.phantom.corpora import PROTOCOLS, make_case, write_corpora
from medjax.phantom.scan import TISSUES, annotate
from medjax.phantom.shapes import (
    Canvas,
    Path,
    branching,
    capsule,
    curve,
    ellipsoid,
    noise,
    smooth_max,
    smooth_min,
    turned,
)
from medjax.scans import nifti


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Three tiny corpora: 2 CT, 2 MR and 1 CE case."""
    return write_corpora(tmp_path_factory.mktemp("phantom"), seed=5, cases=(2, 2, 1), size="tiny")


@pytest.fixture(scope="module")
def ct():
    """One CT case at demo size: image, label values, spacing, affine."""
    return make_case("ct", 0, 1, size="small")


def in_patient(ids, affine, value):
    """Mean position (x right, y anterior, z superior) in mm of the voxels with a label value."""
    return (affine @ [*np.argwhere(ids == value).mean(0)[::-1], 1])[:3]


def test_same_seed_same_voxels():
    for corpus in PROTOCOLS:
        image, ids, spacing, affine = make_case(corpus, 3, 1, size="tiny")
        again = make_case(corpus, 3, 1, size="tiny")
        assert np.array_equal(image, again[0]) and np.array_equal(ids, again[1])
        assert spacing == again[2] and np.array_equal(affine, again[3])


def test_seeds_and_cases_are_different_patients():
    one, seed, case = (make_case("ct", *key, size="tiny") for key in ((0, 0), (1, 0), (0, 1)))
    for other in (seed, case):
        assert one[0].shape != other[0].shape or np.mean(one[0] != other[0]) > 0.3
        volumes = [np.prod(c[2]) * (c[1] == 1).sum() for c in (one, other)]
        assert abs(volumes[0] / volumes[1] - 1) > 0.01


def test_case_zero_has_the_tumours():
    for seed in range(3):
        assert 2 in make_case("mr", seed, 0, size="tiny")[1]
        assert 9 in make_case("ce", seed, 0, size="tiny")[1]
    counts = [draw_patient(np.random.default_rng(seed)).liver_tumours for seed in range(60)]
    assert 0.6 < np.mean(np.array(counts) > 0) < 0.9  # in some patients only
    assert max(counts) == 3


def test_arrays(ct):
    for corpus, protocol in PROTOCOLS.items():
        image, ids, spacing, affine = make_case(corpus, 2, 2, size="tiny")
        assert image.dtype == np.int16 and ids.dtype == np.uint8 and image.shape == ids.shape
        assert abs(image.shape[0] - 20) <= 2 and image.shape[1:] == (40, 40)
        assert np.isfinite(affine).all() and min(spacing) > 0
        np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), spacing[::-1])
        assert "".join(nib.aff2axcodes(affine)) == protocol.axes
        assert set(np.unique(ids)) <= {0, *(value for value, _ in protocol.labels.values())}
    assert ct[0].shape[1:] == (84, 112) and 44 <= ct[0].shape[0] <= 48
    assert ct[2][0] == 5.0 and 2.8 < ct[2][1] == ct[2][2] < 4.0


def test_hounsfield_units(ct):
    image, ids, _, _ = ct
    expected = {
        "liver": (60, 130),
        "spleen": (95, 145),
        "gallbladder": (-10, 40),
        "aorta": (125, 190),
        "spine": (150, 420),
        "pancreas": (60, 125),
    }
    expected |= {
        "right kidney": (120, 200),
        "left kidney": (120, 200),
        "inferior vena cava": (110, 170),
        "portal and splenic vein": (90, 180),
    }
    for name, (low, high) in expected.items():
        value = PROTOCOLS["ct"].labels[name][0]
        core = ndimage.binary_erosion(ids == value, iterations=1)
        mean = image[core if core.sum() > 20 else ids == value].mean()
        assert low < mean < high, (name, mean)
    assert abs(np.median(image[:, 0]) + 1000) < 25  # air above the patient
    assert image.min() >= -1024 and image.max() < 1500
    share = [np.mean(image[z][ndimage.binary_fill_holes(image[z] > -300)] < -600) for z in (2, -3)]
    assert (
        share[0] < 0.15 < 0.3 < share[1]
    )  # lungs at the upper end only (z grows to superior in this corpus)


def test_organ_volumes_and_places(ct):
    _, ids, spacing, affine = ct
    value = {name: v for name, (v, _) in PROTOCOLS["ct"].labels.items()}
    litres = {name: (ids == v).sum() * np.prod(spacing) / 1e6 for name, v in value.items()}
    assert 0.9 < litres["liver"] < 2.2
    assert 0.08 < litres["spleen"] < 0.5
    for name in ("right kidney", "left kidney"):
        assert 0.06 < litres[name] < 0.3
    assert 0.02 < litres["pancreas"] < 0.15
    at = {name: in_patient(ids, affine, v) for name, v in value.items()}
    assert (
        at["liver"][0] > at["spine"][0] + 25
    )  # RAS+: x grows to the patient's right, where the liver is
    assert at["spleen"][0] < at["spine"][0] - 60
    assert at["right kidney"][0] - at["left kidney"][0] > 80
    assert at["stomach"][0] < at["spine"][0]
    assert at["aorta"][0] < at["inferior vena cava"][0]
    assert at["spine"][1] < at["aorta"][1] < at["stomach"][1]  # from back to front
    assert at["left kidney"][2] < at["spleen"][2]
    for name, v in value.items():  # every organ is essentially one piece
        pieces, n = ndimage.label(ids == v, np.ones((3, 3, 3)))
        assert n and np.bincount(pieces.ravel())[1:].max() > 0.6 * (ids == v).sum(), name


def test_every_corpus_has_the_sides_right():
    for corpus, liver in (("ct", 1), ("mr", 1)):
        _, ids, _, affine = make_case(corpus, 4, 3, size="tiny")
        middle = (affine @ [*(np.array(ids.shape[::-1]) - 1) / 2, 1])[0]
        assert in_patient(ids, affine, liver)[0] > middle + 20
    _, ids, _, affine = make_case("ce", 4, 3, size="tiny")
    kidneys, n = ndimage.label(np.isin(ids, (5, 9)))
    largest = np.argsort(np.bincount(kidneys.ravel())[1:])[-2:] + 1
    sides = sorted(in_patient(kidneys, affine, k)[0] for k in largest)
    assert n >= 2 and sides[1] - sides[0] > 80


@pytest.mark.parametrize(
    ("corpus", "organ", "tumour", "share"), [("mr", 1, 2, 0.75), ("ce", 5, 9, 0.15)]
)
def test_tumours_are_nested(corpus, organ, tumour, share):
    _, ids, _, _ = make_case(corpus, 0, 0, size="small")
    rim = ndimage.binary_dilation(ids == tumour) & (ids != tumour)
    assert (ids == tumour).sum() > 50
    assert (
        np.mean(ids[rim] == organ) > share
    )  # kidney tumours may bulge out of the kidney, liver tumours hardly


def test_contrasts_differ_between_the_scanners():
    fat, fluid, liver, kidney = T.FAT, T.BILE, T.LIVER, T.CORTEX
    ct, t1, enhanced = ({t: row[k] for t, row in TISSUES.items()} for k in range(3))
    assert ct[fat] < ct[fluid] < ct[liver] < ct[kidney]
    assert t1[fluid] < t1[kidney] < t1[liver] < t1[fat]
    assert enhanced[fluid] < enhanced[fat] < enhanced[liver] < enhanced[kidney]
    assert set(TISSUES) == set(T)
    image, ids, _, _ = make_case("ce", 0, 1, size="small")
    assert image[ids == 5].mean() > 2.5 * np.median(image[ids == 0])
    image, ids, _, _ = make_case("mr", 0, 1, size="small")
    assert image.min() >= 0 and image[ids == 1].mean() > 4 * np.percentile(image, 5)


def test_files_are_read_by_the_house(corpora):
    assert [f.name for f in corpora] == ["Task01_PhantomCT", "Task02_PhantomMR", "Task03_PhantomCE"]
    described = []
    for folder, protocol, count in zip(corpora, PROTOCOLS.values(), (2, 2, 1), strict=True):
        corpus, cases = read_corpus(folder)
        described.append(corpus)
        assert corpus.modality == protocol.modality and len(cases) == count == len(
            {c.patient for c in cases}
        )
        seen = set()
        for k, case in enumerate(cases):
            image, label = nifti.read_case(case.images), nifti.read(case.label, want="label")
            nifti.check_same_geometry(image, label)
            voxels, ids, spacing, affine = make_case(folder.name, 5, k, size="tiny")
            assert np.array_equal(image.array[..., 0], voxels) and np.array_equal(label.array, ids)
            np.testing.assert_allclose(image.affine, affine, atol=1e-4)
            np.testing.assert_allclose(image.spacing_mm, spacing, rtol=1e-5)
            assert int(image.header["qform_code"]) == int(image.header["sform_code"]) == 1
            assert image.header.get_xyzt_units()[0] == "mm"
            seen |= set(np.unique(ids).tolist())
        assert seen == set(corpus.values)  # every declared value occurs
    space = merge(described)
    assert [len(c.annotated) for c in described] == [12, 2, 2]
    known = {
        name: space.known[:, space.class_index(name)].tolist()
        for name in ("liver", "kidney", "liver tumour", "kidney tumour", "spleen")
    }
    assert known == {
        "liver": [True, True, False],
        "kidney": [True, False, True],
        "liver tumour": [False, True, False],
        "kidney tumour": [False, False, True],
        "spleen": [True, False, False],
    }
    assert described[1].ids_of("liver") == (1, 2) and described[1].ids_of("liver tumour") == (2,)
    assert described[2].values == (0, 5, 9) and described[2].ids_of("kidney") == (1, 2)


def test_writing_again_changes_nothing_and_growing_keeps_the_cases(tmp_path):
    folders = write_corpora(tmp_path, cases=1, size="tiny", workers=1)
    files = [
        f / "labelsTr" / f"{p.prefix}_000.nii.gz"
        for f, p in zip(folders, PROTOCOLS.values(), strict=True)
    ]
    before, bytes_before = [f.stat().st_mtime_ns for f in files], [f.read_bytes() for f in files]
    write_corpora(tmp_path, cases=1, size="tiny")
    assert [f.stat().st_mtime_ns for f in files] == before
    write_corpora(tmp_path, cases=(2, 1, 1), size="tiny")
    assert [f.read_bytes() for f in files] == bytes_before
    assert [f.stat().st_mtime_ns for f in files[1:]] == before[1:]
    assert len(read_corpus(folders[0])[1]) == 2
    write_corpora(tmp_path, cases=1, size="tiny")
    assert not (folders[0] / "imagesTr" / "ct_001.nii.gz").exists()
    files[0].unlink()
    write_corpora(tmp_path, cases=1, size="tiny")
    assert files[0].read_bytes() == bytes_before[0]
    assert not [p for p in tmp_path.rglob(".*")]  # no temporary files stay


def test_wrong_requests_and_foreign_folders(tmp_path):
    for wrong in ({"cases": 0}, {"cases": (1, 2)}, {"size": "large"}):
        with pytest.raises(UsageError, match=r"phantom|size"):
            write_corpora(tmp_path, **wrong)
    with pytest.raises(UsageError, match="Known: ce, ct, mr"):
        make_case("pet", 0, 0)
    foreign = tmp_path / "Task01_PhantomCT"
    (foreign / "imagesTr").mkdir(parents=True)
    (foreign / "imagesTr" / "precious.nii.gz").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"precious.*in the way"):
        write_corpora(tmp_path, cases=1, size="tiny")
    (foreign / "dataset.json").write_text(json.dumps({"name": "someone else's"}))
    with pytest.raises(UsageError, match="another data set"):
        write_corpora(tmp_path, cases=1, size="tiny")
    assert (foreign / "imagesTr" / "precious.nii.gz").exists() and (
        foreign / "dataset.json"
    ).exists()


def test_a_tiny_case_is_quick():
    start = time.process_time()
    make_case("ct", 9, 9, size="tiny")
    assert time.process_time() - start < 10  # about 0.4 s alone on a core


def test_labels_are_the_majority_of_the_fine_voxels():
    tissue = np.full((1, 2, 6), T.FAT, np.uint8)
    tissue[0, :, 0] = T.LIVER  # half liver, half fat: liver
    tissue[0, 0, 2:4], tissue[0, 1, 2:4] = T.LIVER, T.LIVER_TUMOUR  # a tie goes to the higher value
    tissue[0, 0, 4] = T.LIVER  # one of four: background
    assert annotate(PROTOCOLS["mr"], tissue).tolist() == [[[1, 2, 0]]]


def points(*rows):
    return tuple(np.array(rows, np.float32).T)


def test_distances():
    p = points((0, 0, 0), (5, 0, 0), (9, 0, 0), (0, 3, 0))
    np.testing.assert_allclose(ellipsoid(p, (0, 0, 0), (5, 5, 5)), [-5, 0, 4, -2], atol=1e-3)
    assert np.sign(ellipsoid(p, (0, 0, 0), (6, 2, 2))).tolist() == [-1, -1, 1, 1]
    d, t = capsule(p, (0, 0, 0), (8, 0, 0), 1, 2)
    np.testing.assert_allclose(d, [-1, -1.625, -1, 2], atol=1e-5)
    np.testing.assert_allclose(t, [0, 0.625, 1, 0], atol=1e-6)
    a, b = np.float32([1, -1, 5]), np.float32([1, 3, 0])
    np.testing.assert_allclose(smooth_min(a, b, 2), [0.5, -1, 0])
    np.testing.assert_allclose(smooth_max(a, b, 2), [1.5, 3, 5])
    np.testing.assert_allclose(
        turned(points((1, 0, 0)), (0, 0, 0), about_z=90), [[0], [-1], [0]], atol=1e-6
    )
    value = curve(np.float32([-10, 5, 20]), [(0, 0), (10, 10)])
    assert value[0] < 1.5 and abs(value[1] - 5) < 0.1 and value[2] > 8.5


def test_noise_is_smooth_and_of_unit_variance():
    field = noise(np.random.default_rng(0), (30, 60, 60), (2, 4, 4))
    assert field.dtype == np.float32 and abs(field.std() - 1) < 0.1
    assert np.abs(np.diff(field, axis=2)).mean() < 0.6 * np.abs(np.diff(field, axis=0)).mean() < 0.6


def test_boxes_hold_what_they_promise():
    rng = np.random.default_rng(1)
    shape = (12, 16, 18)
    grid = np.meshgrid(*(np.arange(n, dtype=np.float32) * 4 for n in shape), indexing="ij")[::-1]
    canvas = Canvas(
        tuple(q + 3 * noise(rng, shape, (5, 5, 5)) for q in grid),
        noise(rng, shape, (4, 4, 4)),
        noise(rng, shape, (2, 2, 2)),
    )
    for _ in range(50):
        low = rng.uniform(-20, 60, 3)
        high = low + rng.uniform(1, 30, 3)
        inside = np.ones(shape, bool)
        for q, a, b in zip((canvas.x, canvas.y, canvas.z), low, high, strict=True):
            inside &= (q >= a) & (q <= b)
        box = canvas.box(low, high)
        held = np.zeros(shape, bool)
        if box is not None:
            held[box] = True
        assert not (inside & ~held).any()
    path = Path.smooth([(10, 10, 10, 4), (30, 30, 20, 6), (50, 40, 40, 3)])
    box, d, arc, _ = canvas.tube(path)
    exact = np.min(
        [capsule(canvas.points(box), *segment)[0] for segment in path.segments()], axis=0
    )
    np.testing.assert_allclose(d[exact < 5], exact[exact < 5], atol=1e-4)
    assert (
        0 <= arc.min()
        and arc.max() <= np.linalg.norm(np.diff(path.points, axis=0), axis=1).sum() + 1e-3
    )


def test_vessels_branch_and_taper():
    rng = np.random.default_rng(2)
    tree = branching(rng, (0, 0, 0), (0, 0, 1), 6.0, 40.0, 3, lambda q: bool(abs(q[0]) < 200))
    assert len(tree) == 3 * (1 + 2 + 4 + 8)
    radii = np.array([ra for _, _, ra, _ in tree])
    assert radii.max() == 6.0 and radii.min() < 3.0
    assert branching(rng, (0, 0, 0), (0, 0, 1), 6.0, 40.0, 3, lambda q: False) == []
