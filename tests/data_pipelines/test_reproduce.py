"""The page on the papers' tables: it is up to date, and its commands are read and built."""

import argparse
import importlib
import shlex

import jax
import pytest

from data_pipelines import reproduce
from medjax import commands, main
from medjax.errors import UsageError
from medjax.prompts import rows as prompted
from medjax.registry import plain
from medjax.runs import build
from medjax.runs import open as corpora
from medjax.weights import adapters
from tests.support.configs import typed

ROWS = list(reproduce.rows())
PAPERS = ("MultiTalent", "TSFM", "M4oE", "MAST-Pro", "SegEVOLution")
# tables and figures of the published texts, as their specifications list them
ITEMS = {
    "MultiTalent": {"Figure 1", "Figure 2", "Table 1", "Table 2"},
    "TSFM": {"Figure 1", "Table 1", "Table 2", "Table 3"},
    "M4oE": {"Figures 1 and 2", "Figure 3", "Table 1", "Table 2", "Table 3", "Table 4"},
    "MAST-Pro": {"Figures", "Table 1", "Table 2", "Table 3"},
    "SegEVOLution": {"A0", "A1 to A10", "B", "C1 and C2", *(f"C{k}" for k in range(3, 11))},
}


def test_page_and_table_agree(repository):
    page = (repository / "docs" / "reproduce.md").read_text(encoding="utf-8")
    command = "`python -m data_pipelines.reproduce > docs/reproduce.md`"
    assert page == reproduce.markdown(), f"out of date: {command}"
    assert command in page and "docs/reproduce.md" in (repository / "README.md").read_text()


def test_every_item_has_commands_or_says_why_not():
    found = {p["name"]: {item["name"] for item in p["item"]} for p in reproduce.papers()}
    assert tuple(found) == PAPERS
    assert all(items <= found[paper] for paper, items in ITEMS.items())
    for paper in reproduce.papers():
        for item in paper["item"]:
            assert item.get("row") or item.get("gap"), (paper["name"], item["name"])
            for row in item.get("row", ()):
                assert row.get("runs") or row.get("then") or row.get("gap"), row["name"]
    known = {"name", "gap", "parameters", "each", "runs", "then", "before"}
    assert all(set(row) <= known for _, row in ROWS)


def test_every_variant_of_a_papers_config_is_in_a_row():
    """But those for small machines and demonstrations, and sizes of a network family; Table 1 of
    MultiTalent has one network.
    """
    named = {run.config for _, row in ROWS for run in reproduce.runs(row)}
    missing = []
    for config in ("multitalent", "tsfm", "m4oe", "mast_pro", "segvol"):
        for variant in importlib.import_module(f"configs.{config}").KNOWN:
            own = variant.startswith(("demo", "small", "finetune_")) or variant.endswith("_small")
            size = config == "tsfm" and variant in ("h2", "l", "b", "s", "t", "t_small")
            public = config == "mast_pro" and variant.endswith("_public")
            other = variant in ("unet_btcv_test", "swin_btcv_test")
            if f"{config}:{variant}" not in named and not (own or size or public or other):
                missing.append(f"{config}:{variant}")
    assert missing == []


def _parsed(run):
    return main.parse(["medjax", *run.arguments]).config


def test_the_config_of_every_run_is_made():
    for config in sorted({run.config for _, row in ROWS for run in reproduce.runs(row)}):
        file, _, variant = config.partition(":")
        assert importlib.import_module(f"configs.{file}").get_config(variant).name


def test_texts_are_given_to_networks_that_read_them():
    """A run with texts for a network without them is refused when it begins."""
    told = {
        run.config
        for _, row in ROWS
        for run in reproduce.runs(row)
        if any(flag.startswith("text.source=") for flag in run.flags)
    }
    assert len(told) > 5
    for config in told:
        file, _, variant = config.partition(":")
        model = importlib.import_module(f"configs.{file}").get_config(variant).model
        assert model.name in ("segvol", "universal") or model.text, config


@pytest.mark.parametrize("paper", PAPERS)
def test_flags_of_the_rows_are_taken(paper, monkeypatch, repository):
    """Every set of flags once for every config file."""
    monkeypatch.chdir(repository)
    once = {}
    for where, row in ROWS:
        for run in reproduce.runs(row) if where.startswith(paper) else ():
            flags = tuple(flag.split("=")[0] for flag in run.flags)
            once.setdefault((run.config.split(":")[0], flags), run)
    assert once
    for run in once.values():
        _parsed(run)


@pytest.mark.slow
def test_every_run_is_read(monkeypatch, repository):
    monkeypatch.chdir(repository)
    runs = {run.arguments: run for _, row in ROWS for run in reproduce.runs(row)}
    assert len(runs) > 200
    for run in runs.values():
        _parsed(run)
    for wrong in ("data.rooot=x", "model.fetures=3"):
        with pytest.raises(UsageError):
            _parsed(next(iter(runs.values()))._replace(flags=(wrong,)))


def test_the_other_commands_are_read():
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers()
    for module in commands.modules():
        module.add(verbs)
    items = [item for paper in reproduce.papers() for item in paper["item"]]
    lines = {
        line for entry in (*items, *(row for _, row in ROWS)) for line in reproduce.commands(entry)
    }
    assert len(lines) > 20
    for line in lines:
        program, *words = shlex.split(line)
        assert program == "medjax", line
        given = parser.parse_args(words)
        if hasattr(given, "rows"):
            prompted.parsed(given.rows)


COUNTED = {
    (run.config, row["parameters"]): run
    for _, row in ROWS
    if "parameters" in row
    for run in reproduce.runs(row)[-1:]
}
QUICK = ("m4oe:none",)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [pytest.param(*k, marks=[] if k[0] in QUICK else pytest.mark.slow) for k in COUNTED],
)
def test_published_counts(config, parameters, monkeypatch, repository, tmp_path):
    """Shapes alone; of networks with frozen tables everything counts."""
    monkeypatch.chdir(repository)
    given = typed(plain(_parsed(COUNTED[config, parameters])))
    space = corpora.open_data(given.data, tmp_path, files=False).space
    net = build.make_network(given, space, given.data.spacing_mm or (1.5, 1.0, 1.0))
    base, _, _ = adapters.split(net.abstract())
    assert build.count(base) == parameters
    assert all(hasattr(leaf, "shape") for leaf in jax.tree.leaves(base))
