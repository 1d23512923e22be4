"""Adapter files: contents, binding to a base, stacking, refusals."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import traverse_util

from medjax.errors import ModelError, UsageError
from medjax.weights import adapters
from medjax.weights.adapters import Adapters
from medjax.weights.formats import adapter as form

RULES = ((r"^head/", "whole"), (r"kernel$", 2), (".*", 0))
LABELS = {"classes": ["liver"], "corpora": []}
DOCUMENTS = {"config": {"name": "toy"}, "labels": LABELS, "plan": {"spacing_mm": {}}}


def _base(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return {
        "conv": {"kernel": draw(3, 3, 2, 4), "bias": draw(4)},
        "dense": {"kernel": draw(4, 5)},
        "head": {"kernel": draw(5, 1)},
    }


def _adapter(name="MR", rank=2, base=None, whole=True, rules=None, seed=1, **more):
    base = base or _base()
    rules = rules or tuple((p, rank if v == 2 else v) for p, v in RULES[0 if whole else 1 :])
    settings = Adapters(rules, **more)
    tree = adapters.graft(base, settings, jax.random.key(seed))
    rng = np.random.default_rng(seed)
    arrays = {
        k: rng.normal(size=v.shape).astype(np.float32) if k.endswith("lora_b") else np.asarray(v)
        for k, v in traverse_util.flatten_dict(tree, sep="/").items()
        if "lora" in k or (whole and k.startswith("head/"))
    }
    if whole:
        arrays["head/kernel"] = arrays["head/kernel"] + 1
    kept = {k: v for k, v in traverse_util.flatten_dict(base, sep="/").items() if k not in arrays}
    facts = {"sha256": adapters.digest(kept), "leaves": len(kept), "name": "base"}
    experts = tuple(
        {"name": name + str(k or ""), "modality": [name], "corpus": [], "task": []}
        for k in range(settings.stored)
    )
    return form.Adapter(arrays, settings, facts, experts, DOCUMENTS, {"licences": {"A": "CC0"}})


def test_what_is_written_is_read_and_the_file_is_small(tmp_path):
    one = _adapter()
    path = tmp_path / f"mr{form.SUFFIX}"
    size = form.write(path, one)
    assert size == path.stat().st_size
    assert 4 * one.numbers < size < 4 * one.numbers + (1 << 15)
    again = form.read(path)
    assert form.is_adapter(path)
    assert (again.settings, again.experts, again.base) == (one.settings, one.experts, one.base)
    assert again.documents == DOCUMENTS and again.facts == one.facts
    assert again.arrays.keys() == one.arrays.keys()
    for name, array in one.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)
    assert again.expert("MR") == 0
    with pytest.raises(UsageError, match="no expert 'CT'"):
        again.expert("CT")


def test_it_joins_the_base_that_it_was_trained_on_and_no_other():
    one, base = _adapter(), _base()
    tree = form.join(base, one)
    np.testing.assert_array_equal(tree["head"]["kernel"], one.arrays["head/kernel"])
    np.testing.assert_array_equal(tree["conv"]["kernel"], base["conv"]["kernel"])
    assert tree["conv"]["lora_a"].shape == (1, 3, 3, 2, 2)
    # a whole leaf is not part of the base that counts: another head is the same base
    form.join(base | {"head": {"kernel": np.zeros((5, 7), np.float32)}}, one)
    with pytest.raises(ModelError, match="another base"):
        form.join(_base(1), one)
    assert form.join(_base(1), one, force=True)["dense"].keys() == {"kernel", "lora_a", "lora_b"}
    with pytest.raises(ModelError, match="has an adapter already"):
        form.join(tree, one)


def test_stacking_changes_no_number_and_keeps_every_scale():
    first = _adapter("CT", rank=2, whole=False)
    second = _adapter("MR", rank=3, whole=False, seed=5, alpha=7.0)
    both = form.stack([first, second], "modality")
    assert both.settings.experts == 3 and both.settings.stored == 2
    assert both.arrays["conv/lora_a"].shape == (2, 3, 3, 2, 3)
    for k, one in enumerate((first, second)):
        rank = one.arrays["conv/lora_a"].shape[-1]
        np.testing.assert_array_equal(
            both.arrays["conv/lora_a"][k, ..., :rank], one.arrays["conv/lora_a"][0]
        )
        np.testing.assert_array_equal(
            both.arrays["conv/lora_b"][k, :rank], one.arrays["conv/lora_b"][0]
        )
        assert both.arrays["conv/lora_scale"][k] == np.float32(one.settings.scale(rank))
    assert form.expert_of(both, ("MR", "PET", "CT")) == (2, 0, 1)
    base = _base()
    tree = form.join(base, both)
    for share, one in (([1, 0], first), ([0, 1], second)):
        mine = adapters.merge(tree, both.settings, share)
        theirs = adapters.merge(form.join(base, one), one.settings)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), mine, theirs)
    # a stack grows by one more, and the numbers of the first two stay
    third = form.stack([both, _adapter("PET", whole=False, seed=9)], "modality")
    np.testing.assert_array_equal(third.arrays["dense/lora_a"][:2], both.arrays["dense/lora_a"])
    assert third.settings.experts == 4
    np.testing.assert_array_equal(
        third.arrays["conv/lora_scale"][:2], both.arrays["conv/lora_scale"]
    )


def test_a_kernel_that_only_one_adapter_has_is_zero_in_the_other():
    first = _adapter("CT", whole=False)
    rules = ((r"^dense/kernel$", 4), (".*", 0))
    second = _adapter("MR", whole=False, rules=rules)
    both = form.stack([first, second], "corpus")
    assert not np.any(both.arrays["conv/lora_a"][1]) and not np.any(both.arrays["conv/lora_b"][1])
    assert both.arrays["conv/lora_scale"][1] == 0


def test_what_cannot_be_stacked(tmp_path):
    one, other = _adapter("CT"), _adapter("MR", seed=2)
    with pytest.raises(UsageError, match="same name"):
        form.stack([one, one], "modality")
    changed = dict(other.arrays)
    changed["head/kernel"] = changed["head/kernel"] + 1
    with pytest.raises(UsageError, match="head/kernel itself"):
        form.stack([one, dataclasses.replace(other, arrays=changed)], "modality")
    with pytest.raises(UsageError, match="another base"):
        form.stack([one, _adapter("MR", base=_base(3))], "modality")
    with pytest.raises(UsageError, match="another labels"):
        documents = DOCUMENTS | {"labels": {"classes": []}}
        form.stack([one, dataclasses.replace(other, documents=documents)], "modality")
    with pytest.raises(UsageError, match="cannot be stacked"):
        form.stack([one], "modality")
    with pytest.raises(UsageError, match="cannot be stacked"):
        form.stack([one, other], "image")
    clash = dataclasses.replace(form.stack([one, _adapter("MR")], "modality"))
    doubled = tuple({**expert, "modality": ["MR"]} for expert in clash.experts)
    with pytest.raises(ModelError, match="two experts"):
        form.expert_of(dataclasses.replace(clash, experts=doubled), ("MR",))


def test_names_and_existing_files(tmp_path):
    one = _adapter()
    with pytest.raises(UsageError, match="unusable name"):
        form.write(tmp_path / "mr.safetensors", one)
    path = tmp_path / f"mr{form.SUFFIX}"
    form.write(path, one)
    with pytest.raises(UsageError, match="exists already"):
        form.write(path, one)
    form.write(path, _adapter(seed=4), overwrite=True)
    path.write_bytes(b"notes of somebody")
    with pytest.raises(UsageError, match="is no adapter"):
        form.write(path, one, overwrite=True)
    assert path.read_bytes() == b"notes of somebody"


def _file(tmp_path, change):
    """An adapter file whose metadata `change` has edited."""
    from safetensors.numpy import load, save

    path = tmp_path / f"x{form.SUFFIX}"
    path.unlink(missing_ok=True)
    form.write(path, _adapter())
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    said = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][form.FORMAT])
    arrays = load(content)
    change(said, arrays)
    text = json.dumps(said)
    path.write_bytes(save(arrays, {form.FORMAT: text, "sha256": form._seal(text, arrays)}))
    return path


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda said, arrays: said.update(version=2), "another format or version"),
        (lambda said, arrays: said.pop("base"), "lacks base"),
        (lambda said, arrays: said["documents"].pop("plan"), "lacks documents/plan"),
        (lambda said, arrays: said["settings"].update(scaling="none"), "unusable settings"),
        (lambda said, arrays: said["settings"].update(more=1), "unusable settings"),
        (lambda said, arrays: said["experts"].append({"name": "b"}), "2 experts are named"),
        (lambda said, arrays: arrays["head/kernel"].fill(np.nan), "head/kernel holds no finite"),
        (
            lambda said, arrays: arrays.update({"head/kernel": np.zeros(3, np.int64)}),
            "head/kernel holds no finite float32",
        ),
    ],
)
def test_edited_files_are_refused(tmp_path, change, message):
    with pytest.raises(ModelError, match=message):
        form.read(_file(tmp_path, change))


@pytest.mark.parametrize("seed", range(40))
def test_damaged_bytes_are_refused(tmp_path, seed):
    path = tmp_path / f"x{form.SUFFIX}"
    form.write(path, _adapter())
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(seed)
    if seed % 3:
        for place in rng.integers(0, len(content), 1 + seed % 5):
            content[place] ^= 1 << int(rng.integers(8))
    else:
        content = content[: int(rng.integers(len(content)))]
    path.write_bytes(content)
    with pytest.raises(ModelError, match=path.name):
        form.read(path)


def test_other_files_are_no_adapters(tmp_path):
    from safetensors.numpy import save

    (tmp_path / "folder").mkdir()
    for name, content in (("a", b""), ("b", b"x" * 100), ("c", save({"x": np.zeros(3)}))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match="no adapter file"):
            form.read(tmp_path / name)
    assert not any(form.is_adapter(tmp_path / n) for n in ("missing", "folder", "a", "b", "c"))
