"""Validation scores that do not depend on how images are spread over batches and ranks."""

from __future__ import annotations

import torch
from torch import Tensor, distributed
from torch.nn.functional import cross_entropy

__all__ = ["Scores", "Tally"]


class Scores:
    """What became of every image of a split: its loss, its prediction, whether that was right.

    Args:
        predicted: class predicted for every image, int64 [n].
        top1: whether it is the right one, bool [n].
        top5: whether the right one is among the five likeliest, bool [n]; None with fewer than five classes.
        losses: cross-entropy of every image, float64 [n].
    """

    def __init__(self, predicted: Tensor, top1: Tensor, top5: Tensor | None, losses: Tensor) -> None:
        self.predicted, self.top1, self.top5, self.losses = predicted, top1, top5, losses

    def row(self) -> dict[str, float]:
        """Means over the split: val_loss, val_top1 and, where there is one, val_top5 (shares from 0 to 1)."""
        row = {"val_loss": self.losses.mean().item(), "val_top1": self.top1.double().mean().item()}
        if self.top5 is not None:
            row["val_top5"] = self.top5.double().mean().item()
        return row


class Tally:
    """Collects scores image by image, then puts them in the split's order over all ranks.

    Every image has its own place in one vector, ranks add up vectors that are zero elsewhere, and means are taken last:
    the result is the same, to the last bit, for any batch size and any number of ranks that compute equal logits.

    Args:
        n: images in the split, over all ranks.
        num_classes: length of the logits; top-5 is taken from five classes on.
    """

    def __init__(self, n: int, num_classes: int) -> None:
        self.n, self.num_classes = n, num_classes
        self._rows: list[tuple[Tensor, Tensor]] = []

    def add(self, indices: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch.

        Args:
            indices: places of the images in the split, int64 [B].
            logits: [B, num_classes], any floating dtype.
            labels: int64 [B].
        """
        logits = logits if logits.dtype == torch.float64 else logits.float()
        losses = cross_entropy(logits, labels, reduction="none")
        likeliest = logits.topk(min(5, self.num_classes), dim=1).indices
        hits = likeliest == labels[:, None]
        columns = [torch.ones_like(losses), likeliest[:, 0], hits[:, 0], hits.any(1), losses]
        # Class numbers are exact in float32 up to 2**24.
        self._rows.append((indices, torch.stack([c.to(losses.dtype) for c in columns])))

    def finish(self, device: torch.device) -> Scores:
        """The scores of the whole split, on the CPU; every rank gets all of them. Starts a new tally.

        Args:
            device: where ranks exchange their parts.
        """
        device = torch.device("cpu") if device.type == "mps" else device  # which has no float64
        table = torch.zeros(5, self.n, dtype=torch.float64, device=device)
        for indices, columns in self._rows:
            table.index_add_(1, indices.to(device), columns.to(table))
        self._rows = []
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(table)
        seen, predicted, top1, top5, losses = table.cpu()
        if not bool((seen == 1).all()):
            raise RuntimeError(f"{int((seen != 1).sum())} of {self.n} images were not scored exactly once")
        return Scores(predicted.long(), top1.bool(), top5.bool() if self.num_classes >= 5 else None, losses)
