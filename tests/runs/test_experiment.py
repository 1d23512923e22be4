"""From a download to what a training sees: a pool's corpora out of a store, twins kept together,
the catalogue command.
"""

import functools
import json
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from configs import tsfm
from configs.base import base_config
from data_pipelines import ingest, pools
from data_pipelines.catalogue import corpora
from medjax import cli, plugins
from medjax.errors import UsageError
from medjax.prepare import fingerprint as fingerprints
from medjax.registry import plain
from medjax.runs import catalogues, stages
from medjax.runs.open import open_data
from tests.support.configs import typed
from tests.support.published import tree_of, write
from tests.support.raw import write_corpus

pytestmark = pytest.mark.filterwarnings("ignore::medjax.scans.nifti.DataWarning")
CATALOGUE = "data_pipelines.catalogue:catalogue"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with four corpora of MultiTalent's pool: the two that share the body of a patient's
    scans, and two with regions.
    """
    folder, patch = tmp_path_factory.mktemp("pool"), pytest.MonkeyPatch()
    patch.setattr(
        fingerprints, "fingerprint", functools.partial(fingerprints.fingerprint, samples=2000)
    )
    for name in ("BTCV", "BTCV_TCIA", "MSD_Liver", "KiTS19"):
        tree = tree_of(name, [])
        write(tree, corpora()[name], folder / "raw" / name)
        arguments = [
            "--raw",
            str(folder / "raw" / name),
            "--out",
            str(folder / "store"),
            "--quiet",
            "--no-verify",
            "--workers",
            "1",
        ]
        assert ingest.run((corpora()[name],), arguments) == 0
    patch.undo()
    return folder / "store"


def _data(**changes):
    return typed({"data": plain(base_config().data) | changes}).data


def test_a_pool_trains_from_a_store_that_the_ingestion_filled(store, tmp_path):
    pool = pools.multitalent.subset("003_Liver", "017_BTCV", "046_BTCV2", "064_KiTS19")
    found = open_data(
        _data(
            **plain(pool.data()),
            root=str(store),
            split={"file": "", "folds": 2, "fold": 0, "seed": 1},
        ),
        tmp_path,
    )
    assert [c.name for c in found.stores] == list(pool.names) and len(
        found.space.classes
    ) == 2 + 13 + 8 + 2
    assert {n: len(m) for n, m in found.cases.items()} == {
        "003_Liver": 2,
        "017_BTCV": 2,
        "046_BTCV2": 2,
        "064_KiTS19": 2,
    }
    btcv2 = found.space.corpora[2]
    assert (
        btcv2.values == tuple(range(15)) and len(btcv2.annotated) == 8
    )  # all values of the files, the paper's eight classes
    assert found.space.known.sum(1).tolist() == [2, 13, 8, 2] and not found.problems
    with pytest.raises(UsageError, match=r"not on disk.*data_pipelines"):
        open_data(_data(**plain(pools.multitalent.data()), root=str(store)), tmp_path)


def test_a_subset_by_seed_or_by_list_is_all_that_a_run_knows(tmp_path):
    first, second = (
        write_corpus(tmp_path / "Task01_First", n=6),
        write_corpus(tmp_path / "Task02_Second", n=5),
    )

    def opened(**rule):
        fields = plain(base_config())
        fields["data"] |= {"folders": f"{first},{second}", "subset": {"First": rule}}
        fields["data"]["split"] |= {"folds": 2}
        return open_data(typed(fields).data, tmp_path / "run")

    drawn, again = opened(count=3, seed=1), opened(count=3, seed=1)
    assert drawn.splits == again.splits and drawn.counts == {"First": 3, "Second": 5}
    listed = {n for split in drawn.splits for side in split.values() for n in side}
    assert (
        listed == {f"{c}/{case.name}" for c, members in drawn.cases.items() for case in members}
        and len(listed) == 8
    )
    named = opened(names="case_00[0-3]")
    assert [c.name for c in named.cases["First"]] == [f"case_00{k}" for k in range(4)]
    assert named.counts == {"First": 4, "Second": 5}
    two = opened(names="case_00[0-3]", count=2)
    assert {c.name for c in two.cases["First"]} < {c.name for c in named.cases["First"]}
    for names, said in (("img.*", "no case of First matches"), ("(", "not a regular expression")):
        with pytest.raises(UsageError, match=said):
            opened(names=names)
    (tmp_path / "mine.txt").write_text("case_004\ncase_001\n")
    assert [c.name for c in opened(file=str(tmp_path / "mine.txt")).cases["First"]] == [
        "case_001",
        "case_004",
    ]
    (tmp_path / "mine.txt").write_text("case_044\n")
    with pytest.raises(UsageError, match=r"1 cases are not in First, first 'case_044'"):
        opened(file=str(tmp_path / "mine.txt"))
    with pytest.raises(UsageError, match=r"config\.data\.subset\.First has no field 'n'"):
        fields = plain(base_config())
        fields["data"] |= {"folders": str(first), "subset": {"First": {"n": 3}}}
        stages.open_run(fields, tmp_path / "run")


def test_tsfms_abdomen_recipe_knows_fifty_cases(tmp_path):
    found = open_data(typed(plain(tsfm.get_config("abdomen_10"))).data, tmp_path, files=False)
    assert found.counts == {"AbdomenCT_1K": 50} and found.space.classes == (
        "liver",
        "kidney",
        "spleen",
        "pancreas",
    )
    assert open_data(
        typed(plain(tsfm.get_config("kits19_10"))).data, tmp_path, files=False
    ).counts == {"KiTS19": 210}


def test_ingested_corpora_are_verified_and_prepared_like_any_other(store, tmp_path, capsys):
    assert cli.main(["verify", str(store / "KiTS19")]) == 0
    assert "kidney tumour" in capsys.readouterr().out
    (moved := tmp_path / "KiTS19").mkdir()
    text = (store / "KiTS19" / "corpus.json").read_text()
    (moved / "corpus.json").write_text(text.replace("case_00209/imaging", "case_00209/gone"))
    assert cli.main(["verify", str(moved)]) == 4
    assert "no longer there" in capsys.readouterr().out
    (moved / "corpus.json").write_text(text.replace('"format": 1', '"format": 9'))
    assert cli.main(["verify", str(moved)]) == 2


def test_twins_of_two_folders_share_a_side_and_the_run_folder_says_so(tmp_path, capsys):
    twins = [
        {"corpus": "Second", "cases": "case_(\\d+)", "other": "case_\\1", "note": "the same scans"}
    ]
    patients = {"patients": {f"case_{i:03d}": f"p{i}" for i in range(6)}}
    first = write_corpus(tmp_path / "Task01_First", n=6, medjax={"twins": twins})
    second = write_corpus(tmp_path / "Task02_Second", n=6, medjax=patients)
    fields = plain(base_config())
    fields["data"]["folders"], fields["data"]["split"]["folds"] = f"{first},{second}", 3
    run = stages.open_run(fields, tmp_path / "run")
    for split in run.data.splits:
        sides = [
            {n.split("/")[1] for n in split["val"] if n.startswith(c)} for c in ("First", "Second")
        ]
        assert sides[0] == sides[1] and len(sides[0]) == 2
    assert (
        len(run.data.twins) == 6
        and run.data.leaks() == ()
        and "6 pairs of scans are shared" in capsys.readouterr().out
    )
    told = json.loads((tmp_path / "run" / "splits_info.json").read_text())
    assert told["groups"] == 6 and len(told["twins"]) == 6 and told["settings"]["folds"] == 3
    assert set(json.loads((tmp_path / "run" / "splits_final.json").read_text())[0]) == {
        "train",
        "val",
    }  # nnU-Net's form, nothing else
    leaky = [
        {
            "train": ["First/case_000", "Second/case_001"],
            "val": ["First/case_001", "Second/case_000"],
        }
    ]
    (tmp_path / "leaky.json").write_text(json.dumps(leaky))
    fields["data"]["split"]["file"] = str(tmp_path / "leaky.json")
    stages.open_run(fields, tmp_path / "leaky")
    assert "LEAK: 2 of 6 pairs" in capsys.readouterr().out


def test_the_catalogue_command_lists_all_shows_one_and_answers_programs(capsys, monkeypatch):
    assert cli.main(["info", "--corpora", "--catalogue", CATALOGUE]) == 0
    text = capsys.readouterr().out
    assert "medjax ingest kits21" in text and "pool multitalent: 003_Liver, 006_Lung" in text
    monkeypatch.setattr(
        plugins, "points", lambda group: {"public": EntryPoint("public", CATALOGUE, group)}
    )
    assert cli.main(["info", "AMOS22_MR", "--corpora"]) == 0
    assert "distinguished from CT by the case number alone" in capsys.readouterr().out
    assert cli.main(["info", "--corpora", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["corpora"]["KiTS21"]["annotated"] == [
        "kidney",
        "kidney tumour",
        "kidney cyst",
    ]
    assert cli.main(["info", "KiTS22", "--corpora"]) == 2
    assert "did you mean KiTS2" in capsys.readouterr().err
    monkeypatch.setattr(plugins, "points", lambda group: {})
    assert cli.main(["info", "--corpora"]) == 2
    assert "pip install -e ." in capsys.readouterr().err
    assert cli.main(["info", "--corpora", "--catalogue", "nowhere:nothing"]) == 2


def test_the_package_registers_its_catalogue(repository):
    import tomllib

    points = tomllib.loads((Path(repository) / "pyproject.toml").read_text())["project"][
        "entry-points"
    ]["medjax.corpora"]
    assert (
        points == {"public": CATALOGUE}
        and EntryPoint("public", CATALOGUE, catalogues.GROUP).load()()["corpora"]
    )
