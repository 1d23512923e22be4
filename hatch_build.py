"""Build hook: a wheel holds `configs/`, `data_pipelines/` and `docs/` inside `medjax/shipped/`.

An editable installation uses the files of the checkout.
"""

from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

CODE = (".py", ".toml", ".md")
FOLDERS = {"configs": CODE, "data_pipelines": CODE, "docs": (".md",)}  # endings of their files


class Shipped(BuildHookInterface):
    """Adds the files of these folders to the wheel under another path."""

    def initialize(self, version: str, build_data: dict) -> None:
        """Fills `force_include`: path in the checkout -> path in the wheel."""
        if version == "editable":
            return
        root = Path(self.root)
        for folder, endings in FOLDERS.items():
            found = (p for p in (root / folder).rglob("*") if p.suffix in endings)
            for path in sorted(found):
                inside = path.relative_to(root).as_posix()
                build_data["force_include"][str(path)] = f"medjax/shipped/{inside}"
