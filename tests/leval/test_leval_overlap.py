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
        ("red red fox", "red red dog", 2 * 2 / 6),
        ("one two three four", "four", 2 / 5),
        ("It's 5.", "its 5", 1.0),
        ("anthem of a theatre", "them", 0.0),
        ("blue", "red", 0.0),
        ("", "red", 0.0),
        ("the", "", 1.0),
    ],
)
def test_token_f1(overlap, answer, reference, f1):
    assert overlap.token_f1(answer, reference) == pytest.approx(f1)
    assert overlap.f1({"reference": reference}, [answer]) == {"f1": pytest.approx(f1)}


def test_rouge_by_hand(overlap):
    scores = overlap.rouge({"reference": "the cat sat on the mat"}, ["the cat lay on a mat today"])
    # shared words: the, cat, on, mat; shared pairs: the cat; longest common subsequence: the cat on mat
    assert scores == {
        "rouge1": pytest.approx(2 * 4 / (6 + 7)),
        "rouge2": pytest.approx(2 * 1 / (5 + 6)),
        "rouge_l": pytest.approx(2 * 4 / (6 + 7)),
    }
    turned = overlap.rouge({"reference": "one two three"}, ["three two one"])
    assert turned == {"rouge1": 1.0, "rouge2": 0.0, "rouge_l": pytest.approx(1 / 3)}


def test_rouge_does_not_stem(overlap):
    assert overlap.rouge({"reference": "cats sleep"}, ["cat sleeps"])["rouge1"] == 0.0


def test_rouge_of_equal_and_of_empty_texts(overlap):
    text = "Bees dance.\nThey tell the way."
    assert set(overlap.rouge({"reference": text}, [text]).values()) == {1.0}
    assert set(overlap.rouge({"reference": text}, [""]).values()) == {0.0}
