"""What gates do on a set of images: recorded, summed up, knocked out one at a time, and shown on a page."""

from __future__ import annotations

from excite.analysis.batches import ImageBatch, ImageBatches
from excite.analysis.class_specificity import Specificity, omega_squared, pooled_omega_squared, specificity
from excite.analysis.config import ExplainConfig
from excite.analysis.explain import explain, explain_checkpoint
from excite.analysis.explanation import Explanation
from excite.analysis.knockout import KnockOut, KnockOuts, knock_out
from excite.analysis.record import GateRecord, Images, SiteRecord
from excite.analysis.recording import record_gates
from excite.analysis.statistics import (
    Channels,
    ClassMeans,
    Opened,
    Saturation,
    class_means,
    effective_rank,
    kinds_of_channels,
    opened,
    saturation,
    site_correlation,
    z_scores,
)

__all__ = [
    "Channels",
    "ClassMeans",
    "ExplainConfig",
    "Explanation",
    "GateRecord",
    "ImageBatch",
    "ImageBatches",
    "Images",
    "KnockOut",
    "KnockOuts",
    "Opened",
    "Saturation",
    "SiteRecord",
    "Specificity",
    "class_means",
    "effective_rank",
    "explain",
    "explain_checkpoint",
    "kinds_of_channels",
    "knock_out",
    "omega_squared",
    "opened",
    "pooled_omega_squared",
    "record_gates",
    "saturation",
    "site_correlation",
    "specificity",
    "z_scores",
]
