"""Gates act in networks that are compiled, before or after, exported, traced by torch.fx, scripted or not."""

import copy

import pytest
import torch
from network_cases import BasicBlock
from surgery_cases import image, lively, move_gates, small
from torch import fx, nn

from excite.surgery import attach_, attached, detach_, swap_, verify
from tolerances import PARITY


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Tiny(nn.Module):
    """One block: what a compiler does with a gate does not depend on how many there are."""

    def __init__(self):
        super().__init__()
        self.block = BasicBlock(2, 3, 4, 1)

    def forward(self, x):
        return self.block(x)


def tiny():
    return lively(Tiny()).eval()


# aot_eager traces what runs in a backward pass too.
SLOW = pytest.mark.slow
BACKENDS = ["eager", pytest.param("aot_eager", marks=SLOW)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gate", ["se", *(pytest.param(gate, marks=SLOW) for gate in ("eca", "ese", "no_squeeze"))])
def test_a_network_is_compiled_in_one_graph(backend, gate):
    model, x = tiny(), image()
    attach_(model, gate, x)
    attach_(model, gate, x, where="pre")
    move_gates(model)
    y = model(x)
    compiled = torch.compile(copy.deepcopy(model), backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(x), y, **PARITY[torch.float32])


@pytest.mark.parametrize("how", ["in place", "as an object"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gates_act_in_a_network_compiled_before(how, backend):
    model, x = tiny(), image()
    plain = model(x)
    if how == "in place":
        model.compile(backend=backend, fullgraph=True)
        compiled = model
    else:
        compiled = torch.compile(model, backend=backend, fullgraph=True)
    compiled(x)
    sites = attach_(compiled, "se", x)
    assert [site.module for site in sites] == ["block.norm2"]
    torch.testing.assert_close(compiled(x), plain, **PARITY[torch.float32])
    move_gates(compiled)
    gated = compiled(x)
    assert not torch.allclose(gated, plain, rtol=1e-3)
    torch.testing.assert_close(gated, torch.compile(tiny_like(model), backend="eager")(x), **PARITY[torch.float32])
    swap_(compiled, "se", "eca", start="neutral")
    torch.testing.assert_close(compiled(x), plain, **PARITY[torch.float32])
    detach_(compiled)
    torch.testing.assert_close(compiled(x), plain, **PARITY[torch.float32])


def tiny_like(model):
    """The same network, never compiled."""
    twin = tiny()
    attach_(twin, "se", image())
    twin.load_state_dict(model.state_dict())
    return twin


def test_gates_learn_in_a_compiled_network():
    model, x = tiny().train(), image()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    attach_(compiled, "se", x, start="paper")
    compiled(x).square().sum().backward()
    eager = [p.grad.clone() for p in model.parameters()]
    twin = copy.deepcopy(model)
    twin.zero_grad()
    twin(x).square().sum().backward()
    torch.testing.assert_close(eager, [p.grad for p in twin.parameters()], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("gate", ["se", pytest.param("eca", marks=SLOW)])
def test_an_exported_network_has_its_gates(strict, gate):
    model, x = tiny(), image()
    attach_(model, gate, x)
    attach_(model, gate, x, where="pre")
    move_gates(model)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (x,), strict=strict, dynamic_shapes={"x": {0: batch}})
    for n in (2, 5):
        x = image(n=n)
        torch.testing.assert_close(program.module()(x), model(x), **PARITY[torch.float32])


def test_fx_keeps_gates_on_modules_that_it_does_not_look_into():
    """Norms are leaves to torch.fx: their modules, and what hangs on them, go into the graph as they are."""
    model, x = small(), image()
    attach_(model, "eca", x)
    move_gates(model)
    y = model(x)
    traced = fx.symbolic_trace(model)
    assert torch.equal(traced(x), y) and len(verify(traced)) == 4
    assert len(attached(traced)) == 4


def test_fx_cannot_trace_gates_on_blocks():
    """Blocks are no leaves: their gates are traced too, and look at shapes."""
    model, x = small(), image()
    attach_(model, "eca", x, where="post")
    with pytest.raises(fx.proxy.TraceError, match="control flow"):
        fx.symbolic_trace(model)
    detach_(model)
    assert torch.equal(fx.symbolic_trace(model)(x), model(x))


def test_norms_fused_into_convolutions_take_their_gates_along():
    """What torch.fx's fusion does without a word, ``verify`` says."""
    from torch.fx.experimental.optimization import fuse

    model, x = small(), image()
    attach_(model, "eca", x)
    fused = fuse(model)
    with pytest.raises(ValueError, match="gone|no gate attached"):
        verify(fused)
