"""The networks that the papers compare themselves with, and the three classes of BraTS."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import baselines, multitalent, tsfm
from medjax.labels import Corpus, merge
from medjax.losses import softmax_dice
from medjax.registry import plain
from medjax.runs import build, evaluations
from medjax.runs import open as corpora
from tests.support.configs import typed
from tests.support.marks import slow

REGIONS = ("whole brain tumour", "brain tumour core")


def _space(fields, tmp_path):
    return corpora.open_data(typed(fields).data, tmp_path, files=False).space


@pytest.mark.parametrize("config", [tsfm, baselines])
def test_brats_has_three_exclusive_classes_and_regions_for_scoring(config, tmp_path):
    variant = "brats_100" if config is tsfm else "nnunet_BraTS2020"
    fields = plain(config.get_config(variant))
    space = _space(fields, tmp_path)
    assert evaluations.chosen(typed(fields).evaluate) == {}  # scored by the core itself
    exclusive = ("non-enhancing tumour core", "oedema", "enhancing tumour")
    assert space.classes == exclusive
    assert [names for _, names in space.corpora[0].labels[1:]] == [(name,) for name in exclusive]
    assert fields["evaluate"]["regions"] == {
        "whole brain tumour": exclusive,
        "brain tumour core": (exclusive[0], exclusive[2]),
    }


def _perfect(space, margin=12.0):
    """Dice loss of a perfect prediction of 32768 voxels, as many of every label value."""
    voxels = 1 << 15
    ids = jnp.arange(voxels).reshape(1, voxels) % 4
    table, known = jnp.asarray(space.table), jnp.asarray(space.known)
    order = [space.classes.index(name) for name in ("non-enhancing tumour core", "oedema")]
    order.append(space.classes.index("enhancing tumour"))
    logits = np.full((1, voxels, len(space.classes)), -margin, np.float32)
    for value, channel in enumerate(order, 1):
        logits[0, value::4, channel] = margin
    batch = {"label": ids, "table": table, "known": known, "corpus": jnp.zeros(1, jnp.int32)}
    loss = softmax_dice.make(squared=False, background=False, smooth=1e-5)
    return float(jax.jit(loss)({"logits": jnp.asarray(logits)}, batch))


def test_a_perfect_prediction_of_brats_costs_nothing(tmp_path):
    """Regions in the softmax own no voxel: two of five classes could never be right (loss 0.4)."""
    space = _space(plain(tsfm.get_config("brats_100")), tmp_path)
    assert _perfect(space) == pytest.approx(0.0, abs=1e-4)
    labels = {1: ("whole", "core"), 2: ("whole",), 4: ("whole", "core")}
    names = {1: "non-enhancing tumour core", 2: "oedema", 4: "enhancing tumour"}
    nested = Corpus("B", tuple((v, (names[v], *more)) for v, more in labels.items()))
    assert _perfect(merge([nested])) == pytest.approx(0.4, abs=1e-3)


@pytest.mark.parametrize("name", [slow("KiTS19"), "AMOS22"])
def test_a_baseline_has_one_head_for_its_data_set(name, tmp_path):
    fields = plain(baselines.get_config(f"nnunet_{name}"))
    space = _space(fields, tmp_path)
    net = build.make_network(typed(fields), space, (1.5, 1.0, 1.0))
    outputs = net.abstract()["head_0"]["kernel"].shape[-1]
    assert outputs == {"KiTS19": 3, "AMOS22": 16}[name]  # the background is one
    assert fields["train"]["steps"] == 250_000 and fields["train"]["batch"] == 2


def test_sources_leave_out_what_the_targets_are_scored_on(tmp_path):
    """MultiTalent 3.11: 1477 scans less the 17 test scans, less 30 + 47 of BTCV, less 210."""
    counts = {
        kind: sum(
            e["cases"]
            for e in plain(multitalent.get_config(f"unet_{kind}"))["data"]["declared"].values()
        )
        for kind in ("btcv_test", "without_btcv", "without_kits")
    }
    assert counts == {"btcv_test": 1460, "without_btcv": 1400, "without_kits": 1267}
    pool = plain(tsfm.get_config("without_amos"))["data"]["declared"]
    assert sum(entry["cases"] for entry in pool.values()) == 2778 - 240
