"""Files that services and tools read: they are well-formed, and what they name exists."""

import json
import re
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement

import medjax
from medjax.corpora import description
from medjax.corpora.dataset_json import hints
from medjax.errors import UsageError


def test_ci_runs_the_script_of_the_repository_on_three_versions(repository):
    flow = yaml.safe_load((repository / ".github/workflows/ci.yml").read_text())
    job = flow["jobs"]["tests"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert ".ci/run" in [step.get("run") for step in job["steps"]]
    script = (repository / ".ci" / "run").read_text()
    assert "PYTHON" in (repository / "launch.sh").read_text() and "./launch.sh test" in script
    for path in (repository / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        assert yaml.safe_load(path.read_text())


def test_the_constraints_hold_every_dependency_at_a_version_that_is_allowed(repository):
    lines = (repository / "tests" / "constraints.txt").read_text().splitlines()[1:]
    held = {re.sub(r"[-_.]+", "-", n).lower(): v for n, v in (s.split("==") for s in lines)}
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *extras["test"], *extras["formats"]]:
        wanted = Requirement(text)
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        assert held[name] in wanted.specifier, text
    assert {"cuda", "cuda12", "cuda13", "tpu"} <= set(extras)


def test_citation_and_changelog_know_the_version(repository):
    cited = yaml.safe_load((repository / "CITATION.cff").read_text())
    assert cited["version"] == medjax.__version__ and cited["license"] == "Apache-2.0"
    assert f"## {medjax.__version__}" in (repository / "CHANGELOG.md").read_text()


def test_the_image_copies_what_a_wheel_needs(repository):
    lines = (repository / "Dockerfile").read_text().splitlines()
    copied = {word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]}
    assert {"hatch_build.py", "medjax", "medjax_verbs", "configs", "data_pipelines"} < copied
    ignored = (repository / ".dockerignore").read_text().splitlines()
    for name in copied:
        assert (repository / name).exists() and f"!{name}" in ignored


def test_the_schema_describes_the_examples_of_the_page(repository):
    """With jsonschema where it is installed; the keys and plain texts in any case."""
    assert set(description.keys(block=True)) < set(description.keys())
    text = (repository / "README.md").read_text() + (repository / "docs/data.md").read_text()
    examples = re.findall(r'^"medjax": (\{.*\})$', text, re.MULTILINE)
    examples += re.findall(r"^```json\n(\{.*?\})\n```", text, re.MULTILINE | re.DOTALL)
    found = [json.loads(one) for one in examples]
    assert found and "annotated" in found[0]
    found = [one.get("medjax", one) for one in found]
    assert not [k for one in found for k in one if k not in description.keys()]
    jsonschema = pytest.importorskip("jsonschema")
    checker = jsonschema.Draft202012Validator(description.schema())
    checker.check_schema(description.schema())
    for one in found:
        checker.validate(one)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"absent": "backgroud"}, r'unusable "absent"; found backgroud; expected "background" or'),
        ({"select": 3}, r'"select" is not text; found 3'),
        ({"selct": "x"}, r"unknown key 'selct'. Fix: did you mean select"),
    ],
)
def test_a_description_is_checked_against_the_schema(said, message, tmp_path):
    (tmp_path / "medjax.json").write_text(json.dumps(said))
    with pytest.raises(UsageError, match=message):
        hints(tmp_path)
    (tmp_path / "medjax.json").write_text('{"$schema": "medjax.schema.json", "select": "x"}')
    assert hints(tmp_path)[0]["select"] == "x"
