"""Each rule of L-Eval's closed-ended tasks, on answers of our own: right, wrong, and as models really write them."""

import pytest


@pytest.fixture(scope="module")
def scoring(module_of):
    return module_of("scoring")


def score(function, answer, reference, **fields):
    return function({"reference": reference} | fields, [answer])


@pytest.mark.parametrize(
    ("reference", "letters"),
    [("(B) They hid it.", "B"), ("ACD", "ACD"), ("D", "D"), ("A. Because", "A"), ("C) Dogs and Cats", "C")],
)
def test_a_reference_is_the_letters_of_its_first_word(scoring, reference, letters):
    assert scoring.reference_letters(reference) == set(letters)


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        (" C\n", "C"),
        ("(D) the dog", "D"),
        ("it is C, not D", "C"),
        ("Because of rain: C", "B"),  # crude, and as published scores were made
        ("b", "A"),
        ("none of them", "A"),
        ("", ""),
        (" \n", ""),
    ],
)
def test_one_choice_is_the_first_letter(scoring, answer, letter):
    assert scoring.chosen_letter(answer) == letter
    assert score(scoring.choice, answer, letter or "A") == {"accuracy": float(letter != "")}


def test_one_choice_right_and_wrong(scoring):
    assert score(scoring.choice, "(B) no", "(B) They hid it.") == {"accuracy": 1.0}
    assert score(scoring.choice, "A", "(B) A thing") == {"accuracy": 0.0}
    assert score(scoring.choice, "A", "AB") == {"accuracy": 0.0}
    assert score(scoring.choice, "no letter", "A") == {"accuracy": 1.0}


@pytest.mark.parametrize(
    ("answer", "letters"),
    [
        ("ACD", "ACD"),
        ("DCA", "ACD"),
        ("BB", "B"),
        ("  BD\n", "BD"),
        ("BC and A) too", "BC"),
        ("B", "B"),
        ("B. To see the world", "B"),
        ("A) one\nC) three", "AC"),
        ("A. one D.", "AD"),
        ("The options are B and D.", "BD"),
        ("The answer is (C)", "C"),
        ("The answer is C", "A"),  # nothing stands after the C
        ("The answer is C\n", "C"),
        ("A) one\nQuestion 2. C) three", "A"),
        ("C] [B]", "C"),
        ("E. all of them", "A"),
        ("all of them", "A"),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_several_choices(scoring, answer, letters):
    assert scoring.chosen_letters(answer) == set(letters)


@pytest.mark.parametrize(
    ("answer", "reference", "accuracy", "exact"),
    [
        ("ACD", "ACD", 1.0, 1.0),
        ("DA", "AD", 1.0, 1.0),
        ("AC", "ACD", 0.25, 0.0),
        ("A", "ACD", 0.25, 0.0),
        ("no letter", "AB", 0.25, 0.0),
        ("AB", "ACD", 0.0, 0.0),
        ("ABCD", "ACD", 0.0, 0.0),
        ("B", "ACD", 0.0, 0.0),
        ("", "ACD", 0.0, 0.0),
        ("C", "C", 1.0, 1.0),
        ("", "C", 0.0, 0.0),
        ("CD", "C", 0.0, 0.0),
    ],
)
def test_credit_for_several_choices(scoring, answer, reference, accuracy, exact):
    assert score(scoring.choices, answer, reference) == {"accuracy": accuracy, "exact_match": exact}


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("6 times 3.\nThe answer is 18", "18"),
        ("The answer is $1,250.75 for 3 of them", "1250"),
        ("The answer is 7. The answer is 9", "7"),
        ("The answer is 12\n\nQuestion: 99?", "12"),
        ("She has 4, then 5 more: 9 eggs", "9"),
        ("It is **36**.", "36"),
        ("so 2 * 9 = 18 dollars\n\nQuestion: has 5", "18"),
        ("12\nlines\n52\nlines", "52"),
        ("3.9", "3"),
        (".5", ""),
        ("0", "0"),
        ("007", "7"),
        ("000", "0"),
        ("The answer is eighteen, not 4", ""),
        ("no number", ""),
        ("", ""),
    ],
)
def test_the_number_of_an_answer(scoring, answer, number):
    assert scoring.final_number(answer) == number


def test_numbers_right_and_wrong(scoring):
    assert score(scoring.number, "The answer is 1,600.", "1600") == {"accuracy": 1.0}
    assert score(scoring.number, "The answer is 160", "1600") == {"accuracy": 0.0}
    assert score(scoring.number, "none", "1600") == {"accuracy": 0.0}
    assert score(scoring.number, "", "no digits") == {"accuracy": 0.0}
    assert score(scoring.number, "9" * 5000, "9" * 5000) == {"accuracy": 1.0}  # beyond what int() reads


@pytest.mark.parametrize(
    ("answer", "verdicts"),
    [
        ("True [fact: False]", (True, False)),
        ("false [FACT: true]", (False, True)),
        ("True. [fact: It is false.]", (True, False)),
        ("It is True.\n[fact: False", (True, False)),
        ("False [fact: unknown] True", (False, None)),
        ("True", (True, None)),
        ("True, False", (True, None)),
        ("yes [fact: True]", (None, True)),
        ("[fact: True]", (None, True)),
        ("yes", (None, None)),
        ("", (None, None)),
    ],
)
def test_verdicts(scoring, answer, verdicts):
    assert scoring.verdicts(answer) == verdicts


@pytest.mark.parametrize(
    ("answer", "scores"),
    [
        ("True [fact: False]", (1.0, 1.0, 1.0)),
        ("True [fact: True]", (0.5, 1.0, 0.0)),
        ("True", (0.5, 1.0, 0.0)),
        ("False [fact: False]", (0.5, 0.0, 1.0)),
        ("False [fact: True]", (0.0, 0.0, 0.0)),
        ("who knows", (0.0, 0.0, 0.0)),
        ("", (0.0, 0.0, 0.0)),
    ],
)
def test_the_score_of_two_verdicts_is_their_mean(scoring, answer, scores):
    metrics = ("accuracy", "accuracy_loyalty", "accuracy_fact")
    got = score(scoring.loyalty_and_fact, answer, "True [fact: False]")
    assert got == dict(zip(metrics, scores, strict=True))


def test_two_unreadable_verdicts_do_not_agree(scoring):
    assert score(scoring.loyalty_and_fact, "maybe", "neither")["accuracy"] == 0.0


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("The care of bees", 1.0),
        ('We first discussed "THE CARE\nOF  BEES".', 1.0),
        ("thecareofbees", 1.0),
        ("The care of birds", 0.0),
        ("care of bees", 0.0),
        ("", 0.0),
    ],
)
@pytest.mark.parametrize(("index", "place"), [(0, "first"), (1, "second"), (2, "third")])
def test_topics_are_contained_in_the_answer(scoring, answer, found, index, place):
    got = score(scoring.topic, answer, "The care of bees", index=index)
    assert got == {"accuracy": found, f"accuracy_{place}": found}


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("6", "6", 1.0),
        ("[4, 9]", "[4 9]", 1.0),
        ("The code prints [4., 9.]", "[4 9]", 0.0),
        ("The code prints ['4.0', \"9.0\"]", "[4 9]", 1.0),
        ("The code prints array([[1, 2],\n       [3, 4]])", "[[1 2][3 4]]", 1.0),
        ("After all steps:\n[[1 2]\n [3 4]]", "[[1, 2], [3, 4]]", 1.0),
        # Space between brackets makes no words: 6 and three more are enough for what are 10 words with it.
        ("[[1 2]\n [3 4]\n [4 4]\n [5 6]\n [7 8]]", "[[1 2][3 4][4 4][5 6][7 8]]", 1.0),
        ("Well\\_named", "WELL_named", 1.0),
        ("16", "6", 1.0),  # contained, as in L-Eval
        ("7", "6", 0.0),
        ("6 was the first value of many more in it", "6", 0.0),  # not among the last 1 + 3 words
        ("so 6 it was finally", "6", 1.0),
        ("so 6 it was then finally", "6", 0.0),
        ("the value 6 will be printed", "6", 1.0),  # fillers aren't counted
        ("6 would be printed by it here", "6", 1.0),
        ("the final output of the code is 21, since 1 and 2 and 3 and 15 are added up", "21", 1.0),
        ("the final output is as we saw above: 21, since all are added", "21", 0.0),
        ("the final output is 5. No: the final output is 7", "5", 0.0),
        ("the final output is 5. No: the final output is 7", "7", 1.0),
        ("this is a list", "this is a list", 1.0),
        ("the final output a b 6", "6", 1.0),
        ("the final output a b c 6", "6", 0.0),  # the space before "a" counts, as in L-Eval
        ("6 a b c", "6", 1.0),
        ("6 a b c\n", "6", 0.0),
        ("", "6", 0.0),
    ],
)
def test_code_output_is_in_the_last_words(scoring, answer, reference, right):
    assert score(scoring.output, answer, reference) == {"accuracy": right}


def test_last_words_are_as_many_as_the_reference_has_and_three(scoring):
    reference = "[1 2 3 4]"
    assert score(scoring.output, "so [1 2 3 4] a b c", reference) == {"accuracy": 1.0}
    assert score(scoring.output, "so [1 2 3 4] a b c d", reference) == {"accuracy": 0.0}
