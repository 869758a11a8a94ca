"""What the prompts say: needles where they belong, answers that follow from the text and from nothing else."""

import collections
import itertools
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_settings import DEPTHS, HAYSTACK, TASKS, Counter, body_of, filler, make_rows, make_setting, rows_of

from longeval.errors import LongEvalError

SINGLE = ("passkey", "niah_single", "niah_multi_key", "kv_retrieval")
NEEDLE = re.compile(r"The secret number of the (\w+ \w+) is (\d{7})\.")


def occurrences(text, answer):
    return [match.start() for match in re.finditer(rf"(?<!\w){re.escape(answer)}(?!\w)", text)]


def hidden_sentences(task):
    return re.compile(r" ?The pass key is \d{5}\.") if task == "passkey" else re.compile(r"\s?" + NEEDLE.pattern)


@pytest.mark.parametrize("task", TASKS)
def test_samples_depend_on_seed_and_index_alone(task):
    short, long, few = rows_of(task, 1024, 4), rows_of(task, 4096, 4), rows_of(task, 1024, 2)
    assert few == short[:2] == make_rows(task, make_setting(length=1024, num_samples=2))
    for key in ("index", "question", "answers", "target", *(["depth"] if task in DEPTHS else [])):
        assert [row[key] for row in short] == [row[key] for row in long], key
    assert len({str(row["answers"]) for row in short}) == 4
    others = make_rows(task, make_setting(length=1024, num_samples=4, seed=6))
    assert all(row["answers"] != other["answers"] for row, other in zip(short, others, strict=True))


def test_a_seed_means_the_same_samples_on_every_machine():
    """Written down: a change here makes published numbers of these tasks another task's, and needs a new VERSION."""
    assert [row["target"] for row in rows_of("passkey")[:3]] == ["29325", "27243", "31756"]
    assert rows_of("niah_single")[0]["target"] == "4537892"
    assert rows_of("variable_tracking")[0]["target"] == "ZPVGZ, FNSDV, CIXIQ, YOWQL, YSMJC"
    assert rows_of("frequent_words")[0]["target"] == "zekipi, sopipi, satubu"
    assert body_of(rows_of("niah_single")[1])[1].startswith(
        "A light rain starts again after a long day. A tired farmer"
    )


@pytest.mark.parametrize("task", TASKS)
def test_instruction_first_question_last_and_the_answer_in_between(task):
    instructions = set()
    for row in rows_of(task):
        instruction, body = body_of(row)
        instructions.add(instruction)
        assert row["target"] == ", ".join(row["answers"])
        assert len(set(row["answers"])) == len(row["answers"]) == (1 if task in SINGLE else len(row["answers"]))
        for answer in row["answers"]:
            assert occurrences(body, answer)
            assert not occurrences(instruction + row["question"], answer)
    assert len(instructions) == 1


@pytest.mark.parametrize(
    ("task", "least"),
    # Needles at other depths stand further in front.
    [
        *dict.fromkeys(("passkey", "niah_single", "kv_retrieval"), 0.5).items(),
        *dict.fromkeys(("niah_multi_key", "niah_multi_value", "niah_multi_query", "variable_tracking"), 0.02).items(),
    ],
)
def test_samples_share_the_beginning_up_to_what_differs(task, least):
    late = [row["input"] for row in rows_of(task) if row.get("depth", 1) >= 0.5]
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(min(late), max(late), strict=False))
    assert len(list(same)) >= least * len(late[0])


@pytest.mark.parametrize("length", [512, 2048])
@pytest.mark.parametrize("task", ["passkey", *HAYSTACK])
def test_needles_stand_once_and_at_their_depth(task, length):
    rows = make_rows(task, make_setting(Counter("words"), length=length, num_samples=10))
    for row in rows:
        _, body = body_of(row)
        for answer in row["answers"]:
            assert len(occurrences(row["input"], answer)) == 1
        sentences = list(hidden_sentences(task).finditer(body))
        assert len(sentences) == {"passkey": 1, "niah_single": 1}.get(task, 4)
        bare = hidden_sentences(task).sub("", body).strip()
        (asked,) = [match for match in sentences if row["answers"][0] in match.group()]
        before = hidden_sentences(task).sub("", body[: asked.start()]).strip()
        assert len(before) / len(bare) == pytest.approx(row["depth"], abs=0.02)
        assert (row["depth"] == 0) == (before == "")
        assert (row["depth"] == 1) == body.endswith(asked.group())
        assert "  " not in body


@pytest.mark.parametrize(("task", "num_asked"), [("niah_single", 1), ("niah_multi_key", 1), ("niah_multi_query", 4)])
def test_the_numbers_of_the_owners_asked_for_are_the_answers(task, num_asked):
    for row in rows_of(task):
        numbers = dict(NEEDLE.findall(row["input"]))
        asked = re.findall(r"the ([a-z]+ [a-z]+)(?=[?,.]| and the)", row["question"])
        assert len(asked) == num_asked
        assert [numbers[owner] for owner in asked] == row["answers"]


def test_all_numbers_of_the_one_owner_are_the_answers():
    for row in rows_of("niah_multi_value"):
        owners, numbers = zip(*NEEDLE.findall(row["input"]), strict=True)
        (owner,) = set(owners)
        assert owner in row["question"]
        assert len(numbers) == len(row["answers"]) and set(numbers) == set(row["answers"])


def test_the_filler_under_the_needles_is_whole():
    """Without its needles a prompt is the beginning of the filler, ended as a sentence."""
    noise = filler.noise("niah_multi_value", make_setting(length=2048))
    for row in rows_of("niah_multi_value"):
        bare = hidden_sentences("niah_multi_value").sub("", body_of(row)[1]).strip()
        assert bare.endswith(".")
        assert noise.text.startswith(bare[:-1])


def test_other_needles_are_spread_over_the_text():
    for row in rows_of("niah_multi_key", 4096, 4):
        body = body_of(row)[1]
        starts = sorted(match.start() / len(body) for match in NEEDLE.finditer(body))
        gaps = [after - before for before, after in itertools.pairwise(starts)]
        assert min(gaps) > 0.15


def test_key_value_pairs_are_json_with_the_asked_one_at_its_depth():
    objects = []
    for row in rows_of("kv_retrieval", 4096):
        text, rest = body_of(row)[1].split("\n}")
        assert len(rest) < 3 * 80, "words only fill what no pair fits into"
        pairs = json.loads(text + "\n}", object_pairs_hook=list)
        keys, values = zip(*pairs, strict=True)
        assert len({*keys, *values}) == 2 * len(pairs) > 80
        (key,) = re.findall(r'"([0-9a-f-]{36})"', row["question"])
        where = keys.index(key)
        assert values[where] == row["answers"][0]
        assert where / (len(pairs) - 1) == pytest.approx(row["depth"], abs=0.02)
        objects.append([pair for pair in pairs if pair[0] != key])
    assert all(pairs[:50] == objects[0][:50] for pairs in objects)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=8, deadline=None)
def test_variables_that_an_interpreter_finds_are_the_answer(seed):
    (row,) = make_rows("variable_tracking", make_setting(Counter("words"), length=1024, num_samples=1, seed=seed))
    values, hops, order = {}, {}, []
    for name, value in re.findall(r"Let ([A-Z]{5}) = (\w+)\.", row["input"]):
        assert name not in values
        assert value.isdigit() == (value not in values)
        values[name] = value if value.isdigit() else values[value]
        hops[name] = 0 if value.isdigit() else hops[value] + 1
        order.append(name)
    (asked,) = re.findall(r"\d{5}", row["question"])
    assert [name for name in order if values[name] == asked] == row["answers"]
    assert [hops[name] for name in row["answers"]] == [0, 1, 2, 3, 4]
    assert len(values) == 10
    assert len(set(values.values())) == 2


def test_variables_are_spread_over_the_text():
    for row in rows_of("variable_tracking", 4096, 4):
        body = body_of(row)[1]
        places = [occurrences(body, name)[0] / len(body) for name in row["answers"]]
        for hop, place in enumerate(places):
            assert hop / 5 - 0.03 <= place <= (hop + 1) / 5 + 0.03


@given(length=st.integers(600, 5000), seed=st.integers(0, 2**32))
@settings(max_examples=8, deadline=None)
def test_frequent_words_are_those_that_counting_finds(length, seed):
    (row,) = make_rows("frequent_words", make_setting(Counter("words"), length=length, num_samples=1, seed=seed))
    listed = body_of(row)[1].split(" ")
    counts = collections.Counter(listed)
    ranked = [word for word, _ in counts.most_common()]
    assert ranked[:3] == row["answers"]
    assert len({counts[word] for word in ranked[:3]}) == 3
    assert counts[ranked[2]] > counts[ranked[3]]
    assert all(re.fullmatch(r"([bdfgklmnprstvz][aeiou]){3}", word) for word in counts)
    share = sum(rank**-2.0 for rank in range(1, 501))
    for rank in range(1, 4):
        # The share itself, but for what the others' random places shift the end by: that grows with the list.
        assert counts[row["answers"][rank - 1]] == pytest.approx(len(listed) * rank**-2.0 / share, rel=0.02, abs=8)


def test_the_shortest_list_has_an_answer_of_its_own():
    for row in make_rows("frequent_words", make_setting(Counter("words"), length=190, num_samples=20)):
        ranked = collections.Counter(body_of(row)[1].split(" ")).most_common()
        assert 80 <= sum(count for _, count in ranked) < 110
        assert ranked[2][1] > ranked[3][1]
    with pytest.raises(LongEvalError, match="frequent_words"):
        make_rows("frequent_words", make_setting(Counter("words"), length=150, num_samples=1))


@pytest.fixture
def document(tmp_path):
    path = tmp_path / "tale.txt"
    lines = [f"Line {number} of a tale, which goes on." for number in range(60)]
    path.write_text("\r\n".join(lines) + "\n\n\n", newline="", encoding="utf-8")
    return path


def test_documents_are_the_haystack_and_start_again_when_they_run_out(document):
    rows = make_rows("niah_single", make_setting(length=4096, num_samples=4, haystack=str(document)))
    for row in rows:
        body = hidden_sentences("niah_single").sub("", body_of(row)[1]).strip()
        text = document.read_text(encoding="utf-8").strip() + "\n\n"
        assert (text * 9).startswith(body)
        assert row["haystack_repeats"] == (len(body) - 1) // len(text) > 0
        # Between two lines, on a line of its own.
        lines = [line for line in body_of(row)[1].split("\n") if "secret" in line]
        assert len(lines) == 1
        assert re.fullmatch(NEEDLE.pattern, lines[0]) or row["depth"] in (0, 1)


def test_documents_that_are_just_used_up_have_not_started_again():
    text = "One tale.\n\n"
    twice = filler.Filler(text=text * 3, period=len(text), digest="d")
    assert [twice.repeats(end) for end in (0, 1, len(text), len(text) + 1, 2 * len(text) + 1)] == [0, 0, 0, 1, 2]


def test_text_without_blanks_is_a_haystack_too(tmp_path):
    path = tmp_path / "日本.txt"
    path.write_text("日本語の文章には空白がない。" * 400, encoding="utf-8")
    for row in make_rows("niah_single", make_setting(length=2048, num_samples=4, haystack=str(path))):
        assert 0.99 * 2048 <= row["tokens"] + 32 <= 2048
        assert len(occurrences(row["input"], row["answers"][0])) == 1


def test_a_haystack_that_is_unknown_or_without_text_is_refused(tmp_path):
    path = tmp_path / "blank.jsonl"
    path.write_text('{"text": " \\n "}\n', encoding="utf-8")
    for haystack in (str(path), "nowhere"):
        with pytest.raises(LongEvalError, match=re.escape(haystack)):
            make_rows("niah_single", make_setting(haystack=haystack))


def test_noise_has_no_digits_and_none_of_the_words_that_needles_have():
    text = filler.noise("passkey", make_setting(length=8192)).text
    assert not re.search(r"\d|secret|pass key|number|[A-Z]{2}", text)
    niah = set(re.findall(r"the (\w+) (\w+) is \d", " ".join(row["input"] for row in rows_of("niah_multi_query"))))
    assert not {word for pair in niah for word in pair} & set(re.findall(r"\w+", text))
    sentences = [sentence for sentence in text.split(". ") if sentence]
    assert len(set(sentences)) > 0.8 * len(sentences), "repeated noise can be told apart by its period"
