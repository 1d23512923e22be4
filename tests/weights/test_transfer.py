"""Transfer of parameters: heads by class name, input channels, position tables, renames, and the
exact account of every leaf.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import TrainError, UsageError
from medjax.runs.initial import RESIZERS, trilinear
from medjax.train import checkpoint, optim
from medjax.train import state as states
from medjax.weights.transfer import transfer
from tests.train import test_toy as toy

HEADS = (("^head", -1),)
OLD, NEW = ("liver", "spleen", "kidney"), ("kidney", "tumour", "liver", "aorta")


def tree(classes, channels=1, grid=(2, 2, 2), offset=0.0):
    """Irregular parameters of a small network."""

    def some(*shape):
        return np.sin(1 + offset + np.arange(np.prod(shape))).reshape(shape).astype(np.float32)

    return {
        "stem": {"kernel": some(3, 3, 3, channels, 4), "bias": some(4)},
        "pos": some(*grid, 4),
        "head_0": {"kernel": some(4, classes), "bias": some(classes)},
        "head_1": {"kernel": some(4, classes), "bias": some(classes)},
    }


def moved(target, source, **arguments):
    """`transfer` with the class lists of this file."""
    given = dict(heads=HEADS, source_classes=OLD, target_classes=NEW, resizers=RESIZERS)
    return transfer(target, source, **(given | arguments))


def test_heads_follow_class_names_and_the_rest_is_copied():
    target, source = tree(4, offset=5.0), tree(3)
    params, report = moved(target, source)
    np.testing.assert_array_equal(params["stem"]["kernel"], source["stem"]["kernel"])
    for head in ("head_0", "head_1"):
        for leaf in ("kernel", "bias"):
            found = np.asarray(params[head][leaf])
            np.testing.assert_array_equal(found[..., 0], source[head][leaf][..., 2])
            np.testing.assert_array_equal(found[..., 2], source[head][leaf][..., 0])
            np.testing.assert_array_equal(found[..., [1, 3]], target[head][leaf][..., [1, 3]])
    assert (
        report.loaded == ("pos", "stem/bias", "stem/kernel")
        and report.fresh == ()
        and report.skipped == ()
    )
    assert report.classes["head_0/kernel"] == ("kidney", "liver")
    text = report.text()
    assert (
        text.startswith("transfer: 100.0%")
        and "4 (head_0/bias" in text
        and "2 (kidney, liver)" in text
    )
    assert report.to_json()["classes"]["head_1/bias"] == ["kidney", "liver"]


def test_axes_of_modalities_tasks_and_corpora_follow_their_names():
    def vectors(n, offset=0.0):
        return tree(3) | {"context": {"table": np.arange(4.0 * n).reshape(n, 4) + offset}}

    target, source = vectors(3, 100.0), vectors(2)
    rules = ((r"^head", -1), (r"^context/table$", 0, "modalities"))
    same = {"source_classes": OLD, "target_classes": OLD}
    names = {"modalities": (("MR", "CT"), ("CT", "PET", "MR")), "tasks": (("a",), ("a", "b"))}
    params, report = moved(target, source, heads=rules, named=names, **same)
    table, old = np.asarray(params["context"]["table"]), source["context"]["table"]
    np.testing.assert_array_equal(table[[0, 2]], old[[1, 0]])
    np.testing.assert_array_equal(table[1], target["context"]["table"][1])
    assert report.classes["context/table"] == ("CT", "MR")
    wrong = ((r"^head", -1), (r"^context/table$", 0, "tasks"))
    with pytest.raises(UsageError, match="axis 0 is not the axis of the tasks of the source"):
        moved(target, source, heads=wrong, named=names, **same)
    with pytest.raises(UsageError, match=r"unusable rule in config\.init\.heads.*modality"):
        moved(target, source, heads=(("^context", 0, "modality"),), **same)


def test_heads_without_a_common_class_or_by_rule_are_fresh():
    target, source = tree(4, offset=5.0), tree(3)
    for arguments in ({"heads": (("^head", None),)}, {"source_classes": ("a", "b", "c")}):
        params, report = moved(target, source, **arguments)
        assert params["head_0"]["kernel"] is target["head_0"]["kernel"]
        assert report.fresh == ("head_0/bias", "head_0/kernel", "head_1/bias", "head_1/kernel")
        assert report.skipped == report.fresh and report.share == pytest.approx(
            1 - 40 / (108 + 4 + 32 + 40)
        )
    params, _ = moved(target, source, same_class={"tumour": "spleen", "liver": ""})
    np.testing.assert_array_equal(
        np.asarray(params["head_0"]["bias"])[1], source["head_0"]["bias"][1]
    )
    np.testing.assert_array_equal(
        np.asarray(params["head_0"]["bias"])[2], target["head_0"]["bias"][2]
    )
    assert moved(
        tree(3, offset=1.0), source, target_classes=OLD, heads=(("^head_0", None), ("^head", -1))
    )[1].fresh == (
        "head_0/bias",
        "head_0/kernel",
    )
    with pytest.raises(
        UsageError,
        match="axis 0 is not the axis of the classes of the source; found 3; expected 2 classes",
    ):
        moved(target, source, source_classes=("a", "b"))


def test_input_channels_are_repeated_or_averaged():
    one, four = tree(4), tree(4, channels=4, offset=2.0)
    wide, report = moved(four, one, source_classes=NEW, input_channels=(1, 4))
    np.testing.assert_array_equal(wide["stem"]["kernel"], np.repeat(one["stem"]["kernel"], 4, 3))
    assert report.input == {"stem/kernel": "1 -> 4 repeated"}, "repeated, not divided (STU-Net)"
    narrow, report = moved(one, four, source_classes=NEW, input_channels=(4, 1))
    np.testing.assert_allclose(
        narrow["stem"]["kernel"], four["stem"]["kernel"].mean(3, keepdims=True), atol=1e-6
    )
    assert report.input == {"stem/kernel": "4 -> 1 averaged"}
    kept, _ = moved(four, one, source_classes=NEW, input_channels=(1, 4), widen="average")
    image = np.random.default_rng(0).normal(size=(3, 3, 3, 1)).astype(np.float32)
    response = [
        np.einsum("zyxi,zyxio->o", np.repeat(image, c, 3), t["stem"]["kernel"])
        for c, t in ((1, one), (4, kept))
    ]
    np.testing.assert_allclose(
        *response, rtol=1e-4, err_msg="four equal channels are seen as one was"
    )
    _, report = moved(four, one, source_classes=NEW, input_channels=(1, 4), widen="fresh")
    assert report.fresh == ("stem/kernel",)
    with pytest.raises(
        TrainError, match=r"stem/kernel: \(3, 3, 3, 1, 4\) in the source, \(3, 3, 3, 4, 4\) here"
    ):
        moved(four, one, source_classes=NEW)


def test_position_tables_are_resized_by_rule_only():
    target, source = tree(3, grid=(4, 2, 3), offset=1.0), tree(3)
    same = dict(target_classes=OLD)
    with pytest.raises(TrainError, match=r"pos: \(2, 2, 2, 4\) in the source, \(4, 2, 3, 4\) here"):
        moved(target, source, **same)
    params, report = moved(target, source, resize=(("^pos$", "trilinear"),), **same)
    np.testing.assert_allclose(params["pos"], trilinear(source["pos"], (4, 2, 3, 4)))
    # half-pixel centres along z, 2 -> 4: weights 1, 3/4 1/4, 1/4 3/4, 1; along x 2 -> 3: 1, 1/2
    # 1/2, 1
    z = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    x = np.array([[1, 0], [0.5, 0.5], [0, 1]])
    np.testing.assert_allclose(
        params["pos"], np.einsum("ai,cj,ibjf->abcf", z, x, source["pos"]), atol=1e-6
    )
    assert report.resized == {"pos": "(2, 2, 2, 4) -> (4, 2, 3, 4) trilinear"}
    _, report = moved(target, source, fresh="^pos$", **same)
    assert report.fresh == ("pos",) and report.skipped == ("pos",)
    np.testing.assert_array_equal(trilinear(source["pos"], (2, 2, 2, 4)), source["pos"])
    assert trilinear(np.full((7, 5, 6, 3), 0.3, np.float32), (4, 4, 4, 3)) == pytest.approx(
        np.float32(0.3)
    )
    with pytest.raises(UsageError, match=r"unknown resizer 'trilinar'.*trilinear"):
        moved(target, source, resize=(("^pos$", "trilinar"),), **same)


def test_renames_missing_leaves_and_a_foreign_source():
    target, source = (
        tree(3, offset=1.0),
        {
            "encoder": tree(3)["stem"],
            "extra": np.ones(2),
            **{k: tree(3)[k] for k in ("head_0", "pos")},
        },
    )
    same = dict(target_classes=OLD)
    with pytest.raises(
        TrainError, match="stem/bias is not in the source; stem/kernel is not in the source"
    ):
        moved(target, source, **same)
    params, report = moved(target, source, rename=(("^encoder/", "stem/"),), **same)
    np.testing.assert_array_equal(params["stem"]["bias"], source["encoder"]["bias"])
    assert report.skipped == ("extra",) and report.fresh == ("head_1/bias", "head_1/kernel")
    with pytest.raises(TrainError, match="nothing of the source fits the model"):
        moved(target, {"other": np.ones(3), "head_0": tree(3)["head_0"]}, **same)
    with pytest.raises(UsageError, match=r"rename rules.*nothing matches"):
        moved(target, source, rename=(("^encodr/", "stem/"),), **same)
    with pytest.raises(UsageError, match="two source leaves are renamed to 'a'"):
        moved(target, source, rename=((".*", "a"),), **same)


def test_a_run_begins_from_another_on_eight_devices(tmp_path):
    """The loop takes transferred leaves (numpy) and mixed heads (device arrays) on a sharded state;
    a resumed run does not ask again.
    """
    toy.run(tmp_path / "source", steps=1, validate_every=0)
    stored = checkpoint.read_params(tmp_path / "source")
    calls = []

    def borrow(fresh):
        calls.append(
            transfer(
                fresh,
                stored,
                heads=HEADS,
                source_classes=toy.CLASSES,
                target_classes=("tumour", "new", "kidney"),
            )
        )
        return calls[-1][0]

    frozen = optim.make(lr=0.1, steps=1, trainable=(("^head/bias", True), (".*", False)))
    settings = dict(
        steps=1,
        devices=8,
        fsdp=4,
        sharding_rules=((".*", "fsdp"),),
        optimizer=frozen,
        borrow=borrow,
        validate_every=0,
    )
    params = states.weights(toy.run(tmp_path / "next", **settings))
    fresh, kernel = (
        toy.init(jax.random.key(0))["head"]["kernel"],
        np.asarray(params["head"]["kernel"]),
    )
    assert params["head"]["kernel"].sharding.spec == jax.sharding.PartitionSpec(
        None, None, None, "fsdp", None
    )
    np.testing.assert_array_equal(kernel[..., 0], stored["head"]["kernel"][..., 1])
    np.testing.assert_allclose(kernel[..., 1], np.asarray(jnp.asarray(fresh))[..., 1], atol=1e-6)
    np.testing.assert_array_equal(
        np.asarray(params["encoder"]["kernel"]), stored["encoder"]["kernel"]
    )
    toy.run(tmp_path / "next", **settings)
    assert len(calls) == 1 and calls[0][1].classes["head/kernel"] == ("tumour", "kidney")


def test_what_the_source_has_not_stays_as_initialised_where_a_rule_says_so():
    target, source = tree(4, offset=5.0), tree(3)
    target["prior"] = {"task": np.float32([1, 2]), "scale": np.float32(3)}
    with pytest.raises(TrainError, match="prior/scale is not in the source"):
        moved(target, source)
    params, report = moved(target, source, new="^prior/")
    np.testing.assert_array_equal(params["prior"]["task"], [1, 2])
    assert report.fresh == ("prior/scale", "prior/task")
    source["prior"] = {"task": np.float32([7, 8]), "scale": np.float32(9)}
    params, report = moved(target, source, new="^prior/")
    np.testing.assert_array_equal(params["prior"]["task"], [7, 8])
    assert params["prior"]["scale"] == 9 and report.fresh == ()
