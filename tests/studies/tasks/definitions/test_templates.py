"""Templates of task files: what they may do, how long they may take, and that lm-eval's own render as before."""

import threading
import time
from pathlib import Path

import pytest
import yaml
from task_files import task, write

from longeval.errors import LongEvalError
from longeval.studies.tasks.definitions import templates
from longeval.studies.tasks.definitions.load import load_task
from longeval.studies.tasks.definitions.templates import TemplateError, apply_template


@pytest.fixture(autouse=True)
def soon_over(monkeypatch):
    monkeypatch.setattr(templates, "SECONDS", 0.1)
    monkeypatch.setattr(templates, "MEMORY_BYTES", 64 << 20)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{text}}\n", "Say 1.\n"),
        ("{% for i in range(3) %}{{ loop.index }}{% endfor %}", "123"),
        ("{{ text|regex_replace('[0-9]', 'x') }}", "Say x."),
        ("{{ ['a', 'b'].index('b') }}{{ text.split(' ')|join('-') }}", "1Say-1."),
        ("{% set n = namespace(x=1) %}{% for i in range(4) %}{% set n.x = n.x * 2 %}{% endfor %}{{ n.x }}", "16"),
    ],
)
def test_what_a_template_makes(template, text):
    assert apply_template(template, {"text": "Say 1."}) == text


CODE = [
    "{{ cycler.__init__.__globals__.os.system('touch ' ~ marker) }}",
    "{{ text|attr('__class__') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    '{{ "{0.__class__}".format(text) }}',
    "{{ ''['format']('{0.__class__}', text)['__class__'] }}",
    "{% include marker %}",
    "{% set x = [].append(1) %}",
]


@pytest.mark.parametrize("template", CODE)
def test_no_template_reaches_python_or_files(template, tmp_path):
    with pytest.raises(TemplateError):
        apply_template(template, {"text": "a", "marker": str(tmp_path / "marker")})
    assert list(tmp_path.iterdir()) == []


ENDLESS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f(x) %}{{ f(x + 1) ~ f(x + 1) if x < 60 else '' }}{% endmacro %}{{ f(1) }}",
    "{{ lipsum(n=10**9) }}",
    # Constant: jinja itself computes it in advance, and takes an exception for "can't be computed in advance".
    "{{ ('a' * 40 ~ '!')|regex_replace('(a+)+$', '') }}",
    "{{ (text * 40 ~ '!')|regex_replace('(a+)+$', '') }}",
]
LARGE = [
    "{{ 'a' * 3000000000 }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ '{:1000000000d}'.format(1) }}",
    "{{ text|indent(1000000000) }}",
    "{% set n = namespace(x=text) %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
]
WRONG = [
    ("{{ reply }}", "'reply' is undefined"),
    ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ("{{ text", "unexpected end of template"),
    ("{{ text|nofilter }}", "No filter named"),
    ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "RecursionError"),
    ("{{ 2 ** 40000 }}", "ValueError"),
    ("{% for i in range(10 ** 12) %}{% endfor %}", "OverflowError"),
]


@pytest.mark.parametrize(
    ("template", "reason"),
    [*((text, "after 0.1 s") for text in ENDLESS), *((text, "MiB of memory") for text in LARGE), *WRONG],
)
def test_each_fault_has_its_reason(template, reason):
    with pytest.raises(TemplateError, match=reason):
        apply_template(template, {"text": "a"})
    assert apply_template("{{text}}", {"text": "a" * 10**7}) == "a" * 10**7  # the bounds are gone again


def test_a_text_may_not_be_longer_than_any_window(monkeypatch):
    monkeypatch.setattr(templates, "CHARACTERS", 10)
    assert apply_template("{{ text * 5 }}", {"text": "ab"}) == "ab" * 5
    with pytest.raises(TemplateError, match="more than 10 characters"):
        apply_template("{{ text * 5 ~ 'c' }}", {"text": "ab"})


def test_outside_the_main_thread_templates_are_rendered_too():
    made = []
    thread = threading.Thread(target=lambda: made.append(apply_template("{{text}}", {"text": "a"})))
    thread.start()
    thread.join()
    assert made == ["a"]


@pytest.mark.parametrize(
    ("old", "key", "template"),
    [
        ('doc_to_text: "{{text}}"', "doc_to_text", CODE[0]),
        ('doc_to_target: "{{answer}}"', "doc_to_target", WRONG[2][0]),
    ],
)
def test_a_wrong_template_is_named_with_file_line_and_key(tmp_path, old, key, template):
    text = task(tmp_path, "mine")
    line = 1 + text[: text.index(old)].count("\n")
    folder = write(tmp_path / "tasks", mine=text.replace(old, f'{key}: "{template}"'))
    with pytest.raises(LongEvalError, match=rf"mine.yaml, line {line}: {key}: "):
        load_task("mine", metadata={}, include=[str(folder)])


def test_all_templates_of_lm_eval_and_of_longeval_stay_within_the_sandbox():
    """None of them uses what the sandbox forbids: they render as in the environment that lm-eval has."""
    import lm_eval.tasks
    from jinja2 import TemplateSyntaxError, nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Loader(yaml.CSafeLoader):
        pass

    Loader.add_multi_constructor("!", lambda loader, suffix, node: None)
    environment = ImmutableSandboxedEnvironment()
    environment.filters["regex_replace"] = str
    seen = set()
    folders = [Path(lm_eval.tasks.__file__).parent / name for name in ("longbench", "mmlu", "ruler", "arc", "scrolls")]
    for folder in (*folders, Path(__file__).parents[4] / "tasks"):
        for path in folder.rglob("*.yaml"):
            pending = [yaml.load(path.read_bytes(), Loader=Loader)]
            while pending:
                value = pending.pop()
                if isinstance(value, dict | list):
                    pending += value.values() if isinstance(value, dict) else value
                elif isinstance(value, str) and "{{" in value:
                    seen.add(value)
    assert len(seen) > 30
    for template in seen:
        try:
            parsed = environment.parse(template)
        except TemplateSyntaxError:
            continue
        for attribute in parsed.find_all(nodes.Getattr):
            assert environment.is_safe_attribute([], attribute.attr, getattr([], attribute.attr, None))
            assert environment.is_safe_attribute({}, attribute.attr, getattr({}, attribute.attr, None))


def test_what_other_threads_compute_is_not_counted():
    busy = threading.Event()

    def compute():
        while not busy.is_set():
            sum(range(1000))

    threads = [threading.Thread(target=compute) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        with templates.bounded():
            time.sleep(0.4)
        with pytest.raises(templates._LimitError), templates.bounded():
            while True:
                pass
    finally:
        busy.set()
