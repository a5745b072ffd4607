"""A recording holds every operation: values through in-place writes and views, calls of modules, what is a weight."""

import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from excite.graph import as_inputs, record, unwrapped


class Runs(nn.Module):
    """Layers, and what is done with them."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.run = forward

    def forward(self, *args, **kwargs):
        return self.run(self, *args, **kwargs)


X = torch.zeros(2, 3, 8, 8)


def conv(inputs=3, outputs=3):
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def ops(recording):
    return [node.op for node in recording.nodes]


def node_of(recording, op):
    (node,) = [node for node in recording.nodes if node.op == op]
    return node


def test_layers_are_nodes_with_their_modules():
    model = nn.Sequential(conv(), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 6, (1, 5), groups=3))
    got = record(model, (X,))
    assert not got.has_data
    kinds = [(n.op, n.module, n.kernel, n.groups) for n in got.nodes]
    assert kinds[0] == ("convolution", "0", (3, 3), 1) and kinds[-1] == ("convolution", "3", (1, 5), 3)
    assert list(dict.fromkeys(n.module for n in got.nodes)) == ["0", "1", "2", "3"]
    assert any("batch_norm" in n.op and n.module == "1" for n in got.nodes)
    assert [(c.module, c.number, c.depth) for c in got.calls] == [("", 0, 0), *((str(i), 0, 1) for i in range(4))]
    root = got.calls[0]
    assert (root.start, root.end) == (0, len(got.nodes)) and root.outputs == got.calls[-1].outputs
    # Each is what the one before returned.
    for before, after in zip(got.calls[1:], got.calls[2:], strict=False):
        assert before.outputs == after.inputs and after.takes_one and after.returns_one
    assert got.values[root.outputs[0]].shape == (2, 6, 8, 4)


def test_values_know_who_reads_them_and_what_they_come_from():
    model = Runs(lambda self, x: self.a(x) + self.b(self.a.weight.sum() * x), a=conv(), b=conv())
    got = record(model, (X,))
    (x,) = got.calls[0].inputs
    assert not got.values[x].weight and got.values[x].node is None
    assert [got.nodes[i].op for i in got.values[x].consumers] == ["convolution", "mul"]
    total = node_of(got, "sum")
    assert got.values[total.output].weight, "computed from weights alone"
    product, added = node_of(got, "mul"), node_of(got, "add")
    assert not got.values[product.output].weight
    ancestors = got.values[added.output].ancestors
    for value in (x, total.output, product.output, added.output):
        assert ancestors >> value & 1
    assert not got.values[product.output].ancestors >> got.nodes[0].output & 1 or got.nodes[0].op == "sum"


def test_writing_in_place_makes_a_new_value_of_the_same_tensor():
    def forward(self, x):
        y = self.a(x)
        y.mul_(2)
        z = y.relu_()
        return y + z

    got = record(Runs(forward, a=conv()), (X,))
    assert ops(got) == ["convolution", "mul", "relu", "add"]
    written = [node.output for node in got.nodes]
    assert got.nodes[1].inputs == (written[0],) and got.nodes[2].inputs == (written[1],)
    assert got.nodes[3].inputs == (written[2], written[2]), "y is z, after it was written"
    assert len(set(written)) == 4


def test_writing_into_a_view_writes_the_whole():
    def forward(self, x):
        y = self.a(x)
        y[:, 0].add_(1)
        return self.b(y)

    got = record(Runs(forward, a=conv(), b=conv()), (X,))
    added, last = node_of(got, "add"), got.nodes[-1]
    assert last.op == "convolution" and added.output in last.inputs
    assert got.values[added.output].shape == got.values[got.nodes[0].output].shape, "the whole's"
    assert got.values[last.output].ancestors >> got.nodes[0].output & 1


def test_writing_the_whole_is_seen_through_a_view():
    def forward(self, x):
        y = self.a(x)
        flat = y.view(2, -1)
        y.add_(1)
        return flat.sum()

    got = record(Runs(forward, a=conv()), (X,))
    assert node_of(got, "sum").inputs == (node_of(got, "add").output,)


def test_copies_are_values_of_their_own():
    def forward(self, x):
        y = self.a(x)
        kept = y.clone()
        y.add_(1)
        return kept * y

    got = record(Runs(forward, a=conv()), (X,))
    assert node_of(got, "mul").inputs == (node_of(got, "clone").output, node_of(got, "add").output)


def test_modules_that_do_nothing_are_seen():
    """What reads their output is told from what reads their input."""
    model = Runs(lambda self, x: self.idle(x) + x, idle=nn.Identity())
    got = record(model, (X,))
    (idle,) = got.calls_of("idle")
    assert idle.inputs != idle.outputs
    assert got.nodes[got.values[idle.outputs[0]].node].module == "idle"
    assert node_of(got, "add").inputs == (idle.outputs[0], idle.inputs[0])


def test_drop_path_does_nothing_in_eval_mode_and_training_is_left_on():
    from timm.layers import DropPath

    model = Runs(lambda self, x: x + self.drop(self.a(x)), drop=DropPath(0.5), a=conv()).train()
    got = record(model, (X,))
    assert ops(got) == ["convolution", "alias", "add"] and model.training and model.drop.training


def test_calls_are_counted_by_module():
    shared = conv()
    model = Runs(lambda self, x: self.c(self.b(self.a(self.a(x)))), a=shared, b=shared, c=conv())
    got = record(model, (X,))
    assert [(c.module, c.number) for c in got.calls] == [("", 0), ("a", 0), ("a", 1), ("a", 2), ("c", 0)]
    assert [c.number for c in got.calls_of("a")] == [0, 1, 2] and got.calls_of("b") == []


def test_what_modules_take_and_return():
    class Many(nn.Module):
        def forward(self, x, y=None, *rest):
            return (x, y)

    class Dict(nn.Module):
        def forward(self, x):
            return {"y": x * 2}

    def forward(self, x):
        self.many(x, x * 3)
        self.many(x, 5)
        self.many(x, y=x)
        self.dict(x)
        return x

    got = record(Runs(forward, many=Many(), dict=Dict()), (X,))
    many, (one,) = got.calls_of("many"), got.calls_of("dict")
    assert [(len(c.inputs), c.takes_one, c.returns_one) for c in many] == [
        (2, False, False),
        (1, False, False),
        (1, True, False),
    ]
    assert (one.takes_one, one.returns_one, len(one.outputs)) == (True, False, 1)


def test_constants_and_buffers_are_weights():
    def forward(self, x):
        return x + torch.arange(8.0) * self.norm.running_mean[:, None, None] + torch.tensor(3.0)

    got = record(Runs(forward, norm=nn.BatchNorm2d(3)), (X,))
    first, second = (node for node in got.nodes if node.op == "add")
    assert [got.values[v].weight for v in first.inputs] == [False, True]
    assert [got.values[v].weight for v in second.inputs] == [False, True]


@pytest.mark.parametrize(
    "move, axes",
    [
        (lambda x: x.permute(0, 2, 3, 1), (0, 2, 3, 1)),
        (lambda x: x.permute(0, -1, 1, -2), (0, 3, 1, 2)),
        (lambda x: x.transpose(1, -1), (0, 3, 2, 1)),
        (lambda x: x.movedim(1, -1), (0, 2, 3, 1)),
        (lambda x: x.mT, (0, 1, 3, 2)),
    ],
)
def test_moved_axes_are_written_down(move, axes):
    got = record(Runs(lambda self, x: move(x)), (X,))
    assert [node.axes for node in got.nodes] == [axes]
    assert move(torch.empty(2, 3, 4, 5)).shape == tuple((2, 3, 4, 5)[axis] for axis in axes)


def test_forwards_that_look_at_values_run_with_data():
    model = Runs(lambda self, x: self.a(x) if x.sum() < 1 else x, a=conv())
    assert record(model, (X,)).has_data
    assert ops(record(model, (X,)))[-1] == "convolution"
    assert ops(record(model, (X + 9,)))[-1] != "convolution", "on this example"


def test_numpy_and_items_run_with_data():
    def forward(self, x):
        scale = float(x.mean()) + torch.from_numpy(x.detach().numpy()).sum().item()
        return self.a(x) * scale

    assert record(Runs(forward, a=conv()), (X,)).has_data


def test_nothing_of_the_network_changes():
    norm = nn.BatchNorm2d(3, momentum=0.5)
    model = Runs(lambda self, x: F.dropout(self.norm(x), 0.5, self.training) if x.sum() < 1 else x, norm=norm)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    assert record(model, (X,)).has_data
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state) and model.training
    assert not norm._forward_hooks and not norm._forward_pre_hooks and norm.weight.requires_grad


def test_errors_name_the_network_and_the_shape():
    with pytest.raises(ValueError, match=r"Conv2d does not take an example of shape \(2, 5, 8, 8\)"):
        record(conv(), (torch.zeros(2, 5, 8, 8),))
    with pytest.raises(ValueError, match=r"Conv2d does not take an example of shape \(2, 5\), \(1,\)"):
        record(conv(), (torch.zeros(2, 5), torch.zeros(1)))


def test_a_compiled_network_is_looked_into():
    model = conv()
    compiled = torch.compile(model, backend="eager")
    assert unwrapped(compiled) is model and unwrapped(model) is model
    model.compile(backend="eager")
    assert ops(record(model, (X,))) == ["convolution"]
    assert model._compiled_call_impl is not None


@pytest.mark.parametrize("looks_at_values", [False, True])
def test_what_a_network_keeps_of_an_earlier_pass_is_no_obstacle(looks_at_values):
    def forward(self, x):
        self.kept = {"map": [self.conv(x)]}
        return x if looks_at_values and x.sum() > 1 else x + self.conv(x)

    network = Runs(forward, conv=nn.utils.weight_norm(nn.Conv2d(3, 3, 1)))
    network(X)
    kept, weight = network.kept["map"][0], network.conv.weight
    recording = record(network, (X,))
    assert recording.has_data == looks_at_values
    assert [node.op for node in recording.nodes].count("convolution") == 2
    assert network.kept["map"][0] is kept and network.conv.weight is weight


def test_a_network_that_cannot_be_copied_is_an_error_that_says_so():
    network = Runs(lambda self, x: x, conv=nn.Conv2d(3, 3, 1))
    network.lock = threading.Lock()
    with pytest.raises(ValueError, match="Runs is run on a copy, and cannot be copied: .*lock"):
        record(network, (X,))


def test_inputs():
    assert as_inputs(X) == (X,) and as_inputs([X, 3]) == (X, 3)
    with pytest.raises(ValueError, match="example is a dict"):
        as_inputs({"x": X})


def test_checkpointed_blocks_are_recorded():
    from torch.utils.checkpoint import checkpoint

    model = Runs(lambda self, x: x + checkpoint(self.a, x, use_reentrant=False), a=conv())
    # PyTorch 2.11's checkpoint makes empty tensors of its own beside them.
    assert [op for op in ops(record(model, (X,))) if op in ("convolution", "add")] == ["convolution", "add"]
