"""From a name to a method: its defaults, then what suits the model, then a person's strength."""

from __future__ import annotations

import pytest

from sdsedit.errors import InputRefused
from sdsedit.guidance import DDS, LUSD, METHODS, configured


def test_a_name_alone_is_the_methods_defaults():
    for name, method in METHODS.items():
        assert configured(name) == method()


def test_what_suits_the_model_goes_over_the_defaults_and_strength_over_that():
    editing = {"lusd": {"steps": 40, "step_size": 0.2}}
    assert configured("lusd", 1.0, editing) == LUSD(steps=40, step_size=0.2)
    assert configured("lusd", 2.0, editing).step_size == pytest.approx(0.4)
    assert configured("dds", 1.0, editing) == DDS()


def test_a_method_given_whole_is_taken_as_it_is():
    assert configured(LUSD(steps=7), 1.0, {"lusd": {"steps": 40}}) == LUSD(steps=7)


@pytest.mark.parametrize(
    ("method", "strength", "editing", "sentence"),
    [
        ("magic", 1.0, {}, "method is 'magic'; it must be one of lusd, dds"),
        ("lusd", 0.0, {}, "strength is 0.0; it must be a number from 0.1 to 10"),
        ("lusd", float("nan"), {}, "strength is nan"),
        ("lusd", 1.0, {"lusd": {"speed": 3}}, "has settings that lusd lacks: speed"),
    ],
)
def test_what_is_refused(method, strength, editing, sentence):
    with pytest.raises(InputRefused, match=sentence):
        configured(method, strength, editing)
