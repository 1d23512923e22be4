"""Every shipped config builds abstractly, the papers' sizes are exact, and wrong names are refused
with a suggestion.
"""

import importlib
from pathlib import Path

import pytest

from medjax import main
from medjax.errors import UsageError
from medjax.phantom.corpora import PROTOCOLS
from medjax.registry import build, plain
from medjax.runs import build as network
from medjax.runs import dry
from medjax.runs import open as corpora
from tests.support.configs import typed
from tests.support.marks import slow

CONFIGS = sorted(
    p.stem
    for p in (Path(__file__).parents[2] / "configs").glob("*.py")
    if p.stem not in ("__init__", "base")
)
VARIANTS = [
    (name, v) for name in CONFIGS for v in importlib.import_module(f"configs.{name}").VARIANTS
]


PHANTOMS = [protocol.folder.split("_", 1)[1] for protocol in PROTOCOLS.values()]


def _fields(name, variant):
    return plain(importlib.import_module(f"configs.{name}").get_config(variant))


def _with_phantoms(fields, name):
    """Configs for data that is not here are tried on the embedded corpora, without their views."""
    if not fields["data"]["declared"] and not fields["data"]["phantom_cases"]:
        fields["data"] |= {"phantom_cases": 5, "views": {}}
    return fields


BIG = {
    "tsfm": ("t_small",),
    "multitalent": ("demo", "unet_softmax"),
    "mast_pro": (),  # in tests/configs/test_mast_pro.py
    "baselines": (),  # networks of the others; sides as nnU-Net leaves them
    "m4oe": ("demo", "small_pretrain"),
}  # of these, what is traced step and all; the rest of them with the slow tests


@pytest.mark.parametrize(("name", "variant"), VARIANTS, ids=lambda v: v)
def test_every_config_is_read(name, variant, tmp_path):
    """Its corpora are in the label space, every class has annotators, the rate rises to the stated
    one and falls to almost nothing, the network takes the stated patch.
    """
    fields = _with_phantoms(_fields(name, variant), name)
    space = corpora.open_data(typed(fields).data, tmp_path, files=False).space
    assert [c.name for c in space.corpora] == (list(fields["data"]["declared"]) or PHANTOMS)
    assert len(space.classes) and space.known.any(0).all() and space.known.any(1).all()
    optimizer, steps, lr = (
        network.make_optimizer(typed(fields)),
        fields["train"]["steps"],
        fields["optim"],
    )
    rates = [float(optimizer.schedule(steps * k // 40)) for k in range(40)]
    assert 0.98 * lr["lr"] < max(rates) < lr["lr"] * (1 + 1e-6) and min(rates) > 0
    assert rates.index(max(rates)) <= 4 and float(optimizer.schedule(steps - 1)) < 0.13 * lr["lr"]
    net = network.make_network(
        typed(fields), space, fields["data"]["spacing_mm"] or (1.5, 1.0, 1.0)
    )
    assert net.patch == tuple(fields["train"]["patch"])
    assert net.channels == max(len(c.channels) for c in space.corpora)
    command = f"python -m medjax.main --config=configs/{name}.py"
    assert command in importlib.import_module(f"configs.{name}").__doc__


@pytest.mark.parametrize(
    ("name", "variant"),
    [v for v in VARIANTS if v[1] in BIG.get(v[0], (v[1],))]
    + [slow("m4oe", word) for word in ("finetune", "pretrain", "release")],
    ids=lambda v: v,
)
def test_configs_build_abstractly(name, variant, tmp_path):
    text = dry.dry(typed(_with_phantoms(_fields(name, variant), name)), tmp_path)
    assert "parameters" in text and "annotated by" in text and "kept for backward" in text
    if not _fields(name, variant)["data"]["declared"]:  # phantoms have two kidneys
        lateral = _fields(name, variant)["augment"].get("lateral")
        masked = _fields(name, variant)["task"] == "masked_image"
        assert ("right kidney and left kidney" in text) == (lateral == "auto") != masked


@pytest.mark.parametrize(
    ("name", "variant", "parameters", "corpora_classes_cases"),
    [  # the papers' sizes; TSFM's pool holds AMOS as CT and MR; 2778 published cases
        ("multitalent", "unet", 29_319_560, (13, 47, 1477)),
        ("multitalent", "resenc", 69_335_475, (13, 47, 1477)),
        ("multitalent", "swin", 62_188_913, (13, 47, 1477)),
        (
            "multitalent",
            "swin_softmax",
            62_189_550,
            (13, 47, 1477),
        ),  # 49 x (47 + 13) numbers in place of 49 x 47
        ("tsfm", "h", 1_606_287_227, (11, 31, 2778)),
        ("tsfm", "t", 3_917_923, (11, 31, 2778)),
    ],
)
def test_the_papers_networks_and_pools_have_their_sizes(
    name, variant, parameters, corpora_classes_cases, tmp_path
):
    fields = _fields(name, variant)
    data = corpora.open_data(typed(fields).data, tmp_path, files=False)
    net = network.make_network(
        typed(fields), data.space, fields["data"]["spacing_mm"] or (1.5, 1.0, 1.0)
    )
    assert network.count(net.abstract()) == parameters
    assert (
        len(data.space.corpora),
        len(data.space.classes),
        sum(data.counts.values()),
    ) == corpora_classes_cases


def test_the_papers_recipes():
    unet, swin, tsfm = (
        _fields(*v) for v in (("multitalent", "unet"), ("multitalent", "swin"), ("tsfm", "h"))
    )
    assert (unet["train"]["steps"], unet["train"]["batch"], unet["train"]["patch"]) == (
        500_000,
        4,
        (96, 192, 192),
    )
    assert (tsfm["train"]["steps"], tsfm["train"]["batch"], tsfm["train"]["patch"]) == (
        250_000,
        2,
        (112, 160, 192),
    )
    rate = network.make_optimizer(typed(tsfm)).schedule
    for epoch, lr in {
        0: 1e-3,
        1: 9.990999550e-4,
        500: 5.358867313e-4,
        999: 1.995262315e-6,
    }.items():  # specification, 6.1
        assert (
            float(rate(250 * epoch))
            == float(rate(250 * epoch + 249))
            == pytest.approx(lr, rel=1e-5)
        )
    rate = network.make_optimizer(typed(swin)).schedule
    assert float(rate(250_000)) == pytest.approx(2.679433656e-4, rel=1e-5)
    for epochs, lr in {
        10: 1.258925412e-3,
        20: 6.746414238e-4,
        50: 2.957515273e-4,
        100: 1.584893192e-4,
    }.items():
        fields = _fields("tsfm", f"brats_{epochs}")
        assert (
            fields["train"]["steps"] == 250 * epochs
            and len(fields["data"]["declared"]["BraTS2020"]["channels"]) == 4
        )
        assert float(
            network.make_optimizer(typed(fields)).schedule(250 * epochs - 1)
        ) == pytest.approx(lr, rel=1e-5)
    for architecture in ("unet", "resenc", "swin"):
        softmax, finetuned = (
            _fields("multitalent", architecture + kind) for kind in ("_softmax", "_finetune")
        )
        assert softmax["model"]["head"] == finetuned["model"]["head"] == "corpus_softmax"
        assert (
            softmax["losses"]["softmax_dice"]["reduction"] == "sum"
            and finetuned["losses"]["softmax_dice"]["reduction"] == "mean"
        )
    finetune = _fields("multitalent", "unet_finetune")
    assert finetune["train"]["steps"] == 1060 * 250 and finetune["train"]["batch"] == 2


def test_dry_allocates_nothing_and_shows_the_mixture(capsys):
    assert main.main(["--config=configs/multitalent.py:unet", "--mode=dry"]) == 0
    shown = capsys.readouterr().out
    assert "29,319,560" in shown and "064_KiTS19/kidney tumour" in shown
    assert (
        "008_HepaticVessel" in shown and "0.136" in shown
    )  # sqrt(242) of sum of sqrt(n), spec table 3.4


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--config=configs/multitalent.py:demo", "--config.optim.lrr=1"], "lr"),
        (["--config=configs/multitalnt.py:demo"], "did you mean configs/multitalent.py"),
        (["--config=configs/multitalent.py:dmo"], "demo"),
        (["--config=configs/multitalent.py:demo", "--workdir=/nowhere", "--mode=trane"], "train"),
        (["--workdir=x"], "--config"),
    ],
)
def test_wrong_flags_are_usage_errors_with_a_hint(arguments, hint, repository):
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "medjax.main", *arguments],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    assert hint in done.stderr and "Traceback" not in done.stderr


def test_unknown_names_and_arguments_are_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="did you mean unet"):
        build("models", "unett")
    with pytest.raises(UsageError, match="smooth"):
        build("losses", "dice", smoth=1.0)


def test_of_a_flag_that_comes_twice_the_last_counts():
    flags = [
        "medjax",
        "--config=configs/multitalent.py:demo",
        "--workdir=x",
        "--config.train.patch=1,2,3",
        "--config.train.patch=8,16,24",
    ]
    config = main.parse([*flags, "--config.optim.lr=1", "--config.optim.lr=0.5"]).config
    assert config.train.patch == (8, 16, 24) and config.optim.lr == 0.5


def test_declared_corpora_keep_the_papers_order():
    names = list(_fields("multitalent", "unet")["data"]["declared"])
    assert names[-1].startswith("018_") and names[7].startswith("046_"), (
        "channel = global id - 1; task 018 comes last"
    )
