"""The whole house on small volumes: raw scans in, a trained multi-corpus model, masks on their grid
and numbers out; kill and go on.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from configs.multitalent import get_config
from medjax import cli, main
from medjax.errors import UsageError
from medjax.registry import plain
from medjax.runs import folder as runfolder
from medjax.train import checkpoint
from tests.support.raw import write_corpus

SMALL = (
    "--config.data.phantom_cases=0",
    "--config.data.spacing_mm=2.0,2.0,2.0",
    "--config.data.split.folds=2",
    "--config.model.base_features=4",
    "--config.train.patch=16,16,16",
    "--config.train.batch=2",
    "--config.train.validation_batches=1",
    "--config.train.log_every=1",
    "--config.optim.lr=0.01",
    "--config.infer.batch_windows=4",
)
STEPS = 12


def _flags(folders, workdir, steps=STEPS, *more):
    return [
        "--config=configs/multitalent.py:demo",
        f"--workdir={workdir}",
        f"--config.data.folders={','.join(map(str, folders))}",
        *SMALL,
        f"--config.train.steps={steps}",
        "--config.train.validate_every=6",
        "--config.train.checkpoint_every=4",
        *more,
    ]


def _main(flags, **kwargs):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "CI": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [sys.executable, "-m", "medjax.main", *flags]
    return subprocess.Popen(
        command, env=environment, cwd=Path(__file__).parent.parent, **pipes, **kwargs
    )


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Two corpora that disagree: one annotates an organ with a nested lesion, the other only the
    lesion, under sparse ids.
    """
    root = tmp_path_factory.mktemp("raw")
    first = write_corpus(
        root / "Task01_Organs",
        n=4,
        shape=(18, 22, 20),
        labels={"organ": 1, "lesion": 2},
        layout="msd",
    )
    second = write_corpus(
        root / "Dataset002_Lesions", n=4, shape=(20, 18, 24), labels={"lesion": 9}, layout="nnunet"
    )
    return first, second


@pytest.fixture(scope="module")
def trained(corpora, tmp_path_factory):
    """A run folder after training and evaluation, and what was printed."""
    workdir = tmp_path_factory.mktemp("run") / "whole"
    process = _main(_flags(corpora, workdir))
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 0, out
    return workdir, out


def test_a_run_fills_its_folder_and_prints_the_table(trained):
    workdir, out = trained
    for name in (
        "config.json",
        "labels.json",
        "plan.json",
        "splits_final.json",
        "environment.json",
        "metrics.jsonl",
        "progress.png",
    ):
        assert (workdir / name).stat().st_size > 0, name
    assert checkpoint.latest_step(workdir / "checkpoints") == STEPS
    losses = [
        row["loss"]
        for line in (workdir / "metrics.jsonl").read_text().splitlines()
        if "loss" in (row := json.loads(line))
    ]
    assert len(losses) == STEPS and np.isfinite(losses).all()
    summary = json.loads((workdir / "evaluation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 4 and "foreground_mean" in summary
    assert "organ" in out and "lesion" in out
    assert len(list((workdir / "evaluation" / "montages").glob("*.png"))) == 4


def test_masks_keep_the_grid_and_the_values_of_their_corpus(trained, corpora):
    workdir, _ = trained
    space = runfolder.read_space(workdir)
    values = {c.name: set(c.values) for c in space.corpora}
    found = list((workdir / "predictions").rglob("*.nii.gz"))
    assert len(found) == 4
    for path in found:
        folder = next(c for c in corpora if c.name.endswith(path.parent.name))
        source = next(
            p
            for p in (folder / "imagesTr").iterdir()
            if p.name.startswith(path.name.removesuffix(".nii.gz"))
        )
        mask, image = nib.load(path), nib.load(source)
        assert mask.shape == image.shape[:3] and np.array_equal(mask.affine, image.affine)
        assert (mask.header["qform_code"], mask.header["sform_code"]) == (
            image.header["qform_code"],
            image.header["sform_code"],
        )
        assert set(np.unique(np.asarray(mask.dataobj))) <= values[path.parent.name]


def test_the_command_predicts_isolating_a_broken_scan_and_evaluates(
    trained, corpora, tmp_path, capsys
):
    workdir, _ = trained
    scans = tmp_path / "scans with spaces"
    scans.mkdir()
    for path in sorted((corpora[0] / "imagesTr").iterdir())[:3]:
        shutil.copy(path, scans / path.name.replace("_0000", ""))
    victim = sorted(scans.iterdir())[1]
    victim.write_bytes(victim.read_bytes()[:300])
    corpus = runfolder.read_space(workdir).unveiled().corpora[0].name
    assert (
        cli.main(["predict", "-m", str(workdir), "-i", str(scans), "-o", str(tmp_path / "out")])
        == 2
    )
    assert "--corpus" in capsys.readouterr().err
    assert (
        cli.main(
            [
                "predict",
                "-m",
                str(workdir),
                "-i",
                str(scans),
                "-o",
                str(tmp_path / "out"),
                "--corpus",
                corpus,
                "--quiet",
            ]
        )
        == 3
    )
    assert victim.name in capsys.readouterr().err
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2
    code = cli.main(
        [
            "evaluate",
            "--reference",
            str(corpora[0] / "labelsTr"),
            "--prediction",
            str(tmp_path / "out"),
            "--labels",
            str(corpora[0] / "dataset.json"),
            "-o",
            str(tmp_path / "scores"),
        ]
    )
    assert code == 3  # references without a prediction are failures, not silence
    assert json.loads((tmp_path / "scores" / "summary.json").read_text())["metric_per_case"]


@pytest.mark.slow
def test_a_run_killed_twice_equals_the_one_that_was_not(trained, corpora, tmp_path):
    workdir = tmp_path / "killed"
    for kill_after in (3, 7):
        process = _main(_flags(corpora, workdir))
        deadline = time.time() + 300
        while time.time() < deadline and process.poll() is None:
            done = (
                (workdir / "metrics.jsonl").read_text().count('"loss"')
                if (workdir / "metrics.jsonl").is_file()
                else 0
            )
            if done >= kill_after:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    process = _main(_flags(corpora, workdir))
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 0, out
    whole, _ = trained
    assert (whole / "metrics.jsonl").read_text() == (workdir / "metrics.jsonl").read_text()
    first, second = (_weights(folder) for folder in (whole, workdir))
    assert first.keys() == second.keys() and all(np.array_equal(first[k], second[k]) for k in first)


def _weights(workdir):
    import jax

    from medjax.runs import build

    config, space = runfolder.read_config(workdir), runfolder.read_space(workdir)
    net = build.make_network(config, space, (2.0, 2.0, 2.0))
    params = checkpoint.load_params(workdir / "checkpoints", net.abstract())
    return {
        jax.tree_util.keystr(k): np.asarray(v)
        for k, v in jax.tree_util.tree_leaves_with_path(params)
    }


@pytest.mark.slow
def test_resuming_with_another_recipe_is_refused(trained, corpora):
    workdir, _ = trained
    process = _main(_flags(corpora, workdir, STEPS, "--config.optim.momentum=0.5"))
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 2 and "optim.momentum: was 0.99, is 0.5" in out
    assert (
        runfolder.read_config(workdir).optim.momentum == 0.99
    )  # a refused start leaves the run as it was


def test_bad_input_is_named_and_costs_nothing_else(corpora, tmp_path, capsys):
    assert (
        main.main(["--config=configs/multitalent.py:demo", f"--workdir={tmp_path / 'r'}", *SMALL])
        == 2
    )
    assert "no corpora named" in capsys.readouterr().err
    assert get_config("demo").train.batch == 2


def test_slices_go_the_same_way(corpora, tmp_path):
    """A 2D network: slices from the same store, volumes predicted slice by slice."""
    flags = [
        f for f in _flags(corpora, tmp_path / "flat", 4) if not f.startswith("--config.train.patch")
    ]  # repeated tuples are joined
    flags += ["--config.train.patch=16,16", "--config.evaluate.montages=0"]
    out, _ = (process := _main(flags)).communicate(timeout=400)
    assert process.returncode == 0, out
    masks = list((tmp_path / "flat" / "predictions").rglob("*.nii.gz"))
    assert len(masks) == 4 and all(nib.load(m).ndim == 3 for m in masks)


def test_a_run_without_weights_or_store_says_what_to_do(corpora, tmp_path, capsys):
    empty = tmp_path / "empty"
    assert main.main([*_flags(corpora, empty), "--mode=evaluate"]) == 2
    assert "not a run folder" in capsys.readouterr().err


def _parsed(config, *flags):
    return plain(main.parse(["medjax", f"--config=configs/{config}", "--mode=dry", *flags]).config)


TAKEN = [  # config, flag, value; fields that the config file does not list among them
    ("multitalent.py:demo", "model.remat=block", "block"),
    ("tsfm.py:h", "model.order=post", "post"),
    ("tsfm.py:h", "model.vit=False", False),
    ("m4oe.py:finetune", "model.gate_scope=image", "image"),
    ("m4oe.py:pretrain", "model.expert_of=0,0,1", (0, 0, 1)),
    ("multitalent.py:resenc", "model.strides=(1,1,1),(2,2,2)", ((1, 1, 1), (2, 2, 2))),
    ("multitalent.py:demo", "model.max_features=none", None),
    ("multitalent.py:demo", "losses.dice.pool=sample", "sample"),
    ("m4oe.py:finetune", "losses.softmax_dice.pool=corpus", "corpus"),
    ("multitalent.py:demo", "losses.softmax_cross_entropy.weight=1", 1.0),
    ("multitalent.py:demo", "losses.cross_entropy.reduction=mean", "mean"),
    ("multitalent.py:unet", "augment.kind=turns", "turns"),
    ("multitalent.py:demo", "augment.rotation=0", 0.0),
    ("multitalent.py:demo", "augment.lateral=auto", "auto"),
    ("multitalent.py:demo", "augment.lateral=('a','b'),('c','d')", (("a", "b"), ("c", "d"))),
    ("m4oe.py:pretrain", "augment.flip_axes=0,1", (0, 1)),
    ("m4oe.py:pretrain", "task_options.ratio=0.5", 0.5),
    ("multitalent.py:demo", "evaluate.groups.X=a,b", ("a", "b")),
    (
        "multitalent.py:demo",
        "evaluate.groups.my kidneys=left kidney,CT/b",
        ("left kidney", "CT/b"),
    ),
    ("multitalent.py:unet", "data.subset.046_BTCV2.file=cases.txt", "cases.txt"),
    ("multitalent.py:unet", "data.subset.046_BTCV2.count=5", 5),
    ("multitalent.py:demo", "data.rename.A/left kidney=kidney", "kidney"),
    ("multitalent.py:demo", "init.classes.liver=Leber", "Leber"),
    ("multitalent.py:demo", "init.classes.liver=", ""),
    ("multitalent.py:unet_finetune", "optim.phases.heads.lr=1", 1.0),
    ("multitalent.py:unet_finetune", "optim.phases.heads.momentum=0", 0.0),
    ("multitalent.py:demo", "optim.b1=0.5", 0.5),
    ("multitalent.py:demo", 'sharding.rules=("bias","replicate"),(".*","fsdp")', None),
    ("multitalent.py:demo", "infer.postprocess.min_ml.*=0.5", 0.5),
    ("multitalent.py:demo", "train.keep=5", 5),
    ("multitalent.py:demo", "data.allow_absent", True),
    ("multitalent.py:demo", "deep_weights=1,0.5", (1, 0.5)),
    ("multitalent.py:demo", "seed=7", 7),
    ("multitalent.py:unet", "model.head.kind=corpus_softmax", "corpus_softmax"),
    ("multitalent.py:unet", "model.bottleneck=vit", "vit"),
    ("multitalent.py:unet", "model.bottleneck=none", "none"),
    ("multitalent.py:swin", 'model.mlp={"kind":"experts","experts":4}', None),
    ("tsfm.py:h", "model.context.kind=embedding", "embedding"),
    ("multitalent.py:demo", "data.intensity.CT.scheme=window", "window"),
]


@pytest.mark.parametrize(("config", "flag", "value"), TAKEN, ids=[t[1] for t in TAKEN])
def test_every_setting_is_a_flag(config, flag, value, repository, monkeypatch):
    monkeypatch.chdir(repository)
    node = _parsed(config, f"--config.{flag}")
    for key in flag.partition("=")[0].split("."):
        node = node[key]
    if flag.startswith("sharding"):
        value = (("bias", "replicate"), (".*", "fsdp"))
    if flag.startswith("model.mlp"):
        value = {"kind": "experts", "experts": 4}
    assert node == value and type(node) is type(value)


def test_every_field_of_a_config_can_be_given_back(repository, monkeypatch):
    """Every value of a config, written as a flag, is read as the same value."""
    monkeypatch.chdir(repository)
    for config in ("multitalent.py:swin_finetune", "m4oe.py:pretrain", "tsfm.py:abdomen_50"):
        fields = _parsed(config)
        flags = [f"--config.{path}={value}" for path, value in _flat(fields)]
        assert len(flags) > 90 and _parsed(config, *flags) == fields


def _flat(fields, above=""):
    for key, value in fields.items():
        if isinstance(value, dict) and not above.startswith("data.declared"):
            yield from _flat(value, f"{above}{key}.")
        elif not isinstance(value, dict):
            yield f"{above}{key}", value


def test_a_view_and_a_phase_are_added_by_flags(repository, monkeypatch):
    monkeypatch.chdir(repository)
    flags = [
        "--config.data.views.Left.corpus=PhantomCT",
        "--config.data.views.Left.annotated=liver,",
    ]
    flags += ["--config.optim.phases.only.steps=700", "--config.optim.phases.only.lr=0.1"]
    fields = _parsed("multitalent.py:demo", *flags)
    assert fields["data"]["views"] == {"Left": {"corpus": "PhantomCT", "annotated": ("liver",)}}
    assert fields["optim"]["phases"] == {"only": {"steps": 700, "lr": 0.1}}
    with pytest.raises(UsageError, match=r"config.data.views.Left needs annotated"):
        _parsed("multitalent.py:demo", flags[0])


def test_the_kind_of_a_socket_and_its_fields_are_flags_in_any_order(repository, monkeypatch):
    monkeypatch.chdir(repository)
    field, kind = "--config.model.mlp.experts=4", "--config.model.mlp.kind=experts"
    for flags in ([field, kind], [kind, field], [field, "--config.model.mlp=experts"]):
        fields = _parsed("multitalent.py:swin", *flags)
        assert fields["model"]["mlp"] == {"kind": "experts", "experts": 4}
    with pytest.raises(UsageError, match=r"no field 'experts' for the kind dense"):
        _parsed("multitalent.py:swin", field, "--config.model.mlp=dense")


def test_another_network_takes_what_fits_and_names_what_does_not(repository, monkeypatch):
    monkeypatch.chdir(repository)
    fields = _parsed(
        "multitalent.py:demo", "--config.model.blocks=1,2", "--config.model.name=resenc"
    )
    kept = {"base_features": 16, "max_features": 128}
    assert fields["model"] == {"name": "resenc", "blocks": (1, 2)} | kept
    with pytest.raises(UsageError, match=r"unet does not take .* for tsfm: variant.*model=unet"):
        _parsed("tsfm.py:h", "--config.model.name=unet")
    fields = _parsed("tsfm.py:h", "--config.model=unet", "--config.model.base_features=8")
    assert fields["model"] == {"name": "unet", "base_features": 8}
    fields = _parsed("multitalent.py:demo", "--config.losses=softmax_dice,softmax_cross_entropy")
    assert set(fields["losses"]) == {"softmax_dice", "softmax_cross_entropy"}
    with pytest.raises(UsageError, match=r"flips does not take .* for turns: nearest"):
        _parsed("m4oe.py:release", "--config.augment.kind=flips")


REFUSED = [  # flag, what the message says
    ("optim.lrr=1", r"config.optim has no field 'lrr'. Fix: did you mean lr\?"),
    ("model.nonlinearity=relu", r"config.model has no field 'nonlinearity' for the network unet"),
    ("losses.dicee.weight=1", r"no losses called 'dicee'. Fix: did you mean dice\?"),
    ("task=maskd", r"no tasks called 'maskd'"),
    ("train.steps=1e3", r"unusable --config.train.steps; found '1e3'; expected a whole number"),
    ("train.patch=32x64x64", r"unusable --config.train.patch; .* numbers like 1,2"),
    ("optim.lr=abc", r"unusable --config.optim.lr; found 'abc'; expected a number"),
    ("optim.nesterov=maybe", r"expected True or False"),
    ("optim.lr.x=1", r"config.optim.lr has no fields"),
    ("data.rename.v1.2/a=b", r"config.data.rename.v1 has no fields"),
]


@pytest.mark.parametrize(("flag", "message"), REFUSED, ids=[r[0] for r in REFUSED])
def test_a_wrong_setting_is_a_sentence(flag, message, repository, monkeypatch):
    monkeypatch.chdir(repository)
    with pytest.raises(UsageError, match=message):
        _parsed("multitalent.py:demo", f"--config.{flag}")


MINE = """
from configs.base import base_config

def get_config():
    c = base_config().unlock()
    {line}
    return c.lock()
"""


def test_a_config_is_found_from_another_folder(repository, tmp_path, monkeypatch, capsys):
    """The shipped configs are read from anywhere; a missing file is answered by the known ones."""
    monkeypatch.chdir(tmp_path)
    path = repository / "configs" / "multitalent.py"
    for named in (path, "configs/multitalent.py"):
        found = main.parse(["medjax", f"--config={named}:unet"])
        assert found.config.name == "multitalent_unet"
        assert found.workdir == Path("runs/multitalent_unet") and found.recipe == f"{named}:unet"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.py").write_text("")
    assert main.main(["--config=configs/mien.py", "--workdir=x"]) == 2
    said = capsys.readouterr().err
    assert "configs/mien.py: no such config file. Fix: did you mean configs/mine.py" in said
    assert "configs/mine.py, " in said and "configs/tsfm.py" in said
    assert main.main(["--config=configs/tsfm.py:h", "--config.name=../x", "--mode=train"]) == 2
    assert "the config's name is not the name of a folder; found '../x'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("c.train.step = 5", "config.train has no field 'step'. Fix: did you mean steps?"),
        ("c.optim.lrate = 5", "config.optim has no field 'lrate'. Fix: did you mean "),
        ("c.optm = c.optim", "config has no field 'optm'. Fix: did you mean optim?"),
        ("c.model.base_feature = 8", "did you mean base_features"),
        ("c.losses.dice.smoth = 8", "did you mean smooth"),
        ("c.augment.rotation = 'often'", "found 'often'; expected a number"),
    ],
)
def test_a_typo_in_a_config_file_is_a_sentence(line, message, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(MINE.format(line=line))
    assert main.main([f"--config={tmp_path / 'mine.py'}", "--mode=dry"]) == 2
    shown = capsys.readouterr().err
    assert message in shown and "mine.py" in shown


def test_a_reference_in_a_config_follows_the_flag(tmp_path):
    line = "c.infer.batch_windows = c.train.get_ref('batch')"
    (tmp_path / "mine.py").write_text(MINE.format(line=line))
    flags = [f"--config={tmp_path / 'mine.py'}", "--mode=dry", "--config.train.batch=6"]
    config = main.parse(["medjax", *flags]).config
    assert config.infer.batch_windows == 6 and config.is_locked


@pytest.mark.parametrize(
    ("line", "kind"), [("return c.to_dict()", dict), ("return c.lock()", object)]
)
def test_a_config_may_be_a_dictionary(line, kind, tmp_path):
    (tmp_path / "mine.py").write_text(MINE.format(line=line))
    flags = [f"--config={tmp_path / 'mine.py'}", "--mode=dry"]
    more = ["--config.model.remat=block", "--config.losses.softmax_dice.weight=1"]
    config = main.parse(["medjax", *flags, *more]).config
    assert isinstance(config, kind)
    assert plain(config)["model"] == {"name": "unet", "remat": "block"}
    assert config["losses"]["softmax_dice"]["weight"] == 1.0


def test_a_name_with_a_dot_is_a_sentence(repository, monkeypatch):
    monkeypatch.chdir(repository)
    with pytest.raises(UsageError, match=r"cannot set --config.data.rename; .*dots"):
        _parsed("multitalent.py:demo", '--config.data.rename={"v1.2/a": "b"}')


def test_reading_flags_starts_no_device(repository):
    """Several processes connect after the flags are read, and before the first device is used."""
    code = """
from medjax import main
main.parse(["medjax", "--config=configs/tsfm.py:h", "--mode=dry", "--config.model.order=post"])
from jax._src import xla_bridge
print(xla_bridge.backends_are_initialized())
"""
    command, environment = [sys.executable, "-c", code], {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, cwd=repository, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "False", done.stderr


def test_the_config_is_named_with_a_space_or_in_a_file_of_flags(tmp_path, repository, monkeypatch):
    monkeypatch.chdir(repository)
    flags = ["--config", "configs/multitalent.py:demo", "--mode", "dry", "--config.seed", "3"]
    assert main.parse(["medjax", *flags]).config.seed == 3
    (tmp_path / "flags").write_text(
        "\n".join(["--config=configs/multitalent.py:demo", "--mode=dry"])
    )
    command = main.parse(["medjax", f"--flagfile={tmp_path / 'flags'}", "--config.seed=4"])
    assert command.config.seed == 4 and command.mode == "dry"


def test_help_with_a_config_lists_its_fields(repository, monkeypatch, capsys):
    monkeypatch.chdir(repository)
    with pytest.raises(SystemExit) as ended:
        main.parse(["medjax", "--config=configs/tsfm.py:h", "--help", "--config.train.steps=77"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert "--config.train.steps=77 " in shown and "--config.model.order=None" in shown
    with pytest.raises(SystemExit):
        main.parse(["medjax", "--help"])
    shown = capsys.readouterr().out
    assert "--workdir" in shown and "--config.train" not in shown and len(shown.splitlines()) < 60


def test_train_has_the_help_of_the_program(capsys, repository, monkeypatch):
    monkeypatch.chdir(repository)
    for flags, text in ((["--help"], "--workdir"), (["configs/tsfm.py:h", "-h"], "model.order")):
        with pytest.raises(SystemExit) as ended:
            cli.main(["train", *flags])
        assert ended.value.code == 0 and text in capsys.readouterr().out
