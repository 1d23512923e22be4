"""Augmentation: geometry against scipy and exact rotations, label votes, intensity formulae,
probabilities, devices, nnU-Net parity.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy import ndimage

from medjax.augment import intensity, spatial
from medjax.augment.nnunet import Augmentation, apply, augment, centre_crop, draw
from medjax.errors import UsageError

NONE = Augmentation.none()
ALWAYS = dataclasses.replace(
    Augmentation(),
    **{
        f.name: 0.0 if f.name in ("shift", "quarter") else 1.0  # see test_roles.py
        for f in dataclasses.fields(Augmentation)
        if f.type is float
    },
)
run = jax.jit(augment, static_argnums=(3, 4), static_argnames=("mesh", "batch_axes"))
resample = jax.jit(spatial.resample, static_argnums=3)


def volume(shape, seed=0, ids=(0, 1, 2)):
    """A random image (*shape, 1) and label (*shape)."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(*shape, 1)).astype(np.float32), rng.choice(
        np.array(ids, np.int16), shape
    )


def blobs(shape, ids=3):
    """Smooth label regions, as real segmentations are."""
    return (
        ndimage.gaussian_filter(
            np.random.default_rng(1).normal(size=(ids, *shape)), (0, *[1.5] * len(shape))
        )
        .argmax(0)
        .astype(np.int16)
    )


def matrix(angles, scale=1.0, axes=3):
    return spatial.affine(jnp.asarray(angles, jnp.float32), jnp.float32(scale), axes)


def points(array, shape, out_shape):
    """Input coordinates of every output voxel, (n, *out_shape) float64: the oracle's own words."""
    grid = np.stack(np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in out_shape], indexing="ij"))
    return np.einsum("de,e...->d...", np.asarray(array, float), grid) + (
        (np.array(shape) - 1) / 2
    ).reshape(-1, *[1] * len(shape))


@pytest.mark.parametrize(("shape", "out"), [((9, 8, 7), (4, 5, 7)), ((9, 8), (4, 5))])
def test_nothing_drawn_is_the_exact_centre(shape, out):
    image, label = (np.stack([a, a[::-1]]) for a in volume(shape))
    got, got_label = run(jax.random.key(0), image, label, out, NONE)
    start = [n // 2 - k // 2 for n, k in zip(shape, out, strict=True)]
    inner = tuple(slice(s, s + k) for s, k in zip(start, out, strict=True))
    np.testing.assert_array_equal(got, image[(slice(None), *inner)])
    np.testing.assert_array_equal(got_label, label[(slice(None), *inner)])
    assert got_label.dtype == np.int16
    np.testing.assert_array_equal(centre_crop(jnp.asarray(label), out, first=1), got_label)


def test_identity_matrix_is_the_centre():
    image, label = volume((8, 10, 7))
    got, got_label = resample(image, label[..., None], matrix((0, 0, 0)), (4, 6, 5))
    np.testing.assert_array_equal(got, image[2:6, 2:8, 1:6])
    np.testing.assert_array_equal(got_label[..., 0], label[2:6, 2:8, 1:6])


@pytest.mark.parametrize("n", [5, 6])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_quarter_turns_move_voxels_exactly(axis, n):
    image, label = volume((n, n, n), seed=axis)
    angles = np.zeros(3)
    angles[axis] = np.pi / 2
    got, got_label = resample(image, label[..., None], matrix(angles), (n, n, n))
    # first angle: (y, x) of the input = (-x, y) of the output, from Rx; second: (z, x) = (x, -z);
    # third: (z, y) = (-y, z)
    wanted = {
        0: lambda a: a[:, ::-1].swapaxes(1, 2),
        1: lambda a: a[:, :, ::-1].swapaxes(0, 2),
        2: lambda a: a[::-1].swapaxes(0, 1),
    }[axis]
    np.testing.assert_allclose(got, wanted(image), atol=1e-5)
    np.testing.assert_array_equal(got_label[..., 0], wanted(label))


def test_scaling_above_one_makes_objects_smaller():
    ball = (np.linalg.norm(np.indices((33, 33, 33)) - 16, axis=0) <= 8).astype(np.int16)
    sizes = {}
    for factor in (0.5, 1.0, 2.0):
        _, label = resample(
            ball[..., None].astype(np.float32),
            ball[..., None],
            matrix((0, 0, 0), factor),
            (35, 35, 35),
        )
        sizes[factor] = int((label == 1).sum())
    assert sizes[1.0] == ball.sum() == 2109
    assert sizes[2.0] == (np.linalg.norm(np.indices((9, 9, 9)) - 4, axis=0) <= 4).sum() == 257
    assert 7 < sizes[0.5] / sizes[1.0] < 9


@pytest.mark.parametrize(("shape", "out"), [((11, 12, 10), (8, 6, 7)), ((13, 12), (8, 9))])
@pytest.mark.parametrize("scale", [0.8, 1.7])
def test_resampling_agrees_with_scipy(shape, out, scale):
    image, _ = volume(shape)
    label = blobs(shape)
    m = matrix((0.3, -0.5, 0.4), scale, len(shape))
    got, got_label = resample(image, label[..., None], m, out)
    where = points(m, shape, out)
    np.testing.assert_allclose(
        got[..., 0],
        ndimage.map_coordinates(image[..., 0], where, order=1, mode="grid-constant"),
        atol=2e-5,
    )
    ids = np.array([-1, 0, 1, 2])
    scores = np.stack(
        [
            ndimage.map_coordinates(
                (label == i).astype(float), where, order=1, mode="grid-constant", cval=i == -1
            )
            for i in ids
        ]
    )
    clear = np.sort(scores, 0)[-1] - np.sort(scores, 0)[-2] > 1e-3
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(
        np.asarray(got_label)[..., 0][clear], ids[scores.argmax(0)][clear]
    )
    assert (np.asarray(got_label) == -1).any() == (scale > 1)


def test_tied_labels_go_to_the_nearest_corner_then_to_the_lowest():
    label = np.array([[5, 5], [2, 2]], np.int16)

    def at(y, x):
        low, above = np.floor([y, x]), np.array([y, x]) % 1
        weights = [
            jnp.full(
                (1, 1, 1), np.prod([p if b else 1 - p for b, p in zip(bits, above, strict=True)])
            )
            for bits in itertools.product((0, 1), repeat=2)
        ]
        corners = [
            jnp.full((1, 1, 1), label[tuple((low + bits).astype(int))])
            for bits in itertools.product((0, 1), repeat=2)
        ]
        return lambda closest: int(
            spatial._vote(weights, corners, jnp.full((1, 1, 1), closest, jnp.int16))[0, 0, 0]
        )

    assert at(0.5, 0.2)(5) == 5 and at(0.5, 0.2)(2) == 2  # equal shares: the nearest decides
    assert at(0.5, 0.2)(9) == 2  # the nearest is not among the tied ones: the lowest
    assert at(0.4, 0.2)(2) == 5  # a clear majority ignores the nearest


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.floats(-3, 3), st.floats(0.5, 1.5))
def test_no_label_is_invented(seed, angle, scale):
    image, label = volume((6, 7, 5), seed, ids=(0, 3, 7, 200))
    _, got = resample(image, label[..., None], matrix((angle, angle / 2, -angle), scale), (5, 5, 5))
    assert set(np.unique(got)) <= {-1, 0, 3, 7, 200}


def test_channels_share_the_coordinates():
    image, label = volume((7, 8, 9))
    both = np.concatenate([image, 2 * image], -1)[None]
    turned = dataclasses.replace(NONE, rotation=1.0, scaling=1.0)
    got, _ = run(jax.random.key(3), both, label[None], (5, 6, 7), turned)
    assert not np.allclose(got[0, ..., 0], image[1:6, 1:7, 1:8, 0])
    np.testing.assert_allclose(got[..., 1], 2 * got[..., 0], rtol=1e-5)


def test_thin_patches_are_turned_within_slices():
    image, label = volume((3, 16, 14))
    turned = dataclasses.replace(NONE, rotation=1.0, scaling=1.0)
    assert turned.within_slices((3, 12, 10)) and not turned.within_slices((4, 12, 10))
    got, got_label = run(jax.random.key(1), image[None], label[None], (3, 12, 10), turned)
    drawn = draw(
        jax.random.split(jax.random.fold_in(jax.random.key(1), 0))[0], turned, (3, 12, 10), 1
    )
    assert abs(float(drawn.angles[2])) > np.pi / 6  # up to 180 degrees
    m = spatial.affine(drawn.angles, drawn.scale, 2)
    for z in range(3):
        wanted, wanted_label = resample(image[z], label[z, ..., None], m, (12, 10))
        np.testing.assert_allclose(got[0, z], wanted, atol=1e-5)
        np.testing.assert_array_equal(got_label[0, z], wanted_label[..., 0])


def test_mirroring_turns_image_and_label_alike():
    image, label = volume((5, 6, 7))
    image[..., 0] = label
    got, got_label = run(
        jax.random.key(0),
        image[None],
        label[None],
        (5, 6, 7),
        dataclasses.replace(NONE, mirror=1.0),
    )
    np.testing.assert_array_equal(got_label[0], label[::-1, ::-1, ::-1])
    np.testing.assert_array_equal(got[..., 0], got_label)
    _, some = run(
        jax.random.key(0),
        image[None],
        label[None],
        (5, 6, 7),
        dataclasses.replace(NONE, mirror=1.0, mirror_axes=(1,)),
    )
    np.testing.assert_array_equal(some[0], label[:, ::-1])


def test_gamma_restores_the_moments():
    x = volume((9, 8, 7))[0][..., 0]
    for g in (0.7, 1.5):
        got = intensity.gamma(jnp.asarray(x), jnp.float32(g))
        np.testing.assert_allclose(
            [got.mean(), got.std(ddof=1)], [x.mean(), x.std(ddof=1)], rtol=1e-5, atol=1e-6
        )
        np.testing.assert_array_equal(np.argsort(got.ravel()), np.argsort(x.ravel()))
        assert np.abs(got - x).max() > 0.05
    np.testing.assert_allclose(
        intensity.gamma(jnp.full((3, 3), 2.0), jnp.float32(1.3)), 2.0, atol=1e-6
    )  # a flat image stays


def test_contrast_is_clipped_to_the_old_range():
    x = jnp.array([[0.0, 1.0], [2.0, 5.0]])  # mean 2
    np.testing.assert_allclose(intensity.contrast(x, jnp.float32(1.25)), [[0, 0.75], [2, 5]])
    np.testing.assert_allclose(intensity.contrast(x, jnp.float32(0.5)), [[1, 1.5], [2, 3.5]])


@pytest.mark.parametrize(("sigma", "half"), [(0.5, 1), (0.58, 1), (0.6, 2), (0.9, 2), (1.0, 3)])
def test_blur_kernel_length_and_weights(sigma, half):
    impulse = jnp.zeros((11, 11)).at[5, 5].set(1.0)
    got = np.asarray(intensity.blur(impulse, jnp.full(2, sigma), intensity.blur_taps(1.0)))
    weights = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
    wanted = np.zeros(11)
    wanted[5 - half : 6 + half] = weights / weights.sum()
    np.testing.assert_allclose(
        got, np.outer(wanted, wanted), atol=1e-7
    )  # length 2 half + 1: the odd number next to 6 sigma + 0.5
    line = ndimage.correlate1d(np.arange(11.0) ** 2, weights / weights.sum(), mode="mirror")
    blurred = intensity.blur(jnp.tile(jnp.arange(11.0) ** 2, (11, 1)), jnp.full(2, sigma), 3)
    np.testing.assert_allclose(blurred[4], line, rtol=1e-5)


def test_low_resolution_by_hand():
    ramp = jnp.tile(jnp.arange(4.0), (4, 1))
    np.testing.assert_allclose(intensity.low_resolution(ramp, jnp.float32(1.0)), ramp)
    # 4 -> 2 voxels takes voxels 1 and 3; linear up with half-pixel centres: 1, 1.5, 2.5, 3
    np.testing.assert_allclose(
        intensity.low_resolution(ramp, jnp.float32(0.5)), np.tile([1, 1.5, 2.5, 3], (4, 1))
    )
    np.testing.assert_allclose(intensity.low_resolution(ramp.T, jnp.float32(0.5), first=1), ramp.T)


def test_probabilities_and_ranges():
    n, shape = 6000, (8, 8, 8)
    drawn = jax.jit(jax.vmap(lambda k: draw(k, Augmentation(), shape, 2)))(
        jax.random.split(jax.random.key(0), n)
    )
    d = jax.tree.map(np.asarray, drawn)
    share = {
        "spatial": (d.spatial.mean(), 1 - 0.8 * 0.8),
        "turned": ((d.angles != 0).all(1).mean(), 0.2),
        "scaled": ((d.scale != 1).mean(), 0.2),
        "noise": ((d.noise > 0).mean(), 0.1),
        "blur": ((d.blur > 0).all(2).mean(), 0.1),
        "brightness": ((d.brightness != 1).all(1).mean(), 0.15),
        "contrast": ((d.contrast != 1).mean(), 0.15),
        "zoom": ((d.zoom < 1).mean(), 0.125),
        "inverted": ((d.gamma_inverted != 1).mean(), 0.1),
        "gamma": ((d.gamma != 1).mean(), 0.3),
        "gamma above": ((d.gamma > 1).mean(), 0.15),
        "flips": (d.flips.mean(), 0.5),
    }
    for name, (got, p) in share.items():
        assert abs(got - p) < 4 * np.sqrt(p * (1 - p) / n), (name, got, p)
    for values, (low, high) in [
        (d.angles, (-np.pi / 6, np.pi / 6)),
        (d.scale, (0.7, 1.4)),
        (d.noise, (0, 0.1)),
        (d.blur[d.blur > 0], (0.5, 1)),
        (d.brightness, (0.75, 1.25)),
        (d.contrast, (0.75, 1.25)),
        (d.zoom, (0.5, 1)),
        (d.gamma, (0.7, 1.5)),
        (d.gamma_inverted, (0.7, 1.5)),
    ]:
        assert (
            low <= values.min() < low + 0.05 * (high - low)
            and high - 0.05 * (high - low) < values.max() <= high
        )
    assert (
        np.unique(d.scale[d.scale != 1]).size > 1000
        and abs(d.scale[d.scale != 1].mean() - 1.05) < 0.02
    )  # plainly uniform


@pytest.mark.parametrize(("shape", "out"), [((7, 8, 9), (5, 6, 7)), ((12, 11), (9, 8))])
def test_every_step_together_is_finite_and_depends_on_the_key(shape, out):
    image, label = (np.stack([a] * 2) for a in volume(shape))
    first, first_label = run(jax.random.key(5), image, label, out, ALWAYS)
    again, again_label = run(jax.random.key(5), image, label, out, ALWAYS)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first_label, again_label)
    assert (
        np.isfinite(first).all() and first.shape == (2, *out, 1) and first_label.dtype == np.int16
    )
    assert not np.allclose(first[0], first[1]) and not np.allclose(
        first, run(jax.random.key(6), image, label, out, ALWAYS)[0]
    )


def test_eight_devices_equal_one():
    image, label = (np.stack([a * (k + 1) for k in range(8)]) for a in volume((7, 7, 8)))
    chosen = dataclasses.replace(NONE, rotation=0.5, noise=1.0, gamma=0.5, mirror=0.5)
    wanted = run(jax.random.key(2), image, label, (5, 5, 6), chosen)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    on_devices = jax.device_put((image, label), split)
    compiled = run.lower(jax.random.key(2), *on_devices, (5, 5, 6), chosen, mesh=mesh).compile()
    assert "all-gather" not in compiled.as_text()  # each device stays with its own samples
    got = compiled(jax.random.key(2), *on_devices)
    assert got[0].sharding.is_equivalent_to(split, got[0].ndim)
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_too_small_patches_and_bad_settings_are_refused():
    image, label = volume((4, 8, 8))
    with pytest.raises(UsageError, match="do not cover"):
        augment(
            jax.random.key(0), jnp.asarray(image[None]), jnp.asarray(label[None]), (5, 8, 8), NONE
        )
    with pytest.raises(UsageError, match="probability 'blur'"):
        Augmentation(blur=1.5)
    with pytest.raises(UsageError, match="range 'zoom_range'"):
        Augmentation(zoom_range=(1.0, 0.5))


@pytest.mark.parity
def test_parity_space():
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("batchgeneratorsv2.transforms.spatial.spatial")
    for axes, angles, scale in (
        (3, (0.3, -0.4, 0.2), 0.8),
        (3, (-0.1, 0.5, 0.4), 1.4),
        (2, (0, 0, 0.9), 1.1),
    ):
        shape, out = ((14, 13, 12), (9, 8, 8))[0][:axes], (9, 8, 8)[:axes]
        image, label = volume(shape)[0], blobs(shape)
        peer = module.SpatialTransform(
            out,
            0,
            False,
            p_rotation=1,
            rotation=lambda image, dim, angles=angles, axes=axes: angles[dim if axes == 3 else 2],
            p_scaling=1,
            scaling=scale,
            p_synchronize_scaling_across_axes=1,
            border_mode_seg="constant",
            padding_value_seg=-1,
        )
        wanted = peer(
            image=torch.from_numpy(image[..., 0])[None], segmentation=torch.from_numpy(label)[None]
        )
        got, got_label = resample(image, label[..., None], matrix(angles, scale, axes), out)
        np.testing.assert_allclose(got[..., 0], wanted["image"][0].numpy(), atol=2e-5)
        assert (
            np.asarray(got_label)[..., 0] == wanted["segmentation"][0].numpy()
        ).mean() > 0.998  # peers' ties are decided in half precision


@pytest.mark.parity
def test_parity_intensity():
    torch = pytest.importorskip("torch")
    module = functools.partial(pytest.importorskip, minversion=None)
    x = volume((13, 12, 11))[0][..., 0]
    peer = lambda: torch.from_numpy(x.copy())[None]  # noqa: E731
    zoom = module(
        "batchgeneratorsv2.transforms.spatial.low_resolution"
    ).SimulateLowResolutionTransform
    blur = module("batchgeneratorsv2.transforms.noise.gaussian_blur").GaussianBlurTransform
    gamma = module("batchgeneratorsv2.transforms.intensity.gamma").GammaTransform
    contrast = module("batchgeneratorsv2.transforms.intensity.contrast").ContrastTransform
    for value in (0.5, 0.61, 0.83, 0.97):
        wanted = zoom(value, False, True, None)(image=peer())["image"][0]
        np.testing.assert_allclose(
            intensity.low_resolution(jnp.asarray(x), jnp.float32(value)), wanted, atol=1e-5
        )
        wanted = blur(value, p_per_channel=1)(image=peer())["image"][0]
        np.testing.assert_allclose(
            intensity.blur(jnp.asarray(x), jnp.full(3, value), 3), wanted, atol=1e-5
        )
        wanted = gamma(value, 1, False, 1, 1)(image=peer())["image"][0]
        np.testing.assert_allclose(
            -intensity.gamma(-jnp.asarray(x), jnp.float32(value)), wanted, atol=1e-5
        )
        wanted = contrast(value + 0.5, True, False)(image=peer())["image"][0]
        np.testing.assert_allclose(
            intensity.contrast(jnp.asarray(x), jnp.float32(value + 0.5)), wanted, atol=1e-5
        )


def test_order_of_the_steps():
    """The drawn numbers applied by hand, in the documented order, give the result."""
    image, label = volume((6, 6, 6))
    drawn = draw(jax.random.key(7), ALWAYS, (6, 6, 6), 1)._replace(
        spatial=jnp.bool_(False), noise=jnp.float32(0)
    )
    got, _ = jax.jit(apply, static_argnums=(4, 5))(
        jax.random.key(0), drawn, image, label, (6, 6, 6), ALWAYS
    )

    @jax.jit
    def by_hand(x):
        x = intensity.blur(x, drawn.blur[0], 3) * drawn.brightness[0]
        x = intensity.low_resolution(intensity.contrast(x, drawn.contrast[0]), drawn.zoom[0])
        return intensity.gamma(-intensity.gamma(-x, drawn.gamma_inverted[0]), drawn.gamma[0])

    np.testing.assert_allclose(
        got[..., 0], spatial.mirror(by_hand(image[..., 0]), drawn.flips), atol=2e-5
    )


def test_lateral_classes_trade_places_when_left_and_right_are_mirrored():
    from medjax.augment.lateral import swaps
    from medjax.errors import LabelError
    from medjax.labels import Corpus

    a = Corpus(
        "A",
        (
            (1, ("kidney_left",)),
            (2, ("liver",)),
            (3, ("kidney_right",)),
            (4, ("kidney_left", "cyst")),
            (5, ("kidney_right", "cyst")),
        ),
    )
    b = Corpus("B", ((1, ("liver",)), (2, ("kidney_right",)), (3, ("kidney_left",))))
    swap = swaps([a, b], [("kidney_left", "kidney_right")])
    assert swap == (((1, 3), (4, 5)), ((2, 3),))
    with pytest.raises(LabelError, match=r"A1: a lateral class without its partner.*kidney_left"):
        swaps(
            [Corpus("A1", ((1, ("kidney_left",)), (2, ("spleen",)))), b],
            [("kidney_left", "kidney_right")],
        )
    with pytest.raises(UsageError, match="did you mean kidney_left"):
        swaps([a], [("kidney_lft", "kidney_right")])

    image, label = volume((4, 5, 6), ids=(-1, 0, 1, 2, 3, 4, 5))
    both, labels = np.stack([image, image]), np.stack([label, np.minimum(label, 3)])
    chosen = dataclasses.replace(NONE, mirror=1.0, swap=swap)
    _, got = run(jax.random.key(0), both, labels, (4, 5, 6), chosen, corpus=jnp.array([0, 1]))
    table = {0: {1: 3, 3: 1, 4: 5, 5: 4}, 1: {2: 3, 3: 2}}
    for k in range(2):
        wanted = np.vectorize(lambda i, k=k: table[k].get(i, i))(labels[k][::-1, ::-1, ::-1])
        np.testing.assert_array_equal(got[k], wanted)
    _, kept = run(
        jax.random.key(0),
        both,
        labels,
        (4, 5, 6),
        dataclasses.replace(chosen, mirror_axes=(0, 1)),
        corpus=jnp.array([0, 1]),
    )
    np.testing.assert_array_equal(
        kept[0], label[::-1, ::-1]
    )  # the left-right axis is not mirrored: nothing to trade
    _, kept = run(
        jax.random.key(0),
        both,
        labels,
        (4, 5, 6),
        dataclasses.replace(chosen, mirror_axes=(0,), swap_axis=0),
        corpus=jnp.array([0, 1]),
    )
    assert (np.asarray(kept[1])[label[::-1] == 2] == 3).all()
    with pytest.raises(UsageError, match="per corpus"):
        augment(jax.random.key(0), jnp.asarray(both), jnp.asarray(labels), (4, 5, 6), chosen)


def test_masked_channels_are_zero_outside_again():
    image, label = volume((5, 6, 7), ids=(-1, 0, 1))
    image = np.concatenate([image, image], -1)
    got, got_label = run(
        jax.random.key(1),
        image[None],
        label[None],
        (5, 6, 7),
        dataclasses.replace(NONE, noise=1.0, mask_channels=(1,)),
    )
    outside = np.asarray(got_label[0]) < 0
    assert (
        not np.asarray(got[0, ..., 1])[outside].any() and np.asarray(got[0, ..., 0])[outside].all()
    )
    assert np.asarray(got[0, ..., 1])[~outside].all()


def test_slices_together_on_an_accelerator_are_the_slices_in_turn_on_a_cpu(monkeypatch):
    pairs = [volume((14, 12), seed) for seed in range(3)]
    image, label = (jnp.stack(arrays) for arrays in zip(*pairs, strict=True))
    settings = dataclasses.replace(NONE, rotation=0.5, gamma=0.5, mirror_axes=(0, 1))
    in_turn = augment(jax.random.key(4), image, label, (8, 8), settings)
    asked = []

    def accelerator(*arrays, cpu, default):
        asked.append(cpu)
        return default(*arrays)

    monkeypatch.setattr(jax.lax, "platform_dependent", accelerator)
    together = augment(jax.random.key(4), image, label, (8, 8), settings)
    assert asked
    np.testing.assert_allclose(together[0], in_turn[0], atol=1e-5)
    np.testing.assert_array_equal(together[1], in_turn[1])
