"""The pages of the repository name files, modules, verbs and flags that exist."""

import argparse
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from medjax import commands, main
from medjax.errors import UsageError
from medjax.registry import plain
from medjax.runs.settings import accepted

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    str(page.relative_to(ROOT))
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "benchmarks/results/*.md")
    for page in sorted(ROOT.glob(pattern))
]
FOLDERS = "medjax|tests|configs|data_pipelines|benchmarks|docs"
PLACEHOLDERS = re.compile(r"\b(X|NAME|FILE)\b|<\w+>")  # configs/X.py, <family>.py
READ_ELSEWHERE = "docs/reproduce.md"  # generated; tests/data_pipelines/test_reproduce.py


def text_of(page: str) -> str:
    """The page, with commands that a backslash continues on one line."""
    return re.sub(r"\\\n\s*", "", (ROOT / page).read_text())


def code_of(text: str) -> list[str]:
    """Lines of fenced blocks, without comments, and inline code."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.M | re.S)
    lines = [line.split(" # ")[0] for block in blocks for line in block.splitlines()]
    return lines + re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


@pytest.fixture(scope="module")
def verbs() -> dict[str, set[str]]:
    """Verb -> its flags, those of its own verbs too."""
    parsers = argparse.ArgumentParser().add_subparsers()
    for module in commands.modules():
        module.add(parsers)

    def flags(parser: argparse.ArgumentParser) -> set[str]:
        inner = [a.choices.values() for a in parser._actions if hasattr(a, "add_parser")]
        own = set(parser._option_string_actions)
        return own.union(*(flags(one) for choices in inner for one in choices))

    return {verb: flags(parser) for verb, parser in parsers.choices.items()}


def test_there_are_pages():
    assert {"README.md", "SECURITY.md", "docs/data.md", "benchmarks/RESULTS.md"} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page):
    named = re.findall(rf"(?<![\w/.:-])((?:{FOLDERS})/[\w./<>-]*\w)", text_of(page))
    missing = [p for p in named if not PLACEHOLDERS.search(p) and not (ROOT / p).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)\s#]+)[^)]*\)", text_of(page))
    local = [link for link in links if not link.startswith(("http:", "https:", "mailto:"))]
    assert not [link for link in local if not ((ROOT / page).parent / link).exists()]


@pytest.mark.parametrize("page", PAGES)
def test_modules_exist(page):
    text = text_of(page)
    named = re.findall(r"python -m ((?:medjax|benchmarks|data_pipelines|tests)[\w.]*\w)", text)
    named += re.findall(r"^from ([\w.]+) import", text, re.M)
    named = [name for name in named if not PLACEHOLDERS.search(name)]
    assert not [name for name in named if importlib.util.find_spec(name) is None]


@pytest.mark.parametrize("page", PAGES)
def test_verbs_and_their_flags_exist(page, verbs):
    missing = []
    for line in code_of(text_of(page)):
        for verb, rest in re.findall(r"^\s*medjax ([a-z][a-z-]*)(.*)", line):
            if verb not in verbs:
                missing.append(f"medjax {verb}")
            elif verb not in ("train", "ingest"):  # their flags are those of other programs
                flags = re.findall(r"(?<=[\s\[])--?[a-z][a-z-]*", rest)
                missing += [f"medjax {verb} {flag}" for flag in flags if flag not in verbs[verb]]
    assert not missing


def test_every_verb_is_on_a_page(verbs):
    text = "\n".join(text_of(page) for page in PAGES)
    assert not [verb for verb in verbs if f"medjax {verb}" not in text]


FLAG = re.compile(r"--config\.([\w./]+)(=(?:'[^']*'|\"[^\"]*\"|[^\s`'\"])*)?")
FITTING = ("multitalent.py:demo", "multitalent.py:unet", "tsfm.py:h", "m4oe.py:finetune")
FITTING += (
    "mast_pro.py:full",
    "m4oe.py:pretrain",
    "multitalent.py:unet_finetune",
    "multitalent.py:swin",
)


def flags_of(page: str) -> list[tuple[str, ...]]:
    """The --config.X flags of every command on a page, in their order."""
    return [
        tuple(match[0].rstrip(".") for match in found)
        for line in code_of(text_of(page))
        if (found := list(FLAG.finditer(line)))
    ]


def configs_of(line: str) -> tuple[str, ...]:
    """Configs that a command fits: the one that it names, otherwise any that ships."""
    named = re.search(r"configs/(\w+\.py(?::\w+)?)", line)
    return (named[1],) if named and not PLACEHOLDERS.search(named[1]) else FITTING


@pytest.mark.parametrize("page", [page for page in PAGES if page != READ_ELSEWHERE])
def test_flags_of_configs_are_taken(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    refused = []
    for line in code_of(text_of(page)):
        flags = [match[0].rstrip(".") for match in FLAG.finditer(line)]
        if flags and not any(_taken(config, flags) for config in configs_of(line)):
            refused.append(flags)
    assert not refused


def _taken(config: str, flags: list[str]) -> bool:
    start = ["medjax", f"--config=configs/{config}", "--mode=dry"]
    valued = [flag for flag in flags if "=" in flag and ".." not in flag]
    given = [shlex.split(flag)[0] for flag in valued]  # as a shell reads them
    named = [flag for flag in flags if flag not in valued and "'" not in flag]
    try:
        main.parse([*start, *given])
        fields = plain(main.parse(start).config)
        for flag in named:  # the page names the field only
            accepted.find(fields, flag.removeprefix("--config.").split("=")[0].split("."))
    except UsageError:
        return False
    return True


def test_pages_name_flags():
    found = {flag.split("=")[0] for page in PAGES for flags in flags_of(page) for flag in flags}
    known = ("optim.lr", "data.folders", "model.remat", "augment.lateral", "init.source")
    assert {f"--config.{field}" for field in known} <= found


def test_a_flag_that_nobody_takes_is_noticed(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert _taken("multitalent.py:demo", ["--config.optim.lr=1", "--config.model.remat"])
    for flags in (["--config.optim.lrr=1"], ["--config.model.gate_scope"], ["--config.seed=x"]):
        assert not _taken("multitalent.py:demo", flags)


@pytest.mark.slow
def test_the_example_of_adapters_runs(tmp_path):
    """Its commands and its Python text, with trainings of two steps."""
    section = (ROOT / "docs/adapters.md").read_text().split("## Try it")[1].split("\n## ")[0]
    lines, text = (
        re.search(rf"```{kind}\n(.*?)```", section, re.S)[1] for kind in ("bash", "python")
    )
    short = "train.steps=2 --config.data.phantom_cases=5 --config.evaluate.on=False"
    lines = re.sub(r"train\.steps=\d+", short, lines)
    lines = lines.replace("configs/", f"{ROOT}/configs/")
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    for words in (["bash", "-ec", lines], [sys.executable, "-c", text]):
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    assert "voxels of liver" in done.stdout and "'liver tumour'" in done.stdout
    masks = {p.name for p in (tmp_path / "masks").glob("*.nii.gz")}
    assert masks == {f"mr_{k:03d}.nii.gz" for k in range(5)}
