"""The papers' pools, against the numbers of their publications; and what may not be merged."""

import json

import numpy as np
import pytest

from data_pipelines import pools, tumour_tasks
from data_pipelines.catalogue import corpora
from data_pipelines.declare import PublicCorpus
from data_pipelines.multitalent import CANCER_CHANNELS
from medjax.corpora.sides import split
from medjax.errors import LabelError
from medjax.labels import Corpus, LabelSpace, merge
from medjax.registry import plain
from medjax.sample.draw import corpus_probabilities


def _space(pool) -> LabelSpace:
    members = [
        Corpus(
            name,
            tuple((int(v), tuple(c)) for v, c in e["labels"].items()),
            tuple(e["annotated"]),
            e["modality"],
            tuple(e["channels"]),
            meanings=tuple(e["meanings"].items()),
        )
        for name, e in pool.declared().items()
    ]
    members = [split(c, pool.sides.get(c.name, ()))[0] for c in members]
    return merge(members, pool.share, pool.rename())


def test_multitalent_has_13_sets_1477_cases_47_classes_and_three_nested_regions():
    space, declared = _space(pools.multitalent), pools.multitalent.declared()
    assert len(declared) == 13 and len(space.classes) == 47
    counts = [131, 63, 281, 303, 41, 126, 30, 90, 50, 40, 82, 210, 30]  # paper table, by data set
    assert [e["cases"] for e in declared.values()] == counts and sum(counts) == 1477
    assert space.known.sum(1).tolist() == [2, 1, 2, 2, 1, 1, 13, 8, 6, 4, 1, 2, 4]
    nested = [
        (corpus.name, value)
        for corpus in space.corpora
        for value, names in corpus.labels
        if len(set(names) & set(corpus.annotated)) > 1
    ]
    assert nested == [("003_Liver", 2), ("007_Pancreas", 2), ("064_KiTS19", 2)]
    cancer = [space.classes[c] for c in CANCER_CHANNELS]
    assert [name.split("/")[0][:3] for name in cancer] == ["003", "006", "007", "008", "010", "064"]
    assert all("tumour" in name or "cancer" in name for name in cancer)


def test_multitalents_label_map_is_global_id_minus_one():
    """Source ids -> global ids of the released map: channel + 1 of the innermost class."""
    space = _space(pools.multitalent)
    released = {
        "003_Liver": {1: 1, 2: 2},
        "006_Lung": {1: 3},
        "007_Pancreas": {1: 4, 2: 5},
        "008_HepaticVessel": {1: 6, 2: 7},
        "009_Spleen": {1: 8},
        "010_Colon": {1: 9},
        "017_BTCV": {i: 9 + i for i in range(1, 14)},
        "046_BTCV2": {1: 23, 3: 24, 4: 25, 5: 26, 6: 27, 7: 28, 11: 29, 14: 30},
        "051_StructSeg19": {i: 30 + i for i in range(1, 7)},
        "055_SegTHOR": {i: 36 + i for i in range(1, 5)},
        "062_NIHPancreas": {1: 41},
        "064_KiTS19": {1: 42, 2: 43},
        "018_BTCVCervix": {i: 43 + i for i in range(1, 5)},
    }
    for k, corpus in enumerate(space.corpora):
        for value, names in corpus.labels[1:]:
            channels = space.table[k, corpus.values.index(value)].nonzero()[0]
            wanted = released[corpus.name].get(value)
            if wanted is None:
                assert len(channels) == 0, f"{corpus.name} {value} {names} is not annotated"
            else:
                assert max(channels) == wanted - 1


def test_tsfm_has_31_unified_classes_and_57_when_labels_are_kept_apart():
    space = _space(pools.tsfm)
    assert set(space.classes) == set(pools.TSFM_IDS) and len(pools.TSFM_IDS) == 31
    assert len(_space(pools.tsfm_separate).classes) == 57
    assert (
        sum(e["cases"] for e in pools.tsfm.declared().values()) == 2778
    )  # the paper's 2779 counts one scan that was not released
    assert len(set(pools.tsfm.groups.values())) == 10


def test_tsfm_draws_a_data_set_by_the_root_of_its_size():
    declared = pools.tsfm.declared()
    p = corpus_probabilities(
        [e["cases"] for e in declared.values()], 0.5, [e["group"] for e in declared.values()]
    )
    drawn: dict[str, float] = {}
    for entry, share in zip(declared.values(), p, strict=True):
        drawn[entry["group"]] = drawn.get(entry["group"], 0) + share
    published = (
        0.077457,
        0.053715,
        0.117800,
        0.075964,
        0.113443,
        0.067675,
        0.117216,
        0.104841,
        0.037067,
        0.234822,
    )
    np.testing.assert_allclose(
        list(drawn.values()), published, atol=1e-6
    )  # sqrt(n) over the ten sets, AMOS22's CT and MR being one


def test_tsfm_remap_is_the_papers_table():
    lobes = {13: 17, 14: 18, 15: 19, 16: 20, 17: 21}
    btcv = {i: i for i in range(1, 14)}
    amos = {i: i for i in range(1, 10)} | {i: i + 1 for i in range(10, 16)}
    assert pools.tsfm_remap() == {
        "MSD_Liver": {1: 6, 2: 24},
        "MSD_Lung": {1: 25},
        "MSD_HepaticVessel": {1: 22, 2: 26},
        "MSD_Colon": {1: 27},
        "MSD_Pancreas": {1: 11, 2: 28},
        "Breast_DCE": {1: 29},
        "KiTS21": {1: 23, 2: 30, 3: 31},
        "AMOS22_CT": amos,
        "AMOS22_MR": amos,
        "BTCV": btcv,
        "TotalSegmentator_v1_organs": {1: 1, 2: 2, 3: 3, 4: 4}
        | {i: i + 1 for i in range(5, 13)}
        | lobes,
    }


def test_tsfm_annotated_ids_and_regions():
    space = _space(pools.tsfm)
    ids = {
        c.name: {pools.TSFM_IDS.index(g) + 1 for _, g in names}
        for c, names in zip(space.corpora, space.names, strict=True)
    }
    assert (
        ids["MSD_Liver"] == {6, 24}
        and ids["MSD_HepaticVessel"] == {22, 26}
        and ids["KiTS21"] == {23, 30, 31}
    )
    assert ids["AMOS22_CT"] == {*range(1, 10), *range(11, 17)} and ids["BTCV"] == set(range(1, 14))
    assert ids["TotalSegmentator_v1_organs"] == {1, 2, 3, 4, *range(6, 14), *range(17, 22)}
    assert ids["AMOS22_MR"] == ids["AMOS22_CT"] - {
        15,
        16,
    }  # no truth for bladder and prostate or uterus in MR
    for name, region, values in (
        ("MSD_Liver", "liver", (1, 2)),
        ("MSD_Pancreas", "pancreas", (1, 2)),
        ("KiTS21", "kidney", (1, 2, 3)),
    ):
        corpus = space.corpora[space.corpus_index(name)]
        assert tuple(corpus.values[i] for i in corpus.ids_of(region)) == values


def test_m4oe_has_heads_of_14_3_16_and_three_modalities():
    space = _space(pools.m4oe)
    assert pools.m4oe.heads == {"FLARE22": 0, "ATLAS23": 1, "AMOS22_CT": 2, "AMOS22_MR": 2}
    assert pools.m4oe.modalities == {"FLARE22": 0, "ATLAS23": 1, "AMOS22_CT": 0, "AMOS22_MR": 2}
    assert space.modalities == ("CT", "CE-MR", "MR")
    sizes = {
        head: 1 + sum(c.startswith(f"{head}/") for c in space.classes)
        for head in ("FLARE22", "ATLAS23", "AMOS22")
    }
    assert sizes == {"FLARE22": 14, "ATLAS23": 3, "AMOS22": 16}  # background included
    assert all(
        len(names) <= 1 for corpus in space.corpora for _, names in corpus.labels
    )  # a softmax head needs exclusive classes
    flare, amos = (
        {n: v for v, n in c.corpus().labels for n in n}
        for c in (corpora()["FLARE22"], corpora()["AMOS22_CT"])
    )
    organs = (
        "liver",
        "left kidney",
        "right kidney",
        "gallbladder",
        "pancreas",
        "spleen",
        "stomach",
    )
    assert [flare[o] for o in organs] == [1, 13, 2, 9, 4, 3, 11] and [amos[o] for o in organs] == [
        6,
        3,
        2,
        4,
        10,
        1,
        7,
    ]


def test_mast_pro_has_eight_tasks_with_organ_prompts_of_both_versions():
    tasks = tumour_tasks.MAST_PRO_TASKS
    assert list(tasks) == [
        "MSD-Liver",
        "MSD-Lung",
        "MSD-Pancreas",
        "MSD-HepaticVessel",
        "MSD-Colon",
        "LiTS",
        "KiTS",
        "AbdomenCT-1K",
    ]
    assert {n: t.organ_ids(2) for n, t in tasks.items()} == {
        "MSD-Liver": (5,),
        "MSD-Lung": (10, 11, 12, 13, 14),
        "MSD-Pancreas": (7,),
        "MSD-HepaticVessel": (5, 64),
        "MSD-Colon": (20,),
        "LiTS": (5,),
        "KiTS": (2, 3, 23, 24),
        "AbdomenCT-1K": (5, 2, 3, 1, 7),
    }
    assert {
        n: tasks[n].organ_ids(1)
        for n in ("MSD-Lung", "MSD-Pancreas", "MSD-HepaticVessel", "MSD-Colon", "KiTS")
    } == {
        "MSD-Lung": (13, 14, 15, 16, 17),
        "MSD-Pancreas": (10,),
        "MSD-HepaticVessel": (5, 9),
        "MSD-Colon": (57,),
        "KiTS": (2, 3),
    }
    assert tasks["KiTS"].sentence == (
        "This is a renal tumor, mostly clear cell renal cell carcinoma in the kidney, appearing "
        "as a round, exophytic, heterogeneously "
        "enhancing mass with well-circumscribed borders on late arterial phase CT."
    )
    assert (
        sum(e["cases"] for e in pools.mast_pro.declared().values()) == 1245
    )  # the first seven tasks with KiTS19
    assert all(len(e["annotated"]) == 1 for e in pools.mast_pro.declared().values())


def test_segvols_table_of_sets():
    declared = pools.segvol_all.declared()
    assert (
        len(pools.segvol_mri_brain.members) == 4
        and len({e["cases"] for e in pools.segvol_mri_brain.declared().values()}) == 1
    )
    assert (
        declared["BraTS2021_FLAIR"]["cases"] == 1251
        and declared["SAML"]["cases"] == 116
        and declared["T2W_Prostate"]["cases"] == 114
    )
    assert {e["modality"] for n, e in declared.items() if n in pools.SEGVOL_CT} == {"CT"}
    assert {e["modality"] for n, e in declared.items() if n in pools.SEGVOL_MRI} == {"MR"}
    assert "prostate" in _space(pools.segvol_mri_prostate).classes
    sequences = [corpora()[n].layouts[0].patient for n in pools.SEGVOL_BRAIN]
    assert len(set(sequences)) == 1  # the four sequences of a patient never straddle a split


@pytest.mark.parametrize("name", list(pools.POOLS))
def test_every_pool_is_plain_data_and_merges(name):
    pool = pools.POOLS[name]
    assert json.loads(json.dumps(pool.data())) and plain(pool.data())
    space = _space(pool)
    assert LabelSpace.from_json(json.loads(json.dumps(space.to_json()))) == space


def test_totalsegmentator_numbers_are_the_public_class_maps():
    v1, v2 = (corpora()[f"TotalSegmentator_v{v}"].sets for v in (1, 2))
    assert (
        len(v1) == 104
        and len(v2) == 117
        and len(corpora()["TotalSegmentator_v1_organs"].sets) == 17
    )
    picks = {
        1: "spleen",
        10: "pancreas",
        18: "vertebrae L5",
        34: "vertebrae T1",
        41: "vertebrae C1",
        57: "colon",
        58: "left rib 1",
        81: "right rib 12",
        93: "face",
        104: "bladder",
    }
    assert {i: v1[i][0] for i in picks} == picks
    picks = {
        7: "pancreas",
        17: "thyroid gland",
        20: "colon",
        23: "left kidney cyst",
        26: "vertebrae S1",
        51: "heart",
    }
    picks |= {
        55: "right subclavian artery",
        64: "portal and splenic vein",
        79: "spinal cord",
        91: "skull",
        117: "costal cartilages",
    }
    assert {i: v2[i][0] for i in picks} == picks


def test_one_name_with_two_meanings_is_refused_until_somebody_decides():
    liver, vessel = corpora()["MSD_Liver"].corpus(), corpora()["MSD_HepaticVessel"].corpus()
    with pytest.raises(LabelError, match="mean different things by 'liver tumour'") as error:
        merge([liver, vessel])
    assert (
        "hepatic vessels" in str(error.value)
        and "all that are seen" in str(error.value)
        and "data.rename" in str(error.value)
    )
    assert len(merge([liver, vessel], "per_corpus").classes) == 4
    same = merge([liver, vessel], rename={"MSD_HepaticVessel/liver tumour": "liver tumour"})
    assert same.classes == ("liver", "liver tumour", "hepatic vessel")
    with pytest.raises(LabelError, match="mean different things by 'kidney tumour'"):
        merge(
            [corpora()["KiTS19"].corpus(), corpora()["KiTS21"].corpus()]
        )  # with and without cysts


def test_a_region_or_meaning_that_names_an_unknown_label_is_refused():
    fields = {
        f: getattr(corpora()["SegTHOR"], f)
        for f in (
            "name",
            "title",
            "citation",
            "licence",
            "url",
            "obtain",
            "layouts",
            "labels",
            "cases",
        )
    }
    with pytest.raises(LabelError, match=r"region 'airways' names unknown labels; found \[9\]"):
        PublicCorpus(**fields, regions={"airways": (3, 9)})
    with pytest.raises(LabelError, match=r"unknown class 'tracheea'.*did you mean trachea"):
        PublicCorpus(**fields, meanings={"tracheea": "x"})
