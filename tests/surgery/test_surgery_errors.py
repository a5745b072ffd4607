"""What cannot be done says why and what to do instead, and leaves the network as it was."""

import warnings

import pytest
import torch
from surgery_cases import image, looks, move_gates, small
from torch import nn
from torch.nn import functional as F

from excite.surgery import Attached, attach_, attach_at_, attached, detach_, find_sites, reattach_, survey, verify


def refuses(model, match, gate="se", example=None, **options):
    before = looks(model)
    with pytest.raises(ValueError, match=match) as error:
        attach_(model, gate, image() if example is None else example, **options)
    assert looks(model) == before, "the network was touched"
    assert "\n" not in str(error.value).strip()


# --- what was asked for ---


@pytest.mark.parametrize(
    "where, match",
    [
        ("residul", "unknown place 'residul': did you mean 'residual'"),
        ("conv2", "unknown place 'conv2'.* Places are residual, pre, .*, block:PATTERN and the names of modules"),
        ("layers.0.norm3", "unknown place 'layers.0.norm3': did you mean 'layers.0.norm2' or 'layers.0.norm1'"),
        ("", "unknown place ''"),
        (["layers.0.norm3"], "unknown module 'layers.0.norm3': did you mean 'layers.0.norm2'"),
        ([""], "unknown module ''"),
        ([], "nothing in the network is such a place"),
        (3, "where=3: give one of residual, .*'block:PATTERN'"),
        (None, "where=None: give one of"),
        ("block:layer.*", r"unknown module 'layer\.\*': did you mean 'layers.*nothing matches where='block:layer\.\*'"),
        ("block:", "nothing matches where='block:'"),
        ("block:*.9.*", "nothing matches"),
        ("block:head", r"head: it returns \(2, 10\), no feature map"),
        ("head", r"head: it returns \(2, 10\), no feature map"),
        (lambda name, module: False, "where='<lambda>': nothing"),
        ("layers.0.shortcut", r"layers\.0\.shortcut: it is a container"),
    ],
)
def test_places_that_are_not_there(where, match):
    refuses(small(), match, where=where)


@pytest.mark.parametrize(
    "stages, match",
    [
        ([], r"stages=\(\) puts no gate anywhere: give some of 1 to 2"),
        ([3], r"stages=\(3,\): this network has stages 1 to 2"),
        ([0], "stages 1 to 2"),
        ([-1], "stages 1 to 2"),
        ([True], "stages 1 to 2"),
        (2, "stages=2: give a sequence of some of 1 to 2"),
        ("12", "stages='12': give a sequence"),
    ],
)
def test_stages_that_are_not_there(stages, match):
    refuses(small(), match, stages=stages)


@pytest.mark.parametrize(
    "gate, match",
    [
        ("none", "attaches nothing; detach_ takes gates out, and swap_"),
        (None, "attaches nothing"),
        ("sse", "unknown gate 'sse': did you mean 'se'"),
        ("se(r=4)", "unknown option"),
        ("se_var1", "se_var1.*no neutral form: its scale is the sigmoid of the mean"),
        ("eca(kernel_size=released:resnet50)", "has sizes for 256, 512, 1024, 2048 channels, not for 16"),
        ("se_gc(groups=32)", "groups=32 does not divide 16 channels"),
        (nn.ReLU(), "give a gate's text"),
    ],
)
def test_gates_that_cannot_be_built(gate, match):
    refuses(small(), match, gate)


def test_a_gate_that_fits_some_of_the_sites_is_put_nowhere():
    """se_gc of 8 groups of 2 channels fits the first stage; released ECA sizes the second."""
    refuses(small(), "does not divide 16 channels", "se_gc(groups=32)", stages=[1, 2])
    model = small()
    attach_(model, "se_gc(groups=32)", image(), stages=[2])


def test_an_unknown_start():
    refuses(small(), "unknown start 'fresh': known: neutral, paper", start="fresh")


@pytest.mark.parametrize(
    "example, match",
    [
        (torch.zeros(1, 4, 8, 8), r"ResNet does not take an example of shape \(1, 4, 8, 8\).*to have 3 channels"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "does not take an example"),
        (torch.zeros(3), "does not take an example"),
        ((image(), image()), "takes 2 positional arguments but 3 were given"),
        ((), "missing 1 required positional argument"),
        ("image", "example is a str: give a tensor, or a tuple"),
        (7, "example is a int"),
        ({"x": image()}, "example is a dict"),
        (image().numpy(), "example is a ndarray"),
    ],
)
def test_examples_that_do_not_fit(example, match):
    refuses(small(), match, example=example)


def test_an_example_without_data_where_the_forward_looks_at_values():
    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small()

        def forward(self, x):
            return self.net(x) if x.sum() < 1e9 else x

    refuses(Looks(), "does not take an example", example=image(device="meta"))
    model, x = Looks(), image()
    y = model(x)
    assert len(attach_(model, "se", x)) == 4, "with data it runs"
    assert torch.equal(model(x), y)
    with pytest.raises(ValueError, match="does not take an example"):
        find_sites(Looks().to("meta"), x)


# --- what is there already ---


def test_the_same_gates_twice():
    model = small()
    attach_(model, "se", image())
    refuses(model, r"no place can take a gate\. layers\.0: layers\.0\.norm2\.excite_gate \(SE\) stands there already")
    refuses(model, r"layers\.0\.norm2 has a gate already: detach_ takes it off", "eca", where="layers.0.norm2")
    before = looks(model)
    with pytest.raises(ValueError, match=r"layers\.1\.norm2 has a gate already"):
        attach_at_(model, [Attached("layers.0.conv1", "out", 16, "eca"), Attached("layers.1.norm2", "out", 16, "se")])
    assert looks(model) == before


def test_two_gates_for_one_place():
    model = small()
    before = looks(model)
    with pytest.raises(ValueError, match=r"layers\.0\.norm2"):
        attach_at_(model, [Attached("layers.0.norm2", "out", 16, "eca"), Attached("layers.0.norm2", "out", 16, "se")])
    assert looks(model) == before


@pytest.mark.parametrize(
    "item, match",
    [
        (Attached("layers.9.norm2", "out", 16, "se"), r"unknown module 'layers\.9\.norm2': did you mean 'layers"),
        (Attached("", "out", 16, "se"), "unknown module ''"),
        (Attached("layers.0", "out", 16, "none"), r"layers\.0: gate 'none' is none"),
        (Attached("layers.0", "out", 16, "sse"), "unknown gate 'sse'"),
        (Attached("layers.0", "up", 16, "se"), "unknown side 'up'"),
        (Attached("layers.0", "out", 0, "se"), "channels=0"),
        ({"module": "layers.0", "side": "out"}, "a gate's record has channels, gate, module, side; got module, side"),
    ],
)
def test_records_that_do_not_fit(item, match):
    model = small()
    before = looks(model)
    with pytest.raises(ValueError, match=match):
        attach_at_(model, [Attached("layers.1", "out", 16, "se"), item])
    assert looks(model) == before


# --- networks of other kinds ---


def test_networks_without_maps():
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 3))
    refuses(mlp, "Sequential: where='residual': the network has no residual additions; where='conv'")
    refuses(mlp, "nothing in the network is such a place", where="conv")
    refuses(mlp, r"1: it returns \(2, 8\), no feature map", where="1")


def test_modules_without_a_forward():
    refuses(nn.ModuleList([small()]), "does not take an example")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_scripted_networks():
    scripted = torch.jit.script(small())
    for call in (lambda: attach_(scripted, "se", image()), lambda: find_sites(scripted, image())):
        with pytest.raises(ValueError, match="is scripted"):
            call()
    inner = torch.jit.script(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()))
    model = nn.Sequential(nn.Conv2d(3, 3, 1), inner, nn.Conv2d(3, 4, 3), nn.ReLU())
    for name in ("1", "1.0"):
        with pytest.raises(ValueError, match=f"{name}: it is scripted"):
            attach_(model, "se", image(), where=name)
    x = image()
    y = model(x)
    assert [site.module for site in attach_(model, "se", x, where="conv")][-1] == "3"
    assert torch.equal(model(x), y) and verify(model)
    detach_(model)
    assert torch.equal(model(x), y)


class Quantised(nn.Module):
    def __init__(self):
        from torch.ao.quantization import DeQuantStub, QuantStub

        super().__init__()
        self.enter, self.leave = QuantStub(), DeQuantStub()
        self.conv, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU()
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.last(self.leave(self.relu(self.conv(self.enter(x)))))


@pytest.mark.filterwarnings("ignore")
def test_quantised_modules():
    from torch.ao import quantization

    model = Quantised().eval()
    model.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)
    model.last.qconfig = None
    prepared = quantization.prepare(model)
    prepared(image())
    model = quantization.convert(prepared)
    y = model(image(generator=torch.Generator().manual_seed(0)))
    modules, keys = list(model.named_modules()), list(model.state_dict())
    for where, match in [
        ("conv", "nothing in the network|quantised"),
        ("relu", "does not run"),
        ("leave", "quantised"),
    ]:
        with pytest.raises(ValueError, match=match):
            attach_(model, "se", image(), where=where)
    with pytest.raises(ValueError, match=r"conv: it is quantised or scripted"):
        attach_(model, "se", image(), where=["conv"])
    assert list(model.named_modules()) == modules and list(model.state_dict()) == keys and not attached(model)
    attach_(model, "se", image(), where="last")
    assert torch.equal(model(image(generator=torch.Generator().manual_seed(0))), y), "what is in floats can have gates"


@pytest.mark.filterwarnings("ignore")
def test_a_network_whose_linear_layers_are_quantised():
    model = torch.ao.quantization.quantize_dynamic(small(), {nn.Linear}, dtype=torch.qint8)
    x = image()
    y = model(x)
    assert len(attach_(model, "se", x)) == 4 and torch.equal(model(x), y)


def test_networks_in_data_parallel():
    refuses(nn.DataParallel(small()), "DataParallel has taken stock of its parameters: attach to the network before")


# --- modules that run twice, or return other things than a map ---


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        return x + self.norm(self.conv(x))


class Around(nn.Module):
    """Blocks and how they are called."""

    def __init__(self, how, *blocks):
        super().__init__()
        self.how, self.blocks = how, nn.ModuleList(blocks or [Block()])

    def forward(self, x):
        return self.how(self, x)


def test_a_block_in_a_loop():
    def loop(self, x):
        for _ in range(3):
            x = self.blocks[0](x)
        return x

    model = Around(loop)
    refuses(model, r"blocks\.0: blocks\.0\.norm: it is called 3 times in a forward pass")
    refuses(model, r"blocks\.0: it is called 3 times", where="block:blocks.*")
    assert len(survey(model, image()).refused) == 3


def test_a_block_under_two_names():
    shared = Block()
    once = Around(lambda self, x: self.blocks[1](x), shared, shared)
    x = image()
    y = once.eval()(x)
    assert [site.module for site in find_sites(once, x)] == ["blocks.0.norm"]
    assert [site.module for site in find_sites(once, x, where="blocks.1")] == ["blocks.0"]
    plain = {key: value.clone() for key, value in once.state_dict().items()}
    attach_(once, "se", x)
    assert torch.equal(once(x), y) and len(verify(once)) == 1
    once.load_state_dict(plain)  # with its keys under both names
    move_gates(once)
    with pytest.raises(RuntimeError, match="Missing key"):
        once.load_state_dict(plain)
    detach_(once)
    assert torch.equal(once(x), y) and list(once.state_dict()) == list(plain)
    twice = Around(lambda self, x: self.blocks[1](self.blocks[0](x)), shared, shared)
    refuses(twice, "it is called 2 times in a forward pass")


def test_a_module_that_returns_several_maps():
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(x), x

    model = Around(lambda self, x: sum(self.blocks[0](x)), Several())
    refuses(model, r"blocks\.0: it returns something else than one tensor", where="blocks.0")
    assert [site.module for site in find_sites(model, image())] == ["blocks.0.conv"]


def test_containers_hand_on_to_their_last_layer():
    model = small()
    sites = find_sites(model, image(), where=["layers", "stem"])
    assert [(site.module, site.side, site.label) for site in sites] == [
        ("stem.2", "out", "stem"),
        ("layers.3", "out", "layers"),
    ]
    # A layer that returns the same as the container, and is called twice, cannot have it.
    relu = nn.ReLU()
    model = nn.Sequential(relu, nn.Sequential(nn.Conv2d(3, 4, 1), relu))
    refuses(model, "1: it is a container", where="1")


def test_a_module_whose_forward_is_called_by_hand():
    model = Around(lambda self, x: x + self.blocks[0].norm.forward(self.blocks[0].conv(x)))
    refuses(model, "the network: what the branch brings is computed between modules: none returns it")
    refuses(model, r"blocks\.0\.norm: it is not called in a forward pass", where="blocks.0.norm")


def test_functions_in_place_of_modules():
    model = Around(lambda self, x: x + F.conv2d(x, self.blocks[0].conv.weight, padding=1))
    refuses(model, "computed between modules")


def test_maps_with_channels_last():
    """Transformers have [N, *S, C]: a gate there would weigh positions, and say nothing."""

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)

        def forward(self, x):
            return x + self.linear(self.norm(x))

    model = nn.Sequential(nn.Conv2d(3, 8, 2, 2), nn.Flatten(2), Swap(), Tokens(), Tokens())
    refuses(model, r"3: channels are not the second axis there, and a gate takes \[N, C, \*S\]")
    refuses(model, "3: channels are not", where=["3"])
    sites = find_sites(model, image(), where=["0", "1"])
    assert [(site.module, site.channels, site.size) for site in sites] == [("0", 8, (4, 4)), ("1", 8, (16,))]


class Swap(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2)


def test_networks_that_return_anything_and_take_keywords():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Block()

        def forward(self, x):
            return {"out": [self.block(x=x)], "shape": x.shape}

    model, x = Outer().eval(), image()
    y = model(x)["out"][0]
    for where in ("residual", "pre", "post"):
        attach_(model, "se", x, where=where)
        assert torch.equal(model(x)["out"][0], y)
        move_gates(model)
        assert not torch.equal(model(x)["out"][0], y)
        detach_(model)


@pytest.mark.parametrize(
    "add",
    [
        lambda x, y: y.add_(x),
        lambda x, y: torch.add(y, x),
        lambda x, y: torch.add(x, y, alpha=0.5),
        lambda x, y: torch.addcmul(x, y, torch.full((3, 1, 1), 0.5)),
        lambda x, y: x + 0.2 * y,
        lambda x, y: (x + y) / 2**0.5,
        lambda x, y: F.relu_(y.add_(x)),
        lambda x, y: x.clone().add_(y),
        lambda x, y: sum([x, y]),
        lambda x, y: sum([y, x]),
    ],
    ids=["add_", "torch.add", "alpha", "addcmul", "scaled", "divided", "in place", "into the shortcut", "sum", "mus"],
)
def test_additions_in_every_spelling(add):
    model = Around(lambda self, x: add(x, self.blocks[0].norm(self.blocks[0].conv(x)))).eval()
    x = image()
    y = model(x)
    assert [site.module for site in attach_(model, "se", x)] == ["blocks.0.norm"]
    assert torch.equal(model(x), y)
    move_gates(model)
    assert not torch.equal(model(x), y)
    model.train()(x.requires_grad_()).sum().backward()
    assert model.blocks[0].conv.weight.grad.abs().max() > 0
    detach_(model)


def test_nothing_to_verify():
    with warnings.catch_warnings():
        for check in (verify, detach_, reattach_):
            with pytest.raises(ValueError, match="no gate attached"):
                check(small())
