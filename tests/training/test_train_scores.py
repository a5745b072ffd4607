"""Validation scores: right, and the same however images are spread."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from excite.training.scores import Tally

CPU = torch.device("cpu")


def scores(logits, labels, order, batch):
    tally = Tally(len(labels), logits.shape[1])
    for part in order.split(batch):
        tally.add(part, logits[part], labels[part])
    return tally.finish(CPU)


def test_scores_are_what_they_are_called():
    logits, labels = torch.randn(101, 9), torch.randint(0, 9, (101,))
    got = scores(logits, labels, torch.arange(101), 16)
    assert torch.equal(got.predicted, logits.argmax(1))
    assert torch.equal(got.top1, logits.argmax(1) == labels)
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert torch.equal(got.top5, ranks < 5)
    row = got.row()
    assert row["val_top1"] == (ranks == 0).double().mean().item()
    assert row["val_top5"] == (ranks < 5).double().mean().item()
    assert row["val_loss"] == pytest.approx(cross_entropy(logits.double(), labels).item(), rel=1e-6)


def test_order_and_batch_size_do_not_change_a_bit():
    logits, labels = torch.randn(97, 6), torch.randint(0, 6, (97,))
    one = scores(logits, labels, torch.arange(97), 97).row()
    for batch in (1, 10, 64):
        assert scores(logits, labels, torch.randperm(97), batch).row() == one


def test_there_is_no_top5_below_five_classes():
    got = scores(torch.randn(8, 4), torch.randint(0, 4, (8,)), torch.arange(8), 4)
    assert got.top5 is None and "val_top5" not in got.row()


@pytest.mark.parametrize("order", [torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2, 2, 3])], ids=["left out", "twice"])
def test_an_image_left_out_or_counted_twice_is_noticed(order):
    with pytest.raises(RuntimeError, match="1 of 4 images were not scored exactly once"):
        scores(torch.randn(4, 5), torch.zeros(4, dtype=torch.int64), order, 2)


def test_half_precision_logits_are_scored_in_float32():
    logits, labels = torch.randn(32, 5).bfloat16(), torch.randint(0, 5, (32,))
    got = scores(logits, labels, torch.arange(32), 8)
    assert torch.equal(got.losses, cross_entropy(logits.float(), labels, reduction="none").double())
