"""Preview: sheets of the right make-up, and the command on a store."""

import numpy as np
import pytest

from medjax import cli
from medjax.corpora.sources import read_corpus
from medjax.errors import DataError
from medjax.prepare.plan import Intensity, Plan
from medjax.prepare.prepare import prepare
from medjax.report import preview
from tests.support.raw import write_corpus


def pixels(path):
    from matplotlib.image import imread

    return imread(path)[..., :3]


def test_slices_with_most_foreground():
    label = np.zeros((5, 6, 7), int)
    label[3, 2, 1:4] = label[3, 4, 2] = 1
    image = np.arange(5 * 6 * 7, dtype=np.float32).reshape(5, 6, 7)
    axial, coronal, sagittal = preview.planes(image, label, (4, 2, 1), "a case")
    np.testing.assert_array_equal(axial.image, image[3])
    np.testing.assert_array_equal(coronal.label, label[:, 2])
    np.testing.assert_array_equal(sagittal.image, image[:, :, 2])
    assert (
        (axial.aspect, coronal.aspect, sagittal.aspect) == (2, 4, 2)
        and "axial 4/5" in axial.title
        and "a case" in axial.title
    )
    np.testing.assert_array_equal(
        preview.middle(image[..., None], label, (4, 2, 1)).image, image[3]
    )
    np.testing.assert_array_equal(
        preview.middle(image[3][..., None], label[3], (2, 1)).image, image[3]
    )


def test_labels_and_padding_are_coloured(tmp_path):
    image, label = np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20), np.zeros((20, 20), int)
    plain = tmp_path / "plain.png"
    preview.sheet([[preview.Panel(image, label)]], plain)
    assert np.ptp(pixels(plain), axis=-1).max() < 0.02  # grey only
    label[5:15, 5:15], label[:3] = 2, -1
    preview.sheet(
        [[preview.Panel(image, label, "one"), preview.Panel(image, label)]],
        tmp_path / "x.png",
        title="t",
        names={2: "liver"},
    )
    found = pixels(tmp_path / "x.png").reshape(-1, 3)
    orange, padded = (
        found[:, 0] - found[:, 2] > 0.2,
        np.abs(found - np.array([0x5A, 0x2A, 0x2A]) / 255).max(1) < 0.02,
    )
    assert 0.01 < orange.mean() < 0.5 and padded.mean() > 0.01
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    with pytest.raises(DataError, match="another grid"):
        preview.sheet([[preview.Panel(image, label[1:])]], plain)
    with pytest.raises(DataError, match="nothing to draw"):
        preview.sheet([], plain)


def test_the_command(tmp_path, capsys):
    corpus, cases = read_corpus(write_corpus(tmp_path / "Task01_A", 3, (14, 16, 15)))
    prepare(
        corpus, cases, Plan({"A": (1.0, 1.0, 1.0)}, {"MRI": Intensity("zscore")}), tmp_path / "s"
    )
    arguments = [
        "preview",
        str(tmp_path / "s"),
        "--samples",
        "2",
        "--variants",
        "1",
        "--patch",
        "8",
        "8",
        "8",
    ]
    assert cli.main([*arguments, "-o", str(tmp_path / "p")]) == 0
    made = sorted(p.name for p in (tmp_path / "p").iterdir())
    assert made == ["A_cases.png", "A_samples.png"] and "A_cases.png" in capsys.readouterr().out
    assert all(pixels(tmp_path / "p" / name).std() > 0.05 for name in made)
    assert cli.main([*arguments[:-3], "8", "8", "-o", str(tmp_path / "q")]) == 0  # slices
    assert cli.main([*arguments, "--corpus", "B"]) == 2 and "Known: A" in capsys.readouterr().err
    assert (
        cli.main(["preview", str(tmp_path)]) == 2 and "no prepared cases" in capsys.readouterr().err
    )


def test_pictures_replace_pictures_only(tmp_path):
    from medjax.errors import UsageError

    rows = [[preview.Panel(np.zeros((4, 5)), np.zeros((4, 5), int))]]
    preview.sheet(rows, tmp_path / "a.png")
    first = (tmp_path / "a.png").read_bytes()
    preview.sheet(rows, tmp_path / "a.png", title="again")
    assert (tmp_path / "a.png").read_bytes() != first
    (tmp_path / "b.png").write_bytes(b"mine")
    (tmp_path / "c.png").symlink_to(tmp_path / "a.png")
    for name in ("b.png", "c.png"):
        with pytest.raises(UsageError, match="in the way of a picture"):
            preview.sheet(rows, tmp_path / name)
    assert (
        (tmp_path / "b.png").read_bytes() == b"mine"
        and (tmp_path / "c.png").is_symlink()
        and len(list(tmp_path.iterdir())) == 3
    )
