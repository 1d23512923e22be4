"""The text header of NRRD and MetaImage files: fields, place of the voxels, and what is refused."""

import pytest

from medjax.errors import DataError
from medjax.scans import text_header

META = {
    "ObjectType": "Image",
    "NDims": "3",
    "DimSize": "4 3 2",
    "ElementSpacing": "1 1 2.5",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}
NRRD = "NRRD0004\n# made by hand\ntype: short\ndimension: 3\nsizes: 4 3 2\nencoding: raw\n"


def meta(tmp_path, **fields):
    path = tmp_path / "a.mha"
    fields = META | fields
    fields["ElementDataFile"] = fields.pop("ElementDataFile")  # the last line of every header
    lines = [f"{k} = {v}\n" for k, v in fields.items() if v is not None]
    path.write_bytes("".join(lines).encode() + b"voxels")
    return str(path)


def nrrd(tmp_path, text, name="a.nrrd"):
    (tmp_path / name).write_bytes(text.encode() + b"voxels")
    return str(tmp_path / name)


def test_voxels_of_a_metaimage_begin_behind_its_last_line(tmp_path):
    path = meta(tmp_path)
    fields, [(part, start)] = text_header.read(path)
    assert fields["dimsize"] == "4 3 2" and fields["elementtype"] == "MET_SHORT"
    with open(part, "rb") as file:
        file.seek(start)
        assert (part, file.read()) == (path, b"voxels")


@pytest.mark.parametrize("line", ["\n", "\r\n"])
def test_voxels_of_a_nrrd_begin_behind_the_empty_line(tmp_path, line):
    path = nrrd(tmp_path, (NRRD + "key:=value\n\n").replace("\n", line))
    fields, [(part, start)] = text_header.read(path)
    assert fields["sizes"] == "4 3 2" and fields["key"] == "value"
    assert "# made by hand" not in fields
    with open(part, "rb") as file:
        assert file.read()[start:] == b"voxels"


def test_voxels_in_other_files(tmp_path):
    for name in ("b.raw", "s1.raw", "s2.raw"):
        (tmp_path / name).write_bytes(b"voxels")
    beside = [(str(tmp_path / "b.raw"), 0)]
    two = [(str(tmp_path / name), 0) for name in ("s1.raw", "s2.raw")]
    assert text_header.read(meta(tmp_path, ElementDataFile="b.raw"))[1] == beside
    assert text_header.read(meta(tmp_path, ElementDataFile="s%d.raw 1 2 1"))[1] == two
    assert text_header.read(nrrd(tmp_path, NRRD + "data file: b.raw\n\n"))[1] == beside
    (tmp_path / "list.mha").write_text(
        "".join(f"{k} = {v}\n" for k, v in META.items()).replace("LOCAL", "LIST")
        + "s1.raw\ns2.raw\n"
    )
    assert text_header.read(str(tmp_path / "list.mha"))[1] == two
    listed = nrrd(tmp_path, "", "l.nrrd")
    with open(listed, "w") as file:
        file.write(NRRD + "data file: LIST\ns1.raw\ns2.raw\n")
    assert text_header.read(listed)[1] == two


@pytest.mark.parametrize("name", ["../b.raw", "/etc/passwd"])
def test_voxels_outside_of_the_folder_are_refused(tmp_path, name):
    with pytest.raises(DataError, match="its voxels lie outside its folder"):
        text_header.read(meta(tmp_path, ElementDataFile=name))


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("NDims", "12", "2, 3 or 4"),
        ("NDims", None, "2, 3 or 4"),
        ("DimSize", "4 3", "3 sizes"),
        ("DimSize", "4 0 2", "3 positive sizes"),
        ("DimSize", None, "3 positive sizes"),
        ("ElementSpacing", "1 1 x", "3 numbers"),
        ("TransformMatrix", "1 0 0", "9 numbers"),
        ("HeaderSize", "-2", "a whole number from -1"),
        ("ElementNumberOfChannels", "0", "a whole number from 1"),
        ("Comment", "x" * 2001, "one line 'name = value' for each field"),
        ("ndims", "3", "one line 'name = value' for each field"),  # said twice
    ],
)
def test_fields_of_a_form_that_the_format_does_not_have(tmp_path, field, value, expected):
    with pytest.raises(DataError) as caught:
        text_header.read(meta(tmp_path, **{field: value}))
    assert caught.value.expected == expected and "MetaImage header" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (NRRD + "spacings\n\n", "line 7 of 8 characters"),
        (NRRD + "content: " + "x" * 600 + "\n\n", "line 7 of 609 characters"),
        (NRRD.replace("NRRD0004", "NRRDx") + "\n", "NRRD0001 to NRRD0005"),
    ],
)
def test_lines_that_no_nrrd_has(tmp_path, text, words):
    with pytest.raises(DataError, match=words):
        text_header.read(nrrd(tmp_path, text))


@pytest.mark.parametrize("ending", ["mha", "nrrd"])
def test_content_of_another_kind_is_named(tmp_path, ending):
    (tmp_path / f"a.{ending}").write_bytes(b"\x1f\x8b" + b"\0" * 50)
    kind = "MetaImage" if ending == "mha" else "NRRD"
    with pytest.raises(DataError, match=f"no {kind} file"):
        text_header.read(str(tmp_path / f"a.{ending}"))


def test_words_for_compression_and_order_of_bytes():
    assert text_header.is_compressed({"compresseddata": "True"}, meta=True)
    assert not text_header.is_compressed({"compresseddata": "False"}, meta=True)
    assert text_header.is_compressed({"encoding": "gz"}, meta=False)
    assert not text_header.is_compressed({"encoding": "raw"}, meta=False)
    assert text_header.is_big_endian({"elementbyteordermsb": "True"})
    assert not text_header.is_big_endian({"binarydatabyteordermsb": "False"})
    assert text_header.is_meta("A.MHD") and not text_header.is_meta("a.nhdr")
