"""`longeval doctor --parity`: the verdict, with backends whose answers are known."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import typer.main
from fake import FakeBackend
from known import log_position
from tiny import save_tiny_llama

from longeval.backends.vllm import options as vllm_options
from longeval.cli import doctor as shown
from longeval.cli.app import app, run_app
from longeval.cli.progress import RunProgress
from longeval.doctor import parity as module
from longeval.doctor.parity import parity
from longeval.errors import LongEvalError
from longeval.studies.ppl.plan import plan_ppl


@pytest.fixture(autouse=True)
def as_if_installed(monkeypatch):
    monkeypatch.setattr(vllm_options, "check_installed", lambda *_: None)


@pytest.fixture
def plan(request_spec):
    return plan_ppl(request_spec(pe=("none", "yarn"), lengths=(128,), docs=1, backend="vllm", factor=2.0))


class Fake(FakeBackend):
    """Answers alike, whatever the table."""

    def __init__(self, nll=log_position, answer="says so", swap=False):
        super().__init__(nll, answer=lambda prompt_T, table: answer)
        self._swap, self.closed = swap, False

    def serve(self, table, length):
        if self._swap:
            table = type(table)(inv_freq_F=table.inv_freq_F * 1.0001, attention_factor=table.attention_factor)
        super().serve(table, length)

    def close(self):
        self.closed = True


def compared(plan, vllm, hf=None):
    """The comparisons, whose verdicts are all the same."""
    hf = hf or Fake()
    found = list(
        parity(plan, RunProgress(quiet=True, verbose=False), load_hf=lambda model: hf, load_vllm=lambda model: vllm)
    )
    assert hf.closed and vllm.closed
    assert len({one.verdict for one in found}) == 1
    return found


def test_equal_sides_are_the_same(plan):
    found = compared(plan, Fake())
    assert [(one.pe, one.factor, one.length, one.verdict) for one in found] == [
        ("none", None, 128, "same"),
        ("yarn", 2.0, 128, "same"),
    ]
    assert all(one.mean_difference == one.max_difference == 0 for one in found)
    assert found[0].tokens == 127
    assert found[0].perplexity_hf == pytest.approx(found[0].perplexity_vllm)
    assert (found[0].answer_hf, found[0].answer_gap) == ("says so", None)


def test_another_table_is_told_even_where_nothing_else_differs(plan):
    for one in compared(plan, Fake(swap=True)):
        (reason,) = one.reasons
        assert "tables" in reason


@pytest.mark.parametrize(("shift", "verdict"), [(1e-4, "same"), (1e-3, "different"), (np.nan, "different")])
def test_log_probabilities_may_differ_by_rounding_only(plan, shift, verdict):
    one, _ = compared(plan, Fake(lambda t, p, table: log_position(t, p, table) + shift))
    assert one.verdict == verdict
    assert one.mean_difference == pytest.approx(shift, rel=2e-2, nan_ok=True)
    assert ["log-probabilities" in reason for reason in one.reasons] == [True] * (verdict == "different")


def by_token(slope):
    """Tokens cost more the higher their id."""
    return lambda tokens_S, positions_S, table: slope * tokens_S


@pytest.mark.parametrize(("gap", "verdict"), [(0.0, "same"), (4e-4, "same"), (6e-4, "different")])
@pytest.mark.parametrize("answers", [("says so", "says no"), ("says no", "says so"), ("says", "says a"), ("a", "")])
def test_continuations_part_only_at_near_ties(plan, answers, gap, verdict):
    tokenizer = plan.work[0].model.tokenizer
    hf_ids, vllm_ids = ([*tokenizer.encode(answer), 0] for answer in answers)  # 0 ends an answer
    place = next(i for i, (a, b) in enumerate(zip(hf_ids, vllm_ids, strict=False)) if a != b)
    nll = by_token(gap / (vllm_ids[place] - hf_ids[place]))
    hf = Fake(nll, answers[0])
    one, _ = compared(plan, Fake(nll, answers[1]), hf)
    assert (one.verdict, one.mean_difference) == (verdict, 0)
    assert one.answer_gap == pytest.approx(gap, rel=1e-3, abs=1e-7)
    assert ["continuations diverge" in reason for reason in one.reasons] == [True] * (verdict == "different")
    # The window, then one token after what both say after its first half, twice.
    assert hf.windows[:3] == [(128, 1), (64 + place + 1, 64 + place), (64 + place + 1, 64 + place)]


def test_a_gap_that_is_no_number_is_a_difference(plan):
    hf = Fake(lambda t, p, table: np.where(len(t) == 1, np.nan, log_position(t, p, table)), "says so")
    assert compared(plan, Fake(answer="says no"), hf)[0].verdict == "different"


def test_in_bfloat16_continuations_may_part(plan):
    model = dataclasses.replace(plan.models[0], dtype="bfloat16")
    work = tuple(dataclasses.replace(one, model=model) for one in plan.work)
    nll = by_token(-0.1)
    one, _ = compared(dataclasses.replace(plan, models=(model,), work=work), Fake(nll, "says no"), Fake(nll, "says so"))
    assert one.verdict == "same"
    assert one.answer_gap > 0.1  # more than the mean may differ


# The request that is compared.


def planned(folder, **asked):
    return shown._plan({"model": str(folder), **asked})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"max_num_seqs": 8, "max_num_batched_tokens": 342}),
        ({"max_num_seqs": 512}, {"max_num_seqs": 512, "max_num_batched_tokens": 512}),
        ({"max_num_batched_tokens": 2048, "max_num_seqs": 2}, {"max_num_batched_tokens": 2048, "max_num_seqs": 2}),
    ],
)
def test_vllm_reads_the_window_in_chunks(given, expected):
    assert module.in_chunks(1024, given) == expected


@pytest.mark.parametrize(
    ("pe", "settings", "pinned"),
    [
        ("none,yarn", {}, None),
        ("dynamic_ntk", {}, 200),
        ("none", {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}, 200),
    ],
)
def test_what_depends_on_length_is_compared_at_the_one_that_is_asked(tmp_path, pe, settings, pinned):
    rope = {"rope_type": "default", "rope_theta": 10000.0} | settings
    if settings:
        rope["original_max_position_embeddings"] = 64
    folder = save_tiny_llama(tmp_path / "tiny", rope_parameters=rope, max_position_embeddings=256 if settings else 64)
    plan, notes = planned(folder, pe=pe, length="200")
    assert plan.request.pin_length == pinned
    assert [note.startswith(f"{pe}: ") and "200" in note for note in notes] == [True] * (pinned is not None)
    assert all(group.static for group in plan.work)


def test_every_flag_reaches_the_comparison(tiny_llama):
    asked = {
        "model": str(tiny_llama),
        "pe": "dynamic_yarn,pi",
        "length": "200",
        "factor": "3",
        "native": "32",
        "pe_args": ["dynamic_yarn.beta_fast=16"],
        "scale_from": "shipped",
        "layers": "all",
        "pin_length": "100",
        "vllm_args": ["enforce_eager=true"],
        "dtype": "bfloat16",
        "device": "cpu",
        "revision": "v2",
        "trust_remote_code": True,
    }
    spec = shown._request(asked)
    assert (spec.pe, spec.lengths, spec.factor, spec.native) == (("dynamic_yarn", "pi"), (200,), 3.0, 32)
    assert spec.pe_args == {"dynamic_yarn": {"beta_fast": 16}}
    assert (spec.scale_from, spec.layers, spec.pin_length) == ("shipped", "all", 100)
    assert (spec.dtype, spec.device, spec.revision, spec.trust_remote_code) == ("bfloat16", "cpu", "v2", True)
    assert spec.vllm_args == {"max_num_seqs": 8, "max_num_batched_tokens": 67, "enforce_eager": True}
    for name, said in (("revision", "--revision v2"), ("scale_from", "--scale-from shipped")):
        with pytest.raises(LongEvalError, match=said):
            shown._plan(asked)
        del asked[name]
    del asked["layers"]
    plan, (note,) = shown._plan(asked)
    assert note.startswith("dynamic_yarn: ") and "100" in note
    (params,) = [cell.params for work in plan.work for cell in work.cells if cell.pe.base == "dynamic_yarn"]
    assert (params["native_length"], params["pin_length"], params["method"]["beta_fast"]) == (32, 100, 16)


def test_methods_that_nothing_stretches_have_no_factor(tiny_llama):
    assert planned(tiny_llama, pe="none", length="200")[0].request.factor is None
    assert planned(tiny_llama, pe="none,yarn", length="200")[0].request.factor == 4.0


# The command.


@pytest.fixture
def command(monkeypatch, tiny_llama):
    """`longeval doctor --parity` with fake backends, of which vLLM's may be another: the exit status."""

    def carry_out(*arguments, vllm=None):
        monkeypatch.setattr(module, "load_backend", lambda model: Fake())
        monkeypatch.setattr(module, "backend_of", lambda spec: lambda model: vllm or Fake())
        return run_app(["doctor", "--parity", "--model", str(tiny_llama), *arguments])

    return carry_out


def test_json_and_what_a_table_is_of(command, capsys):
    assert command("--pe", "none,dynamic_ntk", "--length", "200", "--json", "-") == 0
    out, err = capsys.readouterr()
    assert [(one["pe"], one["verdict"]) for one in json.loads(out)] == [("none", "same"), ("dynamic_ntk", "same")]
    assert "dynamic_ntk: another table at every length" in err


def test_a_window_whose_half_can_be_continued(command, capsys):
    assert command("--pe", "none", "--length", "63") == 2
    assert "--length 63" in capsys.readouterr().err
    assert command("--pe", "none", "--length", "64") == 0


@pytest.mark.parametrize("is_same", [True, False])
def test_what_is_printed(command, capsys, is_same):
    backend = Fake() if is_same else Fake(swap=True, answer="says no")
    assert command("--length", "128", vllm=backend) == (0 if is_same else 3)
    out = capsys.readouterr().out
    assert ("the same within" in out) == is_same
    for said in ("different:", "parts after 5 characters", "0.0e+00 nats likelier"):
        assert (said in out) == (not is_same)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--parity"], "Add --model"),
        (["--parity", "--model", "m"], "m"),
        *(
            ([flag, *value], f"{flag}: would be ignored without --parity")
            for flag, *value in (
                ("--model", "m"), ("--pe", "yarn"), ("--length", "1k"), ("--factor", "2"), ("--native", "1k"),
                ("--pe-arg", "yarn.beta_fast=16"), ("--scale-from", "plain"), ("--layers", "all"),
                ("--pin-length", "1k"), ("--vllm-arg", "a=1"), ("--dtype", "float32"), ("--device", "cpu"),
                ("--revision", "main"), ("--trust-remote-code",),
            )
        ),
    ],
)  # fmt: skip
def test_wrong_requests(arguments, said, capsys):
    assert run_app(["doctor", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert said in err


def test_no_model_is_looked_at_where_vllm_is_missing(monkeypatch, capsys, tiny_llama):
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(shown, "_rope", lambda model, spec: pytest.fail("looked at"))
    assert run_app(["doctor", "--parity", "--model", str(tiny_llama)]) == 2
    said = capsys.readouterr().err
    assert "--parity: vLLM isn't installed" in said
    assert "--backend" not in said


def test_shared_options_stand_in_a_panel_of_their_own_here_alone():
    commands = typer.main.get_command(app).commands
    here, there = ({option.name: option for option in commands[name].params} for name in ("doctor", "ppl"))
    panels = {option.rich_help_panel for name, option in here.items() if name not in ("parity", "json_path")}
    assert panels == {"With --parity"}
    assert here["scale_from"].show_default == "plain"
    assert (there["scale_from"].rich_help_panel, there["scale_from"].show_default) == ("Methods", True)
