"""ROUGE and F1 against counts by hand."""

import pytest


@pytest.fixture(scope="module")
def overlap(module_of):
    return module_of("overlap")


@pytest.mark.parametrize(
    ("answer", "reference", "f1"),
    [
        ("The red fox!", "a red fox", 1.0),
        ("red fox", "red dog", 0.5),
        ("red red fox", "red fox fox", 2 * 2 / 6),
        ("one two three four", "four", 2 / 5),
        ("It's 5.", "its 5", 1.0),
        ("anthem of a theatre", "them", 0.0),
        ("", "red", 0.0),
        ("the", "", 1.0),
    ],
)
def test_f1(overlap, answer, reference, f1):
    assert overlap.f1({"reference": reference}, [answer]) == {"f1": pytest.approx(f1)}


@pytest.mark.parametrize(
    ("answer", "reference", "rouge1", "rouge2", "rouge_l"),
    [
        # shared words: the, cat, on, mat; shared pairs: the cat; longest common subsequence: the cat on mat
        ("the cat lay on a mat today", "the cat sat on the mat", 2 * 4 / (6 + 7), 2 * 1 / (5 + 6), 2 * 4 / (6 + 7)),
        ("three two one", "one two three", 1.0, 0.0, 1 / 3),
        ("cat sleeps", "cats sleep", 0.0, 0.0, 0.0),  # words are not stemmed
        ("Bees dance.\nThey tell.", "Bees dance.\nThey tell.", 1.0, 1.0, 1.0),
        ("", "Bees dance.", 0.0, 0.0, 0.0),
    ],
)
def test_rouge(overlap, answer, reference, rouge1, rouge2, rouge_l):
    expected = {"rouge1": rouge1, "rouge2": rouge2, "rouge_l": rouge_l}
    assert overlap.rouge({"reference": reference}, [answer]) == pytest.approx(expected)
