"""What a source needs before leaf meets leaf: experts by modality, heads by corpus."""

import numpy as np
import pytest

from medjax.errors import UsageError
from medjax.labels import Corpus, merge
from medjax.runs import adapt
from medjax.runs.trained import read_model
from medjax.weights import experts
from tests.support.configs import typed
from tests.support.run import make_run

LIVER, SPLEEN, TUMOUR = ((1, ("liver",)),), ((1, ("spleen",)),), ((1, ("liver", "tumour")),)
CT, MR = {"modality": "CT", "channels": ("CT",)}, {"modality": "MR", "channels": ("T1w",)}
BOTH = merge([Corpus("A", LIVER, **CT), Corpus("B", SPLEEN, **MR)])
ONE = merge([Corpus("A", LIVER, **CT)])


def config(init=(), **model):
    return typed({"model": {"name": "swin_unet", **model}, "init": dict(init)})


def tree(experts, value=0.0, gate=True):
    """One block with `experts` experts; expert e holds value + e."""
    numbers = value + np.arange(experts, dtype=np.float32)
    mlp = {
        "w1": np.ones((experts, 2, 4), np.float32) * numbers[:, None, None],
        "b1": np.ones((experts, 4), np.float32) * numbers[:, None],
        "w2": np.ones((experts, 4, 2), np.float32) * numbers[:, None, None],
        "b2": np.ones((experts, 2), np.float32) * numbers[:, None],
    }
    if gate:
        mlp["gate"] = {"kernel": np.tile(numbers, (2, 1)), "bias": numbers}
    return {"block": {"mlp": mlp}}


def held(params):
    """What the experts, and their gate columns, hold."""
    mlp = params["block"]["mlp"]
    return np.asarray(mlp["w1"])[:, 0, 0].tolist(), np.asarray(mlp["gate"]["bias"]).tolist()


def test_experts_are_called_after_the_first_modality_routed_to_them():
    modalities = BOTH.modalities
    assert adapt.expert_names(config(), BOTH, 2) == tuple(modalities)
    assert adapt.expert_names(config(), BOTH, 3) == (*modalities, "expert2")
    assert adapt.expert_names(config(), BOTH, 1) == ("expert0",)  # fewer than modalities
    routed = config(expert_of=(1, 1))
    assert adapt.expert_names(routed, BOTH, 2) == ("expert0", modalities[0])


def test_a_new_modality_is_copied_from_the_one_that_is_named():
    new = next(m for m in BOTH.modalities if m not in ONE.modalities)
    ours = config({"experts": {new: "CT"}, "gate": "closed"}), BOTH
    found = adapt.rearranged(tree(1, 5.0), (config(), ONE), tree(2, 70.0), ours)
    weights, gates = held(found)
    assert weights == [5, 5]
    kept, closed = (gates[BOTH.modalities.index(m)] for m in ("CT", new))
    assert kept == 5 and closed < 70 - 10  # the initial value, moved far down


def test_a_new_modality_that_begins_fresh_has_its_initial_values():
    new = next(m for m in BOTH.modalities if m != "CT")
    ours = config({"experts": {new: ""}}), BOTH
    weights, gates = held(adapt.rearranged(tree(1, 5.0), (config(), ONE), tree(2, 70.0), ours))
    where = BOTH.modalities.index(new)
    assert weights[where] == gates[where] == 70 + where and weights[1 - where] == 5


def test_nothing_says_where_an_expert_begins():
    with pytest.raises(UsageError, match="the source has no expert for"):
        adapt.rearranged(tree(1), (config(), ONE), tree(2), (config(), BOTH))
    with pytest.raises(UsageError, match="experts_from names the unknown expert 'PET'"):
        adapt.rearranged(
            tree(2), (config(), BOTH), tree(2), (config({"experts_from": {"PET": "x"}}), BOTH)
        )


def test_networks_without_experts_pass_through():
    plain = {"block": {"mlp": {"fc1": {"kernel": np.ones((2, 4))}}}}
    assert adapt.rearranged(plain, (config(), ONE), plain, (config(), ONE)) is plain


def test_upcycling_copies_a_plain_mlp_to_every_expert():
    dense = {
        "fc1": {"kernel": np.full((2, 4), 3.0), "bias": np.full(4, 3.0)},
        "fc2": {"kernel": np.full((4, 2), 3.0), "bias": np.full(2, 3.0)},
    }
    ours = config({"upcycle": True}), BOTH
    found = adapt.rearranged({"block": {"mlp": dense}}, (config(), ONE), tree(2), ours)
    assert set(found["block"]["mlp"]) == {"w1", "b1", "w2", "b2"}
    assert np.array_equal(found["block"]["mlp"]["w1"], np.full((2, 2, 4), 3.0))


def test_leaves_are_offered_under_a_second_path():
    ours = config({"copy": ((r"^block", "up"),)}), ONE
    found = adapt.rearranged({"block": {"a": np.ones(2)}}, (config(), ONE), {}, ours)
    assert set(found) == {"block", "up"}


def test_sigmoid_heads_have_the_classes_of_the_label_space():
    sigmoid = config(head="sigmoid")
    assert adapt.channel_names((sigmoid, BOTH), (sigmoid, ONE)) == (BOTH.classes, ONE.classes)
    unet = typed({"model": {"name": "unet"}})  # sigmoid by default, other than swin_unet
    assert adapt.channel_names((unet, BOTH), (unet, ONE)) == (BOTH.classes, ONE.classes)


def test_heads_by_corpus_have_a_name_per_column():
    ours, theirs = adapt.channel_names((config(), BOTH), (config(), ONE))
    assert ours == ("A/background", "A/liver", "B/background", "B/spleen")
    assert theirs == ("A/background", "A/liver")


def test_a_shared_head_is_called_after_the_corpus_that_both_runs_know():
    shared = merge([Corpus("A", LIVER, **CT), Corpus("B", TUMOUR, **CT)], share="by_name")
    fields = config(share_heads=(0, 0))
    for known in ("A", "B"):
        other = merge([Corpus(known, LIVER, **CT)])
        ours, _ = adapt.channel_names((fields, shared), (config(), other))
        assert ours[0] == f"{known}/background" and f"{known}/liver" in ours
        assert "B/tumour" in ours and len(ours) == 3


def test_leaves_of_a_further_run_join_the_source(tmp_path):
    """As the organ encoder of MAST-Pro, which comes from a run of its own."""
    run = make_run(tmp_path / "run")
    space, theirs = read_model(run).space, experts.flat(read_model(run).params())
    own = {"swin": np.zeros(2), "organ": {"old": np.ones(1)}}

    def joined(*rule):
        config = typed({"init": {"also": (rule,)}})
        return experts.flat(adapt.rearranged(own, (config, space), own, (config, space)))

    found = joined(r"^(\w+)/", r"organ/\1/", str(run))
    assert set(found) == {"swin", "organ/old"} | {f"organ/{path}" for path in theirs}
    for path, leaf in theirs.items():
        np.testing.assert_array_equal(found[f"organ/{path}"], leaf)
    with pytest.raises(UsageError, match=r"nothing matches '\^swin/'"):
        joined("^swin/", "organ/", str(run))
    with pytest.raises(UsageError, match="unusable rule"):
        joined("^swin/", "organ/")
