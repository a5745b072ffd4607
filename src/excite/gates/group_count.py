"""How many groups of channels SE-GC has: what its options mean, and what they cannot be."""

from __future__ import annotations

from excite.errors import UserError

__all__ = ["DEFAULT_GROUPS", "check_groups", "groups_for"]

DEFAULT_GROUPS = 16


def check_groups(groups: int, group_size: int | None) -> None:
    """Refuse numbers below 1, and both options at once.

    Raises:
        ValueError: names the option, its range and the fix.
    """
    for option, value in (("groups", groups), ("group_size", group_size)):
        if value is not None and value < 1:
            raise UserError(f"gate 'se_gc': {option}={value} must be at least 1")
    if group_size is not None and groups != DEFAULT_GROUPS:
        raise UserError(f"gate 'se_gc': groups={groups} and group_size={group_size} say the same thing; give one")


def groups_for(channels: int, groups: int = DEFAULT_GROUPS, group_size: int | None = None) -> int:
    """G for maps with ``channels`` channels.

    Raises:
        ValueError: the groups do not divide the channels.
    """
    option = "groups" if group_size is None else "group_size"
    parts = groups if group_size is None else group_size
    if channels % parts:
        divisors = [d for d in range(1, channels + 1) if channels % d == 0]
        near = sorted(sorted(divisors, key=lambda d: abs(d - parts))[:3])
        raise UserError(
            f"gate 'se_gc': {option}={parts} does not divide {channels} channels; "
            f"the nearest that do: {', '.join(map(str, near))}"
        )
    return parts if group_size is None else channels // parts
