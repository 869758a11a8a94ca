"""Each rule of L-Eval's closed-ended tasks, on answers of our own: right, wrong, and as models really write them."""

import pytest


@pytest.fixture(scope="module")
def scoring(module_of):
    return module_of("scoring")


@pytest.mark.parametrize(
    ("reader", "answer", "read"),
    [
        ("reference_letters", "(B) They hid it.", {"B"}),
        ("reference_letters", "ACD", {"A", "C", "D"}),
        ("reference_letters", "C) Dogs and Cats", {"C"}),
        ("chosen_letter", " C\n", "C"),
        ("chosen_letter", "it is C, not D", "C"),
        ("chosen_letter", "Because of rain: C", "B"),  # crude, and as published scores were made
        ("chosen_letter", "b, or none of them", "A"),
        ("chosen_letter", " \n", ""),
        ("chosen_letters", "DCA", {"A", "C", "D"}),
        ("chosen_letters", "BB", {"B"}),
        ("chosen_letters", "BC and A) too", {"B", "C"}),
        ("chosen_letters", "B. To see the world", {"B"}),
        ("chosen_letters", "A) one\nC) three", {"A", "C"}),
        ("chosen_letters", "The options are B and D.", {"B", "D"}),
        ("chosen_letters", "The answer is (C)", {"C"}),
        ("chosen_letters", "The answer is C", {"A"}),  # nothing stands after the C
        ("chosen_letters", "A) one\nQuestion 2. C) three", {"A"}),
        ("chosen_letters", "C] [B]", {"C"}),
        ("chosen_letters", "E. all of them", {"A"}),
        ("chosen_letters", " \n ", set()),
        ("final_number", "6 times 3.\nThe answer is 18", "18"),
        ("final_number", "The answer is $1,250.75 for 3 of them", "1250"),
        ("final_number", "The answer is 7. The answer is 9", "7"),
        ("final_number", "She has 4, then 5 more: **9** eggs\n\nQuestion: has 5", "9"),
        ("final_number", "12\nlines\n52\nlines", "52"),
        ("final_number", ".5", ""),
        ("final_number", "007", "7"),
        ("final_number", "000", "0"),
        ("final_number", "The answer is eighteen, not 4", ""),
        ("final_number", "no number", ""),
        ("verdicts", "false [FACT: true]", (False, True)),
        ("verdicts", "It is True.\n[fact: It is false", (True, False)),
        ("verdicts", "False [fact: unknown] True", (False, None)),
        ("verdicts", "True, False", (True, None)),
        ("verdicts", "yes [fact: True]", (None, True)),
        ("verdicts", "", (None, None)),
    ],
)
def test_what_is_read_from_an_answer(scoring, reader, answer, read):
    assert getattr(scoring, reader)(answer) == read


METRICS = {
    "choice": ["accuracy"],
    "choices": ["accuracy", "exact_match"],
    "number": ["accuracy"],
    "loyalty_and_fact": ["accuracy", "accuracy_loyalty", "accuracy_fact"],
    "output": ["accuracy"],
}


@pytest.mark.parametrize(
    ("rule", "answer", "reference", "values"),
    [
        ("choice", "(B) no", "(B) They hid it.", [1.0]),
        ("choice", "A", "(B) A thing", [0.0]),
        ("choice", "A", "AB", [0.0]),
        ("choice", "no letter", "A", [1.0]),
        ("choice", "", "A", [0.0]),
        ("choices", "DA", "AD", [1.0, 1.0]),
        ("choices", "AC", "ACD", [0.25, 0.0]),
        ("choices", "no letter", "AB", [0.25, 0.0]),
        ("choices", "AB", "ACD", [0.0, 0.0]),
        ("choices", "ABCD", "ACD", [0.0, 0.0]),
        ("choices", "", "C", [0.0, 0.0]),
        ("number", "The answer is 1,600.", "1600", [1.0]),
        ("number", "The answer is 160", "1600", [0.0]),
        ("number", "", "no digits", [0.0]),
        ("number", "9" * 5000, "9" * 5000, [1.0]),  # beyond what int() reads
        ("loyalty_and_fact", "True [fact: False]", "True [fact: False]", [1.0, 1.0, 1.0]),
        ("loyalty_and_fact", "True [fact: True]", "True [fact: False]", [0.5, 1.0, 0.0]),
        ("loyalty_and_fact", "False [fact: False]", "True [fact: False]", [0.5, 0.0, 1.0]),
        ("loyalty_and_fact", "maybe", "neither", [0.0, 0.0, 0.0]),
        ("output", "The code prints ['4.0', \"9.0\"]", "[4 9]", [1.0]),
        ("output", "The code prints [4., 9.]", "[4 9]", [0.0]),
        ("output", "The code prints array([[1, 2],\n       [3, 4]])", "[[1 2][3 4]]", [1.0]),
        ("output", "After all steps:\n[[1 2]\n [3 4]]", "[[1, 2], [3, 4]]", [1.0]),
        # Space between brackets makes no words: 6 and three more are enough for what are 10 words with it.
        ("output", "[[1 2]\n [3 4]\n [4 4]\n [5 6]\n [7 8]]", "[[1 2][3 4][4 4][5 6][7 8]]", [1.0]),
        ("output", "Well\\_named", "WELL_named", [1.0]),
        ("output", "16", "6", [1.0]),  # contained, as in L-Eval
        ("output", "7", "6", [0.0]),
        ("output", "so [1 2 3 4] a b c", "[1 2 3 4]", [1.0]),  # among the last 4 + 3 words
        ("output", "so [1 2 3 4] a b c d", "[1 2 3 4]", [0.0]),
        ("output", "6 a b c\n", "6", [0.0]),  # the space at the end counts, as in L-Eval
        ("output", "6 would be printed by it here", "6", [1.0]),  # fillers aren't counted
        ("output", "the final output of the code is 21, since 1 and 2 and 3 and 15 are added up", "21", [1.0]),
        ("output", "the final output is as we saw above: 21, since all are added", "21", [0.0]),
        ("output", "the final output is 5. No: the final output is 7", "5", [0.0]),
        ("output", "the final output is 5. No: the final output is 7", "7", [1.0]),
        ("output", "the final output a b 6", "6", [1.0]),
        ("output", "the final output a b c 6", "6", [0.0]),  # the space before "a" counts, as in L-Eval
        ("output", "this is a list", "this is a list", [1.0]),
        ("output", "", "6", [0.0]),
    ],
)
def test_what_an_answer_scores(scoring, rule, answer, reference, values):
    scores = getattr(scoring, rule)({"reference": reference}, [answer])
    assert scores == dict(zip(METRICS[rule], values, strict=True))


@pytest.mark.parametrize(
    ("answer", "index", "scores"),
    [
        ('We first discussed "THE CARE\nOF  BEES".', 0, {"accuracy": 1.0, "accuracy_first": 1.0}),
        ("thecareofbees", 1, {"accuracy": 1.0, "accuracy_second": 1.0}),
        ("care of bees", 2, {"accuracy": 0.0, "accuracy_third": 0.0}),
        ("", 2, {"accuracy": 0.0, "accuracy_third": 0.0}),
    ],
)
def test_topics_are_contained_in_the_answer(scoring, answer, index, scores):
    assert scoring.topic({"reference": "The care of bees", "index": index}, [answer]) == scores
