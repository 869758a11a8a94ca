"""The tasks through lm-eval itself: names, prompts, requests, and scores of scripted answers from end to end."""

import os
import shutil
from pathlib import Path

import pytest
import yaml

TASKS = Path(__file__).parents[2] / "tasks" / "leval"
EXAM = {
    "leval_coursera": "coursera",
    "leval_gsm100": "gsm100",
    "leval_quality": "quality",
    "leval_toefl": "tpo",
    "leval_codeu": "codeU",
    "leval_sfiction": "sci_fi",
    "leval_topic_retrieval": "topic_retrieval_longchat",
}
ANSWERS = ["financial_qa", "legal_contract_qa", "multidoc_qa", "narrative_qa", "natural_question", "scientific_qa"]
SUMMARIES = [
    "gov_report_summ",
    "meeting_summ",
    "news_summ",
    "paper_assistant",
    "patent_summ",
    "review_summ",
    "tv_show_summ",
]
RULES = (
    {task: (file, "exam") for task, file in EXAM.items()}
    | {f"leval_{file}": (file, "f1") for file in ANSWERS}
    | {f"leval_{file}": (file, "rouge") for file in SUMMARIES}
)
METRICS = {
    "exam": ["accuracy"],
    "f1": ["f1"],
    "rouge": ["rouge_l", "rouge1", "rouge2"],
    "leval_coursera": ["accuracy", "exact_match"],
    "leval_sfiction": ["accuracy", "accuracy_loyalty", "accuracy_fact"],
    "leval_topic_retrieval": ["accuracy", "accuracy_first", "accuracy_second", "accuracy_third"],
}
DOCUMENT = "Bees {{live}} in hives.\n\n" + "They dance [1, 2] to tell the way. " * 30 + "So it ends."


def evaluate(names, answer):
    """lm-eval's own evaluation of the tasks, with a model that answers by a function of the prompt."""
    import lm_eval
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    class Scripted(LM):
        def generate_until(self, requests, disable_tqdm=False):
            return [answer(request.args[0]) for request in requests]

        def loglikelihood(self, requests, disable_tqdm=False):
            raise AssertionError

        loglikelihood_rolling = loglikelihood

    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    return lm_eval.simple_evaluate(model=Scripted(), tasks=names, task_manager=manager, bootstrap_iters=0)["results"]


def test_groups_and_tasks_are_found():
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    assert set(manager.all_groups) == {"leval", "leval_open"}
    assert set(manager.all_subtasks) == set(RULES)
    groups = {name: yaml.safe_load((TASKS / f"{name}.yaml").read_text()) for name in manager.all_groups}
    assert groups["leval"]["task"] == list(EXAM)
    assert set(groups["leval_open"]["task"]) == set(RULES) - set(EXAM)
    published = [task for task in EXAM if task != "leval_topic_retrieval"]
    assert groups["leval"]["metadata"]["average_over"] == published


@pytest.mark.parametrize("name", RULES)
def test_a_prompt_is_instruction_document_question(name, write, load_task):
    file, evaluation = RULES[name]
    write(file, [(DOCUMENT, [("What is asked first?", "A thing of note"), ("And second?", "B")])], evaluation)
    task = load_task(name)
    first, second = (task.fewshot_context(doc, 0) for doc in task.eval_docs)
    assert first.count(DOCUMENT) == 1
    before, after = first.split(DOCUMENT)
    assert before.count("\n") >= 3
    assert "What is asked first?" in after
    assert "thing of note" not in first
    assert second.startswith(before + DOCUMENT)  # what questions of one document share
    assert "And second?" in second
    if evaluation == "exam":
        assert "words" not in after
    else:
        assert "about 4 words." in first
        assert ("about 1 word." if evaluation == "f1" else "about 1 words.") in second
    assert task.doc_to_target(task.eval_docs[0]) == "A thing of note"


@pytest.mark.parametrize("name", RULES)
def test_requests_and_metadata(name, write, load_task):
    file, evaluation = RULES[name]
    write(file, [(DOCUMENT, [("Q?", "[1, 2]")])], evaluation)
    task = load_task(name)
    task.build_all_requests()
    (instance,) = task.instances
    assert instance.args[1] == {"do_sample": False, "max_gen_toks": 512, "until": []}
    assert task.doc_to_target(instance.doc) == "[1, 2]"  # text, not the list it looks like
    metadata = task.config.metadata
    assert (task.config.num_fewshot, metadata["prompts"], metadata["version"]) == (0, "own", 1)
    assert f"{file}.jsonl" in metadata["needs"]
    assert "LONGEVAL_DATA" in metadata["needs"]
    assert metadata["description"].count("\n") == 0
    metrics = list(task.aggregation())
    assert metrics == METRICS.get(name, METRICS[evaluation]) and metadata["primary"] == metrics[0]
    assert all(task.higher_is_better().values())
    assert metadata["document"] in task.features
    # The 100 problems of gsm100 share worked examples, not a text that they are about.
    assert metadata.get("cluster") == (None if name == "leval_gsm100" else "document_id")


@pytest.mark.parametrize(
    ("name", "answers", "values"),
    [
        ("leval_quality", {"(B) Bees": "B", "(C) All": "B"}, [[1.0], [0.0]]),
        ("leval_toefl", {"(B) Bees": "B", "(C) All": "B"}, [[1.0], [0.0]]),
        ("leval_coursera", {"AB": "AB", "BC": "B", "D": "D."}, [[1.0, 1.0], [0.25, 0.0], [1.0, 1.0]]),
        ("leval_gsm100", {"1600": "So.\nThe answer is 1,600.", "7": "8"}, [[1.0], [0.0]]),
        ("leval_codeu", {"[1 2]": "It prints [1.0, 2.0]", "[1 4]": "[1 3]"}, [[1.0], [0.0]]),
        (
            "leval_sfiction",
            {"True [fact: False]": "True [fact: False]", "False [fact: False]": "True [fact: False]"},
            [[1.0, 1.0, 1.0], [0.5, 0.0, 1.0]],
        ),
        ("leval_narrative_qa", {"in a hive": "In the hive.", "honey": "wax"}, [[1.0], [0.0]]),
        ("leval_news_summ", {"bees live in hives": "Bees live in trees"}, [[0.75, 0.75, 2 / 3]]),
    ],
)
def test_scores_of_answers(name, answers, values, write, load_task, scores_of):
    file, evaluation = RULES[name]
    write(file, [(DOCUMENT, [("Q?", reference) for reference in answers])], evaluation)
    metrics = METRICS.get(name, METRICS[evaluation])
    expected = [pytest.approx(dict(zip(metrics, row, strict=True))) for row in values]
    assert scores_of(load_task(name), list(answers.values())) == expected


def test_a_problem_is_answered_on_a_line_of_its_own(write, load_task):
    write("gsm100", [(DOCUMENT, [("Q?", "1600")])])
    task = load_task("leval_gsm100")
    assert task.fewshot_context(task.eval_docs[0], 0).endswith("Q?\n")


@pytest.mark.parametrize(
    ("question", "statement"),
    [
        ("3.\tBees can talk, True or False? Judge by the text.", "Bees can talk"),
        ("Question12:  Bees number 3.5 million., True or False?  Judge, True or False?", "Bees number 3.5 million"),
        ("5 bees can talk.", "5 bees can talk."),
    ],
)
def test_a_statement_is_bare(write, load_task, question, statement):
    write("sci_fi", [(DOCUMENT, [(question, "True [fact: False]")])])
    task = load_task("leval_sfiction")
    after = task.fewshot_context(task.eval_docs[0], 0).split(DOCUMENT)[1]
    assert f"\n\nStatement: {statement}\n\n" in after


def test_topics_by_place_in_lm_evals_own_evaluation(write):
    asked = [(f"Which was the {place} topic?", place) for place in ("first", "second", "third")]
    write("topic_retrieval_longchat", [(DOCUMENT, asked), (DOCUMENT[:-1], asked)])

    def answer(prompt):
        if "first topic" in prompt:
            return "The FIRST."
        return "second" if "second topic" in prompt and DOCUMENT in prompt else "no idea"

    scores = evaluate(["leval_topic_retrieval"], answer)["leval_topic_retrieval"]
    got = [scores[f"{metric},none"] for metric in METRICS["leval_topic_retrieval"]]
    assert got == [0.5, 1.0, 0.5, 0.0]


def test_a_group_runs_where_all_files_are_there(write):
    for file in EXAM.values():
        write(file, [(DOCUMENT, [("Q?", "B"), ("Q?", "C"), ("Q?", "2")])])
    results = evaluate(["leval"], lambda _: "B")
    assert set(EXAM) <= set(results)
    assert results["leval_quality"]["accuracy,none"] == pytest.approx(1 / 3)
    assert "accuracy,none" not in results["leval"]  # its average is longeval's: null while a task is missing


def test_the_folder_works_from_another_place(write, load_task, tmp_path, scores_of):
    folder = tmp_path / "_tasks" / "leval"
    shutil.copytree(TASKS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    write("quality", [(DOCUMENT, [("Q?", "B")])])
    task = load_task("leval_quality", folder)
    assert task.config.process_results.__code__.co_filename.startswith(str(tmp_path))
    assert scores_of(task, ["B"]) == [{"accuracy": 1.0}]


real = pytest.mark.skipif(
    not os.path.isdir(os.path.join(os.environ.get("LONGEVAL_DATA", ""), "leval")),
    reason="needs LONGEVAL_DATA with leval/",
)
COUNTS = {
    "leval_coursera": (172, 15),
    "leval_gsm100": (100, 1),
    "leval_quality": (202, 15),
    "leval_toefl": (269, 15),
    "leval_sfiction": (64, 7),
    "leval_topic_retrieval": (150, 50),
    "leval_gov_report_summ": (13, 13),  # of 14: one is for judges, as L-Eval's own count of 13 says
}


@real
@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_real_files(name, load_task, scores_of):
    task = load_task(name)
    docs = task.eval_docs
    assert (len(docs), len(set(docs["document_id"]))) == COUNTS[name]
    scores = scores_of(task, docs["reference"][:])
    for metric in task.aggregation():
        own = [sample[metric] for sample in scores if metric in sample]
        assert own == pytest.approx([1.0] * len(own)), metric
        assert own
    for instance in task.instances:
        assert instance.args[0].count(instance.doc["document"]) == 1


@real
@pytest.mark.slow
def test_real_questions_are_what_the_prompts_take_them_for(load_task):
    for doc in load_task("leval_topic_retrieval").eval_docs:
        assert ("first", "second", "third")[doc["index"]] in doc["question"]
    for doc in load_task("leval_gsm100").eval_docs:
        assert doc["question"].endswith("step by step")
    task = load_task("leval_sfiction")
    for doc in task.eval_docs:
        after = task.fewshot_context(doc, 0).split(doc["document"])[1]
        assert "True or False" not in after
        assert "Question" not in after


@real
@pytest.mark.slow
def test_real_coursera_scores_of_guessing(load_task, scores_of):
    """What `chance` in coursera.yaml says."""
    task = load_task("leval_coursera")
    num_samples = len(task.eval_docs)
    by_letter = {
        letter: sum(s["accuracy"] for s in scores_of(task, [letter] * num_samples)) / num_samples for letter in "ABCD"
    }
    assert by_letter["A"] == pytest.approx(task.config.metadata["chance"], abs=0.005)
    assert sum(by_letter.values()) / 4 == pytest.approx(0.21, abs=0.005)
