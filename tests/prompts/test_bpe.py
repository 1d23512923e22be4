"""CLIP's tokenizer: numbers of known texts, sizes of its tables, what is refused."""

import pytest

from data_pipelines import tumour_tasks
from medjax.errors import UsageError
from medjax.prompts import bpe


def test_the_vocabulary_has_the_published_size():
    assert len(bpe._merges()) == 48_894
    assert len(bpe._numbers()) + 2 == 49_408 == bpe.END + 1


# T20 of the specification
@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        (
            "A computerized tomography of a liver.",
            [320, 11639, 704, 7690, 999, 22399, 539, 320, 12639, 269],
        ),
        ("arota", [7514, 1397]),
        ("  A  COMPUTERIZED tomography\nof a liver . ", [320, 11639, 704, 7690, 999, 22399]),
    ],
)
def test_numbers_of_known_texts(text, numbers):
    found = bpe.tokens(text)
    assert found[0] == bpe.START and found[-1] == bpe.END
    assert found[1 : 1 + len(numbers)] == numbers
    if "  " not in text:
        assert len(found) == len(numbers) + 2


def test_lengths_of_the_eight_tumour_sentences():
    found = [len(bpe.tokens(task.sentence)) for task in tumour_tasks.MAST_PRO_TASKS.values()]
    assert found == [46, 40, 62, 49, 42, 44, 45, 34]


def test_texts_are_padded_with_the_end_token():
    found = bpe.padded(["liver", "left kidney"])
    assert found.shape == (2, 77) and found.dtype.name == "int32"
    assert found[0].tolist()[:3] == [bpe.START, 12639, bpe.END]
    assert set(found[1, 4:].tolist()) == {bpe.END} and bpe.END not in found[1, :3]
    with pytest.raises(UsageError, match=r"too long for the text encoder.*12 tokens.*at most 8"):
        bpe.padded(["A computerized tomography of a liver."], 8)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Kidney's 12mm", ["kidney", "'s", "1", "2", "mm"]),
        ("grün &amp; Ω…", ["grün", "&", "ω", "…"]),
        ("left_kidney", ["left", "_", "kidney"]),
    ],
)
def test_words_are_letters_digits_and_the_rest(text, expected):
    assert bpe.words(text) == expected
    joined = "".join(bpe.pieces(expected[0]))
    letters = {letter: byte for byte, letter in bpe.byte_letters().items()}
    plain = bytes(letters[c] for c in joined.removesuffix("</w>"))
    assert plain.decode() == expected[0]


def test_every_text_has_numbers():
    everything = "".join(map(chr, range(32, 700))) + "肝 🫀"
    found = bpe.tokens(everything)
    assert max(found[1:-1]) < bpe.START and min(found) >= 0
