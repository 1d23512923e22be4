"""The segmenter on small scans with a simple function as network: geometry, protocols, softmax,
memory, compiles.
"""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest
from scipy import special

from medjax.errors import DataError, LabelError, PredictError, UsageError
from medjax.infer import memory
from medjax.infer.model import Model
from medjax.infer.regrid import on_scan_grid, row_blocks
from medjax.infer.scorer import Scorer
from medjax.infer.segmenter import Segmenter
from medjax.infer.windows import WindowScores
from medjax.labels import Corpus, merge
from medjax.prepare.plan import Intensity, Plan
from medjax.prompts.request import Request
from medjax.scans import nifti

LIVER = Corpus(
    "Liver", ((1, ("liver",)), (2, ("liver", "tumour"))), modality="CT", channels=("CT",)
)
ORGANS = Corpus("Organs", ((5, ("spleen",)), (9, ("liver",))), modality="MR", channels=("T1", "T2"))
SPACE = merge([LIVER, ORGANS])
PLAN = Plan(
    {"Liver": (2.0, 1.5, 1.5), "Organs": (1.5, 1.5, 1.5)},
    {name: Intensity("nonorm") for name in ("CT", "T1", "T2")},
)


def network(params, image, context):
    """Channel k is on where the first image channel exceeds params[k]."""
    return {"logits": (image[..., :1] - params) * 20.0}


def model(params=(0.5, 1.5, 2.5), window=(6, 8, 8), apply=network, dims=3):
    return Model(apply, jnp.asarray(params, jnp.float32), PLAN, SPACE, window, dims)


def scan(path, array, affine=None, qform=None):
    image = nib.Nifti1Image(
        np.asarray(array, np.float32).T, np.diag([1.5, 1.5, 2.0, 1.0]) if affine is None else affine
    )
    if qform is not None:
        image.set_qform(qform, 2)
    nib.save(image, path)
    return nifti.read(path)


def nested(shape=(10, 14, 12)):
    """Liver at level 1, tumour inside at level 2, spleen at level 3; every voxel of the frame
    non-zero so that nothing is cropped.
    """
    array = np.full(shape, 0.1)
    array[2:8, 2:9, 2:9] = 1
    array[4:6, 4:7, 4:7] = 2
    array[2:8, 10:13, 2:9] = 3
    return array


def test_class_order_of_the_space():
    assert SPACE.classes == ("liver", "tumour", "spleen")


def test_label_map_follows_the_protocol_of_the_corpus(tmp_path):
    volume = scan(tmp_path / "a.nii.gz", nested())
    predictor = Segmenter(model())
    label_map, masks, *_ = predictor.segment(volume, Request("Liver", SPACE.classes))
    assert label_map.dtype == np.uint8 and set(masks) == set(SPACE.classes)
    assert np.array_equal(label_map, np.where(nested() > 1.5, 2, np.where(nested() > 0.5, 1, 0)))
    assert np.array_equal(masks["spleen"], nested() > 2.5) and masks.voxels["spleen"] == 6 * 3 * 7
    two = scan(
        tmp_path / "b.nii.gz", np.stack([nested(), nested()], -1).transpose(3, 0, 1, 2)
    )  # 4D: channels last in the file
    label_map, masks, *_ = Segmenter(model()).segment(two, Request("Organs"))
    assert set(masks) == {"liver", "spleen"} and set(np.unique(label_map)) == {0, 5, 9}


def test_one_program_serves_sizes_corpora_and_modalities(tmp_path):
    seen = []

    def apply(params, image, context):
        seen.append({k: (v.shape, v.dtype) for k, v in context.items()})
        level = context["corpus"] * 10.0 + context["modality"] + context["spacing_mm"][:, 0] / 100
        return {
            "logits": jnp.broadcast_to(level[:, None, None, None, None], (*image.shape[:-1], 3))
        }

    predictor = Segmenter(model(apply=apply), average="logit")
    for i, shape in enumerate([(10, 14, 12), (6, 8, 8), (3, 9, 30), (13, 8, 9)]):
        corpus = ("Liver", "Organs")[i % 2]
        array = np.ones(shape) if corpus == "Liver" else np.ones((2, *shape))
        scores, transform = predictor.networks[0].scores(
            scan(tmp_path / f"{i}.nii.gz", array, np.diag([1.5, 1.5, 2.0 - i % 2 / 2, 1])),
            Request(corpus),
        )
        assert scores.shape == (*transform.shape, 3) == (*shape, 3)
        assert np.allclose(scores, special.expit(0.02 if corpus == "Liver" else 11.015), atol=1e-6)
    assert predictor.compiled == 1 and len(seen) == 1
    assert seen[0] == {
        "corpus": ((2,), jnp.int32),
        "modality": ((2,), jnp.int32),
        "spacing_mm": ((2, 3), jnp.float32),
    }


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SPL", "PIR"])
def test_orientation_crop_and_spacing_are_undone(tmp_path, axes):
    array = np.zeros((12, 16, 14))
    array[1:11, 2:15, 1:13] = nested()[:, :13, :]
    canonical = nib.Nifti1Image(array.T, np.diag([1.5, 1.5, 2.0, 1.0]))
    turned = canonical.as_reoriented(
        nib.io_orientation(canonical.affine)
        if axes == "RAS"
        else nib.orientations.axcodes2ornt(axes)
    )
    nib.save(turned, tmp_path / "a.nii.gz")
    volume = nifti.read(tmp_path / "a.nii.gz")
    label_map, masks, *_ = Segmenter(model()).segment(volume, Request("Liver"))
    expected = np.asarray(turned.dataobj).T
    assert np.array_equal(label_map, np.where(expected > 1.5, 2, np.where(expected > 0.5, 1, 0)))
    assert np.array_equal(masks["tumour"], expected > 1.5)


@pytest.mark.parametrize(
    "spacing", [(2.0, 1.5, 1.5), (3.1, 0.9, 1.1), (7.0, 1.5, 1.5), (0.9, 2.2, 1.5), (1.5, 1.5, 7.0)]
)
def test_rows_on_the_scan_grid_equal_the_whole_inversion(tmp_path, spacing):
    affine = np.diag([*spacing[::-1], 1.0])
    volume = scan(tmp_path / "a.nii.gz", np.pad(nested(), 1), affine)
    predictor = Segmenter(model())
    prepared = predictor.networks[0].prepare(volume, Request("Liver"))
    scores = np.random.default_rng(0).random((*prepared.transform.shape, 3)).astype(np.float32)
    whole = prepared.transform.image(prepared.transform.invert_scores(scores))
    blocks = [slice(i, min(i + 3, len(whole))) for i in range(0, len(whole), 3)]
    lazy = WindowScores(lambda batch: batch, scores, (4, 8, 8), 3)
    pieces = list(on_scan_grid(lazy, prepared.transform, blocks))
    assert np.allclose(np.concatenate(pieces), whole, atol=2e-6)


def test_row_blocks_are_bounded():
    blocks = row_blocks((700, 512, 512), 100)
    assert blocks[0] == slice(0, 1) and blocks[-1] == slice(699, 700) and len(blocks) == 700
    assert row_blocks((10, 20, 20), 3) == [slice(0, 10)]


@pytest.mark.parametrize("average", ["prob", "logit"])
@pytest.mark.parametrize("spacing", [(2.0, 1.5, 1.5), (3.1, 0.9, 1.1)])
def test_little_memory_means_strips_and_the_same_bits(tmp_path, average, spacing):
    volume = scan(
        tmp_path / "a.nii.gz",
        np.pad(nested(), ((0, 0), (4, 9), (0, 0)), constant_values=0.1),
        np.diag([*spacing[::-1], 1.0]),
    )

    def run(limit):
        seen, predictor = {}, Segmenter(model(), average=average, memory_gib=limit)
        found = predictor.segment(
            volume,
            Request("Liver", SPACE.classes),
            on_scores=lambda t, r, names, p: seen.update({(r[1].start, r[0].start): p}),
        )
        columns = sorted({y for y, _ in seen})
        whole = np.concatenate(
            [
                np.concatenate([seen[y, z] for z in sorted({z for y2, z in seen if y2 == y})])
                for y in columns
            ],
            1,
        )
        return found, whole, len(columns), predictor

    plain, expected, strips, predictor = run(1.0)
    assert strips == 1
    least = memory_needed(predictor, volume)
    small, found, strips, predictor = run(least / 2**30)
    assert strips > 3 and predictor.compiled == 1
    assert np.array_equal(found, expected)
    assert np.array_equal(plain.label_map, small.label_map)
    assert all(np.array_equal(plain.masks[name], small.masks[name]) for name in SPACE.classes)
    predictor.limit = int(least * 1.6)  # reading takes more than this little network
    forecast = predictor.forecast(volume, Request("Liver", SPACE.classes))
    assert (
        forecast.strips > 1
        and forecast.bytes <= predictor.limit
        and forecast.windows > Segmenter(model()).forecast(volume, Request("Liver")).windows
    )
    with pytest.raises(PredictError, match="does not fit into the memory allowed"):
        run(least * 0.9 / 2**30)


def memory_needed(predictor, volume):
    """The smallest budget that the volume can be done in: what a refusal asks for, once more in
    bytes.
    """
    low, high, prepared = 0, 2**30, predictor.prepare_all(volume, Request("Liver"))
    while high - low > 64:
        try:
            predictor.limit = (low + high) // 2
            predictor.cut(prepared, SPACE.classes)
            high = predictor.limit
        except PredictError:
            low = (low + high) // 2
    return high


def test_probability_and_logit_averages(tmp_path):
    """Two members with logits +6 and -2: mean probability just below, mean logit well above the
    threshold.
    """

    def apply(params, image, context):
        return {"logits": jnp.full((*image.shape[:-1], 3), params)}

    array = np.zeros((8, 10, 10))
    array[1:7, 1:9, 1:9] = 1  # a frame that is cropped away: probability 0 there, in either average
    volume = scan(tmp_path / "a.nii.gz", array)
    found = {}
    for average in ("prob", "logit"):
        predictor = Segmenter(
            model(6.0, apply=apply), average=average, ensemble=[jnp.float32(-2.0)]
        )
        found[average] = (
            predictor.networks[0].scores(volume, Request("Liver"))[0],
            predictor.segment(volume, Request("Liver")),
        )
    assert np.allclose(found["prob"][0], (special.expit(6) + special.expit(-2)) / 2, atol=1e-6)
    assert np.allclose(found["logit"][0], special.expit(2), atol=1e-6)
    assert np.array_equal(found["logit"][1].label_map, 2 * array)
    assert found["logit"][1].masks.voxels["liver"] == 6 * 8 * 8


def test_mirroring_leaves_a_symmetric_network_alone(tmp_path):
    volume = scan(tmp_path / "a.nii.gz", nested())
    plain, _ = Scorer(model()).scores(volume, Request("Liver"))
    mirrored, _ = Scorer(model(), mirror_axes=(0, 1, 2)).scores(volume, Request("Liver"))
    assert np.allclose(plain, mirrored, atol=1e-6)


@pytest.mark.parametrize("background_channel", [True, False])
@pytest.mark.parametrize("average", ["prob", "logit"])
def test_softmax_gives_each_voxel_to_one_class(tmp_path, background_channel, average):
    def apply(params, image, context):
        level = image[..., :1]
        logits = jnp.concatenate(
            [-((level - k) ** 2) * 5 for k in range(4)], -1
        )  # background, liver, tumour, spleen
        logits = logits.at[..., 3].set(
            -jnp.inf
        )  # a head that masks what the corpus does not annotate
        return {"logits": logits if background_channel else logits[..., 1:] - logits[..., :1]}

    volume = scan(tmp_path / "a.nii.gz", nested())
    label_map, masks, *_ = Segmenter(
        model(apply=apply), activation="softmax", average=average
    ).segment(volume, Request("Liver"))
    expected = np.where(nested() > 1.5, 2, np.where(nested() > 0.5, 1, 0))
    assert np.array_equal(label_map, expected)
    assert not (masks["liver"] & masks["tumour"]).any()


def test_slices(tmp_path):
    def apply(params, image, context):
        assert image.ndim == 4
        return {"logits": (image[..., :1] - params) * 20.0}

    volume = scan(tmp_path / "a.nii.gz", nested())
    predictor = Segmenter(
        model(window=(8, 8), apply=apply, dims=2), mirror_axes=(0, 1), batch_windows=4
    )
    label_map, *_ = predictor.segment(volume, Request("Liver"))
    assert np.array_equal(label_map, np.where(nested() > 1.5, 2, np.where(nested() > 0.5, 1, 0)))
    single = scan(tmp_path / "one.nii.gz", nested()[5:6])
    assert (
        predictor.segment(single, Request("Liver")).label_map.shape == (1, 14, 12)
        and predictor.compiled == 1
    )


def test_windows_are_shared_among_devices(tmp_path):
    volume = scan(tmp_path / "a.nii.gz", nested())
    devices = jax.local_devices()[:2]
    one, many = Segmenter(model()), Segmenter(model(), devices=devices, batch_windows=1)
    assert np.array_equal(
        one.segment(volume, Request("Liver")).label_map,
        many.segment(volume, Request("Liver")).label_map,
    )
    assert many.networks[0].batch_windows == len(devices)


def test_settings_name_the_weights():
    first, other = (
        Segmenter(model()).settings(),
        Segmenter(model(params=(0.5, 1.5, 2.4))).settings(),
    )
    assert first["weights"] != other["weights"] and {**first, "weights": 0} == {
        **other,
        "weights": 0,
    }
    assert first["window"] == [6, 8, 8] and first["plan"] == PLAN.key()
    assert first["weights"].startswith("xxh3:") and first == Segmenter(model()).settings()


def test_the_hash_of_a_file_stands_for_its_weights():
    """Then no parameter is read; version 0.1 hashed all values."""
    made = Segmenter(model(), weights=["xxh3:1"])
    assert made.settings()["weights"] == "xxh3:1"
    values = np.asarray(made.model.params).tobytes()
    expected = hashlib.sha256(values).hexdigest()[:16]
    assert made.settings(earlier=True) == made.settings() | {"weights": expected}
    members = [jnp.zeros(3), jnp.ones(3)]
    several = Segmenter(model(), ensemble=members, weights=["xxh3:1", "xxh3:2", "xxh3:3"])
    other = Segmenter(model(), ensemble=members, weights=["xxh3:1", "xxh3:3", "xxh3:2"])
    assert several.settings()["weights"] != other.settings()["weights"]
    unknown = Segmenter(model(), ensemble=members, weights=["xxh3:1", "", "xxh3:3"])
    assert unknown.settings() == Segmenter(model(), ensemble=members).settings()
    mixed = Segmenter(model(), others=[made], weights=["xxh3:7"]).settings(earlier=True)
    assert [mixed["weights"], mixed["others"][0]["weights"]] == [expected] * 2


def test_precision_is_that_of_the_config(tmp_path):
    seen = []

    def apply(params, image, context):
        seen.append(jax.config.jax_default_matmul_precision)
        return {"logits": image[..., :1] @ params[None]}

    volume = scan(tmp_path / "a.nii.gz", nested())
    for precision in ("", "high", "highest"):
        made = Segmenter(model(apply=apply), precision=precision)
        made.segment(volume, Request("Liver"))
        assert made.settings().get("precision", "") == precision
    assert seen[0] == jax.config.jax_default_matmul_precision and seen[1:] == ["high", "highest"]
    assert "precision" not in Segmenter(model()).settings()  # as predictions of version 0.1 have it
    with jax.default_matmul_precision("high"):  # a user's own choice stays
        Segmenter(model(apply=apply)).compile(["liver"])
    assert seen[-1] == "high"
    with pytest.raises(UsageError, match=r"unknown precision 'hihg'.*did you mean high"):
        Segmenter(model(), precision="hihg")


def test_unusable_arguments(tmp_path):
    with pytest.raises(UsageError, match="did you mean prob"):
        Segmenter(model(), average="probs")
    with pytest.raises(UsageError, match="do not match"):
        Segmenter(model(window=(8, 8)))
    with pytest.raises(UsageError, match="do not match"):
        Segmenter(model(), mirror_axes=(3,))
    volume = scan(tmp_path / "a.nii.gz", nested())
    with pytest.raises(LabelError, match="unknown corpus"):
        Segmenter(model()).segment(volume, Request("Livr"))
    with pytest.raises(LabelError, match="unknown class"):
        Segmenter(model()).segment(volume, Request("Liver", ("kidney",)))
    with pytest.raises(DataError, match="number of channels"):
        Segmenter(model()).segment(volume, Request("Organs"))
    with pytest.raises(UsageError, match="channels are not those"):
        Segmenter(model(params=(0.5, 1.5))).segment(volume, Request("Liver"))


def test_memory_does_not_grow_with_classes_times_volume(tmp_path, monkeypatch):
    """40 classes on 96 x 32 x 32: all scores together would take 16 MB, twice with their resampled
    copy.
    """
    import tracemalloc

    monkeypatch.setattr(memory, "BLOCK", 1 << 16)
    monkeypatch.setattr(memory, "LEAST_BLOCK", 1 << 16)
    many = Corpus("Many", tuple((i, (f"c{i}",)) for i in range(1, 41)))
    plan = Plan({"Many": (2.0, 1.5, 1.5)}, {"CT": Intensity("nonorm")})

    def apply(params, image, context):
        return {"logits": (image - params) * 20.0}

    predictor = Segmenter(Model(apply, jnp.arange(40.0), plan, merge([many]), (8, 16, 16)))
    predictor.segment(scan(tmp_path / "small.nii.gz", np.ones((8, 16, 16))), Request("Many"))
    array = np.tile(np.linspace(0.6, 38.4, 96)[:, None, None], (1, 32, 32))
    volume = scan(tmp_path / "large.nii.gz", array)
    tracemalloc.start()
    label_map, masks, *_ = predictor.segment(volume, Request("Many"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6 and predictor.compiled == 1
    assert np.array_equal(label_map, np.ceil(array))
    assert masks.voxels["c1"] == array.size


def test_the_network_is_given_the_corpus_and_modality_it_was_trained_with(tmp_path):
    def conditioned(params, image, context):
        on = jnp.stack(
            [context["corpus"] == 7, context["modality"] == 4, context["corpus"] == 1], -1
        )
        return {
            "logits": jnp.where(on[:, None, None, None], 20.0, -20.0)
            * jnp.ones_like(image[..., :1])
        }

    volume = scan(tmp_path / "a.nii.gz", np.zeros((6, 8, 8)))
    plain = Segmenter(model(apply=conditioned))
    trained = Segmenter(dataclasses.replace(plain.model, conditions={"Liver": (7, 4)}))
    assert [trained.model.facts(Request("Organs"))[n] for n in ("corpus", "modality")] == [1, 1]
    assert trained.networks[0].scores(volume, Request("Liver"))[0].mean(
        (0, 1, 2)
    ).round().tolist() == [
        1,
        1,
        0,
    ]
    assert plain.networks[0].scores(volume, Request("Liver"))[0].mean(
        (0, 1, 2)
    ).round().tolist() == [
        0,
        0,
        0,
    ]


@pytest.mark.parametrize("average", ["prob", "logit"])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_classes_that_cannot_win_are_not_resampled_and_nothing_changes(
    tmp_path, average, activation
):
    """With `on_scores` every channel is resampled, without it only candidates: the same masks and
    label map to the bit.
    """
    names = [f"c{i}" for i in range(12)]
    corpus = Corpus(
        "Many", tuple((i + 1, (name,)) for i, name in enumerate(names)), channels=("CT",)
    )
    plan = Plan({"Many": (2.0, 1.5, 1.5)}, {"CT": Intensity("nonorm")})

    def apply(params, image, context):
        return {"logits": 3 - jnp.abs(image - params) * 4.0}

    many = Segmenter(
        Model(apply, jnp.arange(12.0), plan, merge([corpus]), (6, 8, 8)),
        average=average,
        activation=activation,
    )
    array = np.linspace(0.2, 9, 20)[:, None, None] + np.random.default_rng(0).normal(
        0, 0.4, (20, 13, 15)
    )
    volume = scan(tmp_path / "a.nii.gz", array, np.diag([1.1, 1.3, 1.0, 1.0]))
    shown = []
    whole = many.segment(
        volume,
        Request("Many"),
        on_scores=lambda transform, region, names, values: shown.append(values.shape[-1]),
    )
    narrow = many.segment(volume, Request("Many"))
    assert (
        set(shown) == {12}
        and len(np.unique(narrow.label_map)) > 8
        and narrow.masks.voxels["c11"] == 0
    )
    assert np.array_equal(whole.label_map, narrow.label_map)
    assert all(np.array_equal(whole.masks[name], narrow.masks[name]) for name in names)


@pytest.mark.parametrize("average", ["prob", "logit"])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_the_confidence_is_the_mean_probability_in_the_mask(tmp_path, activation, average):
    volume = scan(tmp_path / "a.nii.gz", nested())
    options = {"activation": activation, "average": average}
    predictor = Segmenter(model((0.45, 1.5, 9.0)), **options)
    request, kept = Request("Liver", classes=("liver", "tumour", "spleen")), []
    found = predictor.segment(volume, request)
    need = predictor.forecast(volume, request).bytes
    strips = Segmenter(model((0.45, 1.5, 9.0)), memory_gib=0.8 * need / 2**30, **options)
    split = strips.segment(volume, request)

    def keep(transform, region, names, values):
        kept.append((transform, region, names, values))

    beside = predictor.segment(volume, request, on_scores=keep)
    for name in ("liver", "tumour"):
        inside, total = 0, 0.0
        for _, region, names, values in kept:
            mask = beside.masks.cropped(name)[region]
            inside, total = (
                inside + mask.sum(),
                total + values[..., names.index(name)][mask].sum(),
            )
        if inside:
            for one in (found, beside, split):
                assert one.masks.confidence[name] == pytest.approx(total / inside, abs=1e-4)
        else:
            assert found.masks.confidence[name] is None
    assert found.masks.confidence["spleen"] is None
    assert any(value is not None and value > 0.5 for value in found.masks.confidence.values())
