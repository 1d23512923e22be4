"""Model archives and run documents made to harm or to mislead: one sentence that names the file and
the cause, before anything predicts.
"""

import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from medjax import cli
from medjax.errors import LabelError, MedjaxError, ModelError, UsageError
from medjax.infer import owned
from medjax.labels import LabelSpace
from medjax.models import context
from medjax.prepare import plan_json
from medjax.prepare.plan import Intensity, Plan
from medjax.registry import build
from medjax.runs import fitted
from medjax.runs.exchange.export import export
from medjax.runs.info import about_run, as_text
from medjax.runs.trained import load_predictor, read_model
from medjax.train.checkpoint import Checkpoints
from medjax.weights.foreign_plans.convert import intensity_of
from medjax.weights.formats import archive, stablehlo
from tests.support.old_run import extract
from tests.support.run import make_run
from tests.weights.test_archive import rewritten


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A run and its archive."""
    root = tmp_path_factory.mktemp("safety")
    make_run(root / "run")
    export(root / "run", root / "model.medjax")
    return root


def with_arrays(root, target, change):
    arrays = archive.unpack_arrays(archive.read(root / "model.medjax").payload)
    change(arrays)
    return rewritten(
        root / "model.medjax", target, {"weights.safetensors": archive.pack_arrays(arrays)}
    )


def with_json(root, target, name, change):
    document = archive.read(root / "model.medjax").documents[name]
    return rewritten(
        root / "model.medjax",
        target,
        {f"{name}.json": json.dumps(change(json.loads(json.dumps(document)))).encode()},
    )


# -- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_in_archives_and_runs(root, tmp_path, value):
    def one(arrays):
        name = sorted(arrays)[1]
        arrays[name] = arrays[name].copy()
        arrays[name].flat[-1] = value

    target = with_arrays(root, tmp_path / "bad.medjax", one)
    name = sorted(archive.unpack_arrays(archive.read(target).payload))[1]
    with pytest.raises(
        ModelError,
        match=rf"bad\.medjax: the weights hold numbers that are not finite; found {name}",
    ):
        load_predictor(target)
    trained = read_model(root / "run")
    params = trained.params()
    import jax

    leaves, structure = jax.tree.flatten(params)
    leaves[0] = leaves[0].at[(0,) * leaves[0].ndim].set(value)
    shutil.copytree(root / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        checkpoints.save(7, {"params": jax.tree.unflatten(structure, leaves)}, {"recipe": {}})
    with pytest.raises(ModelError, match=r"run: the weights hold numbers that are not finite"):
        load_predictor(tmp_path / "run")


@pytest.mark.parametrize("kind", [np.int32, np.int8, np.float16, np.float64, np.bool_])
def test_weights_of_another_type_are_refused(root, tmp_path, kind):
    def one(arrays):
        name = sorted(arrays)[0]
        arrays[name] = (
            arrays[name].view(np.int32) if kind is np.int32 else arrays[name].astype(kind)
        )

    with pytest.raises(
        ModelError,
        match=rf"bad\.medjax: the weights do not fit .*: {np.dtype(kind)} stored, float32 wanted",
    ):
        load_predictor(with_arrays(root, tmp_path / "bad.medjax", one))


def test_bytes_declared_as_another_type_are_refused(root, tmp_path):
    data = archive.read(root / "model.medjax").payload
    size = int.from_bytes(data[:8], "little")
    head = data[8 : 8 + size].replace(b'"F32"', b'"I32"')
    target = rewritten(
        root / "model.medjax",
        tmp_path / "bad.medjax",
        {"weights.safetensors": data[:8] + head + data[8 + size :]},
    )
    with pytest.raises(ModelError, match=r"bad\.medjax: .*int32 stored, float32 wanted"):
        load_predictor(target)


def test_finite_numbers_are_told_from_others_without_a_copy():
    assert fitted.check_finite(
        {"a": np.zeros(0, np.float32), "b": np.arange(3), "c": np.ones(3)}, "x"
    )
    with pytest.raises(ModelError, match=r"not finite; found b, c; expected"):
        fitted.check_finite(
            {"a": np.ones(2), "b": np.array([1, np.nan]), "c": np.array([np.inf])}, "x"
        )


# -- the file --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "before", [b"#!/bin/sh\nexit 1\n", b"\x7fELF", b"PK\x03\x04" + bytes(60), b"<script>"]
)
def test_bytes_before_the_members_are_refused(root, tmp_path, before):
    (tmp_path / "both.medjax").write_bytes(before + (root / "model.medjax").read_bytes())
    with pytest.raises(ModelError, match=r"both\.medjax: model archive refused: bytes"):
        read_model(tmp_path / "both.medjax")


def test_a_script_before_the_members_with_offsets_to_match_is_refused(root, tmp_path):
    """As zip tools make it: every offset counts from the file's beginning."""
    script = b"#!/bin/sh\nexit 1\n"
    with open(tmp_path / "both.medjax", "wb") as file:
        file.write(script)
        with zipfile.ZipFile(file, "a") as new, zipfile.ZipFile(root / "model.medjax") as old:
            for entry in old.infolist():
                new.writestr(entry, old.read(entry.filename), entry.compress_type)
    assert zipfile.ZipFile(tmp_path / "both.medjax").testzip() is None
    with pytest.raises(ModelError, match=r"both\.medjax: model archive refused: bytes before"):
        read_model(tmp_path / "both.medjax")


def test_bytes_after_or_between_the_members_are_refused(root, tmp_path):
    whole = (root / "model.medjax").read_bytes()
    (tmp_path / "after.medjax").write_bytes(whole + b"x")
    with pytest.raises(ModelError, match=r"after\.medjax: model archive refused: bytes after"):
        read_model(tmp_path / "after.medjax")
    at = len(whole) - 22
    with_comment = whole[:at] + whole[at:-2] + struct.pack("<H", 5) + b"hello"
    (tmp_path / "comment.medjax").write_bytes(with_comment)
    with pytest.raises(ModelError, match=r"comment\.medjax: model archive refused: bytes after"):
        read_model(tmp_path / "comment.medjax")
    start = int.from_bytes(whole[at + 16 : at + 20], "little")
    between = whole[:start] + b"hidden" + whole[start:at] + whole[at:]
    (tmp_path / "between.medjax").write_bytes(between)
    with pytest.raises(ModelError, match=r"between\.medjax: model archive refused: bytes between"):
        read_model(tmp_path / "between.medjax")


@pytest.mark.parametrize("form", ["three of 60 MB", "one of many values", "deep"])
@pytest.mark.slow
def test_json_that_grows_is_refused_at_once(root, tmp_path, form):
    bombs = {
        "three of 60 MB": {
            f"{name}.json": b"[" + b"[]," * (20 << 20) + b"[]]"
            for name in ("summary", "environment", "splits_final")
        },
        "one of many values": {"summary.json": b"[" + b"[]," * (4 << 20) + b"[]]"},
        "deep": {"summary.json": b"[" * 500 + b"]" * 500},
    }
    target = rewritten(root / "model.medjax", tmp_path / "bomb.medjax", bombs[form])
    assert target.stat().st_size < 2 << 20
    code = (
        "import resource, sys, time\nfrom medjax.errors import ModelError\nfrom "
        "medjax.runs.trained import read_model\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; begin = time.monotonic()\n"
        "try:\n    read_model(sys.argv[1])\nexcept ModelError as error:\n    print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.monotonic() - "
        "begin)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(target)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    message, numbers = done.stdout.strip().splitlines()
    assert "bomb.medjax: model archive refused:" in message
    assert float(numbers.split()[0]) < 100_000 and float(numbers.split()[1]) < 10  # KiB, seconds


# -- the config ------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
CONFIGS = {
    "model name with a path": ("model", "name", "../../x", "model.name"),
    "model name of the system": ("model", "name", "os", "no models called 'os'"),
    "model name of the package": (
        "model",
        "name",
        "__init__",
        "no models called|no network can be made",
    ),
    "model name that is no text": ("model", "name", ["unet"], "model.name"),
    "widths beyond": ("model", "features", [2, 10**7], "weights do not fit|no network"),
    "widths of text": ("model", "features", "many", "model archive refused"),
    "patch 0": ("train", "patch", [0, 8, 8], "train.patch"),
    "patch 1e6": ("train", "patch", [10**6] * 3, "train.patch"),
    "patch of text": ("train", "patch", "888", "train.patch"),
    "patch of four": ("train", "patch", [8] * 4, "train.patch"),
    "overlap NaN": ("infer", "overlap", NAN, "infer.overlap"),
    "overlap inf": ("infer", "overlap", INF, "infer.overlap"),
    "overlap 1": ("infer", "overlap", 1, "infer.overlap"),
    "overlap -5": ("infer", "overlap", -5, "infer.overlap"),
    "overlap of text": ("infer", "overlap", "0.5", "infer.overlap"),
    "mirror axis 99": ("infer", "mirror_axes", [99], "infer.mirror_axes"),
    "mirror axis of text": ("infer", "mirror_axes", "012", "infer.mirror_axes"),
    "batch 1e9": ("infer", "batch_windows", 10**9, "infer.batch_windows"),
    "activation": ("infer", "activation", "os.system", "infer.activation"),
    "precision": ("infer", "precision", "exact", r"infer.precision.*default or high or highest"),
    "precision that is a number": ("infer", "precision", 32, "infer.precision"),
    "activation that is a list": ("infer", "activation", ["sigmoid"], "infer.activation"),
    "average": ("infer", "average", "x", "infer.average"),
    "postprocess": ("infer", "postprocess", {"largest": ["nobody"]}, "nobody"),
    "postprocess of text": ("infer", "postprocess", "largest", "infer.postprocess"),
    "postprocess of numbers": ("infer", "postprocess", {"min_ml": 3}, "model archive refused"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_of_archives_are_checked_and_the_field_is_named(root, tmp_path, case):
    part, name, value, message = CONFIGS[case]
    target = with_json(
        root, tmp_path / "evil.medjax", "config", lambda c: c | {part: c[part] | {name: value}}
    )
    with pytest.raises(ModelError, match=message) as refusal:
        load_predictor(target)
    assert str(refusal.value).startswith(str(target))


SPACINGS = {
    "1e-9": 1e-9,
    "NaN": NAN,
    "inf": INF,
    "0": 0,
    "-1": -1,
    "1e9": 1e9,
    "text": "abc",
    "true": True,
    "null": None,
    "huge": 10**400,
}


@pytest.mark.parametrize("case", SPACINGS)
def test_spacings_of_archives_are_named_as_the_cause(root, tmp_path, case):
    target = with_json(
        root,
        tmp_path / "evil.medjax",
        "plan",
        lambda p: p | {"spacing_mm": {"Organs": [SPACINGS[case], 1.0, 1.0]}},
    )
    with pytest.raises(
        ModelError, match=r"evil\.medjax: .*the spacing of 'Organs'.*from 0\.001 to 1000"
    ):
        load_predictor(target)


@pytest.mark.parametrize(
    "fast", ["../../../../etc/passwd", "/etc/passwd", "..", "a/b", "", "link.medjax"]
)
def test_an_archive_names_no_file_of_another_folder(root, tmp_path, fast):
    target = with_json(
        root,
        tmp_path / "evil.medjax",
        "config",
        lambda c: c | {"infer": c["infer"] | {"fast": fast}},
    )
    (tmp_path / "link.medjax").symlink_to(root / "model.medjax")
    with pytest.raises(
        (ModelError, UsageError),
        match=r"evil\.medjax: (unusable fast version|the fast version is a link|the model offers "
        r"no)",
    ):
        load_predictor(target, fast=True)
    load_predictor(target)


def test_an_archive_may_name_the_one_beside_it(root, tmp_path):
    target = with_json(
        root,
        tmp_path / "fine.medjax",
        "config",
        lambda c: c | {"infer": c["infer"] | {"fast": "coarse.medjax"}},
    )
    shutil.copy(root / "model.medjax", tmp_path / "coarse.medjax")
    assert load_predictor(target, fast=True).model.window == (8, 8, 8)


def test_modules_are_built_by_plain_names_only():
    for name in ("../../x", "os.path", "", "x y", None, 3):
        with pytest.raises(UsageError, match="no models called"):
            build("models", name)


# -- plan and labels -------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["noNorm", "NONORM", "NoNormalization"])
def test_no_normalisation_in_any_capitals_is_none(root, word):
    plan = read_model(root / "run").plan.to_json()
    found = Plan.from_json(plan | {"intensity": {"CT": {"scheme": word}}}).intensity_of("CT")
    assert found == Intensity("nonorm") == Intensity(word) == intensity_of(word, {}, False)


@pytest.mark.parametrize("word", ["zzz", "", None, 3, [], "z-score", "../x"])
def test_unknown_intensity_schemes_are_refused(root, word):
    plan = read_model(root / "run").plan.to_json()
    with pytest.raises(
        UsageError, match=r"plan\.json: .*(unknown intensity scheme|intensity of channel)"
    ) as refusal:
        Plan.from_json(plan | {"intensity": {"CT": {"scheme": word}}}, "plan.json")
    assert "'CT'" in str(refusal.value)
    if isinstance(word, str):
        with pytest.raises(UsageError, match="unknown intensity scheme"):
            Intensity(word)


GARBAGE = (None, [], {}, 3, "x", True, [1], {"a": 1}, [[]], NAN)


@pytest.mark.parametrize("document", ["plan", "labels", "config"])
def test_any_field_of_another_kind_is_a_sentence(root, document):
    """Every field at every depth replaced by every kind of value, or left out."""
    fields = archive.read(root / "model.medjax").documents[document]
    read = {
        "plan": lambda f: Plan.from_json(f, "p.json"),
        "labels": lambda f: LabelSpace.from_json(f, "p.json"),
        "config": lambda f: fitted.check_config(f, "p.json", UsageError),
    }[document]
    read(fields)
    refused = 0
    for path in paths(fields):
        for value in (*GARBAGE, "drop"):
            try:
                read(replaced(fields, path, value))
            except MedjaxError as error:
                refused += 1
                assert "p.json" in str(error) and "\n" not in str(error), error
    assert refused > 50


def paths(value, before=()):
    yield before
    children = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, child in children:
        if before == () and key not in ("model", "train", "infer") and "optim" in value:
            continue  # of a config, what prediction reads
        yield from paths(child, (*before, key))


def replaced(document, path, value):
    if not path:
        return document if value == "drop" else value
    copy = json.loads(json.dumps(document))
    node = copy
    for key in path[:-1]:
        node = node[key]
    if value == "drop":
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return copy


@pytest.mark.parametrize("name", ["config.json", "labels.json", "plan.json"])
@pytest.mark.parametrize("text", ["{}", "[]", "null", "3", '{"classes": 3}'])
def test_run_documents_that_say_nothing_are_usage_errors(root, tmp_path, name, text):
    shutil.copytree(root / "run", tmp_path / "run")
    (tmp_path / "run" / name).write_text(text)
    for read in (read_model, about_run) if name != "plan.json" else (read_model,):
        with pytest.raises(UsageError):
            read(tmp_path / "run")


def test_label_spaces_name_the_file_and_the_field():
    with pytest.raises(LabelError, match=r"labels\.json: .*'classes' is missing"):
        LabelSpace.from_json({}, "labels.json")
    with pytest.raises(UsageError, match=r"plan\.json: .*'spacing_mm' is missing"):
        plan_json.check({}, "plan.json")


# -- writing ---------------------------------------------------------------------------------------


def test_only_archives_are_replaced_by_exports(root, tmp_path):
    shutil.copy(root / "model.medjax", tmp_path / "ours.medjax")
    with pytest.raises(UsageError, match="exists already"):
        export(root / "run", tmp_path / "ours.medjax")
    export(root / "run", tmp_path / "ours.medjax", overwrite=True)
    (tmp_path / "thesis.medjax").write_text("chapter 1")
    with zipfile.ZipFile(tmp_path / "zip.medjax", "w") as other:
        other.writestr("manifest.json", '{"format": "other"}')
    (tmp_path / "target").write_text("precious")
    (tmp_path / "link.medjax").symlink_to(tmp_path / "target")
    (tmp_path / "dangling.medjax").symlink_to(tmp_path / "nobody")
    (tmp_path / "to_ours.medjax").symlink_to(tmp_path / "ours.medjax")
    for name in ("thesis", "zip", "link", "dangling", "to_ours"):
        before = sorted((p.name, p.is_symlink()) for p in tmp_path.iterdir())
        for overwrite in (True, False):
            with pytest.raises(UsageError, match=rf"{name}\.medjax: exists"):
                export(root / "run", tmp_path / f"{name}.medjax", overwrite=overwrite)
        assert sorted((p.name, p.is_symlink()) for p in tmp_path.iterdir()) == before
    assert (tmp_path / "thesis.medjax").read_text() == "chapter 1" and (
        tmp_path / "target"
    ).read_text() == "precious"


def test_a_file_that_appears_meanwhile_is_not_replaced(root, tmp_path, monkeypatch):
    content = archive.read(root / "model.medjax")
    (tmp_path / "m.medjax").write_text("somebody else's")
    with pytest.raises(ModelError, match=r"m\.medjax: cannot write"):
        archive.write(
            tmp_path / "m.medjax",
            "weights",
            content.documents,
            content.payload,
            {},
            overwrite=False,
        )
    assert [p.name for p in tmp_path.iterdir()] == ["m.medjax"] and (
        tmp_path / "m.medjax"
    ).read_text() == "somebody else's"


def test_planted_links_under_predictable_temporary_names_are_not_followed(root, tmp_path):
    (tmp_path / "precious").write_text("precious")
    for pid in (os.getpid(), os.getpid() + 1):
        (tmp_path / f".m.medjax.{pid}.tmp").symlink_to(tmp_path / "precious")
    export(root / "run", tmp_path / "m.medjax")
    assert (tmp_path / "precious").read_text() == "precious" and archive.is_ours(
        tmp_path / "m.medjax"
    )


def test_what_could_not_be_read_is_not_written(root, tmp_path):
    content = archive.read(root / "model.medjax")
    documents = dict(content.documents) | {"summary": {"cells": ["x" * 100] * 200_000}}
    with pytest.raises(
        ModelError, match=r"m\.medjax: the run's documents are too large.*summary\.json"
    ):
        archive.write(tmp_path / "m.medjax", "weights", documents, content.payload, {})
    assert not list(tmp_path.iterdir())


def test_a_plan_replaces_plans_only(root, tmp_path):
    plans = tmp_path / "ours.json"
    plans.write_text((root / "run" / "plan.json").read_text())
    (tmp_path / "thesis.json").write_text('{"chapter": 1}')
    given = ["plan", "--import", str(plans), "-o"]
    assert (
        cli.main([*given, str(tmp_path / "copy.json")]) == 0
        and cli.main([*given, str(tmp_path / "copy.json")]) == 0
    )
    assert cli.main([*given, str(tmp_path / "thesis.json")]) == UsageError.exit_code
    assert (tmp_path / "thesis.json").read_text() == '{"chapter": 1}'


def test_archives_of_before_are_read(tmp_path, repository):
    extract(tmp_path, "weights.medjax", "function.medjax")
    assert (
        load_predictor(tmp_path / "weights.medjax").model.space.classes
        == load_predictor(tmp_path / "function.medjax").model.space.classes
    )
    old = archive.read(tmp_path / "function.medjax")
    assert "reads" not in old.manifest["function"] and stablehlo.reads(old) == context.DEFAULT
    trained, (apply, window) = read_model(tmp_path / "weights.medjax"), stablehlo.function(old)
    image = jax.random.normal(jax.random.key(0), (1, *window, 1))
    given = context.zeros(context.DEFAULT, 1, window)
    np.testing.assert_allclose(
        apply({}, image, given)["logits"],
        trained.network.apply(trained.params(), image)["logits"],
        atol=1e-4,
    )


def test_control_characters_of_names_are_printed_as_escapes():
    text = as_text({"name": "a\x1b[2Jb", "c\x07": ["d\x1b"], "e": {"f": "g\rh"}})
    assert "\x1b" not in text
    assert "\\x1b" in text and "\r" not in text and "\x07" not in text


def test_a_decision_replaces_decisions_only(tmp_path):
    """Refused before a mask is read."""
    (tmp_path / "thesis.json").write_text('{"chapter": 1}')
    given = {
        "--reference": tmp_path,
        "--prediction": tmp_path,
        "--output": tmp_path / "thesis.json",
    }
    assert (
        cli.main(["postprocess", *[str(part) for pair in given.items() for part in pair]])
        == UsageError.exit_code
    )
    with pytest.raises(UsageError, match=r"thesis\.json"):
        owned.refuse_document(tmp_path / "thesis.json", "postprocessing", what="the choice")
    (tmp_path / "ours.json").write_text('{"rules": {}, "evidence": {}, "basis": {}}')
    owned.refuse_document(tmp_path / "ours.json", "postprocessing", what="the choice")
    assert (tmp_path / "thesis.json").read_text() == '{"chapter": 1}'
