"""Build hook: a wheel holds `configs/`, `data_pipelines/` and `docs/` inside `medjax/shipped/`.

An editable installation uses the files of the checkout.
"""

from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDERS = {"configs": "*.py", "data_pipelines": "*.py", "docs": "*.md"}


class Shipped(BuildHookInterface):
    """Adds the files of these folders to the wheel under another path."""

    def initialize(self, version: str, build_data: dict) -> None:
        """Fills `force_include`: path in the checkout -> path in the wheel."""
        if version == "editable":
            return
        root = Path(self.root)
        for folder, files in FOLDERS.items():
            for path in sorted((root / folder).rglob(files)):
                inside = path.relative_to(root).as_posix()
                build_data["force_include"][str(path)] = f"medjax/shipped/{inside}"
