"""Gates into any network, and out again: find sites, attach, detach."""

from __future__ import annotations

from excite.surgery.edit import Attached, attach_, attach_at_, attached, detach_, reattach_, verify
from excite.surgery.sites import Refusal, Site, SiteCost, Survey, find_sites, survey

__all__ = [
    "Attached",
    "Refusal",
    "Site",
    "SiteCost",
    "Survey",
    "attach_",
    "attach_at_",
    "attached",
    "detach_",
    "find_sites",
    "reattach_",
    "survey",
    "verify",
]
