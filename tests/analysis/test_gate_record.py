"""Records against the numbers themselves; what is refused; the network is left as it was."""

import copy

import numpy as np
import pytest
import torch
from planted import CHANNELS, CLASSES, in_batches, planted, planted_gate, planted_images
from torch import nn

from excite.analysis import ImageBatches, record_gates
from excite.data import array_data_set, normalise
from excite.deploy import fuse
from excite.errors import UserError
from excite.models import create_model
from excite.ops import squeeze
from excite.surgery import attach_


@pytest.fixture(scope="module")
def network():
    return planted()


@pytest.fixture(scope="module")
def data():
    return planted_images(90)


@pytest.fixture(scope="module")
def record(network, data):
    return record_gates(network, in_batches(*data), sample=30)


def scales(network, images):
    """s of every gate, by hooks on whole gates and another forward."""
    seen = {}

    def hook(name):
        return lambda module, args, output: seen.update({name: module.excite(squeeze(args[0]))})

    named = [(name, m) for name, m in network.named_modules() if hasattr(m, "excite")]
    handles = [module.register_forward_hook(hook(name)) for name, module in named]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    return {name: s.numpy() for name, s in seen.items()}


def test_statistics_are_those_of_the_numbers(network, data, record):
    images, labels = data
    expected = scales(network, images)
    assert [site.name for site in record.sites] == list(expected)
    for site in record.sites:
        s = expected[site.name].astype(np.float64)
        np.testing.assert_allclose(site.overall_mean, s.mean(0), atol=1e-6)
        np.testing.assert_allclose(site.overall_sd, s.std(0, ddof=1), atol=1e-6)
        for k in range(CLASSES):
            own = s[labels == k]
            assert site.count[k] == len(own)
            np.testing.assert_allclose(site.mean[k], own.mean(0), atol=1e-6)
            np.testing.assert_allclose(site.m2[k], own.var(0) * len(own), atol=1e-6)
            np.testing.assert_allclose(site.class_sd[k], own.std(0, ddof=1), atol=1e-6)
        np.testing.assert_allclose(site.min, s.min(0), atol=1e-6)
        np.testing.assert_allclose(site.max, s.max(0), atol=1e-6)
        assert site.near_low.tolist() == (s <= 0.05).sum(0).tolist()
        assert site.near_high.tolist() == (s >= 0.95).sum(0).tolist()
        np.testing.assert_allclose(site.sample, s[record.sample_rows], atol=1e-6)
        assert site.top_s.shape == (12, CHANNELS)
        np.testing.assert_allclose(site.top_s, -np.sort(-s, 0)[:12], atol=1e-6)
        np.testing.assert_allclose(np.take_along_axis(s, site.top_rows, 0), site.top_s, atol=1e-6)


def test_what_the_network_made_of_the_images(network, data, record):
    images, labels = data
    with torch.no_grad():
        logits = network(images)
    assert record.n == 90 and record.images.index.tolist() == list(range(90))
    assert record.images.label.tolist() == labels.tolist()
    assert record.images.predicted.tolist() == logits.argmax(1).tolist()
    np.testing.assert_allclose(
        record.images.loss, nn.functional.cross_entropy(logits, labels, reduction="none"), rtol=1e-5
    )
    assert record.accuracy == (logits.argmax(1) == labels).double().mean()
    assert record.classes == ("0", "1", "2", "3")


def test_where_gates_stand():
    model = create_model("resnet20", gate="se(neutral=true)", num_classes=10).eval()
    record = record_gates(model, in_batches(torch.randn(4, 3, 32, 32), torch.arange(4)))
    assert [(s.stage, s.label, s.channels) for s in record.sites[::4]] == [
        (1, "layer1.0", 16),
        (2, "layer2.1", 32),
        (3, "layer3.2", 64),
    ]
    site = record.sites[0]
    assert site.gate == "se(neutral=true)" and site.range == (0, 2) and (site.low, site.high) == (0.1, 1.9)


@pytest.mark.parametrize(
    ("gate", "ends", "low", "high"),
    [
        ("se", (0, 1), 0.05, 0.95),
        ("se(gate_function=tanh)", (-1, 1), -0.9, 0.9),
        ("se(gate_function=relu)", (0, np.inf), 0.05, np.inf),
        ("se(gate_function=relu,neutral=true)", (0, np.inf), 0.05, np.inf),
        ("ese", (0, 1), 0.05, 0.95),
    ],
)
def test_the_ends_of_gate_functions(gate, ends, low, high):
    model = create_model("resnet20", gate=gate, num_classes=4).eval()
    site = record_gates(model, in_batches(torch.randn(4, 3, 32, 32), torch.arange(4))).sites[0]
    assert site.range == ends and site.low == pytest.approx(low) and site.high == pytest.approx(high)


@pytest.mark.parametrize("impl", ["reference", "fused"])
def test_every_implementation_of_a_tail_is_read(impl):
    x, y = torch.randn(12, 3, 32, 32), torch.arange(12) % 4
    model = create_model("resnet20", gate="se", num_classes=4, impl=impl).train()
    model(x)  # norms with statistics of their own
    model.eval()
    expected = scales(create_twin(model), x)
    record = record_gates(model, in_batches(x, y, 5), sample=12)
    for site in record.sites:
        np.testing.assert_allclose(site.sample, expected[site.name], atol=1e-5)


def create_twin(model):
    twin = create_model("resnet20", gate="se", num_classes=4, impl="reference").eval()
    twin.load_state_dict(model.state_dict())
    return twin


def test_attached_gates():
    model = create_model("resnet20", num_classes=4).eval()
    x, y = torch.randn(6, 3, 32, 32), torch.arange(6) % 4
    attach_(model, "eca", x, start="paper")
    expected = scales(model, x)
    record = record_gates(model, in_batches(x, y))
    assert len(record.sites) == 9 and record.sites[0].name.endswith("excite_gate")
    assert record.sites[0].label == "layer1.0"
    for site in record.sites:
        np.testing.assert_allclose(site.sample, expected[site.name], atol=1e-6)


# --- left as it was ---


class Failing(nn.Module):
    def __init__(self, gate):
        super().__init__()
        self.gate, self.calls = gate, 0

    def forward(self, x):
        y = self.gate(x)
        self.calls += 1
        if self.calls > 1:
            raise RuntimeError("out of order")
        return y.mean((2, 3))


class Odd(nn.Module):
    """A gate that excite does not have."""

    def forward(self, u):
        return u * u.mean((2, 3), keepdim=True).square()


def hooks(model):
    return [
        (name, list(m._forward_hooks), list(m._forward_pre_hooks), m.training, sorted(m.__dict__))
        for name, m in model.named_modules()
    ]


def test_the_network_and_random_numbers_are_left_as_they_were(network, data):
    before, state = hooks(network), copy.deepcopy(network.state_dict())
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    record_gates(network, in_batches(*data))
    assert torch.equal(torch.randn(3), expected)
    assert hooks(network) == before
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("gate", [planted_gate("class"), Odd()], ids=["excite", "other"])
def test_also_when_it_fails(gate):
    model = Failing(gate).eval()
    before = hooks(model)
    x = torch.randn(2, CHANNELS, 4, 4)
    with pytest.raises(RuntimeError, match="out of order"):
        record_gates(model, in_batches(x, torch.tensor([0, 1]), 1))
    assert hooks(model) == before
    assert isinstance(torch.ones(1) * 2, torch.Tensor) and not torch.utils._python_dispatch._get_current_dispatch_mode()


# --- batches ---


def test_batches_of_a_data_set():
    images = torch.randint(0, 256, (30, 1, 8, 8), dtype=torch.uint8)
    labels = torch.arange(30) % 3
    data = array_data_set("toy", ("a", "b", "c"), (images, labels), (images[:10], labels[:10]))
    batches = ImageBatches(data, batch_size=4)
    assert len(batches) == 3 == len(list(batches)) == len(list(batches))
    first = next(iter(batches))
    assert first.images.dtype == torch.float32 and abs(float(first.images.mean())) < 0.5
    assert [i for batch in batches for i in batch.ids.tolist()] == list(range(10))
    few = ImageBatches(data, "train", batch_size=4, limit=6)
    drawn = [i for batch in few for i in batch.ids.tolist()]
    assert drawn == sorted(set(drawn)) and len(drawn) == 6 and max(drawn) > 9 and len(few) == len(list(few)) == 2
    for part in few:
        assert part.labels.tolist() == labels[part.ids].tolist()
        torch.testing.assert_close(part.images, normalise(images[part.ids], data.mean, data.std))
    other = ImageBatches(data, "train", batch_size=4, limit=6, seed=1)
    assert [i for batch in other for i in batch.ids.tolist()] != drawn
    shares = [ImageBatches(data, "train", batch_size=4, limit=7, rank=rank, world_size=2) for rank in (0, 1)]
    assert [len(share) for share in shares] == [len(list(share)) for share in shares] == [1, 1]
    shared = [i for share in shares for batch in share for i in batch.ids.tolist()]
    assert len(set(shared)) == 7 and set(drawn) < set(shared)
    model = create_model("resnet20", gate="se", num_classes=3, in_channels=1).eval()
    record = record_gates(model, batches, classes=data.classes)
    assert record.classes == data.classes and record.sites[0].count.tolist() == [4, 3, 3]
    with pytest.raises(UserError, match="split='test': give val or train"):
        ImageBatches(data, "test")
    with pytest.raises(UserError, match="limit=0"):
        ImageBatches(data, limit=0)


def test_names_in_the_place_of_indices(network, data):
    images, labels = data
    names = [f"pictures/{i}.png" for i in range(90)]
    batches = [(images[i : i + 20], labels[i : i + 20], names[i : i + 20]) for i in range(0, 90, 20)]
    record = record_gates(network, batches, sample=9)
    assert record.images.name == tuple(names)
    other = record_gates(network, batches[::-1], sample=9)
    sampled = [{r.images.name[row] for row in r.sample_rows} for r in (record, other)]
    assert sampled[0] == sampled[1]


def test_the_sample_is_random_and_the_same_however_images_come(network, data):
    order = torch.randperm(90)
    one = record_gates(network, in_batches(*data, 7), sample=20, top_images=3)
    other = record_gates(network, iter(in_batches(*data, 32, order)), sample=20, top_images=3)
    assert one.sample_rows.tolist() == other.sample_rows.tolist()
    another = record_gates(network, in_batches(*data), sample=20, seed=1)
    assert one.sample_rows.tolist() != another.sample_rows.tolist()
    for a, b in zip(one.sites, other.sites, strict=True):
        np.testing.assert_allclose(a.sample, b.sample, atol=1e-6)
        np.testing.assert_allclose(a.mean, b.mean, rtol=1e-6)
    constant = one.site("blocks.2.gate"), other.site("blocks.2.gate")
    assert np.array_equal(constant[0].top_rows, constant[1].top_rows), "of equal ones, chosen alike"


def test_each_image_is_as_likely_in_the_sample(network, data):
    from excite.analysis.accumulate import image_keys

    chosen = np.zeros(500)
    for seed in range(400):
        keys = image_keys(np.arange(500), None, seed)
        assert len(np.unique(keys)) == 500
        chosen[np.argsort(keys)[:50]] += 1
    # Binomial(400, 0.1): standard deviation 6.
    assert abs(chosen.mean() - 40) < 1e-9 and abs(chosen - 40).max() < 5 * 6 and 5 < chosen.std() < 7


def test_labels_of_a_network_without_logits(data):
    images, labels = data
    maps = nn.Sequential(nn.Conv2d(CLASSES + 1, CHANNELS, 1), planted_gate("class")).eval()
    with pytest.raises(UserError, match="give classes, their names"):
        record_gates(maps, in_batches(images, labels))
    record = record_gates(maps, in_batches(images, labels), classes=list("abcd"))
    assert record.images.predicted.tolist() == [-1] * 90 and np.isnan(record.images.loss).all()


# --- what is refused ---


class Ten(nn.Module):
    """A gate that sees ten crops of each image."""

    def __init__(self):
        super().__init__()
        self.gate = planted_gate("class")

    def forward(self, x):
        return self.gate(x.repeat(10, 1, 1, 1)).mean((2, 3)).unflatten(0, (10, -1)).mean(0)


def ahead():
    """A gate that fusing squeezes ahead of the convolution before it."""
    layers = [nn.Conv2d(CLASSES + 1, CHANNELS, 1), planted_gate("class"), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers).eval()


def batch(n=4, **changes):
    given = {"images": torch.randn(n, CLASSES + 1, 8, 8), "labels": torch.arange(n) % CLASSES} | changes
    return [tuple(given.values())]


@pytest.mark.parametrize(
    ("model", "batches", "options", "message"),
    [
        (planted().train(), batch(), {}, "PlantedNetwork is in training mode"),
        (nn.Sequential(nn.Conv2d(5, 4, 1)).eval(), batch(), {}, "Sequential has no gate that can be read"),
        (fuse(ahead(), torch.randn(1, 5, 8, 8)), batch(), {}, "of a fused network, give the one that it was made of"),
        (Ten().eval(), batch(images=torch.randn(4, 8, 4, 4)), {}, "gate runs on 40 maps for 4 images"),
        (planted(), [], {}, "batches gave no image"),
        (planted(), [torch.randn(2, 5, 8, 8)], {}, "batches give a Tensor: give tuples"),
        (planted(), batch(images=torch.zeros(4, 5, 8, 8, dtype=torch.uint8)), {}, "images are uint8: prepare them"),
        (planted(), batch(labels=torch.tensor([0, 1])), {}, "a batch of 4 images with labels"),
        (planted(), batch(1, labels=torch.tensor(0)), {}, r"a batch of 1 image with labels \(\)"),
        (planted(), batch(labels=None), {}, "labels of a batch are of type NoneType: give the class of each image"),
        (planted(), batch(labels=torch.rand(4)), {}, "labels of a batch are of type torch.float32: give the class"),
        (planted(), batch(labels=["cat", "dog", "cat", "dog"]), {}, "labels of a batch are of type list"),
        (planted(), batch(labels=[[0], [1, 2], [3], [0]]), {}, "labels of a batch are of type list"),
        (planted(), batch(ids=None), {}, "indices of a batch are of type NoneType: give each image's place"),
        (planted(), batch(ids=torch.rand(4)), {}, "indices of a batch are of type torch.float32"),
        (planted(), batch(ids=torch.tensor(3)), {}, r"with labels \(4,\) and indices \(\)"),
        (planted(), batch(labels=torch.tensor([0, 1, 2, 4])), {}, "labels run from 0 to 4, but there are 4 classes"),
        (planted(), batch(labels=torch.tensor([0, -1, 2, 3])), {}, "labels run from -1 to 3"),
        (planted(), batch(ids=torch.tensor([0, 1, 2, 1])), {}, "image 1 comes twice"),
        (planted(), batch(images=torch.full((4, 5, 8, 8), torch.nan)), {}, "blocks.0.gate gives numbers that are not"),
        (planted(), batch(), {"classes": "abcd"}, "classes='abcd': give the names"),
        (planted(), batch(), {"sample": -1}, "sample=-1"),
    ],
)
def test_mistakes(model, batches, options, message):
    with pytest.raises(UserError, match=message):
        record_gates(model, batches, **options)


def test_one_module_in_training_mode_is_enough():
    model = planted()
    model.blocks[1].norm.train()
    with pytest.raises(UserError, match=r"'blocks.1.norm' is in training mode, and would change"):
        record_gates(model, batch())


def test_names_that_are_not_there(record):
    with pytest.raises(UserError, match=r"unknown gate in this record 'blocks.0.gat': did you mean 'blocks.0.gate'"):
        record.site("blocks.0.gat")
    assert record.row_of(7) == 7
    with pytest.raises(UserError, match="image 90 is not among the 90"):
        record.row_of(90)
