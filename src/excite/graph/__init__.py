"""What a network is made of, found by running it once, and the one engine that changes networks."""

from __future__ import annotations

from excite.graph.record import Recording, as_inputs, record, unwrapped
from excite.graph.view import Anchor, FoundGate, Join, View

__all__ = ["Anchor", "FoundGate", "Join", "Recording", "View", "as_inputs", "record", "unwrapped"]
