"""What gates do on a set of images: recorded, summed up, and knocked out one at a time."""

from __future__ import annotations

from excite.analysis.batches import ImageBatch, ImageBatches
from excite.analysis.record import GateRecord, Images, SiteRecord
from excite.analysis.recording import record_gates

__all__ = ["GateRecord", "ImageBatch", "ImageBatches", "Images", "SiteRecord", "record_gates"]
