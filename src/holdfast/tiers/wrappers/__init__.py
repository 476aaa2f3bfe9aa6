"""Behaviour that fits any tier: retry, throttle, faults. One per file; they may be stacked."""

from holdfast.tiers.wrappers.faults import Fault, Faults, FlipBit, FullAfter, Hang, LoseAnswer, Raise, Slow
from holdfast.tiers.wrappers.retry import Retry, RetryPolicy
from holdfast.tiers.wrappers.throttle import Throttle

__all__ = [
    "Fault",
    "Faults",
    "FlipBit",
    "FullAfter",
    "Hang",
    "LoseAnswer",
    "Raise",
    "Retry",
    "RetryPolicy",
    "Slow",
    "Throttle",
]
