"""SegVol's file: 475 tensors accounted for, and given back byte by byte."""

import functools
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from medjax.cli import main
from medjax.errors import ModelError, UsageError
from medjax.models import segvol as network
from medjax.models.context import initialise
from medjax.prepare.plan import Intensity, Plan
from medjax.prompts import texts
from medjax.runs import initial
from medjax.runs.exchange import foreign
from medjax.runs.exchange.imported import import_weights
from medjax.runs.prompted.texts import by_encoder
from medjax.runs.settings import schema
from medjax.train import checkpoint
from medjax.weights import accounts
from medjax.weights.families import segvol
from tests.support import published_segvol as published

NAMES = ("liver", "spleen")


def _converted(tensors):
    tensors = accounts.tensors_of(tensors)
    found = segvol.architecture(tensors)
    own = segvol.gathered(tensors)
    return found, *accounts.convert(
        own,
        segvol.table(own),
        accounts.abstract(found),
        ignored=segvol.IGNORED,
        absent=segvol.absent(tensors),
    )


def test_t1_the_published_file_has_these_names_and_shapes():
    wanted = published.shapes()
    assert len(wanted) == 475
    sizes = {name: int(np.prod(shape)) for name, shape in wanted.items()}
    assert sum(sizes.values()) == 180_891_293
    parameters = {n: v for n, v in sizes.items() if "position_ids" not in n and "gaussian" not in n}
    assert sum(parameters.values()) == 180_890_064
    assert sum("image_encoder" in name for name in wanted) == 137
    assert sum(v for n, v in sizes.items() if "mask_downscaling" in n) == 13_388
    # every parameter of our network at full size is one of them, in its shape
    net = network.make(1, mode="release")
    image = jax.ShapeDtypeStruct((1, *net.frame, 1), np.float32)
    shapes = accounts.shapes_of(
        jax.eval_shape(functools.partial(initialise, net), jax.random.key(0), image)
    )
    names = segvol.names(12, 2)
    assert {path for path, _ in names.values()} | {"text/table"} == set(shapes)
    joined = {segvol.POINTS: (4, 768), segvol.TOKENS: (5, 768)}
    for name, (path, layout) in names.items():
        there = segvol._BACK[layout](np.broadcast_to(np.float32(0), shapes[path])).shape
        assert there == joined.get(name, wanted.get(name)), name
    left = set(wanted) - set(names) - {part for parts in segvol.JOINED.values() for part in parts}
    assert len(left) == 207 and all(segvol.re.fullmatch(segvol.EXTRAS, name) for name in left)


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """(file, its tensors, run folder imported with two classes)."""
    folder = tmp_path_factory.mktemp("segvol")
    tensors = published.tensors()
    save_file(tensors, folder / "pytorch_model.safetensors")
    labels = {"background": 0} | {name: i for i, name in enumerate(NAMES, 1)}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(dataset | {"numTraining": 1}))
    plan = Plan({"Organs": (1.0, 1.0, 1.0)}, {"CT": Intensity("zscore")})
    (folder / "plan.json").write_text(json.dumps(plan.to_json()))
    run = folder / "run"
    report = import_weights(
        folder / "pytorch_model.safetensors",
        "segvol",
        run,
        plan=folder / "plan.json",
        dataset=folder / "dataset.json",
        name="Organs",
        patch=(2, 16, 16),
    )
    return folder / "pytorch_model.safetensors", tensors, run, report


def test_t26_every_tensor_is_accounted_for():
    tensors = published.tensors()
    assert len(tensors) == 475
    found, params, account = _converted(tensors)
    ignored = sum(len(names) for names in account.ignored.values())
    assert (len(account.matched), ignored) == (264, 207)  # 4 points and 5 tokens are one leaf each
    assert 264 + 4 + 207 == 475 and list(account.absent.values()) == [("text/table",)]
    assert found.arguments["mode"] == "release" and found.sides == (2, 16, 16)
    np.testing.assert_array_equal(
        params["decoder"]["tokens"][0], tensors["model.mask_decoder.iou_token.weight"][0]
    )
    np.testing.assert_array_equal(
        params["prompt"]["points"][3], tensors["model.prompt_encoder.point_embeddings.3.weight"][0]
    )


def test_t26_the_way_back_is_the_same_file(imported, tmp_path, capsys):
    _, tensors, run, report = imported
    assert "475" not in report and "2 classes" in report
    out = tmp_path / "back.safetensors"
    assert main(["export", str(run), "-o", str(out), "--family", "segvol"]) == 0
    assert "475 tensors" in capsys.readouterr().out
    back = load_file(out)
    assert set(back) == set(tensors)
    for name, value in tensors.items():
        assert back[name].dtype == value.dtype and back[name].tobytes() == value.tobytes(), name


def test_class_names_get_vectors_of_the_files_own_tower(imported):
    file, _, run, _ = imported
    table = checkpoint.read_params(run, "last")["text"]["table"]
    sentences = texts.filled(texts.TEMPLATE, NAMES)
    expected = by_encoder(file, NAMES, sentences).vectors
    np.testing.assert_allclose(table, expected, atol=1e-6)
    assert float(np.abs(table[0] - table[1]).max()) > 1e-3
    # the tensors kept at the import are a text encoder as well
    again = by_encoder(run / foreign.EXTRAS, NAMES, sentences).vectors
    np.testing.assert_array_equal(again, expected)
    assert json.loads((run / "config.json").read_text())["model"]["pe_order"] == "release"


def test_the_table_of_a_run_is_a_file_of_vectors(imported, tmp_path, capsys):
    _, _, run, report = imported
    assert f"{run} predicts" in report
    out = tmp_path / "organs.text.npz"
    assert main(["text", "--run", str(run), "-o", str(out)]) == 0
    found = texts.read(out)
    assert found.names == NAMES and found.facts["kind"] == "learned"
    np.testing.assert_array_equal(
        found.vectors, checkpoint.read_params(run, "last")["text"]["table"]
    )
    assert main(["text", "--run", str(run), "--names", "livre", "-o", str(out)]) == 2
    assert "did you mean liver" in capsys.readouterr().err


def test_a_run_that_starts_from_the_weights_keeps_their_order_of_positions(imported, tmp_path):
    _, _, run, _ = imported
    fields = {"train": {"patch": (2, 16, 16)}, "init": {"source": str(run)}}
    open_, fixed = (
        schema.resolve(fields | {"model": {"name": "segvol", **own}})
        for own in ({}, {"pe_order": "consistent"})
    )
    workdir = tmp_path / "new"
    assert initial.with_topology(open_, workdir).model.options["pe_order"] == "release"
    assert initial.with_topology(fixed, workdir).model.options["pe_order"] == "consistent"
    assert json.loads((run / "config.json").read_text())["task"] == "prompted"


def test_keys_of_newer_versions_are_ignored_and_position_numbers_may_lack():
    tensors = published.tensors(prefix="module.")
    for i in range(12):
        for kind in ("weight", "bias"):
            name = f"module.image_encoder.blocks.{i}.norm_cross_attn.{kind}"
            tensors[name] = np.zeros(24, np.float32)
    ids = "module.text_encoder.clip_text_model.text_model.embeddings.position_ids"
    del tensors[ids]
    _, _, account = _converted({"model": tensors, "epoch": 3})
    extra = next(n for reason, n in account.ignored.items() if "MONAI" in reason)
    assert len(extra) == 24 and len(account.matched) == 264


def test_a_file_of_the_encoder_alone():
    tensors = {
        name.replace("model.image_encoder.", "model.encoder."): value
        for name, value in published.tensors().items()
        if ".image_encoder." in name
    }
    found, params, account = _converted({"state_dict": tensors})
    assert len(account.matched) == 137 == len(tensors) and set(params) == {"encoder"}
    assert found.arguments["frame"] == (2, 16, 16)
    assert any("encoder alone" in reason for reason in account.absent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.image_encoder.blocks.3.attn.qkv.bias": np.zeros(72)}, "not known to the family"),
        ({"model.mask_decoder.txt_align_upscaled_embedding.bias": None}, "has no tensor"),
        ({"model.mask_decoder.iou_token.weight": None}, "one of a series of tensors is missing"),
        ({"model.image_encoder.norm.weight": np.zeros(23)}, r"\(23,\) in the file, \(24,\)"),
        (
            {"model.image_encoder.patch_embedding.patch_embeddings.1.weight": np.zeros((24, 17))},
            "patches or grid of another form",
        ),
        (
            {"model.image_encoder.patch_embedding.position_embeddings": None},
            "no SegVol",
        ),
    ],
)
def test_t26_other_files_are_refused(change, message):
    tensors = published.tensors()
    for name, value in change.items():
        if value is None:
            del tensors[name]
        else:
            tensors[name] = np.asarray(value, np.float32)
    with pytest.raises(ModelError, match=message):
        _converted(tensors)


def test_what_contradicts_the_weights_is_refused(imported, tmp_path):
    file, _, run, _ = imported
    with pytest.raises(UsageError, match=r"compute something else with another pe_order.*release"):
        import_weights(file, "segvol", tmp_path / "run", model={"pe_order": "consistent"})
    params = checkpoint.read_params(run, "last")
    kept, facts = foreign.kept(run / foreign.EXTRAS)
    assert facts == {"family": "segvol", "prefix": "model."} and len(kept) == 207
    more = params | {"prior": {"gate": np.zeros(2)}}
    with pytest.raises(ModelError, match=r"not those of a SegVol file.*prior/gate"):
        segvol.export(more, kept)
    with pytest.raises(UsageError, match=r"no way back to the family 'nnunet'.*segvol"):
        foreign.export(run, tmp_path / "x.safetensors", "nnunet")
    with pytest.raises(UsageError, match=r"ends in \.safetensors"):
        foreign.export(run, tmp_path / "x.pth", "segvol")
    with pytest.raises(UsageError, match=r"kept at the import are missing.*--extras"):
        foreign.export(tmp_path, tmp_path / "x.safetensors", "segvol")
