"""A run of an earlier version, without hashes: raw data, run folder, store and predictions that
commit 337855a made.

unpack(tmp_path) -> folder with Task01_Blobs/, run/, store/, predictions/, and config.py, which
gives the config of that run.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
import json
from pathlib import Path
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(json.loads(Path(__file__).with_name("config.json").read_text()))
"""


def extract(folder: Path, *prefixes: str) -> None:
    """Files made by an earlier version, those whose names begin with one of `prefixes` or all."""
    with zipfile.ZipFile(ROOT / "tests" / "old" / "337855a.zip") as archive:
        archive.extractall(folder, [n for n in archive.namelist() if n.startswith(prefixes or "")])


def unpack(folder: Path) -> Path:
    """The content of the archive in `folder`, and the config of its run as a Python file."""
    extract(folder)
    shutil.copy(folder / "run" / "config.json", folder / "config.json")
    (folder / "config.py").write_text(CONFIG)
    return folder


def start(folder: Path, *flags: str, module: str = "medjax.main") -> subprocess.Popen:
    """A command in a process of its own, in `folder`; stderr goes to stdout."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "CI": "1",
        "PYTHONUNBUFFERED": "1",
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(
        [sys.executable, "-m", module, *flags], env=environment, cwd=folder, **pipes
    )
