"""Which answers are right."""

import pytest
from synthetic_settings import TASKS, rows_of, synthetic

ONE = ["12345"]
SEVERAL = ["1111111", "2222222", "3333333"]
KEY, VALUE = "f8b6cd39-2d51-4d4b-9b21-f62b6d9f2d22", "0adfd10a-c185-4baa-98ff-1fa8dbed4e78"
LETS = "Let ABCDE = 5. The stone wall waits. Let FGHIJ = ABCDE. Let KLMNO = 7."
LISTED = "bonebi kulada bonebi satubu"


def score(answer, expected, form, *, body="", question="What is it?"):
    doc = {"answers": expected, "form": form, "question": question, "input": f"{body}\n\n{question}"}
    return synthetic.score(doc, [answer])


@pytest.mark.parametrize(
    ("answer", "accuracy"),
    [
        (" 12345.", 1),
        ("\n\nThe pass key is **12345**.", 1),
        ("12,345", 1),
        ("In sentence 3 it says 12345", 1),
        ("12345\nWhat is next? 99999 12345", 1),
        ("912345", 0),
        ("123456", 0),
        ("1234", 0),
        ("99999 or 12345", 0),
        ("1,234,567", 0),
        ("", 0),
        ("none", 0),
    ],
)
def test_one_number(answer, accuracy):
    assert score(answer, ONE, "number") == {"accuracy": accuracy}


@pytest.mark.parametrize(
    ("answer", "accuracy"),
    [
        (f' "{VALUE}"', 1),
        (f"of {KEY} it is {VALUE.upper()}", 1),
        (f' "{KEY}"', 0),
        (VALUE[:-1], 0),
    ],
)
def test_an_identifier_whose_key_may_be_said_again(answer, accuracy):
    question = f'Which value belongs to the key "{KEY}"?'
    assert score(answer, [VALUE], "identifier", question=question) == {"accuracy": accuracy}


@pytest.mark.parametrize(
    ("answer", "expected", "form", "body", "recall", "accuracy"),
    [
        ("1111111, 2222222 and 3333333.", SEVERAL, "number", "", 1, 1),
        ("1. 3333333\n2. 1111111\n3. 2222222\n\nAnd then 4444444", SEVERAL, "number", "", 1, 1),
        ("1,111,111; 2,222,222; 3,333,333", SEVERAL, "number", "", 1, 1),
        ("1111111,2222222,3333333", SEVERAL, "number", "", 1, 1),
        ("1111111 1111111 2222222 3333333", SEVERAL, "number", "", 1, 1),
        ("1111111, 4444444, 2222222, 3333333", SEVERAL, "number", "", 1, 0),
        ("1111111, 2222222", SEVERAL, "number", "", 2 / 3, 0),
        ("11111112222222", SEVERAL, "number", "", 0, 0),
        ("", SEVERAL, "number", "", 0, 0),
        ("In the stone text: ABCDE, FGHIJ, KLMNO", ["ABCDE", "FGHIJ"], "name", LETS, 1, 1),
        ("abcde and fghij", ["ABCDE", "FGHIJ"], "name", LETS, 1, 1),
        ("KLMNO, ABCDE, FGHIJ", ["ABCDE", "FGHIJ"], "name", LETS, 1, 0),
        ("ABCDEF, FGHIJ", ["ABCDE", "FGHIJ"], "name", LETS, 0.5, 0),
        ("ABCDE, ABCDE", ["ABCDE", "FGHIJ"], "name", LETS, 0.5, 0),
        ("Listed: Bonebi; KULADA", ["bonebi", "kulada"], "word", LISTED, 1, 1),
        ("remove bonebi, kulada", ["bonebi", "kulada"], "word", LISTED, 1, 1),
        ("bonebi satubu kulada", ["bonebi", "kulada"], "word", LISTED, 1, 0),
        ("bonebikulada", ["bonebi", "kulada"], "word", LISTED, 0, 0),
    ],
)
def test_several_numbers_names_or_words(answer, expected, form, body, recall, accuracy):
    assert score(answer, expected, form, body=body) == {"recall": pytest.approx(recall), "accuracy": accuracy}


@pytest.mark.parametrize("task", TASKS)
def test_the_target_is_right_and_another_samples_is_wrong(task):
    for row, other in zip(rows_of(task), rows_of(task)[1:], strict=False):
        assert set(synthetic.score(row, [row["target"]]).values()) == {1}
        assert set(synthetic.score(row, [other["target"]]).values()) == {0}
        if len(row["answers"]) > 1:
            everything = synthetic.score(row, [row["input"]])
            assert everything["recall"] == 1, "listing everything has full recall"
