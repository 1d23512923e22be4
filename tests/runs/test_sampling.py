"""The version of the stream in a run folder: recorded in new runs, kept by old ones."""

import itertools
import json

import numpy as np
import pytest

from configs.base import base_config
from medjax.errors import UsageError
from medjax.labels import Corpus
from medjax.registry import plain
from medjax.runs import build, recipe, sampling
from medjax.runs import folder as runfolder
from medjax.runs.config import with_field, with_stream_version
from medjax.sample import draw
from medjax.sample.stream import Recipe, dataset
from medjax.train.checkpoint import Checkpoints
from tests.sample.test_draw import VERSION_1, Backwards, digest, pools  # noqa: F401
from tests.support import old_run
from tests.support.configs import typed


@pytest.fixture
def second(monkeypatch):
    monkeypatch.setitem(draw.VERSIONS, 4, Backwards)


def trained(folder, sampler):
    runfolder.write_json(folder / runfolder.CONFIG, plain(base_config()) | {"sampler": sampler})
    with Checkpoints(folder / "checkpoints") as target:
        target.save(3, {"params": {"a": np.ones(2, np.float32)}}, {"recipe": {}})


def version(fields, folder):
    sampler = with_stream_version(typed(fields), folder).sampler
    return sampling.recipe_arguments(sampler)["version"]


def test_new_runs_begin_with_the_newest_and_trained_ones_keep_theirs(tmp_path, second):
    fields = plain(base_config())
    assert fields["sampler"]["version"] == 0
    assert version(fields, tmp_path / "new") == 4
    trained(tmp_path / "before", {"draw": "iid"})  # of a medjax without versions
    trained(tmp_path / "first", {"version": 1})
    assert version(fields, tmp_path / "before") == version(fields, tmp_path / "first") == 1
    unnamed = with_stream_version(typed(fields), tmp_path / "before").sampler.as_given()
    assert "version" not in unnamed  # the documents of a trained run do not change
    begun = tmp_path / "begun"
    runfolder.write_json(begun / runfolder.CONFIG, {"sampler": {"version": 1}})
    assert version(fields, begun) == 4  # nothing trained yet
    said = fields | {"sampler": fields["sampler"] | {"version": 1}}
    assert version(said, tmp_path / "new") == 1


def test_a_run_of_version_1_continues_its_stream(tmp_path, second, pools):  # noqa: F811
    fields = plain(base_config())
    fields["sampler"] |= {"foreground": 0.33, "exponent": 0.5}
    trained(tmp_path / "run", {"draw": "iid"})
    sampler = with_stream_version(typed(fields), tmp_path / "run").sampler
    recipe = Recipe(patch=(6, 6, 6), batch=4, seed=3, **sampling.recipe_arguments(sampler))
    batches = dataset(pools, recipe)
    assert digest(batches[k] for k in range(6)) == VERSION_1["iid"][1]
    other = with_stream_version(typed(fields), tmp_path / "other").sampler
    newer = Recipe(patch=(6, 6, 6), batch=4, seed=3, **sampling.recipe_arguments(other))
    assert digest(dataset(pools, newer)[k] for k in range(6)) != VERSION_1["iid"][1]


def test_threads_follow_the_cores(monkeypatch):
    given = typed({"sampler": {"threads": 5}}).sampler
    assert sampling.threads(given) == 5
    default = typed({}).sampler
    for cores, devices, wanted in ((2, 1, 2), (64, 1, 12), (64, 8, 8), (4, 8, 1)):
        monkeypatch.setattr("os.cpu_count", lambda n=cores: n)
        monkeypatch.setattr("jax.local_device_count", lambda n=devices: n)
        assert sampling.threads(default) == wanted


def test_only_version_3_draws_movements():
    fields = {"train": {"patch": (16, 32, 32)}, "sampler": {"version": 3}}
    assert build.moves(typed(fields)).limit == pytest.approx(np.pi / 6)
    assert build.moves(typed(fields | {"sampler": {"version": 2}})) is None
    assert build.moves(typed(fields | {"sampler": {}})) is None  # a document of version 1
    assert build.moves(typed(fields | {"augment": {"on": False}})) is None
    assert build.moves(typed(fields | {"augment": {"kind": "flips"}})) is None


def test_later_fields_do_not_make_an_old_run_another_one(tmp_path):
    folder = old_run.unpack(tmp_path)
    old = runfolder.read_config(folder / "run")
    assert "version" not in old.sampler.given and "whole" not in old.sampler.given
    new = json.loads(json.dumps(old.as_given()))
    new["sampler"] |= {"version": 0, "whole": 0.0, "threads": 7}
    new = with_stream_version(typed(new), folder / "run")
    assert recipe.fields(new)["sampler"] == recipe.fields(old)["sampler"]
    for change in ({"version": 2}, {"whole": 0.5}, {"draw": "mix"}):
        [(name, value)] = change.items()
        other = with_field(new, f"sampler.{name}", value)
        assert runfolder.differences(recipe.fields(old), recipe.fields(other))


def test_the_recipe_takes_every_field_of_the_section():
    section = plain(base_config())["sampler"] | {"version": 1, "whole": 0.25}
    sampler = typed({"sampler": section}).sampler
    recipe = Recipe((4, 4, 4), 2, **sampling.recipe_arguments(sampler))
    for name in set(section) - set(sampling.ON_HOST):
        assert getattr(recipe, name) == section[name]
    old = typed({"sampler": {"draw": "mix"}}).sampler
    assert sampling.decisive(old) == {"draw": "mix"}
    found = sampling.recipe_arguments(old)
    assert (found["draw"], found["version"], found["whole"]) == ("mix", 1, 0.0)
    assert list(itertools.islice(sampling.decisive(sampler), 1))


def test_pools_follow_the_section():
    corpora = [
        Corpus(name, ((1, ("liver",)), (2, ("liver", "liver tumour"))), channels=("CT",))
        for name in ("A", "B")
    ]
    ratios = {"A": {"background": 1, "liver tumour": 5}}
    fields = {"sampler": {"ratios": ratios, "still": ("B",), "version": 3}}
    given = typed(fields).sampler
    sampling.check_names(given, corpora)
    assert sampling.pool_arguments(given, corpora[0]) == {
        "ratios": (((), 1.0), ((2,), 5.0)),
        "still": False,
    }
    assert sampling.pool_arguments(given, corpora[1]) == {"ratios": (), "still": True}
    assert sampling.decisive(given)["ratios"] == ratios
    assert not {"ratios", "still"} & set(sampling.decisive(typed({}).sampler))
    for changed, words in (
        ({"ratios": {"C": {"liver": 1}}}, "config.sampler.ratios names an unknown corpus 'C'"),
        ({"still": ("C",)}, "config.sampler.still names an unknown corpus 'C'"),
        ({"version": 2}, "config.sampler.still needs a newer stream"),
    ):
        wrong = typed({"sampler": fields["sampler"] | changed}).sampler
        with pytest.raises(UsageError, match=words):
            sampling.check_names(wrong, corpora)
