"""What a number of images proves about a fall of accuracy: bounds for one network after another on the same images.

Of n images, ``lost`` are right only with the network before, ``gained`` only with the one after. The fall is
``(lost - gained) / n``, and what is asked is how large the true one can be. Bounds are Tango's (1998), who inverts the
score test of a given fall t,

    (lost - gained - n t) / sqrt(n (2 q + t (1 - t)))          q: the likeliest rate of gains if the fall is t

with half an image added against the claim. So they hold also where hardly any image differs: that none of 2,000 does
proves a fall of at most 0.18 points with 95 % confidence, not of 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from excite.errors import UserError
from excite.page import counted
from excite.significance import mcnemar_p, wilson_interval

__all__ = ["Proof", "fall_bound", "images_needed", "prove"]

_MOST_IMAGES = 10**9


@dataclass(frozen=True)
class Proof:
    """Two networks on the same images, the second in place of the first. Accuracies and falls are fractions.

    Attributes:
        images: how many.
        before, after: accuracy of each.
        before_interval, after_interval: Wilson's interval of each, two-sided at ``level``.
        lost: images that only the first has right.
        gained: images that only the second has right.
        fall: ``before - after``; below 0 where accuracy rose.
        fall_interval: of the fall, two-sided at ``level``.
        bound: the fall is at most this with a confidence of ``level``, one-sided.
        least: the least bound that as many images could have given: that of a network that differs on none.
        p: McNemar's exact two-sided p of no change.
        max_fall: what was to be proven: that the fall is at most this.
        level: the confidence.
        needed: about how many images would prove it, were the rates seen here the true ones; None where it is proven,
            or where none would.
    """

    images: int
    before: float
    after: float
    before_interval: tuple[float, float]
    after_interval: tuple[float, float]
    lost: int
    gained: int
    fall: float
    fall_interval: tuple[float, float]
    bound: float
    least: float
    p: float
    max_fall: float
    level: float
    needed: int | None

    @property
    def proven(self) -> bool:
        """Whether the fall is shown to be at most ``max_fall``."""
        return self.bound <= self.max_fall

    @property
    def refuted(self) -> bool:
        """Whether the fall is shown to be more than ``max_fall``."""
        return self.fall_interval[0] > self.max_fall

    def to_dict(self) -> dict[str, Any]:
        """Every field and the two findings, JSON-able."""
        values = {**vars(self), "proven": self.proven, "refuted": self.refuted}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    def __str__(self) -> str:
        """The finding in plain words, percentage points and per cent."""
        confidence, allowed = f"{100 * self.level:g} % confidence", f"{_points(self.max_fall)} points"
        on, them = counted(self.images, "image"), "them" if self.images > 1 else "it"
        lost = f"{counted(self.lost, 'image')} {'was' if self.lost == 1 else 'were'} lost"
        seen = f"On {them} accuracy {_change(self.fall)}: {lost} and {self.gained} gained."
        if self.proven:
            return (
                f"Proven with {confidence} on {on}: accuracy falls by at most {_points(self.bound)} points, "
                f"no more than the {allowed} allowed. {seen}"
            )
        if self.refuted:
            least, most = map(_points, self.fall_interval)
            return (
                f"Not within the {allowed} allowed: with {confidence} on {on}, accuracy falls by {least} to {most} "
                f"points. {seen}"
            )
        these = f"this {on} proves" if self.images == 1 else f"these {on} prove"
        proof = (
            f"Not proven that accuracy falls by no more than {allowed}. What {these}, with {confidence}, is a "
            f"fall of at most {_points(self.bound)} points. {seen}"
        )
        if self.least > self.max_fall:
            proof += f" Even if no prediction changed, {on} could prove no less than {_points(self.least)} points."
        if self.needed is not None:
            proof += f" At the rates seen here it would take about {counted(_rounded(self.needed), 'image')}."
        return proof


def prove(right: Sequence[bool], still_right: Sequence[bool], *, max_fall: float, level: float = 0.95) -> Proof:
    """What the same images prove about the network after, in place of the one before.

    Args:
        right: whether the network before has each image right.
        still_right: whether the one after has.
        max_fall: what is to be proven: that accuracy falls by at most this, a fraction.
        level: the confidence.

    Raises:
        ValueError: no images, or lists of different lengths; a level outside (0.5, 1), a fall outside [0, 1).
    """
    n = len(right)
    if n == 0 or n != len(still_right):
        raise UserError(f"{n} and {len(still_right)} images: the same, at least one, are needed for both networks")
    if not 0 <= max_fall < 1:
        raise UserError(f"max_fall={max_fall}: a share of the images, at least 0 and below 1")
    lost = sum(a and not b for a, b in zip(right, still_right, strict=True))
    gained = sum(b and not a for a, b in zip(right, still_right, strict=True))
    bound = fall_bound(lost, gained, n, level)
    two_sided = (1 + level) / 2
    return Proof(
        images=n,
        before=sum(right) / n,
        after=sum(still_right) / n,
        before_interval=wilson_interval(sum(right), n, level),
        after_interval=wilson_interval(sum(still_right), n, level),
        lost=lost,
        gained=gained,
        fall=(lost - gained) / n,
        fall_interval=(-fall_bound(gained, lost, n, two_sided), fall_bound(lost, gained, n, two_sided)),
        bound=bound,
        least=fall_bound(0, 0, n, level),
        p=mcnemar_p(gained, lost),
        max_fall=max_fall,
        level=level,
        needed=None if bound <= max_fall else images_needed(lost / n, gained / n, max_fall, level),
    )


def fall_bound(lost: float, gained: float, n: int, level: float = 0.95) -> float:
    """The fall of accuracy is at most this, with a confidence of ``level``, one-sided.

    Args:
        lost: images that only the first network has right.
        gained: images that only the second has right.
        n: all images.
        level: the confidence, above 1/2.

    Raises:
        ValueError: a level outside (0.5, 1).
    """
    if not 0.5 < level < 1:
        raise UserError(f"level={level}: a confidence lies between 0.5 and 1, for example 0.95")
    z = NormalDist().inv_cdf(level)
    low, high = (lost - gained) / n, 1.0
    if lost >= n:
        return 1.0
    for _ in range(60):
        middle = (low + high) / 2
        # Larger falls than the bound are refuted: the score lies beyond -z.
        refuted = lost + 0.5 - gained - n * middle < -z * math.sqrt(n * _variance(lost, gained, n, middle))
        low, high = (low, middle) if refuted else (middle, high)
    return high


def _variance(lost: float, gained: float, n: int, fall: float) -> float:
    """Of one image's change, at the likeliest rates whose difference is ``fall`` (Tango 1998, Sec. 3)."""
    b = -lost - gained + (2 * n - lost + gained) * fall
    c = -gained * fall * (1 - fall)
    q = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
    return max(2 * q + fall * (1 - fall), 0.0)


def images_needed(lost: float, gained: float, max_fall: float, level: float = 0.95) -> int | None:
    """How many images would prove a fall of at most ``max_fall``, were these rates the true ones; None if none would.

    Args:
        lost: share of images that only the first network has right.
        gained: share that only the second has right.
        max_fall: what is to be proven.
        level: the confidence.
    """
    if lost - gained >= max_fall:
        return None
    few, many = 1, 1
    while fall_bound(lost * many, gained * many, many, level) > max_fall:
        few, many = many, 2 * many
        if many > _MOST_IMAGES:
            return None
    while many - few > max(1, few // 100):
        n = (few + many) // 2
        few, many = (few, n) if fall_bound(lost * n, gained * n, n, level) <= max_fall else (n, many)
    return many


def _rounded(number: int) -> int:
    """To two digits, upwards: it rests on rates that are hardly known."""
    unit = 10 ** max(len(str(number)) - 2, 0)
    return -(-number // unit) * unit


def _points(share: float) -> str:
    return f"{100 * share:.2f}"


def _change(fall: float) -> str:
    if fall == 0:
        return "stayed the same"
    return f"{'fell' if fall > 0 else 'rose'} by {_points(abs(fall))} points"
