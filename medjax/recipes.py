"""The recipes that come with medjax: where their files are, and how they import each other.

In a checkout `configs/` and `data_pipelines/` lie beside the package `medjax`, in an installed
wheel inside it (`medjax/shipped/`), so that no other package is shadowed. Recipes import them as
`configs` and `data_pipelines` in both cases: within `importable()` these two names lead to the
user's own files first and to the shipped ones after them.
"""

import contextlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator
from importlib.abc import MetaPathFinder
from pathlib import Path

CONFIGS, PIPELINES = "configs", "data_pipelines"
NAMES = (CONFIGS, PIPELINES)
SHIPPED = "shipped"  # in a wheel; written by hatch_build.py


def root() -> Path:
    """The folder that holds the shipped `configs/` and `data_pipelines/`."""
    package = Path(__file__).resolve().parent
    inside = package / SHIPPED
    return inside if inside.is_dir() else package.parent


def find(path: str) -> Path | None:
    """The file that a user names: as given, else "configs/NAME.py" of medjax; None without one."""
    given = Path(path)
    if given.is_file():
        return given
    if given.parts[:1] == (CONFIGS,) and ".." not in given.parts:
        shipped = root() / given
        return shipped if shipped.is_file() else None
    return None


def known() -> list[str]:
    """What `find` finds by "configs/NAME.py": those of the working folder, and the shipped ones."""
    found = {
        f"{CONFIGS}/{path.name}"
        for folder in (Path(CONFIGS), root() / CONFIGS)
        for path in folder.glob("*.py")
        if path.stem not in ("__init__", "base")
    }
    return sorted(found)


@contextlib.contextmanager
def importable(config: Path | None = None) -> Iterator[None]:
    """Within this block `import configs` and `import data_pipelines` find the shipped files.

    Files of the user come before shipped recipes of the same name; a file that the user does not
    have is the shipped one. Afterwards both names mean what they meant before.

    Args:
      config: a recipe that is loaded within the block; if its folder is called `configs`, its
        neighbours come first.
    """
    places = {CONFIGS: _configs(config), PIPELINES: _pipelines()}
    places = {name: found for name, found in places.items() if found}
    changed = [name for name, found in places.items() if _now(name) not in ([], found)]
    kept = {name: _without(name) for name in changed}
    foreign = [name for name, found in places.items() if _elsewhere(name) != found]
    finder = _Finder(places)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in {*changed, *foreign}:
            _without(name)
        for modules in kept.values():
            sys.modules.update(modules)


class _Finder(MetaPathFinder):
    """Finds the two packages in several folders at once."""

    def __init__(self, places: dict[str, list[Path]]):
        self.places = places

    def find_spec(self, name: str, path=None, target=None):
        """The package `name` with all its folders; None for other names."""
        if path is not None or name not in self.places:
            return None
        folders = self.places[name]
        begins = [f / "__init__.py" for f in folders if (f / "__init__.py").is_file()]
        where = [str(folder) for folder in folders]
        if begins:
            return importlib.util.spec_from_file_location(
                name, begins[0], submodule_search_locations=where
            )
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = where
        return spec


def _configs(config: Path | None) -> list[Path]:
    """The recipe's own folder, that of the working folder, the shipped one, then others."""
    own = [config.parent] if config is not None and config.resolve().parent.name == CONFIGS else []
    return _folders([*own, Path(CONFIGS), root() / CONFIGS, *_elsewhere(CONFIGS)])


def _pipelines() -> list[Path]:
    """The shipped folder first: the name is common, and its files belong together."""
    return _folders([root() / PIPELINES, Path(PIPELINES), *_elsewhere(PIPELINES)])


def _folders(wanted: list[Path]) -> list[Path]:
    """Those that exist, absolute, each once."""
    return list(dict.fromkeys(p.resolve() for p in wanted if p.is_dir()))


def _elsewhere(name: str) -> list[Path]:
    """Where Python itself finds a package."""
    try:
        spec = importlib.machinery.PathFinder.find_spec(name)
    except (ImportError, ValueError):
        return []
    return _folders([Path(p) for p in (spec and spec.submodule_search_locations) or ()])


def _now(name: str) -> list[Path]:
    """The folders of a package that is imported; none if it is not."""
    return _folders([Path(p) for p in getattr(sys.modules.get(name), "__path__", ())])


def _without(name: str) -> dict:
    """Takes a package and its modules out of the imported ones, and returns them."""
    found = [key for key in sys.modules if key == name or key.startswith(f"{name}.")]
    return {key: sys.modules.pop(key) for key in found}
