"""Build hook: a wheel holds `configs/`, `data_pipelines/` and `docs/` inside `medjax/shipped/`.

An editable installation uses the files of the checkout.
"""

from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDERS = ("configs", "data_pipelines", "docs")
ENDINGS = (".py", ".toml", ".md")


class Shipped(BuildHookInterface):
    """Adds the files of these folders to the wheel under another path."""

    def initialize(self, version: str, build_data: dict) -> None:
        """Fills `force_include`: path in the checkout -> path in the wheel."""
        if version == "editable":
            return
        root = Path(self.root)
        for folder in FOLDERS:
            found = (p for p in (root / folder).rglob("*") if p.suffix in ENDINGS)
            for path in sorted(found):
                inside = path.relative_to(root).as_posix()
                build_data["force_include"][str(path)] = f"medjax/shipped/{inside}"
