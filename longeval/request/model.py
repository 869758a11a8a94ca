"""The settings that `ppl` and `tasks` share: models, methods, lengths, and the machine."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from longeval.errors import LongEvalError
from longeval.request import setting
from longeval.request.base import StudyRequest
from longeval.request.setting import MACHINE, METHODS, OUTPUT, Declare

TOKENS = "Tokens"
"""The panel of settings for how texts become tokens."""

ScaleFrom = Literal["plain", "shipped"]
SCALE_FROM: tuple[ScaleFrom, ...] = get_args(ScaleFrom)
"""What methods start from on a model that comes with a scaling: plain RoPE, or the shipped frequencies."""

Layers = Literal["global", "all"]
LAYERS: tuple[Layers, ...] = get_args(Layers)
"""The layers that are scaled in a model with a RoPE per layer type: only full-attention layers, or all."""


MethodParameters = Annotated[
    dict[str, dict[str, Any]],
    Declare(
        setting.method_parameters,
        "A method's parameter, yarn.beta_fast=16; may be repeated.",
        flag="--pe-arg",
        metavar="METHOD.PARAM=VALUE",
        repeated=True,
        panel=METHODS,
    ),
]
Methods = Annotated[
    tuple[str, ...],
    Declare(
        setting.names,
        "Methods: none, yarn, resonance_yarn, …; comma list; all: every one that works.",
        example="none,yarn",
    ),
]
Device = Annotated[str, Declare(setting.text, "auto, cpu, cuda, cuda:1, mps.", panel=MACHINE)]
ModelNames = Annotated[
    tuple[str, ...],
    Declare(
        setting.models,
        "Short name, hub id (OWNER/NAME@REVISION) or address, folder or .gguf file; comma list.",
        example="smollm2-135m-q4",
    ),
]
ParseSpecial = Annotated[
    bool,
    Declare(
        setting.switch, "Read special tokens that texts spell (</s>) as control tokens, not as text.", panel=TOKENS
    ),
]
NativeLength = Annotated[
    int | None, Declare(setting.length(), "Native length in tokens.", unset="the model's own", panel=METHODS)
]
ScaleFromSetting = Annotated[
    ScaleFrom,
    Declare(
        setting.words(ScaleFrom),
        "For a model that comes with a scaling: plain (methods replace it) or shipped (they build on it).",
        panel=METHODS,
    ),
]
LayersSetting = Annotated[
    Layers,
    Declare(
        setting.words(Layers),
        "For a model with a RoPE per layer type (Gemma 3): scale the global layers, or all.",
        panel=METHODS,
    ),
]
Attention = Annotated[str | None, Declare(setting.text, "Attention: sdpa, eager, flash_attention_2, …", panel=MACHINE)]
Revision = Annotated[str | None, Declare(setting.text, "Hub revision of the model.", panel=MACHINE)]
"""Settings that other studies have too, with the same words."""


class ModelRequest(StudyRequest, frozen=True):
    """Settings of models, methods and lengths, every combination of which is evaluated, and of the machine."""

    model: ModelNames
    pe: Methods = ("none",)
    lengths: Annotated[
        tuple[int, ...],
        Declare(
            setting.lengths, "Window lengths in tokens: 4k,8k,16k.", example="4k,8k", write=setting.lengths_as_written
        ),
    ]
    factor: Annotated[
        float | Literal["each"] | None,
        Declare(
            setting.either("each", setting.factor),
            "s = target / native length for all lengths; each: a factor for every length.",
            unset="longest length / native length, at least 1",
            panel=METHODS,
        ),
    ] = None
    pe_args: MethodParameters = Field(default_factory=dict)
    bos: Annotated[
        bool | None,
        Declare(
            setting.switch,
            "Start every input with BOS, or with all tokens that the tokenizer puts before a text.",
            unset="as the tokenizer does",
            panel=TOKENS,
        ),
    ] = None
    parse_special: ParseSpecial = False
    native: NativeLength = None
    scale_from: ScaleFromSetting = "plain"
    layers: LayersSetting = "global"
    backend: Annotated[
        str, Declare(setting.text, "What runs the model: hf (transformers), vllm, openai (any server).", panel=MACHINE)
    ] = "hf"
    vllm_args: Annotated[
        dict[str, Any],
        Declare(
            setting.engine_options,
            "An option of vLLM's engine, tensor_parallel_size=2; may be repeated.",
            flag="--vllm-arg",
            metavar="NAME=VALUE",
            repeated=True,
            panel=MACHINE,
        ),
    ] = Field(default_factory=dict)
    pin_length: Annotated[
        int | None,
        Declare(
            setting.length(),
            "vllm: the length whose table a length-dependent method uses at all lengths.",
            panel=METHODS,
        ),
    ] = None
    base_url: Annotated[
        str | None,
        Declare(
            setting.text,
            "openai: the server, http://127.0.0.1:8000/v1; its key is read from LONGEVAL_API_KEY.",
            panel=MACHINE,
        ),
    ] = None
    served_model: Annotated[
        str | None,
        Declare(setting.text, "openai: the model's name at the server.", unset="its only one", panel=MACHINE),
    ] = None
    dtype: Annotated[str, Declare(setting.text, "auto, float32, bfloat16, float16.", panel=MACHINE)] = "auto"
    device: Device = "auto"
    device_map: Annotated[
        str | None, Declare(setting.text, "Spread over devices: auto, balanced, …", panel=MACHINE)
    ] = None
    attn: Attention = None
    revision: Revision = None
    adapter: Annotated[
        str | None,
        Declare(
            setting.text,
            "A LoRA adapter of the model: folder that peft wrote, or hub id in the local cache.",
            panel=MACHINE,
        ),
    ] = None
    trust_remote_code: Annotated[
        bool,
        Declare(
            setting.switch,
            "Run code from the model's repository, and functions that your task files name.",
            panel=MACHINE,
        ),
    ] = False
    seed: Annotated[
        int,
        Declare(setting.count(least=0), "Seed of the bootstrap and of synthetic samples.", panel=OUTPUT),
    ] = 0

    def check(self) -> None:
        """See `StudyRequest.check`."""
        if self.device_map is not None and self.device != "auto":
            raise LongEvalError(
                f"--device {self.device}: would be ignored beside --device-map {self.device_map}",
                "Give one of the two.",
            )
        if self.adapter is not None and len(self.model) > 1:
            raise LongEvalError(
                f"--adapter {self.adapter}: belongs to one model, and --model names {len(self.model)}",
                "Give the model that it was made for.",
            )
