"""The label space: ids, sets of classes, partial knowledge, views, merging, export."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.multitalent import CORPORA
from medjax.errors import LabelError
from medjax.labels import Corpus, LabelSpace, merge

LIVER = Corpus("liver", ((1, ("liver",)), (2, ("liver", "tumour"))), modality="CT")
KIDNEY = Corpus(
    "kidney",
    ((5, ("kidney",)), (9, ("kidney", "tumour")), (200, ("spleen",))),
    modality="MR",
    ignore=255,
)


def test_known_and_table_follow_the_label_sets():
    space = merge([LIVER, KIDNEY])
    assert space.classes == ("liver", "tumour", "kidney", "spleen")
    assert space.known.tolist() == [[True, True, False, False], [False, True, True, True]]
    assert space.table.shape == (2, 5, 4)
    assert space.table[0, 2].tolist() == [True, True, False, False]
    assert space.table[1, 2].tolist() == [False, True, True, False]
    assert not space.table[0, 3:].any() and not space.table[:, 0].any()
    assert space.ignore_ids.tolist() == [-2, 4]
    assert space.modalities == ("CT", "MR")


def test_per_corpus_merging_keeps_protocols_apart_and_rename_joins_them():
    apart = merge([LIVER, KIDNEY], share="per_corpus")
    assert apart.classes == (
        "liver/liver",
        "liver/tumour",
        "kidney/kidney",
        "kidney/tumour",
        "kidney/spleen",
    )
    joined = merge(
        [LIVER, KIDNEY], rename={"liver/tumour": "liver tumour", "kidney/tumour": "kidney tumour"}
    )
    assert joined.classes == ("liver", "liver tumour", "kidney", "kidney tumour", "spleen")
    with pytest.raises(LabelError, match="match nothing"):
        merge([LIVER], rename={"lever": "x"})


def test_multitalent_pool_has_47_channels_in_the_papers_order():
    corpora = [
        Corpus(n, tuple((int(v), c) for v, c in f["labels"].items()), f["annotated"])
        for n, f in CORPORA.items()
    ]
    space = merge(corpora, share="per_corpus")
    assert len(space.classes) == 47 and sum(f["cases"] for f in CORPORA.values()) == 1477
    assert (
        space.classes[41] == "064_KiTS19/kidney" and space.classes[42] == "064_KiTS19/kidney tumour"
    )
    assert space.classes[0] == "003_Liver/liver" and space.table[0, 2].nonzero()[0].tolist() == [
        0,
        1,
    ]
    assert space.known.sum(1).tolist() == [2, 1, 2, 2, 1, 1, 13, 8, 6, 4, 1, 2, 4]


def test_sparse_values_round_trip_and_undeclared_ones_are_named_with_counts():
    raw = np.array([[0, 5, 9], [200, 255, 0]])
    ids = KIDNEY.to_ids(raw)
    assert ids.tolist() == [[0, 1, 2], [3, 4, 0]] and ids.dtype == np.uint8
    assert (KIDNEY.to_raw(ids) == raw).all() and KIDNEY.to_raw(ids).dtype == np.uint8
    with pytest.raises(LabelError, match=r"7 \(2 voxels\)"):
        KIDNEY.to_ids(np.array([7, 7, 5]))
    with pytest.raises(LabelError, match=r"1.5 \(1 voxels\)"):
        KIDNEY.to_ids(np.array([1.5, 0]))


def test_a_view_hides_classes_and_unveiling_brings_them_back():
    first, second = LIVER.view(["liver"], "organ"), LIVER.view(["tumour"], "lesion")
    space = merge([first, second])
    assert space.known.tolist() == [[True, False], [False, True]]
    assert space.table[0, 2].tolist() == [True, False] and space.table[1, 1].tolist() == [
        False,
        False,
    ]
    assert first.foreground_ids == (1, 2) and second.foreground_ids == (2,)
    assert first.store == "liver"
    whole = space.unveiled()
    assert (
        [c.name for c in whole.corpora] == ["liver"]
        and whole.known.all()
        and whole.classes == space.classes
    )
    assert whole.corpora[0].annotated == ("liver", "tumour")
    with pytest.raises(LabelError, match="did you mean liver"):
        LIVER.view(["livr"])


def test_export_paints_nested_classes_over_their_parents_and_writes_original_values():
    space = merge([LIVER, KIDNEY])
    mask = np.zeros((5, 4), bool)
    mask[1, 0] = mask[2, 0] = mask[2, 1] = mask[3, 1] = mask[4, 2] = (
        True  # liver, liver+tumour, tumour alone, kidney
    )
    assert space.export(mask, "liver").tolist() == [0, 1, 2, 2, 0]
    assert space.export(mask, "kidney").tolist() == [0, 0, 9, 9, 5]
    with pytest.raises(LabelError, match="did you mean liver"):
        space.export(mask, "livr")


def test_a_value_that_only_means_a_combination_is_painted_where_all_its_classes_are():
    corpus = Corpus("c", ((1, ("a",)), (2, ("b",)), (3, ("a", "b"))))
    mask = np.array([[True, False], [False, True], [True, True], [False, False]])
    assert merge([corpus]).export(mask, "c").tolist() == [1, 2, 3, 0]


@given(
    st.lists(st.integers(1, 60000), min_size=1, max_size=12, unique=True), st.integers(0, 2**32 - 1)
)
def test_ids_and_values_are_inverse_for_any_label_values(values, seed):
    corpus = Corpus("c", tuple((v, (f"class {v}",)) for v in values))
    raw = np.random.default_rng(seed).choice([0, *values], size=(3, 4, 5))
    assert (corpus.to_raw(corpus.to_ids(raw)) == raw).all()
    space = merge([corpus])
    onehot = space.table[0, corpus.to_ids(raw)]
    assert (space.export(onehot, "c") == raw).all()


def test_json_round_trip():
    space = merge([LIVER.view(["tumour"]), KIDNEY], precedence=["tumour"])
    assert LabelSpace.from_json(space.to_json()) == space
    assert space.precedence[-1] == "tumour"


def test_contradictions_are_refused():
    with pytest.raises(LabelError, match="unique names"):
        merge([LIVER, LIVER])
    with pytest.raises(LabelError, match="also a label"):
        Corpus("x", ((1, ("a",)),), ignore=1)
    with pytest.raises(LabelError, match="not among the labels"):
        Corpus("x", ((1, ("a",)),), annotated=("b",))


def test_a_store_is_predicted_under_the_condition_it_was_trained_with():
    mr = Corpus("heart", ((1, ("atrium",)),), modality="MR")
    space = merge(
        [mr, LIVER.view(["tumour"], "small"), LIVER.view(["liver", "tumour"], "whole"), KIDNEY]
    )
    assert space.conditions() == {"heart": (0, 0), "liver": (2, 1), "kidney": (3, 0)}
