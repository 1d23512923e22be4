"""Recipes are found and import each other in a checkout, in a wheel and in a user's own folder."""

import importlib
import shutil
import sys
import types
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from medjax import main, plugins, recipes
from medjax.errors import UsageError
from medjax.runs import catalogues
from medjax.runs.start import rehearsal

OWN = """
from configs.base import base_config
from configs import tsfm
from data_pipelines import pools

def get_config(variant="x"):
    import data_pipelines.catalogue
    c = base_config().unlock()
    c.name = f"own_{tsfm.EPOCH}_{len(pools.tsfm.names)}_{variant}"
    return c.lock()
"""


@pytest.fixture
def wheel(tmp_path, repository, monkeypatch):
    """As after `pip install`: the files lie inside the package, and Python finds none of them."""
    shipped = tmp_path / "medjax" / "shipped"
    for name in recipes.NAMES:
        shutil.copytree(repository / name, shipped / name)
    monkeypatch.setattr(recipes, "root", lambda: shipped)
    find = PathFinder.find_spec
    hidden = lambda name, *more: None if name in recipes.NAMES else find(name, *more)  # noqa: E731
    monkeypatch.setattr(PathFinder, "find_spec", hidden)
    before = {k: sys.modules.pop(k) for k in list(sys.modules) if k.split(".")[0] in recipes.NAMES}
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield shipped
    for name in [k for k in sys.modules if k.split(".")[0] in recipes.NAMES]:
        del sys.modules[name]
    sys.modules.update(before)


def _name(config: str) -> str:
    return main.parse(["medjax", f"--config={config}", "--mode=dry"]).config.name


def test_a_shipped_recipe_is_found_from_an_empty_folder(wheel):
    assert _name("configs/tsfm.py") == "tsfm_h"
    assert _name("configs/hippocampus.py:joint") == "hippocampus_joint"
    assert recipes.find("configs/tsfm.py") == wheel / "configs/tsfm.py"
    assert "configs/m4oe.py" in recipes.known()
    assert not [k for k in sys.modules if k.split(".")[0] in recipes.NAMES]
    with pytest.raises(UsageError, match=r"did you mean configs/tsfm.py"):
        _name("configs/tsfn.py")
    for outside in ("configs/../configs/tsfm.py", "other/tsfm.py", "tsfm.py"):
        assert recipes.find(outside) is None


@pytest.mark.parametrize("package", [False, True])
def test_a_recipe_in_a_folder_of_ones_own(wheel, package):
    """Copies import what was not copied from medjax, and what was copied from their own folder."""
    own = Path("configs")
    own.mkdir()
    if package:
        (own / "__init__.py").write_text("HERE = 1")
    (own / "mine.py").write_text(OWN)
    assert _name("configs/mine.py:a") == "own_250_11_a"
    assert _name(f"{own.resolve()}/mine.py:b") == "own_250_11_b"
    changed = (wheel / "configs/tsfm.py").read_text().replace("EPOCH = 250", "EPOCH = 7")
    (own / "tsfm.py").write_text(changed)
    assert _name("configs/mine.py:a") == "own_7_11_a"
    assert _name(f"{wheel}/configs/tsfm.py:t") == "tsfm_t"
    assert main.parse(["", "--config=configs/tsfm.py:t"]).config.optim.steps_per_epoch == 7
    with recipes.importable():
        import configs

        assert hasattr(configs, "HERE") is package
    assert _name("configs/multitalent.py:demo") == "multitalent_demo"


def test_a_foreign_package_of_the_same_name_changes_no_shipped_recipe(wheel):
    for name in recipes.NAMES:
        Path(name).mkdir()
        (Path(name) / "pools.py").write_text("raise RuntimeError('foreign')")
        (Path(name) / "base.py").write_text("raise RuntimeError('foreign')")
    Path("data_pipelines/__init__.py").write_text("raise RuntimeError('foreign')")
    assert _name("configs/tsfm.py:h2") == "tsfm_h2"


def test_both_names_mean_afterwards_what_they_meant_before(tmp_path, monkeypatch):
    import configs.base as before

    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "base.py").write_text("NAME = 'own'")
    monkeypatch.chdir(tmp_path)
    with recipes.importable():
        from configs.base import NAME
    assert NAME == "own"
    assert sys.modules["configs.base"] is before


def test_what_entry_points_name_is_found_in_a_wheel(wheel):
    points = plugins.points("medjax.corpora")
    assert points["public"].value == "data_pipelines.catalogue:catalogue"
    assert callable(plugins.load(points["public"]))
    facts = catalogues.registered()
    assert facts["corpora"]["AMOS22_MR"]["command"] == "medjax ingest amos22"
    verb = plugins.load(plugins.points(plugins.VERBS)["ingest"])
    assert Path(verb.__file__).is_relative_to(wheel)


def test_the_build_puts_all_recipes_inside_the_package(repository, monkeypatch):
    """The list of files that the hook adds; an editable installation has none."""
    interface = types.ModuleType("interface")
    interface.BuildHookInterface = object
    for name in ("hatchling", "hatchling.builders", "hatchling.builders.hooks"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "hatchling.builders.hooks.plugin", types.ModuleType("p"))
    monkeypatch.setitem(sys.modules, "hatchling.builders.hooks.plugin.interface", interface)
    code = compile((repository / "hatch_build.py").read_text(), "hatch_build.py", "exec")
    found: dict = {}
    exec(code, found)
    hook = found["Shipped"]()
    hook.root = str(repository)
    data = {"force_include": {}}
    hook.initialize("editable", data)
    assert data == {"force_include": {}}
    hook.initialize("standard", data)
    inside = set(data["force_include"].values())
    assert {f"medjax/shipped/{n}/__init__.py" for n in recipes.NAMES} < inside
    assert "medjax/shipped/data_pipelines/tfds/builder.py" in inside
    assert {n for n in inside if n.endswith(".py")} == {
        f"medjax/shipped/{path.relative_to(repository)}"
        for name in recipes.NAMES
        for path in (repository / name).rglob("*.py")
    }
    assert "medjax/shipped/docs/data.md" in inside  # messages name it


def test_without_corpora_the_rehearsal_says_what_runs_now(tmp_path, monkeypatch, capsys):
    """The same text ends a training as a usage error, and a rehearsal well."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rehearsal.dry, "dry", lambda *a, **k: "rehearsed")  # see test_wheel.py
    flags = ["--config", "configs/multitalent.py:unet"]
    assert main.main(flags) == 2 and list(tmp_path.iterdir()) == []
    said = capsys.readouterr()
    assert "13 corpora of the config are not on disk, see above. Fix: set --config" in said.err
    for words in (
        "rehearsed\n\nNOT ON DISK: 13 of 13",
        "medjax ingest kits19 --raw DOWNLOAD --out STORE",
        "https://github.com/neheller/kits19",
        "--config=configs/multitalent.py:unet --config.data.root=STORE",
        "--config=configs/multitalent.py:demo   #",
        "--config=configs/multitalent.py:unet_small --config.data.folders=/your/folder   #",
    ):
        assert words in said.out, words
    monkeypatch.setenv("MEDJAX_PROCESS", "3")  # of a run in several processes: said once
    assert main.main(flags) == 2 and not capsys.readouterr().out
    monkeypatch.delenv("MEDJAX_PROCESS")
    assert main.main([*flags, "--mode=dry"]) == 0 and capsys.readouterr().out == said.out


@pytest.mark.parametrize("name", ["multitalent", "tsfm", "m4oe", "mast_pro", "segvol"])
def test_what_a_recipe_says_that_runs_needs_none_of_its_corpora(name):
    module = importlib.import_module(f"configs.{name}")
    assert len(module.TRY) == 2
    for variant in module.TRY:
        assert not module.get_config(variant).data.declared
