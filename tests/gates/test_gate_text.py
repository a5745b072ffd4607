"""Gates as text: every config comes back from its string, every mistake is one line with the way out."""

import random
import re
from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest

from excite.errors import UserError
from excite.gates import (
    GATES,
    ECAConfig,
    EffectiveSEConfig,
    GateConfig,
    SEConfig,
    SEGCConfig,
    list_gates,
    parse_gate,
    split_gates,
)
from excite.gates.grammar import _kinds, read_call, read_options, write_call

# --- round trips ---------------------------------------------------------------------------------------------------


def draw(kinds, rng):
    """A random value of one of the kinds that an annotation allows."""
    kind = rng.choice(kinds)
    if kind is int:
        return rng.choice([rng.randrange(-3, 70), 10**20])
    if kind is float:
        return rng.choice([rng.uniform(-2, 2), rng.uniform(0, 1), 1 / 3, 0.1, 1e-7, 1e22, 5.0, 0.0])
    if kind is bool:
        return rng.random() < 0.5
    if kind is str:
        return "".join(rng.choice('ab_,()="\\ .:\n\té1-') for _ in range(rng.randrange(8)))
    return None if kind is type(None) else kind


def configs(cls, count=200):
    """Random configs of a class: options drawn by annotation, one to all of them, those out of range left out."""
    rng = random.Random(cls.__name__)
    found = []
    for _ in range(count):
        names = [n for n in _kinds(cls) if rng.random() < 0.4]
        try:
            found.append(cls(**{n: draw(_kinds(cls)[n], rng) for n in names}))
        except UserError:
            continue
    return found


@pytest.mark.parametrize("name", GATES)
def test_every_config_comes_back_from_its_string(name):
    found = configs(GATES[name])
    assert len(found) >= 20
    assert len({str(config) for config in found}) >= min(3, 1 + len(_kinds(GATES[name])))
    for config in found:
        again = parse_gate(str(config))
        assert again == config and type(again) is type(config) and hash(again) == hash(config)
        assert repr(again) == repr(config)  # 5 and 5.0 are equal, and not the same
        assert split_gates(f"none,{config},eca") == ["none", str(config), "eca"]


@dataclass(frozen=True)
class OddConfig(GateConfig):
    """Options of every kind, for the grammar alone."""

    name: ClassVar[str] = "odd"

    text: str = ""
    text_or_none: str | None = None
    number_or_text: float | str = 1.5
    anything: int | float | bool | str | None = 0
    choice: Literal["a", "b-c"] | int = "a"
    flag: bool = False


AWKWARD = ["", "none", "None", "true", "3", "-1e5", "nan", "inf", "a,b", "a)b", "(", '"', "\\", "a=b", " a", "é", "\n"]


@pytest.mark.parametrize("value", AWKWARD)
@pytest.mark.parametrize("option", ["text", "text_or_none", "number_or_text", "anything"])
def test_any_text_survives(option, value):
    config = OddConfig(**{option: value})
    name, options = read_call(str(config))
    assert OddConfig(**read_options(OddConfig, "odd", options)) == config
    assert name == "odd"
    assert split_gates(f"se,{config}") == ["se", str(config)]


def test_values_of_every_kind_survive():
    for config in configs(OddConfig, 500):
        _, options = read_call(write_call("odd", config))
        again = OddConfig(**read_options(OddConfig, "odd", options))
        assert again == config and str(again) == str(config)
        assert isinstance(again.anything, bool) == isinstance(config.anything, bool)  # False == 0


def test_the_string_says_what_differs_and_no_more():
    assert str(SEConfig()) == "se"
    assert str(SEConfig(reduction=8, bias=False)) == "se(reduction=8,bias=false)"
    assert str(SEConfig(reduction=16)) == "se"
    assert str(EffectiveSEConfig(hard_sigmoid_slope=0.2)) == "ese(hard_sigmoid_slope=0.2)"


@pytest.mark.parametrize(
    "text, config",
    [
        ("none", None),
        (" none ", None),
        (None, None),
        ("se", SEConfig()),
        ("se()", SEConfig()),
        (" se ( reduction = 8 , bias = false ) ", SEConfig(reduction=8, bias=False)),
        ('se(activation="silu")', SEConfig(activation="silu")),
        ("se(reduced_channels=none)", SEConfig()),
        ("eca(kernel_size=5)", ECAConfig(5)),
        ("eca(gamma=3)", ECAConfig(gamma=3.0)),
        ("eca(kernel_size=adaptive)", ECAConfig()),
        ("eca(kernel_size=released:resnet50)", ECAConfig("released:resnet50")),
    ],
)
def test_what_text_means(text, config):
    assert parse_gate(text) == config


def test_a_config_passes_through_even_if_unlisted():
    config = OddConfig(text="x")
    assert parse_gate(config) is config


def test_numbers_take_integers_and_keep_their_kind():
    assert type(ECAConfig(gamma=3).gamma) is float
    assert str(ECAConfig(gamma=3)) == str(ECAConfig(gamma=3.0)) == "eca(gamma=3.0)"


# --- lists ---------------------------------------------------------------------------------------------------------


def test_lists_are_cut_at_the_outer_commas():
    assert split_gates("none,se(reduction=8,bias=false), eca") == ["none", "se(reduction=8,bias=false)", "eca"]
    assert split_gates("se") == ["se"]


@pytest.mark.parametrize("text", ["", "se,,eca", "se,", ",se"])
def test_an_empty_place_in_a_list_is_an_error(text):
    with pytest.raises(UserError, match="empty place"):
        split_gates(text)


@pytest.mark.parametrize("text", ["se(reduction=8,eca", "se),eca", 'se(activation="silu)'])
def test_unpaired_parentheses_and_quotes_are_errors(text):
    with pytest.raises(UserError):
        split_gates(text)


def test_list_gates_has_every_gate_and_not_the_absence_of_one():
    assert list_gates() == list(GATES)
    assert "none" not in list_gates()
    for name, config in GATES.items():
        assert config.name == name


# --- mistakes ------------------------------------------------------------------------------------------------------

MISTAKES = {
    # unknown names bring the nearest
    "sse": "unknown gate 'sse': did you mean 'se'",
    "SE": "unknown gate 'SE'",
    "se_var4": "'se_var3'",
    "nonne": "'none'",
    "se(reductoin=8)": "unknown option of gate 'se': 'reductoin': did you mean 'reduction'",
    "se(gate_function=sigmoida)": "'sigmoid'",
    "se(descriptor=std)": "known: max, mean",
    "eca(kernel_size=released)": "released:resnet50",
    "eca(kernel_size=released:resnet51)": "released:resnet50",
    # values of another kind
    "se(reduction=8.5)": "reduction='8.5' is not an integer",
    "se(reduction=none)": "reduction=None is not an integer",
    "se(reduction=true)": "reduction='true' is not an integer",
    "se(bias=1)": "bias='1' is not true or false",
    "se(bias=no)": "bias='no' is not true or false",
    "se(activation=3)": "not relu, silu, gelu or hard_swish",
    "eca(gamma=two)": "gamma='two' is not a finite number",
    "eca(gamma=nan)": "gamma=nan is not a finite number",
    "eca(gamma=inf)": "gamma=inf is not a finite number",
    "eca(kernel_size=3.0)": "is not an integer, adaptive, ",
    # values out of range
    "se(reduction=0)": "reduction=0 must be at least 1",
    "se(reduced_channels=-2)": "reduced_channels=-2 must be at least 1",
    "se(round_to=0)": "round_to=0 must be at least 1",
    "se(min_reduced_channels=0)": "min_reduced_channels=0 must be at least 1",
    "se(round_to=8,round_limit=1.5)": "round_limit=1.5 must lie in 0..1",
    "ese(hard_sigmoid_slope=0)": "must be above 0",
    "eca(kernel_size=4)": "kernel_size=4 must be odd and at least 1, .* take 3 or 5",
    "eca(kernel_size=-1)": "take 1",
    "eca_ns(kernel_size=2)": "take 1 or 3",
    "eca(gamma=0)": "gamma=0 must not be 0",
    "se_gc(groups=0)": "groups=0 must be at least 1",
    "no_squeeze(reduction=0)": "gate 'no_squeeze': reduction=0 must be at least 1",
    # options that another makes void
    "se(reduction=8,reduced_channels=4)": "leave out reduction",
    "se(reduced_channels=4,min_reduced_channels=2)": "leave out reduction",
    "se(round_limit=0.9)": "needs round_to",
    "se(hard_sigmoid_slope=0.2)": "has no effect with gate_function='sigmoid'",
    "ese(gate_function=tanh,hard_sigmoid_slope=0.2)": "has no effect",
    "eca(kernel_size=3,gamma=4)": "have no effect with kernel_size=3",
    "eca(kernel_size=released:resnet50,beta=4)": "have no effect with kernel_size='released:resnet50'",
    "se_gc(groups=4,group_size=4)": "give one",
    # text that is no gate
    "": "cannot read gate ''",
    "se(": "cannot read",
    "se)": "cannot read",
    "se(reduction=8)x": "cannot read",
    "se(reduction=8))": "closes nothing",
    "se(8)": "options are written name=value",
    "se(reduction=)": "options are written name=value",
    "se(,)": "options are written name=value",
    "se(reduction=8,reduction=8)": "gives 'reduction' twice",
    'se(activation="silu"x)': "quoted text",
    "se,eca": "cannot read",
    "se_var1(weight=1)": "gate 'se_var1' has no options",
    "se_var1(neutral=true)": "gate 'se_var1' has no options",
    "eca(neutral=1)": "neutral='1' is not true or false",
    "none(weight=1)": "'none' has no options",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_one_line_with_the_way_out(text):
    with pytest.raises(UserError) as error:
        parse_gate(text)
    message = str(error.value)
    assert re.search(MISTAKES[text], message), message
    assert "\n" not in message


@pytest.mark.parametrize("wrong", [5, 2.0, ["se"], SEConfig, SEConfig().build(16)], ids=repr)
def test_what_is_no_gate_at_all(wrong):
    with pytest.raises(UserError, match="give a gate's text, its config, or None"):
        parse_gate(wrong)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SEConfig(reduction="8"),
        lambda: SEConfig(reduction=8.0),
        lambda: SEConfig(reduction=True),
        lambda: SEConfig(bias=1),
        lambda: SEConfig(bias=None),
        lambda: SEConfig(activation="swish"),
        lambda: ECAConfig(kernel_size="3"),
        lambda: ECAConfig(gamma=float("nan")),
        lambda: SEGCConfig(group_size="8"),
    ],
)
def test_python_is_held_to_the_same_annotations(make):
    with pytest.raises(UserError):
        make()


def test_an_annotation_that_text_cannot_write_is_the_authors_mistake():
    @dataclass(frozen=True)
    class Listed(GateConfig):
        name: ClassVar[str] = "listed"
        sizes: tuple = ()

    with pytest.raises(TypeError, match="sizes"):
        Listed()


def test_configs_are_frozen_and_comparable():
    with pytest.raises(AttributeError):
        SEConfig().reduction = 8
    assert len({SEConfig(), SEConfig(reduction=16), SEConfig(reduction=8)}) == 2
