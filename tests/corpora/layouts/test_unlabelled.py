"""Scans without labels: a folder, a tree or a file."""

from medjax.corpora.layouts import unlabelled


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_a_tree_of_scans_is_a_corpus_without_classes(tmp_path):
    touch(tmp_path, "a/x.nii.gz", "a/b/y.mha", ".hidden/z.nii.gz", "a/notes.txt")
    assert unlabelled.detect(tmp_path)
    corpus, cases, problems = unlabelled.scan(tmp_path)
    assert (corpus.classes, corpus.channels, problems) == ((), ("image",), [])
    assert [(c.name, c.label, c.patient) for c in cases] == [("x", None, "x"), ("y", None, "y")]


def test_numbered_files_are_channels(tmp_path):
    touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz")
    corpus, cases, _ = unlabelled.scan(tmp_path)
    assert corpus.channels == ("image_0", "image_1")
    assert [(c.name, len(c.images)) for c in cases] == [("a", 2), ("b", 2)]


def test_one_file(tmp_path):
    touch(tmp_path, "scan.nrrd", "notes.txt")
    assert unlabelled.detect(tmp_path / "scan.nrrd")
    assert not unlabelled.detect(tmp_path / "notes.txt")
    assert [c.images for c in unlabelled.scan(tmp_path / "scan.nrrd")[1]] == [
        (str(tmp_path / "scan.nrrd"),)
    ]


def test_nothing_there(tmp_path):
    touch(tmp_path, "notes.txt")
    assert not unlabelled.detect(tmp_path)
