"""The arguments of `medjax adapter`, and what they become."""

import pytest

from medjax import cli
from medjax.commands import adapter
from medjax.runs.exchange import adapters


@pytest.mark.parametrize(
    "words, function, places, named",
    [
        (
            "extract RUN -o F.adapter.safetensors --name MR --licence A=CC0",
            "extract",
            ["RUN", "F.adapter.safetensors"],
            {"name": "MR", "checkpoint": "", "licences": {"A": "CC0"}, "overwrite": False},
        ),
        ("info F", "about", ["F"], {}),
        (
            "merge BASE F -o OUT --expert MR --force-base --overwrite",
            "merge",
            ["BASE", "F", "OUT"],
            {"expert": "MR", "force": True, "overwrite": True},
        ),
        ("stack F G --route task -o B", "stack", [["F", "G"], "task", "B"], {"overwrite": False}),
    ],
)
def test_words_are_handed_on(monkeypatch, capsys, words, function, places, named):
    calls = []
    monkeypatch.setattr(adapters, function, lambda *a, **k: calls.append((a, k)) or "done")
    assert cli.main(["adapter", *words.split()]) == 0
    assert capsys.readouterr().out == "done\n" and adapter.add
    [(given, options)] = calls
    assert [[str(q) for q in p] if isinstance(p, list) else str(p) for p in given] == places
    assert options == named


@pytest.mark.parametrize(
    "words, message",
    [
        ("", "are required: extract|info|merge|stack"),
        ("stack F -o B", "are required: --route"),
        ("merge BASE F", "are required: -o/--output"),
        ("extract RUN", "are required: -o/--output"),
        ("remove F", "invalid choice: 'remove'"),
    ],
)
def test_missing_and_unknown_words_are_refused(words, message, capsys):
    assert cli.main(["adapter", *words.split()]) == 2
    assert message in capsys.readouterr().err
