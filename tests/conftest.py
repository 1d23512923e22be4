"""Shared fixtures: eight simulated CPU devices, parsed absl flags (grain workers need them), one
compilation cache for all processes, and the real scans if there are any.
"""

import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The tests' time is compilation: without optimisation a quarter of it remains. (Without the fusion
# emitters it would be half of that again, but with jaxlib 0.10.2
# tests/augment/test_nnunet.py::test_order_of_the_steps then finds NaN.)
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import pytest
from absl import flags

jax.config.update("jax_num_cpu_devices", 8)
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()

# One folder for what all processes of the tests share: the first one makes and removes it.
MADE = "MEDJAX_TEST_FOLDER" not in os.environ
if MADE:
    os.environ["MEDJAX_TEST_FOLDER"] = tempfile.mkdtemp(prefix="medjax-tests-")
SHARED = Path(os.environ["MEDJAX_TEST_FOLDER"])
# what commands remember stays out of the real home
os.environ.setdefault("MEDJAX_HOME", str(SHARED / "home"))
# many tests compile the same small programs, here and in processes of their own
for name, value in {
    "jax_compilation_cache_dir": str(SHARED / "programs"),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}.items():
    jax.config.update(name, value)
    os.environ.setdefault(name.upper(), str(value))

ROOT = Path(__file__).resolve().parent.parent
FIRST = (  # files that take longest: last, one of them would leave the other processes without work
    "test_main.py",
    "runs/test_signals.py",
    "train/test_loop.py",
    "runs/test_inputs.py",
    "weights/test_archive.py",
    "medjax_verbs/test_grow.py",
    "weights/test_adapters.py",
    "models/test_sockets.py",
    "runs/test_head_prior.py",
    "runs/exchange/test_adapters.py",
)


def pytest_collection_modifyitems(items: list) -> None:
    """The longest files first, each file in its own order."""
    order = {f"tests/{name}": k for k, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.nodeid.split("::")[0], len(order)))


def pytest_unconfigure() -> None:
    """Removes the shared folder."""
    if MADE:
        shutil.rmtree(SHARED, ignore_errors=True)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with the real scans (MSD layout); the test is skipped, with the reason, where there
    are none.
    """
    folder = Path(os.environ.get("MEDJAX_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "Task04_Hippocampus" / "dataset.json").is_file():
        pytest.skip(
            f"no real scans in {folder}; set MEDJAX_TEST_DATA to a folder with Task04_Hippocampus "
            "and Task02_Heart"
        )
    return folder
