"""The descriptions of cards: their file, the word that chooses one, what is said without wheels."""

import importlib.metadata

import pytest

from medjax import main
from medjax.errors import UsageError
from medjax.runs.ahead import cards


def test_a_target_is_a_card_and_how_many():
    h200 = cards.known()["h200"]
    assert cards.parse("h200") == (h200, 1) and cards.parse("H200x8") == (h200, 8)
    for wrong in ("h300", "h200x0", "x8", "h200x", ""):
        with pytest.raises(UsageError, match="unknown --target"):
            cards.parse(wrong)
    with pytest.raises(UsageError, match="h200"):
        cards.parse("h20")


def test_a_description_is_the_text_of_the_compilers_message():
    lines = cards.known()["h200"].description().splitlines()
    assert lines[0] == "gpu_device_info {" and lines.count("}") == sum("{" in x for x in lines)
    assert {"core_count: 132", 'platform_name: "CUDA"', "ecc_enabled: true"} <= set(lines)
    assert "feature_extension: ACCELERATED_FEATURES" in lines
    assert lines.count("rate_infos {") == 12
    for card in cards.known().values():
        assert card.memory_bytes > 2**36 and card.flops_per_s > 1e14 and card.bytes_per_s > 1e12


def test_absent_or_other_wheels_are_one_sentence_with_the_fix(monkeypatch):
    card = cards.known()["h200"]
    monkeypatch.setattr(cards, "PLUGINS", {"cuda": ("jax_plugins.nothing", "jax-nothing")})
    with pytest.raises(UsageError, match="not installed") as caught:
        cards.check(card)
    assert 'pip install "medjax[aot]"' in str(caught.value)
    monkeypatch.setattr(cards, "PLUGINS", {"cuda": ("jax", "jax-cuda13-plugin")})
    versions = {"jax-cuda13-plugin": "0.9.0", "jaxlib": "0.10.2"}
    monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
    with pytest.raises(UsageError, match="different versions") as caught:
        cards.check(card)
    assert "jax-cuda13-plugin==0.10.2" in str(caught.value)
    versions["jax-cuda13-plugin"] = "0.10.2"
    cards.check(card)


def test_the_flag_is_for_a_rehearsal():
    recipe = "--config=configs/multitalent.py:demo"
    assert main.parse(["main", recipe, "--mode=dry", "--target=h200x8"]).target == "h200x8"
    with pytest.raises(UsageError, match="rehearsal"):
        main.parse(["main", recipe, "--target=h200"])
    with pytest.raises(UsageError, match="unknown --target"):
        main.parse(["main", recipe, "--mode=dry", "--target=h2000"])
