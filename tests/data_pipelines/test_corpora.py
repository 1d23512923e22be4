"""Every public corpus, in miniature and under its published names, goes through the ingestion label
by label.
"""

import functools
import json
from pathlib import Path

import numpy as np
import pytest

from data_pipelines import ingest
from data_pipelines.catalogue import catalogue, corpora, module_of
from data_pipelines.find import find_cases
from medjax import cli
from medjax.corpora.layouts import corpus_json
from medjax.corpora.sources import scan_corpus
from medjax.errors import DataError, UsageError
from medjax.prepare import fingerprint as fingerprints
from medjax.prepare import store
from tests.support.marks import slow
from tests.support.published import SHAPE, SPACING_MM, tree_of, write

pytestmark = pytest.mark.filterwarnings("ignore::medjax.scans.nifti.DataWarning")


@pytest.fixture(autouse=True)
def _small(tmp_path, monkeypatch):
    """Nothing kept outside the test, and a small sample of intensities for small volumes."""
    monkeypatch.setenv("MEDJAX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(
        fingerprints, "fingerprint", functools.partial(fingerprints.fingerprint, samples=2000)
    )


def _needs(tree) -> None:
    """Skips where the libraries of the extra `formats` are not installed and the download needs
    them.
    """
    if any(path.endswith(("/", ".nrrd", ".mhd")) for case in tree.cases for path in case.images):
        pytest.importorskip("SimpleITK")
        pytest.importorskip("pydicom")


def _ingest(name: str, raw: Path, out: Path, *flags: str) -> int:
    return ingest.run(
        (corpora()[name],),
        ["--raw", str(raw), "--out", str(out), "--quiet", "--workers", "1", *flags],
    )


@pytest.mark.parametrize(
    "name", [slow(n) if n.startswith("TotalSeg") else n for n in sorted(corpora())]
)
def test_a_miniature_download_is_ingested_label_by_label(name, tmp_path, capsys):
    corpus = corpora()[name]
    tree = tree_of(name, list(corpus.corpus().classes))
    _needs(tree)
    truths = write(tree, corpus, tmp_path / "raw")
    assert _ingest(name, tmp_path / "raw", tmp_path / "store", "--no-verify", *tree.flags) == 0, (
        capsys.readouterr()
    )
    found, cases, problems = scan_corpus(tmp_path / "store" / name)
    assert [c.name for c in cases] == sorted(truths) == store.list_cases(
        tmp_path / "store", name
    ) and not problems
    assert (
        set(found.classes) == set(corpus.corpus().classes)
        and found.annotated == corpus.corpus().annotated
    )
    for case, truth in truths.items():
        prepared = store.open_case(tmp_path / "store" / name / case)
        ids, meta = prepared.label(), prepared.meta
        assert ids.shape == SHAPE and (
            name.startswith("M3D") or meta["spacing_mm"] == list(SPACING_MM)
        )
        for class_, mask in truth.masks.items():
            assert (np.isin(ids, found.ids_of(class_)) == mask).all(), f"{case}: {class_}"
        image = prepared.image().astype(np.float32)
        for c in range(image.shape[-1]):
            kept = (image[..., c] > image[..., c].min()) & (
                image[..., c] < image[..., c].max()
            )  # what CT's clipping left
            assert np.corrcoef(image[..., c][kept], truth.image[..., c][kept])[0, 1] > 0.99, (
                f"{case}: channel {c}"
            )


def test_every_corpus_has_a_tree_and_states_what_a_user_must_know():
    for name, corpus in corpora().items():
        assert (
            all((corpus.title, corpus.citation, corpus.licence, corpus.url, corpus.obtain))
            and corpus.cases >= 0
        )
        assert tree_of(name, list(corpus.corpus().classes)).cases
        for twin in corpus.twins:
            assert twin.corpus in corpora(), f"{name} has a twin {twin.corpus} that does not exist"
    promised = """
    MSD_BrainTumour MSD_Heart MSD_Liver MSD_Hippocampus MSD_Prostate MSD_Lung MSD_Pancreas
    MSD_HepaticVessel MSD_Spleen MSD_Colon BTCV BTCV_Cervix BTCV_TCIA StructSeg19 SegTHOR
    NIH_Pancreas KiTS19 KiTS21 AMOS22_CT AMOS22_MR FLARE22 ATLAS23 TotalSegmentator_v1
    TotalSegmentator_v1_organs TotalSegmentator_v2 CT_ORG CHAOS_CT CHAOS_T1in CHAOS_T1out CHAOS_T2
    IRCADb WORD AbdomenCT_1K LiTS BraTS2020 BraTS2021 HaN_Seg PROMISE12 SAML T2W_Prostate
    M3D_0020_MSD_Liver Breast_DCE
    """
    assert set(promised.split()) <= set(corpora())


def test_the_page_of_the_catalogue_is_up_to_date(repository):
    from data_pipelines.catalogue import markdown

    assert (repository / "docs" / "corpora.md").read_text() == markdown(), (
        "run: python -m data_pipelines.catalogue > docs/corpora.md"
    )
    facts = json.loads(json.dumps(catalogue()))
    assert (
        facts["corpora"]["KiTS21"]["command"] == "medjax ingest kits21"
        and module_of("AMOS22_MR") == "amos22"
    )
    assert len(facts["pools"]["multitalent"]) == 13


def test_the_verb_forwards_to_the_file_of_a_corpus(capsys):
    assert cli.main(["ingest", "amos22", "--describe"]) == 0
    both = capsys.readouterr().out
    assert "AMOS22_CT: AMOS" in both and "AMOS22_MR: AMOS" in both
    assert cli.main(["ingest", "AMOS22_MR", "--describe"]) == 0
    assert "AMOS22_CT" not in capsys.readouterr().out
    for words in (["ingest", "amos22", "--help"], ["ingest", "tfds", "--help"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert ended.value.code == 0
    assert "medjax ingest amos22" in capsys.readouterr().out


def test_several_corpora_of_one_download_and_a_part_of_it(tmp_path, capsys):
    from data_pipelines.amos22 import CORPORA

    for name in ("AMOS22_CT", "AMOS22_MR"):
        tree = tree_of(name, [])
        write(type(tree)(tree.cases), corpora()[name], tmp_path / "raw")
    arguments = [
        "--raw",
        str(tmp_path / "raw"),
        "--out",
        str(tmp_path / "store"),
        "--quiet",
        "--no-verify",
        "--where",
        "part=Tr",
    ]
    assert ingest.run(CORPORA, arguments) == 0
    assert [c.name for c in scan_corpus(tmp_path / "store" / "AMOS22_CT")[1]] == ["amos_0001"]
    assert [c.name for c in scan_corpus(tmp_path / "store" / "AMOS22_MR")[1]] == ["amos_0507"]
    assert ingest.run(CORPORA, [*arguments, "--only", "AMOS22_XR"]) == 2
    assert "did you mean AMOS22" in capsys.readouterr().err
    assert ingest.run(CORPORA, [*arguments[:-1], "prat=Tr"]) == 2


def test_a_bad_case_fails_alone_and_a_second_run_only_makes_what_is_missing(tmp_path, capsys):
    write(tree_of("WORD", []), corpora()["WORD"], tmp_path / "raw")
    scan = tmp_path / "raw" / "imagesTr" / "word_0002.nii.gz"
    whole = scan.read_bytes()
    scan.write_bytes(whole[: len(whole) // 2])
    assert _ingest("WORD", tmp_path / "raw", tmp_path / "store") == 3
    out = capsys.readouterr()
    assert (
        "word_0002" in out.err
        and "truncated" in out.err
        and "2 prepared" in out.out
        and "NOT usable" in out.out
    )
    scan.write_bytes(whole)
    assert (
        _ingest(
            "WORD",
            tmp_path / "raw",
            tmp_path / "store",
            "--plan",
            str(tmp_path / "store" / "WORD" / "plan.json"),
        )
        == 0
    )
    assert "1 prepared, 2 already there" in capsys.readouterr().out


def test_a_class_that_never_occurs_is_refused_with_the_reason(tmp_path, capsys):
    tree = tree_of("SegTHOR", [])
    write(tree, corpora()["SegTHOR"], tmp_path / "raw")
    import nibabel as nib

    for case in tree.cases:
        path = tmp_path / "raw" / case.label
        label = nib.load(path)
        nib.save(
            nib.Nifti1Image(
                np.where(np.asarray(label.dataobj) == 3, 0, label.dataobj).astype(np.uint8),
                label.affine,
                label.header,
            ),
            path,
        )
    assert _ingest("SegTHOR", tmp_path / "raw", tmp_path / "store", "--no-verify") == 4
    assert (
        "trachea (label 3)" in (message := capsys.readouterr().err)
        and "taught as background" in message
        and "--allow-absent" in message
    )
    assert not corpus_json.detect(tmp_path / "store" / "SegTHOR")
    assert (
        _ingest(
            "SegTHOR",
            tmp_path / "raw",
            tmp_path / "store",
            "--no-verify",
            "--allow-absent",
            "trachea",
        )
        == 0
    )
    assert corpus_json.detect(tmp_path / "store" / "SegTHOR")


def test_known_bad_cases_are_left_out_unless_asked_for(tmp_path, capsys):
    from data_pipelines.find import find_cases

    for number in ("0001", "0025", "0045"):
        (tmp_path / f"Pancreas-CT/PANCREAS_{number}/study/series").mkdir(parents=True)
        (tmp_path / f"Pancreas-CT/PANCREAS_{number}/study/series/1-001.dcm").touch()
        (tmp_path / "TCIA_pancreas_labels-02-05-2017").mkdir(exist_ok=True)
        (tmp_path / f"TCIA_pancreas_labels-02-05-2017/label{number}.nii.gz").touch()
    found = find_cases(corpora()["NIH_Pancreas"], tmp_path)
    assert [c.name for c in found.cases] == ["PANCREAS_0001"]
    assert (
        "copy of PANCREAS_0002" in found.left_out["PANCREAS_0025"]
        and "not registered" in found.left_out["PANCREAS_0045"]
    )
    assert len(find_cases(corpora()["NIH_Pancreas"], tmp_path, keep_suspects=True).cases) == 3


def test_a_missing_mask_is_a_problem_of_its_case_unless_it_may_be_absent(tmp_path):
    pytest.importorskip("SimpleITK")
    corpus = corpora()["HaN_Seg"]
    tree = tree_of("HaN_Seg", list(corpus.corpus().classes))
    write(tree, corpus, tmp_path)
    (tmp_path / "set_1/case_02/case_02_OAR_Pituitary.seg.nrrd").unlink()
    found = find_cases(corpus, tmp_path)
    assert [c.name for c in found.cases] == ["case_01"] and isinstance(found.problems[0], DataError)
    assert (
        "case_02" in str(found.problems[0])
        and "pituitary" in str(found.problems[0])
        and "29 of 30" in str(found.problems[0])
    )
    assert len(find_cases(corpus, tmp_path, allow_missing_masks=True).cases) == 2


def test_nothing_found_and_two_copies_are_usage_errors_that_say_what_was_sought(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert _ingest("KiTS19", tmp_path / "empty", tmp_path / "store") == 2
    assert (
        "data/{case}/imaging.nii.gz" in (message := capsys.readouterr().err)
        and "clone the repository" in message
    )
    assert _ingest("KiTS19", tmp_path / "nowhere", tmp_path / "store") == 2
    for copy in ("a", "b"):
        write(tree_of("KiTS19", []), corpora()["KiTS19"], tmp_path / "raw" / copy)
    with pytest.raises(UsageError, match="found twice"):
        find_cases(corpora()["KiTS19"], tmp_path / "raw")
    assert ingest.run((corpora()["KiTS19"],), []) == 2
    assert ingest.run((corpora()["KiTS19"],), ["--describe"]) == 0
    assert "CC BY-NC-SA" in capsys.readouterr().out
