"""What a plan knows of a model without its weights; its position encoding is in test_scaling.py."""

from __future__ import annotations

from longeval.models.prepare import prepare

OPTIONS = {
    "revision": None,
    "native": None,
    "scale_from": "plain",
    "layers": "global",
    "bos": None,
    "dtype": "float32",
    "device": "cpu",
    "device_map": None,
    "attn": None,
    "trust_remote_code": False,
}


def test_bos_follows_the_tokenizer_unless_told(tiny_llama, tiny_llama_bos):
    asked = [
        (str(tiny_llama), None),
        (str(tiny_llama_bos), None),
        (str(tiny_llama), True),
        (str(tiny_llama_bos), False),
    ]
    found = [prepare(name, **(OPTIONS | {"bos": bos})).bos for name, bos in asked]
    assert found == [False, True, True, False]
    assert prepare(str(tiny_llama_bos), **OPTIONS).bos_id() == 0
