"""The same numbers as nnU-Net v2's own functions: window positions, importance, mirrored
sliding-window logits.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.infer import windows
from medjax.infer.device import tta

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def nnunet():
    pytest.importorskip("nnunetv2")
    from nnunetv2.inference import sliding_window_prediction

    return sliding_window_prediction


def test_positions(nnunet):
    rng = np.random.default_rng(0)
    for _ in range(200):
        window = tuple(int(n) for n in rng.integers(8, 200, 3))
        shape = tuple(int(w + m) for w, m in zip(window, rng.integers(0, 400, 3), strict=True))
        expected = nnunet.compute_steps_for_sliding_window(shape, window, 0.5)
        assert [list(windows.starts(n, w)) for n, w in zip(shape, window, strict=True)] == expected


def test_importance(nnunet):
    torch = pytest.importorskip("torch")
    for window in ((40, 56, 40), (16, 17, 33)):
        expected = nnunet.compute_gaussian(
            window, 1 / 8, 1, torch.float32, torch.device("cpu")
        ).numpy()
        assert np.allclose(windows.gaussian(window), expected, rtol=1e-5)


def test_sliding_window_with_mirroring(nnunet):
    """A torch convolution under nnU-Net's scheme (positions, weights, flips of logits) and the same
    function under ours.
    """
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    convolution = torch.nn.Conv3d(1, 3, 3, padding=1)
    image = np.random.default_rng(1).normal(size=(11, 21, 15, 1)).astype(np.float32)
    window = (8, 12, 10)

    def flips(x):
        axes = [c for n in range(4) for c in itertools.combinations((2, 3, 4), n)]
        return sum(torch.flip(convolution(torch.flip(x, a)), a) for a in axes) / 8

    weight = nnunet.compute_gaussian(window, 1 / 8, 10, torch.float32, torch.device("cpu"))
    total, count = torch.zeros(3, *image.shape[:3]), torch.zeros(image.shape[:3])
    with torch.no_grad():
        for z, y, x in itertools.product(
            *nnunet.compute_steps_for_sliding_window(image.shape[:3], window, 0.5)
        ):
            region = slice(z, z + 8), slice(y, y + 12), slice(x, x + 10)
            total[:, *region] += flips(torch.tensor(image[region][None, None, ..., 0]))[0] * weight
            count[region] += weight
    kernel = jnp.asarray(convolution.weight.detach().numpy().transpose(2, 3, 4, 1, 0))
    bias = jnp.asarray(convolution.bias.detach().numpy())

    def network(batch):
        return (
            jax.lax.conv_general_dilated(
                batch, kernel, (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
            )
            + bias
        )

    found = windows.sliding_window(
        jax.jit(tta.mirrored(network, (0, 1, 2))), image, window, 3, batch_windows=4
    )
    assert np.allclose(found, (total / count).numpy().transpose(1, 2, 3, 0), atol=2e-6)
