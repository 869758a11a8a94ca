"""Parameters of named things: types come from a dataclass, and flags of requests use the same rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest

from longeval.cli.command import make_request
from longeval.errors import LongEvalError
from longeval.parameters import ParameterFlag, parameter_texts
from longeval.studies.finetune.request import FinetuneRequest


@dataclass(frozen=True)
class Shape:
    size: int = 2
    most: int | None = None
    weight: float = 1.0
    colour: Literal["red", "blue"] = "red"
    sides: tuple[float, ...] = ()
    depth: int | Literal["flat", "deep"] = "flat"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise LongEvalError(f"size {self.size}: below 1")


FLAG = ParameterFlag(
    flag="--shape-arg",
    names_flag="--shape",
    noun="shape",
    example="box.size=2",
    known=("box", "ball"),
    kind=lambda name: Shape,
)


def test_values_get_the_types_of_the_fields():
    items = ["box.size=1k", "box.most=none", "box.weight=2", "box.colour=blue", "box.sides=1,2.5", "ball.most= 3 "]
    values = FLAG.parse(items, ["box", "ball"])
    assert values == {
        "box": {"size": 1024, "most": None, "weight": 2.0, "colour": "blue", "sides": (1.0, 2.5)},
        "ball": {"most": 3},
    }
    assert FLAG.make("box", values["box"]) == Shape(1024, None, 2.0, "blue", (1.0, 2.5))
    assert type(values["box"]["weight"]) is float


@pytest.mark.parametrize("value", ["2.5", "-", "--1", "x", 2.0, True, None, [1]])
def test_what_is_no_whole_number(value):
    with pytest.raises(LongEvalError, match=r"--shape-arg box\.size="):
        FLAG.make("box", {"size": value})


@pytest.mark.parametrize(("value", "number"), [("-1", -1), (-1, -1), ("0", 0), (0, 0), ("-4k", -4096)])
def test_only_the_dataclass_knows_the_range_of_a_whole_number(value, number):
    with pytest.raises(LongEvalError, match=rf"^--shape-arg box\.size {number}: below 1"):
        FLAG.make("box", {"size": value})


@pytest.mark.parametrize("value", ["Flat", "x", 1.5, True, [1]])
def test_a_wrong_value_is_told_the_words_that_there_are(value):
    with pytest.raises(LongEvalError, match=r"--shape-arg box\.depth=.* flat or deep"):
        FLAG.make("box", {"depth": value})
    assert FLAG.make("box", {"depth": "deep"}).depth == "deep"


def test_texts_without_knowing_the_parameters():
    how = {"flag": "--loss-arg", "form": "LOSS.PARAMETER=VALUE", "example": "longce.context=1k"}
    items = ["longce.context=1k", "longce.bound=5", "longce.context=1k"]
    assert parameter_texts(items, **how) == {"longce": {"context": "1k", "bound": "5"}}
    for wrong in (["context=1k"], ["longce.context="], ["longce.context=1k", "longce.context=2k"]):
        with pytest.raises(LongEvalError, match="--loss-arg "):
            parameter_texts(wrong, **how)


def test_flags_of_a_training():
    asked = {"model": "tiny", "pe": "yarn", "length": "64", "window": "8", "steps": "2", "augment": "pose"}
    made = make_request(
        FinetuneRequest, asked | {"augment_args": ["pose.chunks=3"], "loss_args": ["longce.context=1k"]}
    )
    assert made.augment_args == {"pose": {"chunks": 3}}
    assert made.loss_args == {"longce": {"context": "1k"}}
    with pytest.raises(LongEvalError, match=r"--augment-arg e2\.max_factor=3: "):
        make_request(FinetuneRequest, asked | {"augment_args": ["e2.max_factor=3"]})
