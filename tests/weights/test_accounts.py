"""Reading weight files safely, and accounting for every tensor on both sides."""

import os
import pickle
import zipfile

import jax
import numpy as np
import pytest

from medjax.errors import ModelError
from medjax.weights import accounts
from medjax.weights.accounts import Row
from medjax.weights.formats import torch_file


class _Call:
    """Something a pickle would run."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def _archive(path, value):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(value, 2))
    return path


@pytest.mark.parametrize(
    "call", [_Call(os.system, "touch ran"), _Call(eval, "1"), _Call(getattr, "a", "upper")]
)
def test_a_file_that_wants_to_run_something_is_refused_before_it_does(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"no weights need.*(system|eval|getattr)"):
        accounts.read(_archive(tmp_path / "bad.pth", {"state_dict": call}))
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(call))
    with pytest.raises(ModelError, match="no weights need"):
        torch_file.read_plain(tmp_path / "bad.pkl")
    assert not (tmp_path / "ran").exists()


def test_damaged_and_missing_files_are_named(tmp_path):
    (tmp_path / "cut.pth").write_bytes(b"\x80\x02}q\x00(X\x05")
    with pytest.raises(ModelError, match=r"cut\.pth"):
        accounts.read(tmp_path / "cut.pth")
    with pytest.raises(ModelError, match="no such weight file"):
        accounts.read(tmp_path / "none.pth")
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as archive:
        archive.writestr("a.txt", "")
    with pytest.raises(ModelError, match=r"without PyTorch's data\.pkl"):
        accounts.read(tmp_path / "other.pth")


def test_plain_pickles_of_numbers_are_read(tmp_path):
    value = {
        "spacing": np.array([1.5, 1.0, 1.0]),
        "mean": np.float64(3.25),
        "stages": {0: {"patch": [1, 2]}},
    }
    (tmp_path / "plans.pkl").write_bytes(pickle.dumps(value))
    found = torch_file.read_plain(tmp_path / "plans.pkl")
    np.testing.assert_array_equal(found["spacing"], value["spacing"])
    assert found["mean"] == 3.25 and found["stages"] == value["stages"]


def test_npz_and_safetensors(tmp_path):
    weights = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}
    np.savez(tmp_path / "w.npz", **weights)
    np.testing.assert_array_equal(
        accounts.tensors_of(accounts.read(tmp_path / "w.npz"))["a"], weights["a"]
    )
    pytest.importorskip("safetensors")
    from safetensors.numpy import save_file

    save_file(weights, tmp_path / "w.safetensors")
    np.testing.assert_array_equal(accounts.read(tmp_path / "w.safetensors")["a"], weights["a"])


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [True, False])
def test_pytorchs_files_are_read_without_pytorch(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    base = torch.arange(24, dtype=torch.float32)
    state = {
        "module.a": base.reshape(2, 3, 4).permute(2, 0, 1),
        "module.b": base[5:7],
        "module.h": torch.ones(3, dtype=torch.bfloat16) * 1.5,
        "module.n": torch.tensor(7),
        "module.p": torch.nn.Parameter(torch.zeros(2, 0)),
    }
    whole = {
        "state_dict": state,
        "epoch": 3,
        "best": np.float64(0.5),
        "plot": [np.float32(1.0)],
        "opt": {"device": torch.device("cpu")},
    }
    torch.save(whole, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    found = accounts.read(tmp_path / "w.pth")
    assert found["epoch"] == 3 and found["best"] == 0.5 and found["plot"] == [1.0]
    tensors = accounts.tensors_of(found)
    assert sorted(tensors) == ["a", "b", "h", "n", "p"]  # data-parallel prefix gone
    for name, value in tensors.items():
        np.testing.assert_array_equal(value, state[f"module.{name}"].detach().float().numpy())
    assert tensors["a"].shape == (4, 2, 3)


TARGET = {
    "conv": {"kernel": jax.ShapeDtypeStruct((3, 1, 2, 5, 4), np.float32)},
    "head": {"bias": jax.ShapeDtypeStruct((4,), np.float32)},
}
TABLE = (Row(r"c(\d)\.weight", "conv/kernel", "conv"), Row(r"out\.bias", "head/bias"))


def test_layouts_are_pytorchs():
    w = np.random.default_rng(0).normal(size=(4, 5, 3, 1, 2))
    np.testing.assert_array_equal(accounts.LAYOUTS["conv"](w)[2, 0, 1], w[:, :, 2, 0, 1].T)
    np.testing.assert_array_equal(accounts.LAYOUTS["up"](w)[2, 0, 1], w[:, :, 2, 0, 1])
    np.testing.assert_array_equal(accounts.LAYOUTS["point"](w[:, :, :1, :, :1]), w[:, :, 0, 0, 0].T)
    assert accounts.LAYOUTS["split"](np.ones((6, 2, 3))).shape == (6, 6) and accounts.LAYOUTS[
        "joined"
    ](np.ones((2, 3, 6))).shape == (6, 6)


def test_every_tensor_is_accounted_for():
    weights = {
        "c1.weight": np.ones((4, 5, 3, 1, 2)),
        "out.bias": np.arange(4.0),
        "buffer": np.zeros(1),
    }
    tree, account = accounts.convert(weights, TABLE, TARGET, ignored=[(r"buffer", "made again")])
    assert (
        tree["conv"]["kernel"].shape == (3, 1, 2, 5, 4) and tree["head"]["bias"].dtype == np.float32
    )
    assert account.matched == {"c1.weight": "conv/kernel", "out.bias": "head/bias"}
    assert account.ignored == {"made again": ("buffer",)} and account.absent == {}
    assert "ignored 1 (buffer): made again" in account.text()
    del weights["out.bias"]
    tree, account = accounts.convert(
        weights,
        TABLE,
        TARGET,
        ignored=[(r"buffer", "made again")],
        absent=[(r"head/.*", "starts fresh")],
    )
    assert "head" not in tree and account.absent == {"starts fresh": ("head/bias",)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.ones(2)}, r"x \(2,\) is not known to the family"),
        ({"out.bias": np.ones(5)}, r"head/bias: \(5,\) in the file, \(4,\) in the network"),
        ({"c2.weight": np.ones((4, 5, 3, 1, 2))}, "both belong to conv/kernel"),
        ({"out.bias": None}, "head/bias .* has no tensor"),
    ],
)
def test_whatever_is_left_over_is_an_error(change, message):
    weights = {"c1.weight": np.ones((4, 5, 3, 1, 2)), "out.bias": np.arange(4.0)} | change
    with pytest.raises(ModelError, match=message):
        accounts.convert({k: v for k, v in weights.items() if v is not None}, TABLE, TARGET)


def test_softmax_heads_relative_to_the_background_give_the_same_probabilities():
    rng = np.random.default_rng(0)
    x, tree = (
        rng.normal(size=(7, 6)),
        {
            "head_0": {"kernel": rng.normal(size=(6, 4)), "bias": rng.normal(size=4)},
            "other": {"bias": np.ones(4)},
        },
    )
    new = accounts.relative_to_background(tree, r"head_\d+/(kernel|bias)")
    assert new["head_0"]["kernel"].shape == (6, 3) and new["other"]["bias"].shape == (4,)
    old = np.exp(x @ tree["head_0"]["kernel"] + tree["head_0"]["bias"])
    relative = np.exp(x @ new["head_0"]["kernel"] + new["head_0"]["bias"])
    np.testing.assert_allclose(
        (old / old.sum(-1, keepdims=True))[:, 1:],
        relative / (1 + relative.sum(-1, keepdims=True)),
        atol=1e-12,
    )
