"""Gates into any network, and out again: find sites, attach, detach."""

from __future__ import annotations

from excite.surgery.edit import Attached, attach_, attach_at_, attached, detach_, reattach_, verify
from excite.surgery.fuse_training import fuse_training_, survey_tails
from excite.surgery.sites import Refusal, Site, SiteCost, Survey, find_sites, survey
from excite.surgery.swap import Swap, swap_

__all__ = [
    "Attached",
    "Refusal",
    "Site",
    "SiteCost",
    "Survey",
    "Swap",
    "attach_",
    "attach_at_",
    "attached",
    "detach_",
    "find_sites",
    "fuse_training_",
    "reattach_",
    "survey",
    "survey_tails",
    "swap_",
    "verify",
]
