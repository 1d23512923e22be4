"""Verifies an exported function in a separate process: damaged code can crash the compiler.

    python -P -m medjax.weights.formats.verification      requests on stdin, answers on stdout

A request is a line of JSON (the archive's declaration, size of the function) and the function's
bytes; an answer is one line of JSON: `{}`, or the reason of a refusal. The process reads the
function, compares its shapes with those declared, searches for calls out of it, compiles it for the
CPU as prediction does, and runs it once on zeros if the window is small. A process that ends by a
signal, with an error or by a timeout is a refusal as well. Accepted functions are remembered by the
SHA-256 of their bytes while the calling process runs.
"""

import contextlib
import hashlib
import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from medjax.errors import ModelError

PATIENCE = 900.0  # seconds for one function: large networks take minutes to compile on few cores
SMALL = 1 << 15  # voxels of a window that is tried on zeros
ANSWER = 1 << 16
HARMLESS = re.compile(
    r"(mhlo\..*|Sharding|SPMDFullToShardShape|SPMDShardToFullShape|shape_assertion|annotate_device_placement)"
)
_ACCEPTED: set[tuple[str, str]] = set()


class Verifier:
    """A process that verifies functions, one after the other; started on first use.

    Args:
      patience: timeout per function in seconds.
    """

    def __init__(self, patience: float = PATIENCE):
        self.patience, self.process = patience, None

    def __enter__(self) -> "Verifier":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def verify(self, payload: bytes, declared: Mapping[str, Any], path: object) -> None:
        """Returns if the function may be called here; else raises `ModelError` with the reason."""
        key = hashlib.sha256(payload).hexdigest(), json.dumps(declared, sort_keys=True)
        if key in _ACCEPTED:
            return
        answer = self._ask(payload, key[1], path)
        if reason := answer.get("refused"):
            raise refused(str(reason)[:300], path, answer.get("found"), answer.get("expected"))
        _ACCEPTED.add(key)

    def close(self) -> None:
        """Ends the process, if there is one."""
        if self.process is None:
            return
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        self.process.wait()
        self.process = None

    def _ask(self, payload: bytes, declared: str, path: object) -> dict:
        if self.process is None:
            self.process = self._started(path)
        line, until = b"", time.monotonic() + self.patience
        try:
            self.process.stdin.write(
                json.dumps({"declared": declared, "size": len(payload)}).encode() + b"\n"
            )
            self.process.stdin.write(payload)
            self.process.stdin.flush()
            while not line.endswith(b"\n") and len(line) < ANSWER:
                if not select.select(
                    [self.process.stdout], [], [], max(0.0, until - time.monotonic())
                )[0]:
                    self.close()
                    raise refused(f"it could not be verified within {self.patience:g} s", path)
                part = os.read(self.process.stdout.fileno(), ANSWER)
                if not part:
                    break
                line += part
        except BrokenPipeError:
            line = b""
        except BaseException:
            self.close()
            raise
        try:
            return dict(json.loads(line))
        except (ValueError, TypeError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
            code = self.process.poll()
            self.close()
            if code is None:
                raise refused("the process that verified it gave no answer", path) from None
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise refused(f"the process that verified it ended with {how}", path) from None

    @staticmethod
    def _started(path: object) -> subprocess.Popen:
        root = str(Path(__file__).resolve().parents[3])  # the folder that holds medjax
        before = os.environ.get("PYTHONPATH")
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": root + (os.pathsep + before if before else ""),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        try:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "medjax.weights.formats.verification"],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except (OSError, ValueError) as error:
            raise refused(f"no process to verify it in ({error})", path) from error


def refused(reason: str, path: object, found: object = None, expected: object = None) -> ModelError:
    """The error for a function that cannot be used."""
    return ModelError(
        f"model archive refused: no function that can be used: {reason}",
        path=path,
        found=found,
        expected=expected,
        fix="export it again",
    )


def check(payload: bytes, declared: Mapping[str, Any]) -> dict:
    """What is wrong with a function, as {"refused", "found", "expected"}; empty for a usable one.

    Compiles it for the CPU.
    """
    import jax
    import numpy as np
    from jax import export

    found = export.deserialize(bytearray(payload))
    shapes = [tuple(map(str, aval.shape)) for aval in (*found.in_avals, *found.out_avals)]
    kinds = [str(aval.dtype) for aval in (*found.in_avals, *found.out_avals)]
    window, batch = tuple(int(n) for n in declared["window"]), str(declared["batch"])
    if batch == "any" and shapes[0] and not shapes[0][0].isdigit():
        batch = shapes[0][0]
    entries = [_shape(entry, window) for entry in declared["reads"]]
    inside = [
        (*window, int(declared["channels"])),
        *entries,
        (*window, int(declared["classes"])),
    ]
    wanted = [(batch, *map(str, shape)) for shape in inside]
    types = ["float32", *(entry["dtype"] for entry in declared["reads"]), "float32"]
    if batch == "any" or shapes != wanted or kinds != types:
        return {
            "refused": "a function of other shapes",
            "found": f"{shapes} {kinds}"[:300],
            "expected": str(wanted)[:300],
        }
    if calls := foreign_calls(found):
        return {"refused": "a function that calls out", "found": ", ".join(sorted(calls))[:200]}
    if "cpu" not in found.platforms:
        return {}
    count = 1 if declared["batch"] == "any" else int(declared["batch"])
    sizes = [(count, *shape) for shape in inside[:-1]]
    specs = [jax.ShapeDtypeStruct(size, kind) for size, kind in zip(sizes, kinds, strict=False)]
    compiled = jax.jit(lambda *given: found.call(*given)).lower(*specs).compile()
    if np.prod(window) <= SMALL:
        np.asarray(compiled(*[np.zeros(s.shape, s.dtype) for s in specs]))
    return {}


def _shape(entry: Mapping[str, Any], window: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one sample of a declared input, for a window."""
    if entry["moves"] != "voxel":
        return tuple(entry["shape"])
    blocks = entry["block"] or [1] * len(window)
    return (*(n // b for n, b in zip(window, blocks, strict=True)), *entry["shape"])


def foreign_calls(exported: Any) -> set[str]:
    """Targets of custom calls other than arithmetic: the only way out of a StableHLO module."""
    if b"custom_call" not in exported.mlir_module_serialized:
        return set()
    targets = re.findall(
        r'custom_call\s*@"?([\w.$-]+)|call_target_name\s*=\s*"([^"]+)"', exported.mlir_module()
    )
    return {name for pair in targets for name in pair if name and not HARMLESS.fullmatch(name)}


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answers requests until there are none."""
    _bounded()
    while line := requests.readline(ANSWER):
        request = json.loads(line)
        payload = requests.read(request["size"])
        try:
            answer = check(payload, json.loads(request["declared"]))
        except Exception as error:  # deserialiser and compiler raise many types for unusable bytes
            answer = {
                "refused": f"{type(error).__name__}: "
                f"{str(error).splitlines()[0][:200] if str(error) else ''}"
            }
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _bounded() -> None:
    """Limits the address space to the machine's memory, and disables core files.

    A function that needs more memory then fails alone.
    """
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        for what, limit in ((resource.RLIMIT_AS, max(most, 1 << 35)), (resource.RLIMIT_CORE, 0)):
            _, hard = resource.getrlimit(what)
            resource.setrlimit(
                what, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard)
            )


def _main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output of libraries goes to stderr
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    _main()
