"""Gates replaced one at a time, against replacing them by other means and summing up by other formulas."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from planted import CHANNELS, CLASSES, in_batches, planted, planted_images
from scipy import stats
from torch import nn
from torch.nn import functional as F

from excite.analysis import GateRecord, knock_out, record_gates
from excite.errors import UserError
from excite.gates import parse_gate
from excite.ops import rescale, squeeze
from excite.significance import holm_adjust

IMAGES = 120


@pytest.fixture(scope="module")
def network():
    return planted()


@pytest.fixture(scope="module")
def data():
    return planted_images(IMAGES, noise=0.5, seed=1)


@pytest.fixture(scope="module")
def record(network):
    return record_gates(network, in_batches(*planted_images(80, noise=0.5)))


@pytest.fixture(scope="module")
def found(network, data, record):
    return knock_out(network, in_batches(*data), record)


def losses(network, images, labels, name=None, instead=None):
    """Each image's, with a gate's whole output put together anew from the map that it takes."""

    def hook(module, args, output):
        return rescale(args[0], instead(module.excite(squeeze(args[0]))))

    handles = [] if name is None else [network.get_submodule(name).register_forward_hook(hook)]
    with torch.no_grad():
        logits = network(images)
    for handle in handles:
        handle.remove()
    return F.cross_entropy(logits, labels, reduction="none").numpy(), (logits.argmax(1) == labels).numpy()


def test_the_network_as_it_is(network, data, found):
    loss, correct = losses(network, *data)
    np.testing.assert_allclose(found.loss, loss, atol=1e-5)
    assert found.correct.tolist() == correct.tolist() and found.accuracy == correct.mean() and found.n == IMAGES
    assert found.index.tolist() == list(range(IMAGES))
    assert [(k.site, k.mode) for k in found.items] == [
        (f"blocks.{i}.gate", mode) for i in range(5) for mode in ("mean", "one", "shuffle")
    ]


@pytest.mark.parametrize("name", [f"blocks.{i}.gate" for i in range(5)])
def test_each_replacement_is_what_it_says(network, data, record, found, name):
    site = record.site(name)
    mean = torch.from_numpy(site.sample.mean(0))  # 80 images, all in the sample
    for mode, instead in {"mean": lambda s: mean.expand(s.shape), "one": torch.ones_like}.items():
        loss, correct = losses(network, *data, name, instead)
        item = found.of(name, mode)
        np.testing.assert_allclose(item.loss, loss, atol=1e-5)
        assert item.correct.tolist() == correct.tolist()


def test_a_shuffled_gate_gives_what_it_gave_for_another_image(network, data, record, found):
    site = record.site("blocks.0.gate")
    # Each image's loss under the scale of each image of the sample.
    images, labels = data
    table = np.stack(
        [losses(network, images, labels, site.name, lambda s, row=row: torch.from_numpy(row).expand(s.shape))[0]
         for row in site.sample]
    )  # fmt: skip
    item = found.of(site.name, "shuffle")
    apart = np.abs(table - item.loss)
    assert apart.min(0).max() < 1e-5
    # Not few donors for all.
    assert len(np.unique(apart.argmin(0))) > 30


def test_no_image_gets_its_own(network, record):
    """On the images of the record itself."""
    images, labels = planted_images(80, noise=0.5)
    from excite.analysis.batches import checked_batches
    from excite.analysis.knockout import _donors

    (batch,) = checked_batches(in_batches(images, labels, 80), network)
    for seed in range(20):
        donors = _donors(batch, record, seed)
        assert (record.images.index[record.sample_rows][donors] != np.arange(80)).all()
        assert len(np.unique(donors)) > 40


def test_batches_do_not_matter(network, data, record, found):
    other = knock_out(network, in_batches(*data, 7, torch.randperm(IMAGES)), record, sites=["blocks.0.gate"])
    order = np.argsort(other.index)
    for mode in ("mean", "one", "shuffle"):
        np.testing.assert_allclose(
            other.of("blocks.0.gate", mode).loss[order], found.of("blocks.0.gate", mode).loss, atol=1e-5
        )
    again = knock_out(network, in_batches(*data, 7), record, sites=["blocks.0.gate"], modes=["shuffle"], seed=1)
    assert not np.allclose(again.items[0].loss, found.of("blocks.0.gate", "shuffle").loss, atol=1e-3)


def test_figures_are_those_of_the_images(found):
    p, loss_p = [], []
    for item in found.items:
        change = item.loss - found.loss
        assert item.loss_change == pytest.approx(change.mean(), abs=1e-12)
        gained = int((item.correct & ~found.correct).sum())
        lost = int((found.correct & ~item.correct).sum())
        assert (item.gained, item.lost) == (gained, lost)
        assert item.accuracy_change == pytest.approx(item.correct.mean() - found.correct.mean(), abs=1e-12)
        low, high = item.accuracy_interval
        assert low <= item.accuracy_change <= high and low < high
        assert item.accuracy_p == pytest.approx(stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1)
        if change.any():
            assert item.loss_p == pytest.approx(stats.ttest_rel(item.loss, found.loss).pvalue)
            normal = stats.norm.interval(0.95, change.mean(), change.std(ddof=1) / np.sqrt(IMAGES))
            width = normal[1] - normal[0]
            np.testing.assert_allclose(item.loss_interval, normal, atol=0.15 * width)
        p.append(item.accuracy_p)
        loss_p.append(item.loss_p)
    np.testing.assert_allclose([item.accuracy_p_holm for item in found.items], holm_adjust(p))
    np.testing.assert_allclose([item.loss_p_holm for item in found.items], holm_adjust(loss_p))


def test_what_was_planted_is_found(network, record, found):
    constant = found.of("blocks.2.gate", "mean")
    assert constant.loss_p == constant.accuracy_p == 1 and abs(constant.loss_change) < 1e-6
    assert abs(constant.loss_interval[1]) < 1e-6 and constant.accuracy_interval[0] < 0 < constant.accuracy_interval[1]
    shuffled = found.of("blocks.2.gate", "shuffle")
    assert abs(shuffled.loss_change) < 1e-6
    # On images with little noise the gate that knows the class is worth something.
    images, labels = planted_images(60, noise=0.05, seed=2)
    worth = knock_out(network, in_batches(images, labels), record, sites=["blocks.0.gate"], modes=["mean"]).items[0]
    assert worth.loss_interval[0] > 0 and worth.loss_p_holm < 1e-6 and worth.gained == worth.lost == 0


def test_another_librarys_gates():
    model = timm.create_model("seresnet18", num_classes=4).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bn2.weight", "bn3.weight")):
                parameter.fill_(1)  # timm starts them at 0, and nothing would pass the gates
    images, labels = torch.randn(6, 3, 48, 48), torch.arange(6) % 4
    record = record_gates(model, in_batches(images, labels, 6))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = knock_out(model, in_batches(images, labels, 6), record, sites=["layer3.1.se"], modes=["one", "mean"])
    assert [item.mode for item in found.items] == ["one", "mean"]
    with torch.no_grad():
        whole = model(images)
        gate, model.layer3[1].se = model.layer3[1].se, torch.nn.Identity()
        plain = model(images)
        model.layer3[1].se = gate
    expected = [F.cross_entropy(logits, labels, reduction="none") for logits in (whole, plain)]
    np.testing.assert_allclose(found.loss, expected[0], rtol=1e-5)
    np.testing.assert_allclose(found.of("layer3.1.se", "one").loss, expected[1], rtol=1e-5)
    assert abs(expected[0] - expected[1]).max() > 1e-3
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sites": ["blocks.7.gate"]}, "unknown gate in this record 'blocks.7.gate'"),
        ({"modes": ["zero"]}, "unknown mode 'zero': known: mean, one, shuffle"),
        ({"modes": "mean"}, "give at least one of each, in a list"),
        ({"sites": []}, "give at least one of each"),
        ({"level": 95}, "level=95"),
        ({"batches": []}, "batches gave no image"),
        ({"model": planted().train()}, "training mode"),
        ({"model": planted(("class",))}, "unknown gate in this network 'blocks.1.gate'"),
        ({"batches": [(torch.randn(2, CLASSES + 1, 8, 8), torch.tensor([0, 4]))]}, r"needs logits \[N, K\]"),
    ],
)
def test_mistakes(network, data, record, options, message):
    given = {"model": network, "batches": in_batches(*data)} | options
    with pytest.raises(UserError, match=message):
        knock_out(given.pop("model"), given.pop("batches"), record, **given)


def with_other_weights():
    model = planted()
    with torch.no_grad():
        model.head.weight.mul_(1.1)
    return model


def with_another_gate():
    model = planted()
    model.blocks[1].gate = parse_gate("eca").build(CHANNELS).eval()
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (with_other_weights, "of a network with these gates but other weights, .* record this one, or give the one"),
        (with_another_gate, r"blocks.1.gate is eca.*, in the record se\(.*record anew"),
    ],
)
def test_the_record_of_another_network_is_refused(data, record, make, message):
    with pytest.raises(UserError, match=message):
        knock_out(make(), in_batches(*data), record, modes=["mean"])


def test_the_same_network_is_known_in_whatever_form(network, data, record, tmp_path):
    again = planted().double().to(memory_format=torch.channels_last)
    held = GateRecord.load(record.save(tmp_path / "record.safetensors"))
    some = replace(held, sites=held.sites[1:2])
    assert len(knock_out(nn.DataParallel(again), in_batches(*data), some, modes=["mean"]).items) == 1
    # Written before records knew of weights.
    assert len(knock_out(with_other_weights(), in_batches(*data), replace(some, weights=""), modes=["one"]).items) == 1


def test_shuffling_needs_a_sample(network, data):
    record = record_gates(network, in_batches(*data), sample=0)
    with pytest.raises(UserError, match="draws from the record's sample, which has 0 images"):
        knock_out(network, in_batches(*data), record)
    assert len(knock_out(network, in_batches(*data), record, modes=["mean"]).items) == 5


def test_what_was_not_made(found):
    with pytest.raises(UserError, match="unknown knock-out 'blocks.9.gate:mean'"):
        found.of("blocks.9.gate")
