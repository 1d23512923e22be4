"""The picture of a case: what it shows, for every shape a scan may have."""

import matplotlib.image
import numpy as np
import pytest
from scipy import ndimage

from medjax.colours import of_classes
from medjax.errors import MetricError
from medjax.report.montage import best_slices, montage


def volumes(shape=(8, 20, 16)):
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    reference = np.zeros(shape, np.uint8)
    reference[shape[0] // 2 :, 5:12, 4:9] = 1
    reference[-1, 6:8, 5:7] = 2
    return image, reference


def test_best_slices():
    _, reference = volumes()
    reference[3] = 1
    assert best_slices(reference) == (3, 5, 4)
    assert best_slices(np.zeros((4, 6, 9), int), reference[:4, :6, :9]) == (3, 0, 0)
    assert best_slices(np.zeros((4, 6, 9), int)) == (2, 3, 4)


@pytest.mark.parametrize(
    "shape, with_reference", [((8, 20, 16), True), ((8, 20, 16), False), ((1, 20, 16), True)]
)
def test_picture(tmp_path, shape, with_reference):
    image, labels = volumes(shape)
    montage(
        image,
        labels if with_reference else None,
        labels,
        tmp_path / "case.png",
        (3.0, 1.0, 1.0),
        names={1: "liver"},
        title="case",
    )
    picture = matplotlib.image.imread(tmp_path / "case.png")[..., :3]
    assert [p.name for p in tmp_path.iterdir()] == ["case.png"]
    height, width = picture.shape[:2]
    assert (
        width == 3.2 * 110 * (3 if with_reference else 2)
        or abs(width - 3.2 * 110 * (3 if with_reference else 2)) <= 1
    )
    coloured = (
        np.abs(picture - of_classes(["liver"])["liver"]).max(-1) < 0.02
    )  # the contour of class 1
    columns = np.array_split(
        coloured[int(0.05 * height) : int(0.9 * height)], 3 if with_reference else 2, axis=1
    )
    assert columns[0].sum() == 0 and all(c.sum() > 50 for c in columns[1:])


def test_nothing_predicted_and_constant_image(tmp_path):
    montage(
        np.zeros((4, 6, 5)),
        None,
        np.zeros((4, 6, 5), np.uint8),
        tmp_path / "new" / "empty.png",
        (1.0, 1.0, 1.0),
    )
    picture = matplotlib.image.imread(tmp_path / "new" / "empty.png")[..., :3]
    assert np.ptp(picture, -1).max() < 0.01  # nothing is coloured: no contour, no legend
    panels, count = ndimage.label(picture.max(-1) == 0)  # the image is black, the ground is not
    boxes = [
        box
        for box, size in zip(
            ndimage.find_objects(panels), np.bincount(panels.flat)[1:], strict=True
        )
        if size > 1000
    ]
    shapes = [(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in boxes]
    assert len(boxes) == 6 and count == 6  # three planes of image and prediction
    for (high, wide), ratio in zip(shapes, np.repeat([6 / 5, 4 / 5, 4 / 6], 2), strict=True):
        assert high / wide == pytest.approx(ratio, rel=0.02)
    left = min(columns.start for _, columns in boxes)
    names = [(picture[rows, :left].max(-1) > 0.5).sum() for rows, _ in boxes[::2]]
    assert min(names) > 20  # axial, coronal and sagittal are written beside their rows


def test_other_grid_is_refused(tmp_path):
    image, labels = volumes()
    with pytest.raises(MetricError, match="another grid"):
        montage(image, labels, labels[1:], tmp_path / "x.png", (1.0, 1.0, 1.0))
