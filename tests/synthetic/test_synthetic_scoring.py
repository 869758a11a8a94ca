"""Which answers are right."""

import pytest
from synthetic_settings import TASKS, rows_of, synthetic

UUID_A, UUID_B = "0adfd10a-c185-4baa-98ff-1fa8dbed4e78", "f8b6cd39-2d51-4d4b-9b21-f62b6d9f2d22"


def score(answer, expected, form="number", *, body="", question="What is it?"):
    doc = {"answers": expected, "form": form, "question": question, "input": f"{body}\n\n{question}"}
    return synthetic.score(doc, [answer])


@pytest.mark.parametrize(
    ("answer", "accuracy"),
    [
        ("12345", 1),
        (" 12345.", 1),
        ("\n\nThe pass key is **12345**.", 1),
        ("12,345", 1),
        ("In sentence 3 it says 12345", 1),
        ("12345\nWhat is next? 99999 12345", 1),
        ("9123456", 0),
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
    assert score(answer, ["12345"]) == {"accuracy": accuracy}


@pytest.mark.parametrize(
    ("answer", "recall", "accuracy"),
    [
        ("1111111, 2222222 and 3333333.", 1, 1),
        ("1. 3333333\n2. 1111111\n3. 2222222\n\nAnd then 4444444", 1, 1),
        ("1,111,111; 2,222,222; 3,333,333", 1, 1),
        ("1111111,2222222,3333333", 1, 1),
        ("1111111 1111111 2222222 3333333", 1, 1),
        ("1111111, 4444444, 2222222, 3333333", 1, 0),
        ("1111111, 2222222", 2 / 3, 0),
        ("11111112222222", 0, 0),
        ("", 0, 0),
    ],
)
def test_several_numbers(answer, recall, accuracy):
    assert score(answer, ["1111111", "2222222", "3333333"]) == {"recall": pytest.approx(recall), "accuracy": accuracy}


def test_identifiers_and_a_key_said_again():
    question = f'Which value belongs to the key "{UUID_B}"?'
    assert score(f' "{UUID_A}"', [UUID_A], "identifier", question=question) == {"accuracy": 1}
    assert score(f"of {UUID_B} it is {UUID_A.upper()}", [UUID_A], "identifier", question=question) == {"accuracy": 1}
    assert score(f' "{UUID_A}"', [UUID_B], "identifier") == {"accuracy": 0}
    assert score(UUID_A[:-1], [UUID_A], "identifier") == {"accuracy": 0}


def test_names_are_told_from_words_of_the_text():
    body = "Let ABCDE = 5. The stone wall waits. Let FGHIJ = ABCDE. Let KLMNO = 7."
    expected = ["ABCDE", "FGHIJ"]
    assert score("In the stone text: ABCDE, FGHIJ, KLMNO", expected, "name", body=body) == {"recall": 1, "accuracy": 1}
    assert score("abcde and fghij", expected, "name", body=body) == {"recall": 1, "accuracy": 1}
    assert score("KLMNO, ABCDE, FGHIJ", expected, "name", body=body) == {"recall": 1, "accuracy": 0}
    assert score("ABCDEF, FGHIJ", expected, "name", body=body) == {"recall": 0.5, "accuracy": 0}
    assert score("ABCDE, ABCDE", expected, "name", body=body) == {"recall": 0.5, "accuracy": 0}


def test_made_up_words():
    body = "bonebi kulada bonebi satubu"
    expected = ["bonebi", "kulada"]
    assert score("Listed: Bonebi; KULADA", expected, "word", body=body) == {"recall": 1, "accuracy": 1}
    assert score("remove bonebi, kulada", expected, "word", body=body) == {"recall": 1, "accuracy": 1}
    assert score("bonebi satubu kulada", expected, "word", body=body) == {"recall": 1, "accuracy": 0}
    assert score("bonebikulada", expected, "word", body=body) == {"recall": 0, "accuracy": 0}


@pytest.mark.parametrize("task", TASKS)
def test_the_target_is_right_and_another_samples_is_wrong(task):
    for row, other in zip(rows_of(task), rows_of(task)[1:], strict=False):
        assert set(synthetic.score(row, [row["target"]]).values()) == {1}
        assert set(synthetic.score(row, [other["target"]]).values()) == {0}
        if len(row["answers"]) > 1:
            everything = synthetic.score(row, [row["input"]])
            assert everything["recall"] == 1, "listing everything has full recall"
