"""Model archives: what is exported predicts the same bytes, and what was tampered with is refused
and leaves nothing behind.
"""

import hashlib
import io
import json
import pickle
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medjax import cli
from medjax.errors import ModelError, TrainError, UsageError
from medjax.labels import Corpus
from medjax.prompts.request import Request
from medjax.runs import folder
from medjax.runs.exchange.export import export
from medjax.runs.trained import load_predictor, read_model
from medjax.train import hashes
from medjax.weights.formats import archive
from tests.support import old_run
from tests.support.raw import make_case, save
from tests.support.run import ORGANS, make_run


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A run, its archive and one scan."""
    root = tmp_path_factory.mktemp("models")
    data = {"folders": "/home/somebody/secret/Task01_Organs"}
    make_run(root / "run", data=data)
    export(root / "run", root / "model.medjax", licences={"Organs": "CC-BY-4.0"})
    image, _ = make_case((18, 20, 17), [1, 2], kind="CT")
    save(root / "scan.nii.gz", image[..., 0], spacing_mm=(1.2, 1.0, 1.0))
    return root


def masks(root: Path, *models: str, out: Path) -> bytes:
    given = [
        "predict",
        "-m",
        *[str(root / m) for m in models],
        "-i",
        str(root / "scan.nii.gz"),
        "-o",
        str(out),
        "--quiet",
    ]
    assert cli.main(given) == 0
    return (out / "scan.nii.gz").read_bytes()


def test_every_form_of_a_run_predicts_the_same_bytes(root, tmp_path):
    export(root / "run", tmp_path / "function.medjax", "function", platforms=("cpu",))
    export(root / "run", tmp_path / "slim", "orbax")
    expected = masks(root, "run", out=tmp_path / "a")
    assert set(np.unique(np.asarray(nib.load(tmp_path / "a" / "scan.nii.gz").dataobj))) == {0, 1, 2}
    assert masks(root, "model.medjax", out=tmp_path / "b") == expected
    for name in ("function.medjax", "slim"):
        given = [
            "predict",
            "-m",
            str(tmp_path / name),
            "-i",
            str(root / "scan.nii.gz"),
            "-o",
            str(tmp_path / f"o-{name}"),
            "--quiet",
        ]
        assert cli.main(given) == 0
        assert (tmp_path / f"o-{name}" / "scan.nii.gz").read_bytes() == expected, name
    assert not list((tmp_path / "slim").rglob("*opt*"))


def test_the_same_run_gives_the_same_file_without_the_paths_of_its_machine(root, tmp_path):
    export(root / "run", tmp_path / "again.medjax", licences={"Organs": "CC-BY-4.0"})
    assert (tmp_path / "again.medjax").read_bytes() == (root / "model.medjax").read_bytes()
    found = archive.read(root / "model.medjax")
    assert (
        found.manifest["licences"] == {"Organs": "CC-BY-4.0"}
        and found.manifest["provenance"]["step"] == 7
    )
    assert (
        found.documents["config"]["model"]["convs_per_stage"] == 1
        and found.documents["config"]["data"]["folders"] == ""
    )
    with zipfile.ZipFile(root / "model.medjax") as content:
        assert b"secret" not in b"".join(content.read(name) for name in content.namelist())
    assert sorted(content.namelist()) == [
        "config.json",
        "labels.json",
        "manifest.json",
        "plan.json",
        "weights.safetensors",
    ]


def test_licences_come_from_the_data_sets(root, tmp_path):
    folder = tmp_path / "Task01_Organs"
    folder.mkdir()
    described = {
        "name": "Organs",
        "labels": {"0": "background", "1": "organ"},
        "modality": {"0": "CT"},
        "licence": "CC-BY-SA 4.0",
    }
    (folder / "dataset.json").write_text(
        json.dumps(described | {"medjax": {"name": "Organs"}, "training": [], "test": []})
    )
    make_run(tmp_path / "run", data={"folders": str(folder)})
    export(tmp_path / "run", tmp_path / "m.medjax")
    assert archive.read(tmp_path / "m.medjax").manifest["licences"] == {"Organs": "CC-BY-SA 4.0"}
    with pytest.raises(UsageError, match="did you mean Organs"):
        export(root / "run", tmp_path / "n.medjax", licences={"Organ": "x"})
    with pytest.raises(UsageError, match="exists already"):
        export(root / "run", tmp_path / "m.medjax")
    assert "add --licence" in export(root / "run", tmp_path / "m.medjax", overwrite=True)


@pytest.mark.slow
def test_the_function_runs_without_the_code_of_the_model(root, tmp_path):
    """The block of docs/predict.md, with medjax out of reach."""
    export(root / "run", tmp_path / "function.medjax", "function", platforms=("cpu",))
    text = (Path(__file__).parents[2] / "docs" / "predict.md").read_text()
    block = text.split("```python runner\n")[1].split("```")[0]
    code = "import sys; sys.modules['medjax'] = None\n" + block.replace(
        "model.medjax", str(tmp_path / "function.medjax")
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=200,
        cwd="/",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    import jax.numpy as jnp

    one = read_model(root / "run")
    context = {
        "corpus": jnp.zeros(1, int),
        "modality": jnp.zeros(1, int),
        "spacing_mm": jnp.ones((1, 3)),
    }
    expected = one.network.apply(one.params(), jnp.zeros((1, 8, 8, 8, 1)), context)["logits"]
    assert f"(1, 8, 8, 8, 2) {float(expected.mean()):.4f}" in done.stdout


def rewritten(
    source: Path, target: Path, change=None, add=(), mode=0o644, compress=zipfile.ZIP_STORED
) -> Path:
    """The archive with some members changed (None drops one) and others added, digests made to
    match.
    """
    with zipfile.ZipFile(source) as old:
        members = {name: old.read(name) for name in old.namelist()}
    members |= change or {}
    members = {name: content for name, content in members.items() if content is not None}
    if "manifest.json" in members and "manifest.json" not in (change or {}):
        manifest = json.loads(members["manifest.json"])
        listed = {
            n: {"sha256": hashlib.sha256(c).hexdigest(), "bytes": len(c)}
            for n, c in members.items()
            if n != "manifest.json"
        }
        members["manifest.json"] = json.dumps(manifest | {"members": listed}).encode()
    with zipfile.ZipFile(target, "w") as new:
        for name, content in members.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED if name.endswith(".json") else compress
            entry.external_attr = (stat.S_IFREG | mode) << 16
            new.writestr(entry, content)
        for name, content, kind in add:
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (kind | 0o777) << 16
            new.writestr(entry, content)
    return target


class Evil:
    """Unpickled, it creates a file."""

    def __reduce__(self):
        return open, ("/tmp/medjax-was-here", "w")


LINK, FILE = stat.S_IFLNK, stat.S_IFREG
BOMB = b"[" + b"0," * (40 << 20) + b"0]"
ATTACKS = {
    "parent folder": dict(add=[("../evil.json", b"{}", FILE)]),
    "absolute path": dict(add=[("/tmp/evil.json", b"{}", FILE)]),
    "backslashes": dict(add=[("..\\evil.json", b"{}", FILE)]),
    "folder": dict(add=[("sub/config.json", b"{}", FILE)]),
    "code": dict(add=[("run.py", b"print(1)", FILE)]),
    "pickle": dict(add=[("weights.pkl", pickle.dumps(1), FILE)]),
    "link": dict(change={"summary.json": None}, add=[("summary.json", b"/etc/passwd", LINK)]),
    "device": dict(add=[("summary.json", b"", stat.S_IFCHR)]),
    "unlisted member": dict(add=[("summary.json", b"{}", FILE)]),
    "repeated member": dict(add=[("config.json", b"{}", FILE)]),
    "bomb": dict(change={"summary.json": BOMB}),
    "compressed arrays": dict(compress=zipfile.ZIP_DEFLATED),
    "pickled arrays": dict(change={"weights.safetensors": pickle.dumps(Evil())}),
    "missing labels": dict(change={"labels.json": None}),
    "missing manifest": dict(change={"manifest.json": None}),
    "another format": dict(change={"manifest.json": b'{"format": "zip"}'}),
    "newer version": dict(change={"manifest.json": b'{"format": "medjax-archive", "version": 99}'}),
    "damaged JSON": dict(change={"plan.json": b'{"spacing_mm": '}),
    "other JSON": dict(change={"plan.json": b"[1]"}),
    "deep JSON": dict(change={"config.json": b"[" * 200_000}),
    "unknown model": dict(change={"config.json": b'{"model": {"name": "os"}, "infer": {}}'}),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_tampered_archives_are_refused(root, tmp_path, attack):
    (tmp_path / "in").mkdir()
    target = rewritten(root / "model.medjax", tmp_path / "in" / "evil.medjax", **ATTACKS[attack])
    before = sorted(p for p in tmp_path.rglob("*"))
    with pytest.raises((ModelError, UsageError)) as refusal:
        load_predictor(target)
    assert str(target) in str(refusal.value) or attack == "unknown model"
    assert (
        sorted(p for p in tmp_path.rglob("*")) == before
        and not Path("/tmp/medjax-was-here").exists()
    )


def test_changed_bytes_and_broken_files_are_refused(root, tmp_path):
    content = bytearray((root / "model.medjax").read_bytes())
    with zipfile.ZipFile(root / "model.medjax") as source:
        place = source.getinfo("weights.safetensors").header_offset + 400
    content[place] ^= 1
    (tmp_path / "flipped.medjax").write_bytes(content)
    (tmp_path / "half.medjax").write_bytes(bytes(content[: len(content) // 2]))
    (tmp_path / "text.medjax").write_text("not an archive")
    for name in ("flipped", "half", "text"):
        with pytest.raises(ModelError, match="refused"):
            read_model(tmp_path / f"{name}.medjax")
    manifest = json.loads(zipfile.ZipFile(root / "model.medjax").read("manifest.json"))
    manifest["members"]["plan.json"]["sha256"] = "0" * 64
    target = rewritten(
        root / "model.medjax",
        tmp_path / "digest.medjax",
        {"manifest.json": json.dumps(manifest).encode()},
    )
    with pytest.raises(ModelError, match="sha256 differs"):
        read_model(target)
    assert (
        cli.main(
            [
                "predict",
                "-m",
                str(target),
                "-i",
                str(root / "scan.nii.gz"),
                "-o",
                str(tmp_path / "out"),
            ]
        )
        == 1
    )
    assert not (tmp_path / "out").exists()


def test_a_member_longer_than_its_header_says_is_cut_off_and_refused(root, tmp_path):
    """The central directory promises few bytes, the stream holds many: reading stops at what was
    promised.
    """
    raw = bytearray((root / "model.medjax").read_bytes())
    with zipfile.ZipFile(io.BytesIO(raw)) as source:
        size = source.getinfo("config.json").file_size
    at = raw.rfind(b"config.json") - 46
    raw[at + 24 : at + 28] = (size - 5).to_bytes(4, "little")
    (tmp_path / "liar.medjax").write_bytes(raw)
    with pytest.raises(ModelError, match="refused"):
        read_model(tmp_path / "liar.medjax")


def test_weights_that_do_not_fit_their_config_are_listed(root, tmp_path):
    found = archive.read(root / "model.medjax")
    arrays = archive.unpack_arrays(found.payload)
    name = sorted(arrays)[0]
    arrays["extra/kernel"] = arrays.pop(name)
    target = rewritten(
        root / "model.medjax",
        tmp_path / "m.medjax",
        {"weights.safetensors": archive.pack_arrays(arrays)},
    )
    with pytest.raises(
        ModelError, match=rf"2 differences.*{name} is missing; extra/kernel is unknown"
    ):
        read_model(target).params()


@pytest.mark.slow
def test_functions_with_other_shapes_or_calls_are_refused(root, tmp_path):
    import jax
    import jax.numpy as jnp
    from jax import export as jax_export

    export(root / "run", tmp_path / "f.medjax", "function", platforms=("cpu",))

    def with_function(name, function, window=(8, 8, 8)):
        shapes = [
            ((1, *window, 1), jnp.float32),
            ((1,), jnp.int32),
            ((1,), jnp.int32),
            ((1, 3), jnp.float32),
        ]
        disabled = [
            jax_export.DisabledSafetyCheck.custom_call("xla_ffi_python_cpu_callback"),
            jax_export.DisabledSafetyCheck.custom_call("xla_python_cpu_callback"),
        ]
        made = jax_export.export(jax.jit(function), disabled_checks=disabled)(
            *[jax.ShapeDtypeStruct(*s) for s in shapes]
        )
        payload = {"function.stablehlo": bytes(made.serialize())}
        return rewritten(tmp_path / "f.medjax", tmp_path / f"{name}.medjax", payload)

    with pytest.raises(ModelError, match="other shapes"):
        load_predictor(
            with_function("small", lambda i, c, m, s: jnp.zeros((1, 4, 4, 4, 2)), (4, 4, 4))
        )
    with pytest.raises(ModelError, match="no function"):
        load_predictor(
            rewritten(
                tmp_path / "f.medjax", tmp_path / "junk.medjax", {"function.stablehlo": b"x" * 4000}
            )
        )
    with pytest.raises(UsageError, match="one window"):
        load_predictor(tmp_path / "f.medjax", window=(24, 24, 24))


@pytest.mark.slow
def test_ensembles_average_and_mixed_ones_meet_on_the_scan(root, tmp_path):
    """Two seeds of one architecture; and a 2D network at another spacing with them."""
    from medjax.scans import nifti

    make_run(tmp_path / "seed1", seed=1)
    make_run(tmp_path / "flat", seed=2, patch=(8, 8), spacing_mm=(1.5, 1.2, 1.0))
    volume = nifti.read(root / "scan.nii.gz")
    singles = {
        m: _probabilities(load_predictor(m), volume)
        for m in (root / "run", tmp_path / "seed1", tmp_path / "flat")
    }
    pair = load_predictor([root / "run", tmp_path / "seed1"], uncertainty=True)
    assert pair.networks[0].members == 2 and len(pair.networks) == 1
    first, second, flat = singles.values()
    assert np.allclose(_probabilities(pair, volume), (first + second) / 2, atol=2e-6)
    spread = pair.segment(volume, Request("Organs")).maps["disagreement"]
    wanted = (np.abs(first - second) / 2).max(
        -1
    )  # of two, half their distance; blended window by window, so only about
    assert np.corrcoef(spread.ravel(), wanted.ravel())[0, 1] > 0.9 and 0 < spread.max() <= 0.5
    mixed = load_predictor([root / "run", tmp_path / "seed1", tmp_path / "flat"], uncertainty=True)
    assert len(mixed.networks) == 2
    assert np.allclose(_probabilities(mixed, volume), (first + second + flat) / 3, atol=2e-6)
    other = Corpus("Organs", ((1, ("organ",)),), channels=("CT",))
    make_run(tmp_path / "other", corpora=(other,))
    with pytest.raises(UsageError, match=r"do not fit together.*another label space"):
        load_predictor([root / "run", tmp_path / "other"])


def _probabilities(predictor, volume):
    out = np.zeros((*volume.shape, 2), np.float32)

    def keep(transform, region, names, values):
        transform.image(out)[region] = values

    predictor.segment(volume, Request("Organs"), on_scores=keep)
    return out


def test_predictions_record_the_hash_of_the_file_that_holds_the_weights(root, tmp_path):
    step = hashes.of_step(root / "run" / "checkpoints" / "7")
    sha256 = hashlib.sha256((root / "model.medjax").read_bytes()).hexdigest()
    found = [load_predictor(root / name).settings() for name in ("run", "model.medjax")]
    assert [one["weights"] for one in found] == [step, f"sha256:{sha256}"]
    earlier = [load_predictor(root / n).settings(earlier=True) for n in ("run", "model.medjax")]
    assert earlier[0] == earlier[1] and len(earlier[0]["weights"]) == 16
    old_run.extract(tmp_path, "run/")  # checkpoints without hashes: their values are hashed
    old = load_predictor(tmp_path / "run").settings()["weights"]
    assert hashes.of_step(tmp_path / "run" / "checkpoints" / "3") == "" and old.startswith("xxh3:")


def test_precision_comes_from_the_config(root, tmp_path):
    shutil.copytree(root / "run", tmp_path / "run")
    config = folder.read_fields(tmp_path / "run")
    assert "precision" not in load_predictor(tmp_path / "run").settings()
    for value, expected in (("highest", "highest"), ("", None)):
        config["infer"]["precision"] = value
        folder.write_json(tmp_path / "run" / folder.CONFIG, config)
        assert load_predictor(tmp_path / "run").settings().get("precision") == expected
    config["infer"]["precision"] = "exact"
    folder.write_json(tmp_path / "run" / folder.CONFIG, config)
    with pytest.raises(UsageError, match=r"infer.precision; found 'exact'.*highest"):
        load_predictor(tmp_path / "run")


def test_options_that_a_model_cannot_serve_are_usage_errors(root, tmp_path):
    with pytest.raises(UsageError, match="no fast version"):
        load_predictor(root / "run", fast=True)
    with pytest.raises(UsageError, match="nothing was chosen"):
        load_predictor(root / "run", postprocess="chosen")
    with pytest.raises(UsageError, match="no device 'gpux'"):
        load_predictor(root / "run", device="gpux")
    with pytest.raises(UsageError, match="window"):
        load_predictor(root / "run", window=(8, 8))
    with pytest.raises(UsageError, match="window"):
        load_predictor(root / "run", window=(7, 8, 8))
    with pytest.raises(UsageError, match="one set of parameters"):
        load_predictor(root / "model.medjax", checkpoint="best")
    with pytest.raises((UsageError, TrainError)):
        load_predictor(root / "run", checkpoint="99")
    assert load_predictor(root / "run", window=(16, 8, 8)).model.window == (16, 8, 8)
    make_run(tmp_path / "fine" / "run", infer={"fast": "../coarse"})
    make_run(tmp_path / "fine" / "coarse", spacing_mm=(3.0, 3.0, 3.0))
    assert load_predictor(tmp_path / "fine" / "run", fast=True).model.plan.spacing_of("Organs") == (
        3.0,
        3.0,
        3.0,
    )
    (tmp_path / "rules.json").write_text('{"largest": ["organ"]}')
    assert load_predictor(
        root / "run", postprocess=str(tmp_path / "rules.json")
    ).postprocess.largest == ("organ",)
    assert ORGANS.classes == ("organ", "tumour")
