"""A request of `longeval ppl`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from longeval.errors import LongEvalError
from longeval.request import setting
from longeval.request.model import ModelRequest
from longeval.request.setting import MACHINE, Declare

DOCUMENTS, KEY_TOKENS = "Documents", "Key tokens"
"""Panels of `--help`."""

MetricName = Literal["perplexity", "long_ppl"]
"""`perplexity` is always there, with bits per byte; `long_ppl` is LongPPL (Fang et al. 2024) beside it."""


def _metrics(value: Any, where: str) -> tuple[MetricName, ...] | None:
    """Reads names of metrics; None for perplexity alone, the default."""
    found = setting.several(MetricName)(value, where)
    return ("perplexity", "long_ppl") if "long_ppl" in found else None if found else found


class PplRequest(ModelRequest, frozen=True):
    """Perplexity at growing context lengths, by RoPE method.

    Every combination of model, method, length and data set is a cell. Finished
    cells are stored at once; the same command goes on where it stopped.

    [bold]Examples[/bold]

    longeval ppl --model llama2-7b --pe resonance_yarn --lengths 4k,8k,16k

    longeval ppl --model smollm2-135m-q4 --pe none,yarn,resonance_yarn --lengths 4k,8k,12k --data stdlib --docs 2

    longeval ppl --model ./my-model --pe yarn --factor 4 --lengths 32k --data book.txt --protocol sliding --dry-run

    longeval ppl --model ./my-model --pe all --lengths 4k,8k --data 'docs/*.txt,hub:OWNER/NAME:test'
    """

    command: ClassVar[str] = "ppl"
    can_show: ClassVar[bool] = True
    how_only: ClassVar[frozenset[str]] = frozenset({"batch_size", "keep_text"})

    data: Annotated[
        tuple[str, ...],
        Declare(
            setting.paths,
            "gov_report, pg19, proof_pile, leval:NAME, stdlib, files, folders, patterns in quotes ('docs/*.txt'), "
            "hub:OWNER/NAME[:CONFIG]:SPLIT; comma list (\\, for one in a path).",
            example="gov_report",
        ),
    ] = ("gov_report",)
    protocol: Annotated[str, Declare(setting.text, "What is scored: prefix, sliding, sliding_window_mean, stream.")] = (
        "prefix"
    )
    stride: Annotated[
        int | None,
        Declare(setting.length(least=1), "Tokens between windows (not under prefix).", unset="256", panel=DOCUMENTS),
    ] = None
    min_tokens: Annotated[
        int | None,
        Declare(
            setting.length(),
            "Skip documents with fewer tokens, BOS not counted.",
            unset="the longest length under prefix, else 2",
            panel=DOCUMENTS,
        ),
    ] = None
    docs: Annotated[
        int | Literal["all"] | None,
        Declare(
            setting.either("all", setting.count()),
            "At most so many documents, or all.",
            unset="what the data set says, 50 of hub:…",
            panel=DOCUMENTS,
        ),
    ] = None
    text_field: Annotated[
        str | None,
        Declare(setting.text, "Field with the text in JSON, CSV, parquet files and hub:… data sets.", panel=DOCUMENTS),
    ] = None
    batch_size: Annotated[
        int | None,
        Declare(
            setting.count_or_auto,
            "hf: windows of equal length that share a forward pass, or auto.",
            unset="auto: 1 on a CPU, elsewhere about 8k tokens a pass",
            panel=MACHINE,
        ),
    ] = None
    keep_text: Annotated[
        bool | None,
        Declare(
            setting.switch,
            "Keep the documents' text in the run folder: the report's page then shows it, coloured token by token.",
            unset="keep it for local data, not for data sets of the hub",
            panel=DOCUMENTS,
        ),
    ] = None
    metric: Annotated[
        tuple[MetricName, ...] | None,
        Declare(
            _metrics,
            "perplexity; long_ppl adds LongPPL, perplexity over tokens that need a long context; comma list.",
            unset="perplexity",
            example="perplexity,long_ppl",
            panel=KEY_TOKENS,
        ),
    ] = None
    key_model: Annotated[
        str | None,
        Declare(setting.one_model, "The evaluator that chooses the key tokens of long_ppl.", panel=KEY_TOKENS),
    ] = None
    metric_args: Annotated[
        dict[str, dict[str, Any]],
        Declare(
            setting.method_parameters,
            "A metric's parameter: long_ppl.alpha=2, .beta=-2, .context=4k, .step=1k; may be repeated.",
            flag="--metric-arg",
            metavar="METRIC.PARAM=VALUE",
            repeated=True,
            panel=KEY_TOKENS,
        ),
    ] = Field(default_factory=dict)

    def check(self) -> None:
        """See `StudyRequest.check`."""
        super().check()
        if self.metric is None and self.key_model is not None:
            raise LongEvalError(
                f"--key-model {self.key_model}: would be ignored without long_ppl", "Add --metric perplexity,long_ppl."
            )
        if self.metric is None and self.metric_args:
            name = next(iter(self.metric_args))
            raise LongEvalError(
                f"--metric-arg {name}.…: would be ignored without long_ppl", "Add --metric perplexity,long_ppl."
            )
        if self.metric is not None and self.key_model is None:
            raise LongEvalError(
                "--metric long_ppl: needs the model that chooses key tokens",
                "Name it with --key-model, a strong model with a long context such as llama3.1-8b.",
            )
