"""Regions of scans without annotation, against a plain walk over all edges; the corpus of them."""

import json

import numpy as np
import pytest

from medjax import cli
from medjax.corpora.sources import read_corpus
from medjax.errors import UsageError
from medjax.scans import formats
from medjax_verbs import pseudo, pseudo_regions
from medjax_verbs.pseudo_regions import Settings
from tests.support.raw import write_corpus

SHAPE = (6, 7, 8)


def walked(image, percentile, joined):
    """The published way: every edge in ascending order, one by one."""
    a, b, cost = pseudo_regions.edges(image)
    order = np.argsort(cost, kind="stable")
    limit = np.percentile(cost[cost > 0], percentile)
    parent, size = list(range(image.size)), [1] * image.size

    def top(k):
        while parent[k] != k:
            k = parent[k]
        return k

    for first in (True, False):
        for e in order:
            one, other = top(a[e]), top(b[e])
            small = cost[e] < limit if first else min(size[one], size[other]) < joined
            if one != other and small:
                parent[other] = one
                size[one] += size[other]
    return np.array([top(k) for k in range(image.size)]).reshape(image.shape)


def same(one, other):
    """Whether two arrays of ids divide the voxels alike."""
    pairs = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1).shape[1]
    return pairs == len(np.unique(one)) == len(np.unique(other))


@pytest.mark.parametrize("joined", [1, 4, 25])
def test_the_tree_gives_what_a_walk_over_all_edges_gives(joined):
    image = np.random.default_rng(joined).normal(size=SHAPE).astype(np.float32)
    image[2:5, 2:6, 1:5] += 4
    expected = walked(image, 25.0, joined)
    found = pseudo_regions.joined_up(image, 25.0, joined)
    assert same(found, expected) and 1 < len(np.unique(found)) < image.size
    if joined > 1:
        assert np.bincount(found.ravel()).min() >= joined


def test_neighbours_are_five_and_reach_over_two_diagonals_of_the_plane():
    image = np.zeros((1, 2, 2), np.float32)
    a, b, _ = pseudo_regions.edges(image)
    assert sorted(zip(a.tolist(), b.tolist(), strict=True)) == [
        (0, 1),
        (0, 2),
        (0, 3),
        (1, 2),
        (1, 3),
        (2, 3),
    ]
    assert len(pseudo_regions.edges(np.zeros((3, 1, 1), np.float32))[0]) == 2
    assert not pseudo_regions.joined_up(np.ones(SHAPE, np.float32), 25.0, 5).any()


def blocks():
    image = np.zeros((16, 40, 40), np.float32)
    parts = [
        (slice(3, 13), slice(4, 18), slice(4, 20)),
        (slice(4, 12), slice(24, 34), slice(8, 20)),
    ]
    for level, part in zip((10, 20), parts, strict=True):
        image[part] += level
    return image, parts


def test_blocks_of_one_intensity_are_found_and_air_is_not():
    image, parts = blocks()
    found = pseudo_regions.regions(image, Settings(sigma=0.0, joined=20_000))
    assert set(np.unique(found)) == {0, 1, 2}
    for number, part in enumerate(parts, 1):
        true = np.zeros(image.shape, bool)
        true[part] = True
        mask = found == number
        assert 2 * (mask & true).sum() / (mask.sum() + true.sum()) > 0.9
    one = pseudo_regions.regions(image, Settings(sigma=0.0, joined=20_000, most=1))
    np.testing.assert_array_equal(one == 1, found == 1)
    big = Settings(sigma=0.0, joined=20_000, share=0.07)
    assert set(np.unique(pseudo_regions.regions(image, big))) == {0, 1}


def test_labels_are_pasted_on_top_as_regions_without_a_name():
    found = np.array([[[1, 1, 2, 0]]], np.int32)
    label = np.array([[[0, 5, 5, 3]]])
    assert pseudo_regions.pasted(found, label).tolist() == [[[1, 4, 4, 3]]]
    assert pseudo_regions.pasted(found, None) is found
    with pytest.raises(UsageError, match="unusable settings"):
        Settings(share=0.6)


def test_a_corpus_of_regions_is_a_corpus_and_keeps_scans_on_one_side(tmp_path, capsys):
    raw = write_corpus(tmp_path / "Task01_Body", 2, (12, 20, 20), channels=("CT",))
    out = tmp_path / "out"
    assert pseudo.add and cli.main(["pseudo", str(raw), "-o", str(out), "--largest", "0.9"]) == 0
    said = capsys.readouterr().out
    assert "task_options.sets_of.Body_regions" in said
    corpus, cases = read_corpus(out)
    before, scans = read_corpus(raw)
    assert corpus.name == "Body_regions" and corpus.channels == before.channels
    assert [case.images for case in cases] == [case.images for case in scans]
    assert corpus.classes[0] == "region 1" and corpus.annotated == corpus.classes
    values = [np.unique(formats.read(case.label, "label").array) for case in cases]
    assert max(v.max() for v in values) == len(corpus.classes)
    assert all(np.array_equal(v[v > 0], np.arange(1, v.max() + 1)) for v in values)
    twins = json.loads((out / "corpus.json").read_text())["twins"]
    assert twins[-1]["corpus"] == "Body" and twins[-1]["other"] == r"\1"
    code = cli.main(["pseudo", str(raw), "-o", str(raw)])
    assert code == 2 and "choose another one" in capsys.readouterr().err
