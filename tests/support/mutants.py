"""Source with one wrong line, imported in place of the right one: to show that a test notices.

with mutated("medjax.models.parts.vit", "x = x + dense", "x = dense"):
    ...  # every import of medjax.models in here sees the wrong line
"""

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads other text than the file's."""

    def __init__(self, name: str, path: str, text: str):
        super().__init__(name, path)
        self.text = text

    def get_code(self, fullname: str):
        return compile(self.text, self.path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, name: str, path: str, text: str):
        self.name, self.loader = name, _Loader(name, path, text)

    def find_spec(self, fullname: str, path=None, target=None):
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(
            fullname, self.loader.path, loader=self.loader
        )


def source(name: str) -> Path:
    """The file of a module."""
    return Path(importlib.util.find_spec(name).origin)


@contextlib.contextmanager
def mutated(name: str, old: str, new: str) -> Iterator[ModuleType]:
    """Imports the module with the text `old` replaced by `new`, and what lies beside it afresh.

    `medjax.models.parts.vit` renews all of `medjax.models`, `configs.m4oe` all of `configs`: the
    first package below `medjax`, or the first one. Afterwards the old modules are back.

    Raises: `AssertionError` unless `old` occurs exactly once: a mutant that changes nothing shows
    nothing, and has to follow the source.
    """
    path = source(name)
    text = path.read_text()
    assert text.count(old) == 1, f"{path.name} has {text.count(old)} x {old!r}: update the mutant"
    parts = name.split(".")
    renewed = ".".join(parts[: 2 if parts[0] == "medjax" else 1])
    parent, _, child = renewed.rpartition(".")

    def inside(module: str) -> bool:
        return module == renewed or module.startswith(f"{renewed}.")

    kept = {module: sys.modules.pop(module) for module in list(sys.modules) if inside(module)}
    finder = _Finder(name, str(path), text.replace(old, new))
    sys.meta_path.insert(0, finder)
    try:
        yield importlib.import_module(name)
    finally:
        sys.meta_path.remove(finder)
        for module in [module for module in sys.modules if inside(module)]:
            del sys.modules[module]
        sys.modules.update(kept)
        if parent and renewed in kept:
            setattr(sys.modules[parent], child, kept[renewed])
