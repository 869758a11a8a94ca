"""Short names of models that people stretch: what `--model llama2-7b` stands for.

Native lengths are `original_max_position_embeddings` of the model's config where it has one (Llama 3.1 and 3.2: 8192,
stretched by their makers with the llama3 method), else `max_position_embeddings`; the config decides at run time, the
table here only informs. Source: the models' pages and configs on the hub.
"""

from __future__ import annotations

from dataclasses import dataclass

from longeval.models.embedded import EMBEDDED
from longeval.registry import Registry


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogEntry:
    """One short name."""

    name: str
    hub_id: str | None
    """`organisation/name` on the hub; None for an embedded model."""
    licence: str
    gated: bool = False
    """Whether the hub asks for an accepted licence and a token before it hands out the files."""
    parameters: int
    """Number of weights, embeddings included, rounded to three digits."""
    native_length: int
    """L in tokens."""
    note: str = ""
    """One line: what is special about it here."""


CATALOG: Registry[CatalogEntry] = Registry("--model")

_M, _B = 10**6, 10**9
_LLAMA2, _LLAMA31, _LLAMA32 = "Llama 2 Community", "Llama 3.1 Community", "Llama 3.2 Community"
_APACHE, _GEMMA = "Apache-2.0", "Gemma terms"
_STRETCHED = "shipped with llama3 scaling to 128k; native is what that starts from"
_TWO_BASES = "two RoPE bases by layer type; sliding-window layers"

_ENTRIES = (
    CatalogEntry(
        name=EMBEDDED,
        hub_id=None,
        licence=_APACHE,
        parameters=135 * _M,
        native_length=8192,
        note="embedded: SmolLM2-135M-Instruct from 4-bit weights, needs no hub",
    ),
    CatalogEntry(
        name="gemma3-270m-q4",
        hub_id=None,
        licence=_GEMMA,
        parameters=268 * _M,
        native_length=32768,
        note=f"embedded: Gemma 3 270M from 4-bit weights, needs no hub; {_TWO_BASES}",
    ),
    CatalogEntry(
        name="smollm2-135m",
        hub_id="HuggingFaceTB/SmolLM2-135M",
        licence=_APACHE,
        parameters=135 * _M,
        native_length=8192,
    ),
    CatalogEntry(
        name="smollm2-360m",
        hub_id="HuggingFaceTB/SmolLM2-360M",
        licence=_APACHE,
        parameters=362 * _M,
        native_length=8192,
    ),
    CatalogEntry(
        name="smollm2-1.7b",
        hub_id="HuggingFaceTB/SmolLM2-1.7B",
        licence=_APACHE,
        parameters=1710 * _M,
        native_length=8192,
    ),
    CatalogEntry(
        name="llama2-7b",
        hub_id="meta-llama/Llama-2-7b-hf",
        licence=_LLAMA2,
        gated=True,
        parameters=6740 * _M,
        native_length=4096,
        note="the model of the YaRN and Resonance papers",
    ),
    CatalogEntry(
        name="llama2-7b-chat",
        hub_id="meta-llama/Llama-2-7b-chat-hf",
        licence=_LLAMA2,
        gated=True,
        parameters=6740 * _M,
        native_length=4096,
    ),
    CatalogEntry(
        name="llama2-13b",
        hub_id="meta-llama/Llama-2-13b-hf",
        licence=_LLAMA2,
        gated=True,
        parameters=13 * _B,
        native_length=4096,
    ),
    CatalogEntry(
        name="llama2-13b-chat",
        hub_id="meta-llama/Llama-2-13b-chat-hf",
        licence=_LLAMA2,
        gated=True,
        parameters=13 * _B,
        native_length=4096,
    ),
    CatalogEntry(
        name="llama3.1-8b",
        hub_id="meta-llama/Llama-3.1-8B",
        licence=_LLAMA31,
        gated=True,
        parameters=8030 * _M,
        native_length=8192,
        note=_STRETCHED,
    ),
    CatalogEntry(
        name="llama3.1-8b-instruct",
        hub_id="meta-llama/Llama-3.1-8B-Instruct",
        licence=_LLAMA31,
        gated=True,
        parameters=8030 * _M,
        native_length=8192,
        note=_STRETCHED,
    ),
    CatalogEntry(
        name="llama3.2-1b",
        hub_id="meta-llama/Llama-3.2-1B",
        licence=_LLAMA32,
        gated=True,
        parameters=1240 * _M,
        native_length=8192,
        note=_STRETCHED,
    ),
    CatalogEntry(
        name="mistral-7b",
        hub_id="mistralai/Mistral-7B-v0.3",
        licence=_APACHE,
        parameters=7250 * _M,
        native_length=32768,
        note="v0.3: no sliding window",
    ),
    CatalogEntry(
        name="qwen2.5-0.5b",
        hub_id="Qwen/Qwen2.5-0.5B",
        licence=_APACHE,
        parameters=494 * _M,
        native_length=32768,
    ),
    CatalogEntry(
        name="qwen2.5-7b",
        hub_id="Qwen/Qwen2.5-7B",
        licence=_APACHE,
        parameters=7620 * _M,
        native_length=131072,
    ),
    CatalogEntry(
        name="qwen3-0.6b",
        hub_id="Qwen/Qwen3-0.6B",
        licence=_APACHE,
        parameters=596 * _M,
        native_length=40960,
        note="32k of context and 8k of answer",
    ),
    CatalogEntry(
        name="qwen3-8b",
        hub_id="Qwen/Qwen3-8B",
        licence=_APACHE,
        parameters=8190 * _M,
        native_length=40960,
        note="32k of context and 8k of answer",
    ),
    CatalogEntry(
        name="gemma3-1b",
        hub_id="google/gemma-3-1b-pt",
        licence=_GEMMA,
        gated=True,
        parameters=1000 * _M,
        native_length=32768,
        note=_TWO_BASES,
    ),
    CatalogEntry(
        name="pythia-160m",
        hub_id="EleutherAI/pythia-160m",
        licence=_APACHE,
        parameters=162 * _M,
        native_length=2048,
        note="rotates a quarter of each head",
    ),
    CatalogEntry(
        name="pythia-1.4b",
        hub_id="EleutherAI/pythia-1.4b",
        licence=_APACHE,
        parameters=1410 * _M,
        native_length=2048,
        note="rotates a quarter of each head",
    ),
)

for _entry in _ENTRIES:
    CATALOG.register(_entry.name, _entry)
