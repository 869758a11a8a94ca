"""What every request says of models, methods, lengths and the machine: the part that `ppl` and `tasks` share."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import urllib.parse
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, get_args

from longeval.errors import LongEvalError
from longeval.plain import canonical_json
from longeval.request.engine import check_counts, check_first_gpu
from longeval.values import check_word, format_length

ScaleFrom = Literal["plain", "shipped"]
SCALE_FROM: tuple[ScaleFrom, ...] = get_args(ScaleFrom)
"""What methods start from on a model that comes already scaled: plain RoPE, or the shipped frequencies."""

Layers = Literal["global", "all"]
LAYERS: tuple[Layers, ...] = get_args(Layers)
"""Which layers are scaled where a model rotates by layer type: those that see the whole context, or all."""


BackendName = Literal["hf", "vllm", "openai"]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)
"""What can run a model: transformers, vLLM, or a server that somebody else started."""

_BACKEND_SETTINGS: dict[str, tuple[BackendName, ...]] = {
    "vllm_args": ("vllm",),
    "pin_length": ("vllm",),
    "base_url": ("openai",),
    "served_model": ("openai",),
    "device_map": ("hf",),
    "attn": ("hf",),
    "device": ("hf", "vllm"),
    "dtype": ("hf", "vllm"),
}
"""Settings that only some backends heed."""

_FLAGS = {"vllm_args": "--vllm-arg"}
"""Flags that aren't called like their field."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRequest:
    """Models, methods and lengths, every combination of which is tried, and the machine to do it on."""

    command: ClassVar[str]
    """The command that makes such requests."""

    model: tuple[str, ...]
    """Short names, hub ids, folders, .gguf files."""
    pe: tuple[str, ...]
    """Method names."""
    lengths: tuple[int, ...]
    """Window lengths in tokens, ascending."""
    factor: float | Literal["each"] | None = None
    """s for all lengths; `each`: every length its own; None: longest length / native length, at least 1."""
    pe_args: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Method parameters by method: {"yarn": {"beta_fast": 16}}."""
    bos: bool | None = None
    """Whether every window starts with a BOS, or what else the tokenizer puts in front of a text; None: if it would
    itself."""
    parse_special: bool = False
    """Whether special tokens that texts spell (`</s>`) are control tokens; otherwise they are text."""
    native: int | None = None
    """Native length L in tokens; None: the model's own."""
    scale_from: ScaleFrom = "plain"
    """On a model that comes already scaled, methods replace that scaling (plain) or build on it (shipped)."""
    layers: Layers = "global"
    """Where a model rotates by layer type: scale its global layers only, or all."""
    backend: str = "hf"
    """What runs the model: one of BACKENDS."""
    vllm_args: dict[str, Any] = field(default_factory=dict)
    """Options of vLLM's engine, by name: {"tensor_parallel_size": 2}."""
    pin_length: int | None = None
    """For engines that hold one table: the length, in tokens, whose table methods that depend on length have at all
    lengths."""
    base_url: str | None = None
    """Where an OpenAI-compatible server is: http://127.0.0.1:8000/v1."""
    served_model: str | None = None
    """The model's name at that server; None: the only one it has."""
    dtype: str = "auto"
    """Precision; auto: bfloat16 where the device multiplies it natively, else float32."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto: the first GPU, else the CPU. vLLM takes no other GPU than the first it sees."""
    device_map: str | None = None
    """Spread over several devices: auto, balanced, …"""
    attn: str | None = None
    """Attention implementation: sdpa, eager, flash_attention_2, …; None: the model's default."""
    revision: str | None = None
    """Hub revision of the model."""
    trust_remote_code: bool = False
    """Run code from the model's repository, and functions that users' task files name."""
    seed: int = 0
    """Seed of the bootstrap, and of everything that is drawn."""

    def __post_init__(self) -> None:
        for flag, items in (("--model", self.model), ("--pe", self.pe)):
            if not items:
                raise LongEvalError(f"{flag}: nothing named", "Give at least one.")
        if not self.lengths:
            raise LongEvalError("--lengths: nothing named", "Give at least one, such as 4k,8k,16k.")
        if self.native is not None and self.native < 2:
            raise LongEvalError(f"--native {self.native}: must be at least 2 tokens", "Llama 2 has 4096.")
        check_word("--scale-from", self.scale_from, SCALE_FROM)
        check_word("--layers", self.layers, LAYERS)
        self._check_backend()
        if self.device_map is not None and self.device != "auto":
            raise LongEvalError(
                f"--device {self.device}: would be ignored beside --device-map {self.device_map}",
                "Give one of the two.",
            )

    def _check_backend(self) -> None:
        """Raises LongEvalError for an unknown backend, and for settings that the chosen one would ignore."""
        check_word("--backend", self.backend, BACKENDS)
        for field_name, backends in _BACKEND_SETTINGS.items():
            default = next(item.default for item in dataclasses.fields(ModelRequest) if item.name == field_name)
            value = getattr(self, field_name)
            if self.backend not in backends and value not in (default, {}):
                flag = _FLAGS.get(field_name, f"--{field_name.replace('_', '-')}")
                raise LongEvalError(
                    f"{flag}: would be ignored with --backend {self.backend}",
                    f"It belongs to --backend {' and '.join(backends)}; leave it out.",
                )
        if self.backend == "vllm":
            check_counts(self.vllm_args)
            check_first_gpu(self.device)
        if self.backend == "openai" and self.base_url is None:
            raise LongEvalError(
                "--backend openai: no server named", "Give its address: --base-url http://127.0.0.1:8000/v1."
            )
        if self.base_url is not None:
            _check_base_url(self.base_url)

    def replaced(self, **changes: Any) -> Self:
        """The same request with other values in some fields, checked again."""
        return dataclasses.replace(self, **changes)

    def to_mapping(self) -> dict[str, Any]:
        """As plain YAML: every field that says something, lengths as users write them."""
        plain: dict[str, Any] = {"command": self.command}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if value is None or value in ({}, ()):
                continue
            if item.name == "lengths":
                value = [int(text) if text.isdigit() else text for text in map(format_length, value)]
            plain[item.name] = value
        untyped: dict[str, Any] = json.loads(canonical_json(plain))  # tuples to lists, also within pe_args
        return {key: untyped[key] for key in plain}

    def digest(self) -> str:
        """A short digest of the request, for naming its run folder."""
        return hashlib.sha256(canonical_json(self.to_mapping()).encode()).hexdigest()[:8]


def _check_base_url(url: str) -> None:
    """Raises LongEvalError for what is no address, or holds what records and reports must not show."""
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port  # read for its check
    except ValueError:  # unpaired brackets, a port that is none
        parts = urllib.parse.urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise LongEvalError("--base-url: not an address of a server", "It looks like http://127.0.0.1:8000/v1.")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise LongEvalError(
            "--base-url: has a name, a password or a query in it, which every record would show",
            "Leave it out; a key goes into LONGEVAL_API_KEY.",
        )
