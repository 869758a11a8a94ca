"""lm-eval tasks over data in memory: its stock definitions, and small ones made up for a test."""

from __future__ import annotations

from pathlib import Path

from tiny import make_text

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def dataset(splits):
    import datasets

    return datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in splits.items()})


def task_of(config, **splits):
    """A task of an lm-eval configuration over rows, by split."""
    from lm_eval.api.task import ConfigurableTask

    held = dataset(splits)
    rest = {key: value for key, value in config.items() if key not in ("tag", "dataset_path", "dataset_name", "group")}
    return ConfigurableTask(config=rest | {"custom_dataset": lambda **_: held})


def stock(path, **splits):
    """A stock task, `path` below lm-eval's tasks, with rows in place of its data set."""
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    return task_of(load_yaml(Path(lm_eval.tasks.__file__).parent / path), **splits)


def arc_easy(num=6, words=25):
    rows = []
    for seed in range(num):
        texts = [make_text(1 + (seed + place) % 3, seed=100 * seed + place) for place in range(3)]
        rows.append(
            {
                "id": str(seed),
                "question": make_text(words, seed),
                "choices": {"text": texts, "label": ["A", "B", "C"]},
                "answerKey": "ABC"[seed % 3],
            }
        )
    return stock("arc/arc_easy.yaml", train=rows, validation=rows, test=rows)


def gsm8k(num=4):
    rows = [{"question": make_text(8, seed), "answer": f"{make_text(5, seed)}\n#### {seed}"} for seed in range(num + 6)]
    task = stock("gsm8k/gsm8k.yaml", train=rows[num:], test=rows[:num])
    task.set_config("num_fewshot", 2)
    task.set_config("generation_kwargs", {"max_gen_toks": 12}, update=True)
    return task


def lambada(num=5):
    return stock("lambada/lambada_openai.yaml", test=[{"text": make_text(12, seed)} for seed in range(num)])


def wikitext(num=2, words=70):
    pages = [{"page": f" = {make_text(2, seed)} = \n {make_text(words, seed)} \n"} for seed in range(num)]
    return stock("wikitext/wikitext.yaml", train=pages, validation=pages, test=pages)


def reading(rows=None, **changes):
    """A question about a document, with choices; `changes` are keys of its configuration."""
    config = {
        "task": "reading",
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "Read this.\n{{document}}\nQuestion: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    return task_of(config | changes, test=rows or [reading_row(seed) for seed in range(4)])


def reading_row(seed, words=60, **more):
    return {
        "document": make_text(words, seed),
        "question": f"what {seed}?",
        "choices": ["yes", "no it does not", "the report"],
        "gold": seed % 3,
        **more,
    }


def answering(rows, **changes):
    """A question about a document, with a generated answer."""
    config = {
        "task": "answering",
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": "Read this.\n{{document}}\nQuestion: {{question}}\nAnswer:",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    return task_of(config | changes, test=rows)


def answering_row(seed, words=60, **more):
    return {"document": make_text(words, seed), "question": f"what {seed}?", "answer": f"a{seed}", **more}
