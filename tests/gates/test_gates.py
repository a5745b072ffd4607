"""What every gate must satisfy, on every shape it may meet: one table (cases.py), one file of properties."""

import copy
import pickle
from dataclasses import dataclass
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.testing import assert_close

from cases import GATE_CASES, SHAPES, GateCase
from excite.errors import UserError
from excite.gates import GATES, Gate, GateConfig, parse_gate
from excite.gates.grammar import _kinds
from excite.ops import rescale, squeeze
from tolerances import PARITY

GATED = [case for case in GATE_CASES if not case.gate.startswith("no_squeeze")]
# The bare gates: one of each kind, where a property does not hang on options.
PLAIN = [case for case in GATE_CASES if "(" not in case.gate]

every = pytest.mark.parametrize("case", GATE_CASES, ids=str)
every_gate = pytest.mark.parametrize("case", GATED, ids=str)
every_plain = pytest.mark.parametrize("case", PLAIN, ids=str)
pairs = pytest.mark.parametrize(
    "case, shape",
    [
        pytest.param(case, shape, id=f"{case}-{name}")
        for case in GATE_CASES
        for name, shape in SHAPES.items()
        if case.takes(shape[1])
    ],
)


def small(case: GateCase) -> tuple[int, ...]:
    """The narrowest of these maps that the case takes."""
    return next((2, c, 3, 4) for c in (6, 8, 13, 16, 64) if case.takes(c))


def make(case: GateCase, channels: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The gate with parameters large enough for every function to leave its linear part."""
    config = parse_gate(case.gate)
    assert config is not None
    gate = config.build(channels).to(dtype)
    with torch.no_grad():
        for p in gate.parameters():
            p.copy_(torch.randn(p.shape) * (1.5 if p.dim() == 1 else 2 / p[0].numel() ** 0.5))
    return gate


def reference(case: GateCase, gate: nn.Module, u: Tensor) -> Tensor:
    return case.reference({name: p.double() for name, p in gate.named_parameters()}, u.double())


def gradients(y: Tensor, gate: nn.Module, u: Tensor) -> list[Tensor]:
    inputs = [u, *gate.parameters()]
    direction = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return list(torch.autograd.grad(y, inputs, direction))


# --- the table itself ----------------------------------------------------------------------------------------------


def test_the_table_holds_every_gate_option_and_choice():
    seen: dict[str, list[GateConfig]] = {}
    for case in GATE_CASES:
        config = parse_gate(case.gate)
        seen.setdefault(config.name, []).append(config)
    assert seen.keys() == GATES.keys()
    for name, cls in GATES.items():
        default = cls()
        for option, kinds in _kinds(cls).items():
            tried = {getattr(config, option) for config in seen[name]}
            choices = {k for k in kinds if isinstance(k, str) and k != "adaptive" and not k.startswith("released")}
            assert choices <= tried, f"{name}.{option}: no case has {choices - tried}"
            assert tried - {getattr(default, option)}, f"{name}.{option}: only its default is tried"


@every
def test_each_case_meets_several_shapes(case):
    assert sum(case.takes(shape[1]) for shape in SHAPES.values()) >= (9 if case.widths is None else 1)


# --- the function --------------------------------------------------------------------------------------------------


@pairs
def test_output_and_gradients_are_those_of_the_paper(case, shape):
    gate = make(case, shape[1])
    u = (torch.randn(shape, dtype=torch.float64) + 0.3).requires_grad_()
    y, expected = gate(u), reference(case, gate, u)
    assert y.shape == u.shape and y.dtype == u.dtype
    assert_close(y, expected, **PARITY[torch.float64])
    for got, want in zip(gradients(y, gate, u), gradients(expected, gate, u), strict=True):
        assert_close(got, want, **PARITY[torch.float64])


@every
def test_gradcheck(case):
    n, c, *_ = small(case)
    gate = make(case, c)
    names = [name for name, _ in gate.named_parameters()]
    u = torch.randn(n, c, 2, 2, dtype=torch.float64, requires_grad=True)

    def run(u: Tensor, *parameters: Tensor) -> Tensor:
        return functional_call(gate, dict(zip(names, parameters, strict=True)), (u,))

    assert torch.autograd.gradcheck(run, (u, *gate.parameters()), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@every
def test_dtype_is_kept_and_the_formula_holds_in_it(case, dtype):
    shape = small(case)
    gate = make(case, shape[1], dtype)
    u = torch.randn(shape).to(dtype).requires_grad_()
    y = gate(u)
    assert y.dtype == dtype
    assert_close(y.double(), reference(case, gate, u), **PARITY[dtype])
    assert all(g.dtype == dtype and g.isfinite().all() for g in gradients(y, gate, u))


@pytest.mark.parametrize(
    "spatial, layout", [((3, 4), torch.channels_last), ((2, 3, 2), torch.channels_last_3d)], ids=["2d", "3d"]
)
@every
def test_memory_format_is_kept(case, spatial, layout):
    channels = small(case)[1]
    gate = make(case, channels)
    u = torch.randn(2, channels, *spatial, dtype=torch.float64)
    flat, deep = gate(u), gate(u.to(memory_format=layout))
    assert flat.is_contiguous() and not flat.is_contiguous(memory_format=layout)
    assert deep.is_contiguous(memory_format=layout)
    assert_close(deep, flat, **PARITY[torch.float64])


@every
def test_strided_and_untouched_input(case):
    n, c, *_ = small(case)
    gate = make(case, c)
    u = torch.randn(n, 2 * c, 3, 8, dtype=torch.float64)[:, ::2, :, ::2]
    before = u.clone()
    assert_close(gate(u), reference(case, gate, u), **PARITY[torch.float64])
    assert torch.equal(u, before)


# --- the seam ------------------------------------------------------------------------------------------------------


@every_gate
def test_forward_is_squeeze_excite_rescale(case):
    shape = small(case)
    gate = make(case, shape[1])
    assert isinstance(gate, Gate)
    u = torch.randn(shape, dtype=torch.float64)
    s = gate.excite(squeeze(u, gate.descriptors))
    assert s.shape == shape[:2]
    assert torch.equal(gate(u), rescale(u, s))


@every_gate
def test_excite_is_differentiable_by_torch_func(case):
    n, c, *_ = small(case)
    gate = make(case, c)
    z = torch.randn(n, c, dtype=torch.float64, requires_grad=True)
    parameters = dict(gate.named_parameters())
    ds = torch.randn(n, c, dtype=torch.float64)

    class Excite(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = gate

        def forward(self, z: Tensor) -> Tensor:
            return self.gate.excite(z)

    excite = Excite()
    s, pull = torch.func.vjp(
        lambda p, z: functional_call(excite, {f"gate.{k}": v for k, v in p.items()}, (z,)), parameters, z
    )
    dp, dz = pull(ds)
    expected = torch.autograd.grad(gate.excite(z), [z, *parameters.values()], ds)
    assert_close(s, gate.excite(z), rtol=0, atol=0)
    for got, want in zip([dz, *dp.values()], expected, strict=True):
        assert_close(got, want, **PARITY[torch.float64])


def test_forward_is_final():
    with pytest.raises(TypeError, match="final"):

        class Bent(Gate):
            def forward(self, u: Tensor) -> Tensor:
                return u


# --- a module like any other ---------------------------------------------------------------------------------------


@every
def test_parameter_count(case):
    for channels in {shape[1] for shape in SHAPES.values()}:
        if case.takes(channels):
            gate = parse_gate(case.gate).build(channels)
            assert sum(p.numel() for p in gate.parameters()) == case.parameters(channels)


@every
def test_config_rebuilds_the_gate(case):
    channels = small(case)[1]
    gate = parse_gate(case.gate).build(channels)
    again = gate.config.build(channels)
    assert type(again) is type(gate) and again.config == gate.config == parse_gate(case.gate)
    assert parse_gate(str(gate.config)) == gate.config
    assert str(gate.config) in repr(gate) and str(channels) in repr(gate)


@every
def test_direct_construction_is_the_config(case):
    config = parse_gate(case.gate)
    gate = config.build(small(case)[1])
    assert type(gate)(small(case)[1], **config.options()).config == config


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda g: pickle.loads(pickle.dumps(g))], ids=["deepcopy", "pickle"]
)
@every
def test_copies_compute_the_same_and_share_nothing(case, duplicate):
    shape = small(case)
    gate = make(case, shape[1])
    twin = duplicate(gate)
    u = torch.randn(shape, dtype=torch.float64)
    y = gate(u)
    assert torch.equal(twin(u), y)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert torch.equal(gate(u), y)


@every
def test_state_dict_round_trip(case):
    shape = small(case)
    gate, fresh = make(case, shape[1]), make(case, shape[1])
    assert set(gate.state_dict()) == {name for name, _ in gate.named_parameters()}
    fresh.load_state_dict(gate.state_dict(), strict=True)
    u = torch.randn(shape, dtype=torch.float64)
    assert torch.equal(fresh(u), gate(u))


@every
def test_compiles_whole(case):
    torch.compiler.reset()
    shape = small(case)
    gate = make(case, shape[1])
    compiled = torch.compile(gate, fullgraph=True, backend="aot_eager")
    u = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y, eager = compiled(u), gate(u)
    assert_close(y, eager, **PARITY[torch.float64])
    for got, want in zip(gradients(y, gate, u), gradients(eager, gate, u), strict=True):
        assert_close(got, want, **PARITY[torch.float64])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every
def test_autocast(case, dtype):
    shape = small(case)
    gate = make(case, shape[1], torch.float32)
    u = torch.randn(shape).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = gate(u)
    assert y.dtype == dtype  # a gate changes what a map holds, not what it is
    assert_close(y.double(), reference(case, gate, u), **PARITY[torch.bfloat16])
    grads = gradients(y, gate, u)
    assert [g.dtype for g in grads] == [dtype] + [torch.float32] * (len(grads) - 1)


@every_plain
def test_fresh_gates_differ_by_seed_and_repeat_with_it(case):
    def fresh(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        return list(parse_gate(case.gate).build(16).parameters())

    assert all(torch.equal(a, b) for a, b in zip(fresh(1), fresh(1), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(fresh(1), fresh(2), strict=True))


# --- mistakes ------------------------------------------------------------------------------------------------------


@every_plain
def test_maps_of_another_width_are_refused(case):
    gate = parse_gate(case.gate).build(16)
    with pytest.raises(UserError, match=r"\[N, 16, \*S\].*\(2, 1, 4, 4\)"):
        gate(torch.randn(2, 1, 4, 4))


@pytest.mark.parametrize("shape", [(2, 16), (2, 16, 2, 2, 2, 2)], ids=["no axes", "four axes"])
@every_plain
def test_maps_with_other_than_one_to_three_axes_are_refused(case, shape):
    with pytest.raises(UserError, match="1 to 3 spatial axes"):
        parse_gate(case.gate).build(16)(torch.randn(shape))


@pytest.mark.parametrize("channels", [0, -3, 2.0, True, "16"])
@every_plain
def test_channels_must_be_a_positive_integer(case, channels):
    with pytest.raises(UserError, match="channels="):
        parse_gate(case.gate).build(channels)


def test_choices_are_spelled_once():
    """The names that the functions know are the names that the annotations allow."""
    from excite.gates.functions import ACTIVATIONS, GATE_FUNCTIONS, ActivationName, GateFunctionName

    assert tuple(ACTIVATIONS) == get_args(ActivationName)
    assert get_args(GateFunctionName) == GATE_FUNCTIONS


# --- a neutral start -----------------------------------------------------------------------------------------------

neutrals = pytest.mark.parametrize("case", [case for case in GATE_CASES if "neutral=true" in case.gate], ids=str)


def test_every_gate_has_a_neutral_form_or_says_why_not():
    tried = {parse_gate(case.gate).name for case in GATE_CASES if "neutral=true" in case.gate}
    assert tried == GATES.keys() - {"se_var1"}
    for name in tried:
        neutral = GATES[name]().as_neutral()
        assert neutral == parse_gate(f"{name}(neutral=true)") == neutral.as_neutral()
    with pytest.raises(UserError, match="'se_var1' has no neutral form: .*no weights"):
        GATES["se_var1"]().as_neutral()


def test_a_gate_without_the_option_says_so():
    @dataclass(frozen=True)
    class Bare(GateConfig):
        name = "bare"

    with pytest.raises(UserError, match="'bare' has no neutral form: it has no option 'neutral'"):
        Bare().as_neutral()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@neutrals
def test_a_fresh_neutral_gate_is_exactly_the_identity(case, dtype):
    for shape in SHAPES.values():
        if case.takes(shape[1]):
            u = torch.randn(shape).to(dtype)
            assert torch.equal(parse_gate(case.gate).build(shape[1]).to(dtype)(u), u)


@neutrals
def test_a_fresh_neutral_gate_learns(case):
    """Its first gradient is not zero, and a few steps bring it where a target asks for another scale."""
    shape = small(case)
    torch.manual_seed(0)
    gate = parse_gate(case.gate).build(shape[1])
    u = torch.rand(shape) + 0.5
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.05)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (gate(u) - 1.5 * u).square().mean()
        loss.backward()
        losses.append(loss.item())
        assert any(p.grad.abs().max() > 0 for p in gate.parameters())
        optimizer.step()
    assert losses[-1] < losses[0] / 2


@neutrals
def test_a_neutral_gate_is_no_plain_one_with_the_same_weights(case):
    shape = small(case)
    gate = make(case, shape[1])
    plain = type(gate)(shape[1], **{**gate.config.options(), "neutral": False}).double()
    plain.load_state_dict(gate.state_dict(), strict=True)
    u = torch.randn(shape, dtype=torch.float64)
    assert not torch.allclose(gate(u), plain(u), rtol=1e-2)
