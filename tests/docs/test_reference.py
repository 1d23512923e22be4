"""The reference pages that are made from the code name everything, and are well-formed."""

import re

import pytest

import medjax
from docs import reference
from medjax.registry import known
from medjax.runs.settings import schema
from medjax.runs.settings.section import fields_of


def test_the_python_page_has_every_name_and_argument():
    text = reference.python()
    assert all(f"## medjax.{name}\n" in text for name in medjax.__all__)
    assert "medjax.train(config: Any, workdir: str | Path = ''" in text
    assert "- **workdir**: run folder; default runs/NAME." in text
    assert "**Raises:** `UsageError` for a file, a field" in text
    assert "### Predictor.predict" in text and "### Run.metrics" in text
    assert "### Predictor.open" in text and "session.click((20, -31, 80)" in text


def test_the_command_page_has_every_argument_of_every_verb():
    text = reference.command_line()
    for verb, (parser, summary) in reference.verbs().items():
        assert f"\n## medjax {verb}\n" in text and summary, verb
        for option in parser._option_string_actions:
            assert option in ("-h", "--help") or f"`{option}`" in text, (verb, option)
    assert "### medjax adapter merge" in text
    assert "--mode: <train|evaluate|crossval|dry>" in text


def test_the_settings_page_has_every_field():
    text = reference.settings()
    listed = set(re.findall(r"^\| `([\w.]+)` \|", text, re.M))
    for one in fields_of(schema.Config).values():
        if one.name in ("model", "losses", "augment", "task_options"):
            continue
        inner = [f"{one.name}.{f}" for f in fields_of(one.type)] if _section(one) else [one.name]
        missing = [n for n in inner if n not in listed and not any(m.startswith(n) for m in listed)]
        assert not missing
    assert all(f"\n### model: {name}\n" in text for name in known("models"))
    assert {"optim.lr", "model.remat", "losses.focal.gamma", "model.mlp.experts"} <= listed
    assert "| `optim.lr` | `0.01` | learning rate |" in text


def _section(one) -> bool:
    return hasattr(one.type, "to_json")


@pytest.mark.parametrize("page", sorted(reference.PAGES))
def test_rows_of_a_table_have_as_many_cells_as_its_heading(page):
    for block in re.findall(r"(?:^\|.*\n)+", reference.PAGES[page](), re.M):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block[:200]


def test_plain_text_is_escaped_but_for_code():
    assert reference.escaped("a *b* `c*` <d>") == r"a \*b\* `c*` \<d\>"
    assert reference.escaped("one ` tick") == r"one \` tick"
    assert reference.table(("a",), [("b|c",)]) == "| a |\n| --- |\n| b\\|c |"
