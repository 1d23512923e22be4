"""Shared fixtures: eight simulated CPU devices, parsed absl flags (grain workers need them), and
the real scans if there are any.
"""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The tests' time is compilation: without optimisation a quarter of it remains. (Without the fusion
# emitters it would be half of that again, but with jaxlib 0.10.2
# tests/augment/test_nnunet.py::test_order_of_the_steps then finds NaN.)
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault(
    "MEDJAX_HOME", tempfile.mkdtemp(prefix="medjax-home-")
)  # what commands remember stays out of the real home

import jax
import pytest
from absl import flags

jax.config.update("jax_num_cpu_devices", 8)
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()

ROOT = Path(__file__).resolve().parent.parent


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
