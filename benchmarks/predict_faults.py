"""The same twelve faults given to nnU-Net v2 and to medjax: what each did, and its exit code.
Prints a Markdown table.

    python -m benchmarks.predict_faults [--only medjax] > table.md

Models have random weights; scans are 40 x 36 x 24 voxels. Where a fault concerns a file, two sound
scans go along with the broken one. Needs the `parity` extra.
"""

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np

from benchmarks import harness
from benchmarks.peers import nnunet

LIMIT = 420  # seconds a command may take
AFFINE = np.diag([1.5, 1.5, 2.0, 1.0])


class Nnunet:
    """nnU-Net v2's command line."""

    name = "nnU-Net v2"

    def __init__(self, root: Path):
        self.model = nnunet.write_model(
            root / "nnunet",
            classes=2,
            patch=(16, 32, 32),
            spacing_mm=(2.0, 1.5, 1.5),
            features=(4, 8),
            strides=((1,) * 3, (2,) * 3),
            kernels=((3,) * 3,) * 2,
        )

    def file(self, case: str) -> str:
        return f"{case}_0000.nii.gz"

    def command(self, model: Path, source: Path, out: Path, continue_: bool = False) -> list[str]:
        return nnunet.command(model, source, out, *(["--continue_prediction"] if continue_ else []))

    def poison(self, folder: Path, proof: Path) -> Path:
        """A model whose checkpoint creates `proof` when it is loaded."""
        import torch

        shutil.copytree(self.model, folder)
        path = folder / "fold_0" / "checkpoint_final.pth"
        checkpoint = torch.load(path, weights_only=False)
        torch.save(checkpoint | {"payload": Payload(str(proof))}, path)
        return folder


class Payload:
    """Unpickled, it creates a file."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


class Medjax:
    """medjax' command line."""

    name = "medjax"

    def __init__(self, root: Path):
        from medjax.labels import Corpus
        from tests.support.run import make_run

        corpus = Corpus("Random", ((1, ("class001",)), (2, ("class002",))), channels=("CT",))
        self.model = make_run(
            root / "run", (corpus,), patch=(16, 32, 32), spacing_mm=(2.0, 1.5, 1.5)
        )

    def file(self, case: str) -> str:
        return f"{case}_0000.nii.gz"

    def command(self, model: Path, source: Path, out: Path, continue_: bool = False) -> list[str]:
        more = ["--continue"] if continue_ else []
        return harness.script("medjax.cli", "predict", "-m", model, "-i", source, "-o", out, *more)

    def poison(self, folder: Path, proof: Path) -> Path:
        """An archive with a pickle in place of its weights, of the same name and with a matching
        digest.
        """
        import hashlib
        import pickle
        import zipfile

        from medjax.runs.exchange.export import export

        folder.mkdir()
        export(self.model, folder / "model.medjax")
        content = pickle.dumps(Payload(str(proof)))
        with (
            zipfile.ZipFile(folder / "model.medjax") as old,
            zipfile.ZipFile(folder / "evil.medjax", "w") as new,
        ):
            for name in old.namelist():
                data = old.read(name)
                if name == "manifest.json":
                    manifest = json.loads(data)
                    manifest["members"]["weights.safetensors"] = {
                        "sha256": hashlib.sha256(content).hexdigest(),
                        "bytes": len(content),
                    }
                    data = json.dumps(manifest).encode()
                new.writestr(name, content if name == "weights.safetensors" else data)
        return folder / "evil.medjax"


def scan(
    path: Path, seed: int = 0, shape=(24, 36, 40), affine=AFFINE, codes=(1, 1), dtype=np.int16
) -> Path:
    """A (z, y, x) noise scan in HU."""
    array = np.random.default_rng(seed).normal(50, 100, shape).astype(dtype)
    image = nib.Nifti1Image(array.T, affine)
    image.set_qform(affine, codes[0])
    image.set_sform(affine, codes[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def halved(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def wrong_crc(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-8] ^= 0xFF
    path.write_bytes(content)


def short(path: Path) -> None:
    raw = gzip.decompress(path.read_bytes())
    path.write_bytes(raw[: len(raw) * 2 // 3])  # not compressed, and shorter than its header says


def not_finite(path: Path) -> None:
    array = np.random.default_rng(1).normal(50, 100, (24, 36, 40)).astype(np.float32)
    array[3:6, 4, 5] = np.nan
    nib.save(nib.Nifti1Image(array.T, AFFINE), path)


def sheared(path: Path) -> None:
    affine = AFFINE.copy()
    affine[0, 1] = 0.05 * 1.5
    scan(path, affine=affine, codes=(0, 1))


FILE_FAULTS = {
    "gzip cut in half": halved,
    "wrong gzip CRC": wrong_crc,
    "HTML named .nii.gz": lambda path: path.write_bytes(b"<html>404 not found</html>"),
    "shorter than its header says": short,
    "NaN voxels": not_finite,
    "4D time series": lambda path: scan(path, shape=(3, 24, 36, 40)),
    "affine sheared by 0.05": sheared,
}


def run(tool, model: Path, source: Path, out: Path, continue_: bool = False) -> tuple[int, str]:
    """Exit code and everything it printed; -1 where it had to be stopped."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"} | harness.NNUNET
    command = tool.command(model, source, out, continue_)
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        text, _ = process.communicate(timeout=LIMIT)
        return process.returncode, text
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return -1, f"hung for {LIMIT} s"


def masks(out: Path) -> list[str]:
    return (
        sorted(p.name.removesuffix(".nii.gz") for p in out.glob("*.nii.gz")) if out.is_dir() else []
    )


def said(text: str) -> str:
    """The most informative line: the last one that looks like a reason."""
    lines = [re.sub(r"/\S*/", "", line.strip()) for line in text.splitlines() if line.strip()]
    reasons = [
        line
        for line in lines
        if re.search(r"error|failed|no scans|refused|warn|killed|sheared|missing", line, re.I)
    ]
    return ((reasons or lines or ["nothing"])[-1])[:150].replace("|", "/")


def faults(tool, root: Path):
    """Yields (fault, exit code, what happened)."""
    for name, spoil in FILE_FAULTS.items():
        source, out = root / "in" / name.replace(" ", "_"), root / "out" / name.replace(" ", "_")
        for i, case in enumerate(("a", "b", "c")):
            scan(source / tool.file(case), seed=i)
        spoil(source / tool.file("b"))
        code, text = run(tool, tool.model, source, out)
        found = masks(out)
        yield (
            name,
            code,
            f"{len(found)} masks"
            + (", one of the broken scan" if "b" in found else "")
            + f"; says: {said(text)}",
        )
    (root / "in" / "empty").mkdir(parents=True)
    code, text = run(tool, tool.model, root / "in" / "empty", root / "out" / "empty")
    yield "empty input folder", code, f"says: {said(text)}"
    scan(root / "in" / "plain" / "patient.nii.gz")
    code, text = run(tool, tool.model, root / "in" / "plain", root / "out" / "plain")
    yield (
        "one scan without _0000 in its name",
        code,
        f"{len(masks(root / 'out' / 'plain'))} masks; says: {said(text)}",
    )
    scan(root / "in" / "codes" / tool.file("a"), codes=(0, 2))
    code, text = run(tool, tool.model, root / "in" / "codes", root / "out" / "codes")
    written = root / "out" / "codes" / "a.nii.gz"
    header = nib.load(written).header if written.is_file() else None
    codes = "none" if header is None else f"{int(header['qform_code'])}/{int(header['sform_code'])}"
    yield "input with qform/sform codes 0/2", code, f"mask has codes {codes}"
    proof = root / "executed"
    model = tool.poison(root / "poisoned", proof)
    code, text = run(tool, model, root / "in" / "codes", root / "out" / "poisoned")
    yield (
        "model file with a payload",
        code,
        f"payload {'EXECUTED' if proof.exists() else 'not executed'}; says: {said(text)}",
    )
    yield "half a mask from a killed call, then continue", *interrupted(tool, root)


def interrupted(tool, root: Path) -> tuple[int, str]:
    source, out = root / "in" / "killed", root / "out" / "killed"
    for i, case in enumerate(("a", "b", "c")):
        scan(source / tool.file(case), seed=i)
    run(tool, tool.model, source, out)
    whole = {name: (out / f"{name}.nii.gz").read_bytes() for name in masks(out)}
    (out / "b.nii.gz").write_bytes(
        whole["b"][: len(whole["b"]) // 2]
    )  # what a kill while writing leaves
    code, _ = run(tool, tool.model, source, out, continue_=True)
    repaired = (out / "b.nii.gz").read_bytes() == whole["b"]
    return code, "the half mask was " + ("written again" if repaired else "taken for finished")


def main() -> None:
    """Runs both tools and prints the table."""
    wanted = (
        harness.parser(__doc__, only=harness.flag("", choices=("medjax", "nnunet")))
        .parse_args()
        .only
    )
    rows: dict[str, dict[str, str]] = {}
    tools = [
        tool
        for tool in (Nnunet, Medjax)
        if wanted in ("", {Nnunet: "nnunet", Medjax: "medjax"}[tool])
    ]
    for kind in tools:
        with tempfile.TemporaryDirectory() as folder:
            tool = kind(Path(folder))
            for name, code, text in faults(tool, Path(folder)):
                rows.setdefault(name, {})[kind.name] = f"exit {code}: {text}"
                print(
                    f"{time.strftime('%H:%M:%S')} {kind.name}: {name}: exit {code}: {text}",
                    file=sys.stderr,
                    flush=True,
                )
    names = [kind.name for kind in tools]
    cells = [[name, *(found.get(n, "") for n in names)] for name, found in rows.items()]
    print(harness.table(["fault", *names], cells))


if __name__ == "__main__":
    main()
