"""Exported functions are verified in a process of their own: damaged code ends there, and here
comes a sentence.
"""

import hashlib
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from medjax.errors import ModelError
from medjax.runs.exchange.export import export
from medjax.runs.trained import load_predictor
from medjax.weights.formats import archive, stablehlo, verification
from medjax.weights.formats.verification import Verifier
from tests.support.run import make_run
from tests.weights.test_archive import rewritten

CALL = {"window": [8, 8, 8], "channels": 1, "classes": 2, "batch": "any"}
INPUT = stablehlo.FIXED[0]


@pytest.fixture(scope="module")
def function(tmp_path_factory):
    """A function archive."""
    root = tmp_path_factory.mktemp("function")
    make_run(root / "run")
    export(root / "run", root / "f.medjax", "function", platforms=("cpu",))
    return root / "f.medjax"


@pytest.fixture(scope="module")
def verifier():
    """One process for the tests of this file."""
    with Verifier() as one:
        yield one


def changed(function, **changes):
    found = archive.read(function)
    return {
        **{
            name: found.manifest["function"][name]
            for name in ("window", "channels", "classes", "batch", "reads")
        },
        **changes,
    }


def test_flipped_bytes_never_reach_this_process(function, verifier):
    """Bytes all over the function; whatever their meaning is now, it is accepted or refused with
    the file.
    """
    found, refusals, rng = archive.read(function), [], np.random.default_rng(5)
    for place in rng.integers(0, len(found.payload), 24):
        payload = bytearray(found.payload)
        payload[place] ^= 1 << int(rng.integers(8))
        try:
            verifier.verify(bytes(payload), changed(function), "f.medjax")
        except ModelError as error:
            refusals.append(str(error))
    assert len(refusals) >= 5 and all(
        r.startswith("f.medjax: model archive refused: no function that can be used")
        for r in refusals
    )


def test_a_process_that_dies_or_hangs_is_a_refusal_and_replaced_by_the_next(function, monkeypatch):
    payload = archive.read(function).payload

    def instead(code):
        return lambda self_or_path: verification.subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=verification.subprocess.PIPE,
            stdout=verification.subprocess.PIPE,
        )

    dies = (
        f"import os, sys; sys.stdin.buffer.readline(); os.kill(os.getpid(), {int(signal.SIGSEGV)})"
    )
    with Verifier() as one:
        for code, message in (
            (dies, "ended with signal 11"),
            ("import sys; sys.exit(7)", "exit code 7"),
            ("print('x')", "exit code 0"),
        ):
            monkeypatch.setattr(Verifier, "_started", staticmethod(instead(code)))
            with pytest.raises(ModelError, match=rf"f\.medjax: .*{message}"):
                one.verify(payload, {"a": code}, "f.medjax")
            assert one.process is None
    monkeypatch.setattr(Verifier, "_started", staticmethod(instead("import time; time.sleep(60)")))
    with Verifier(patience=0.5) as one:
        begin = time.monotonic()
        with pytest.raises(ModelError, match=r"could not be verified within 0\.5 s"):
            one.verify(payload, {"a": 1}, "f.medjax")
        assert time.monotonic() - begin < 20 and one.process is None


def test_the_process_runs_this_medjax(function, monkeypatch):
    seen = {}

    def started(command, **how):
        seen.update(how["env"])
        raise OSError("not started")

    monkeypatch.setattr(verification.subprocess, "Popen", started)
    with pytest.raises(ModelError, match="no process to verify it in"), Verifier() as one:
        one.verify(archive.read(function).payload, {"other": 1}, "f.medjax")
    first = Path(seen["PYTHONPATH"].split(os.pathsep)[0])
    assert first / "medjax" / "weights" == Path(stablehlo.__file__).resolve().parents[1]


def test_what_was_accepted_is_not_asked_again(function):
    found = archive.read(function)
    with Verifier() as one:
        one.verify(found.payload, changed(function), "f.medjax")
        assert one.process is not None
    with Verifier() as other:
        other.verify(found.payload, changed(function), "f.medjax")
        assert other.process is None
    assert (
        hashlib.sha256(found.payload).hexdigest(),
        verification.json.dumps(changed(function), sort_keys=True),
    ) in verification._ACCEPTED


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": [4, 4, 4]}, "other shapes"),
        ({"classes": 3}, "other shapes"),
        ({"channels": 2}, "other shapes"),
        ({"batch": "any"}, "other shapes"),
        ({"window": [8, 8]}, "other shapes"),
        ({"reads": stablehlo.FIXED[:2]}, "other shapes"),
        ({"reads": [*stablehlo.FIXED, INPUT | {"name": "task"}]}, "other shapes"),
    ],
)
def test_other_shapes_than_declared_are_refused(function, verifier, changes, message):
    with pytest.raises(ModelError, match=message):
        verifier.verify(archive.read(function).payload, changed(function, **changes), "f.medjax")


@pytest.mark.parametrize(
    "said",
    [
        None,
        [],
        {},
        {"window": "8"},
        {"window": [8, 8, 8], "channels": 1.5, "classes": 2, "batch": "any"},
        {"window": [8, 8, 1 << 40], "channels": 1, "classes": 2, "batch": "any"},
        {"window": [8, 8, 8], "channels": 1, "classes": 2, "batch": 7},
        {**CALL, "reads": {}},
        {**CALL, "reads": [{"name": "corpus"}]},
        {**CALL, "reads": [INPUT, INPUT]},
        {**CALL, "reads": [INPUT | {"name": "../x"}]},
        {**CALL, "reads": [INPUT | {"shape": [1 << 40]}]},
        {**CALL, "reads": [INPUT | {"dtype": "object"}]},
        {**CALL, "reads": [INPUT | {"moves": "away"}]},
        {**CALL, "reads": [INPUT | {"block": [2, 2, 2]}]},
    ],
)
def test_a_manifest_that_does_not_describe_the_call_is_refused(function, tmp_path, said):
    with archive.zipfile.ZipFile(function) as old:
        manifest = archive.json.loads(old.read("manifest.json"))
    target = rewritten(
        function,
        tmp_path / "m.medjax",
        {"manifest.json": archive.json.dumps(manifest | {"function": said}).encode()},
    )
    with pytest.raises(ModelError, match=r"m\.medjax: model archive refused"):
        load_predictor(target)


def test_a_function_that_cannot_run_here_is_a_sentence(function, tmp_path):
    """Exported for another platform; and called with other shapes than it was verified for."""
    import jax
    import jax.numpy as jnp

    export(function.parent / "run", tmp_path / "gpu.medjax", "function", platforms=("cuda",))
    with pytest.raises(
        ModelError, match=r"gpu\.medjax: .*exported for other platforms; found cuda; expected cpu"
    ):
        load_predictor(tmp_path / "gpu.medjax")
    apply, window = stablehlo.function(archive.read(function))
    context = {
        "corpus": jnp.zeros(1, jnp.int32),
        "modality": jnp.zeros(1, jnp.int32),
        "spacing_mm": jnp.ones((1, 3)),
    }
    with pytest.raises(ModelError, match=r"f\.medjax: .*cannot run here"):
        jax.jit(lambda image: apply({}, image, context)["logits"])(jnp.zeros((1, *window, 3)))


def test_the_process_imports_nothing_from_where_it_is_started(function, tmp_path, monkeypatch):
    """A `jax.py` beside the user's scans is not this program's jax."""
    (tmp_path / "jax.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verification, "_ACCEPTED", set())
    with Verifier() as one:
        one.verify(archive.read(function).payload, changed(function), "f.medjax")
    assert os.getcwd() == str(tmp_path)
