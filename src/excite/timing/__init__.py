"""How long a network takes: medians with their spread, and ratios measured in turns.

Two timings taken one after the other differ by what else the machine did meanwhile. ``time_in_turns`` runs its
candidates by turns in rotating order and compares them pair by pair within each round, so that such drift cancels;
``compare_latency`` does so for networks, ``sweep_latency`` for the batch sizes of one.
"""

from excite.timing.latency import Latency, compare_latency, evaluating, measure_latency, sweep_latency
from excite.timing.steps import training_step
from excite.timing.turns import Spread, Timing, describe_machine, time_in_turns

__all__ = [
    "Latency",
    "Spread",
    "Timing",
    "compare_latency",
    "describe_machine",
    "evaluating",
    "measure_latency",
    "sweep_latency",
    "time_in_turns",
    "training_step",
]
