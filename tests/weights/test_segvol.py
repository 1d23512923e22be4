"""SegVol's file: 475 tensors accounted for, and given back byte by byte."""

import functools
import json
import re

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
from medjax.runs.exchange import foreign, imported_adapter
from medjax.runs.exchange.imported import import_weights
from medjax.runs.prompted.texts import by_encoder
from medjax.runs.settings import schema
from medjax.train import checkpoint
from medjax.weights import accounts, adapters, peft
from medjax.weights.families import segvol
from medjax.weights.formats import adapter as form
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


def adapted(tensors, rank=3, seed=0):
    """The file as its adaptation wrote it: adapters beside the published targets, in PEFT's names,
    and other prompt vectors, which were trained as well.
    """
    rng, wrapped, pairs = np.random.default_rng(seed), {}, {}
    for name, value in tensors.items():
        plain = name.removeprefix("model.")
        part, _, rest = plain.partition(".")
        owner = plain.removesuffix(".weight")
        if part not in ("image_encoder", "mask_decoder"):
            changed = "point_embeddings" in plain
            wrapped[f"_model.{name}"] = value + 1 if changed else value
            continue
        inside = f"_model.model.{part}.base_model.model.{rest}"
        if not re.search(published.ADAPTED, plain):
            wrapped[inside] = value
            continue
        stem = inside.removesuffix(".weight")
        a, b = rng.normal(size=(rank, value.shape[1])), rng.normal(size=(value.shape[0], rank))
        pairs[owner] = a.astype(np.float32), b.astype(np.float32)
        wrapped[f"{stem}.base_layer.weight"] = value
        wrapped[f"{stem}.lora_A.default.weight"], wrapped[f"{stem}.lora_B.default.weight"] = pairs[
            owner
        ]
    # a bias of an adapted layer stands inside it, too
    moved = {}
    for name, value in wrapped.items():
        stem = name.removesuffix(".bias")
        inner = name.endswith(".bias") and f"{stem}.base_layer.weight" in wrapped
        moved[f"{stem}.base_layer.bias" if inner else name] = value
    return moved, pairs


@pytest.mark.slow
def test_a_file_of_the_adaptation_becomes_base_and_adapter(imported, tmp_path):
    """The base is that of the file; the adapter fits the published one, and adds scale b a."""
    file, tensors, run, _ = imported
    given, pairs = adapted(tensors)
    assert len(pairs) == published.adapted_linears(published.SMALL) and len(given) > len(tensors)
    base, found = peft.split(given)
    assert set(base) == set(tensors) and set(found) == {f"model.{n}" for n in pairs}
    path = tmp_path / "lora.safetensors"
    save_file({name: np.ascontiguousarray(v) for name, v in given.items()}, path)
    documents = {"plan": file.parent / "plan.json", "dataset": file.parent / "dataset.json"}
    out = tmp_path / "adapted"
    report = import_weights(path, "segvol", out, **documents, name="Organs", patch=(2, 16, 16))
    assert f"{len(pairs)} kernels, alpha 3" in report
    made = form.read(out / imported_adapter.NAME)
    assert made.settings.scale(3) == pytest.approx(np.sqrt(3))
    for base_run in (out, run):  # bound to what both have in common: all but the prompt vectors
        joined = form.join(checkpoint.read_params(base_run, "last"), made)
        merged = adapters.merge(joined, made.settings)
        kernel = merged["encoder"]["block0"]["qkv"]["kernel"]
        a, b = pairs["image_encoder.blocks.0.attn.qkv"]
        plain = tensors["model.image_encoder.blocks.0.attn.qkv.weight"]
        np.testing.assert_allclose(kernel, (plain + np.sqrt(3) * b @ a).T, rtol=1e-5, atol=1e-5)
        first = tensors["model.prompt_encoder.point_embeddings.0.weight"][0] + 1
        np.testing.assert_allclose(merged["prompt"]["points"][0], first, rtol=1e-6)
    with pytest.raises(UsageError, match=r"an adapter needs the classes.*--dataset and --plan"):
        import_weights(path, "segvol", tmp_path / "without", patch=(2, 16, 16))
    half = {n: v for n, v in given.items() if not n.endswith("qkv.lora_B.default.weight")}
    with pytest.raises(ModelError, match=r"adapter of .*qkv does not fit its layer"):
        peft.split(half)
    names = segvol.adapted_names(base)
    with pytest.raises(ModelError, match="several ranks"):
        wider = {
            "a": (np.zeros((2, 4)), np.zeros((4, 2))),
            "b": (np.zeros((3, 4)), np.zeros((4, 3))),
        }
        peft.leaves(wider, names)
    with pytest.raises(ModelError, match="does not have"):
        peft.leaves({"mask_decoder.nothing": wider["a"]}, names)
