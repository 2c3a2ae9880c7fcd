"""Sums by name that hold across partitions: this partition's own, and what the others have told."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence

MAX_NAMES = 100_000
"""Names of one window in a worker; beyond it the smaller half goes, of which hardly any is near a limit."""
TOLD_FROM = 3.0
"""Smaller sums are kept to oneself: they are nearly all of the names, and far from any limit."""


_REFUSED = "!"
"""Before the names of what was claimed in vain: it is told as the other sums are."""
Claim = tuple[str, str, float, float]
"""A rule, a name, its limit over all partitions, and the share of all that this is; 0 where it is none."""


class Tally:
    """Sums within consecutive windows of event time, each ``seconds`` long. What is late counts in the latest.

    >>> tally = Tally("clicks", seconds=60)
    >>> tally.turn(5.0)
    >>> for _ in range(3):
    ...     _ = tally.add("ann", 1.0)
    >>> tally.untold()
    {'ann': 3.0}
    >>> tally.told(tally.window, {"ann": 10.0})
    >>> tally.sum("ann"), tally.others("ann")
    (10.0, 7.0)
    >>> tally.turn(61.0)
    >>> tally.sum("ann")
    0.0
    """

    def __init__(self, name: str, *, seconds: float, most: int = MAX_NAMES) -> None:
        self.name = name
        self.seconds = seconds
        self.window = 0
        self._most = max(2, most)
        self._own: dict[str, float] = {}
        self._others: dict[str, float] = {}
        self._changed: set[str] = set()

    def turn(self, at: float) -> None:
        """Go on to the window of ``at``, if that is a later one."""
        window = int(at // self.seconds)
        if window > self.window:
            self.window = window
            self._own.clear()
            self._others.clear()
            self._changed.clear()

    def add(self, name: str, amount: float) -> float:
        """The sum with it, over all partitions as far as they have told."""
        own = self._own
        own[name] = total = own.get(name, 0.0) + amount
        if total >= TOLD_FROM:
            self._changed.add(name)
        elif len(own) > self._most:
            self._shrink()
        return total + self._others.get(name, 0.0) if self._others else total

    def claim(self, claims: Sequence[Claim], amount: float, *, free: float = 0.0) -> str:
        """Add ``amount`` to every claim's name, or to none if one would get beyond its limit.

        Returns the first rule in the way, else "". What was refused to a name makes its share no larger; what
        is ``free`` is never refused.

        >>> tally = Tally("clicks", seconds=60)
        >>> claims = [("key_share", "ann", 5.0, 0.5), ("repeat", "ann shoe", 2.0, 0.0)]
        >>> [tally.claim(claims, 1.0) for _ in range(3)]
        ['', '', 'repeat']
        >>> tally.sum("ann"), tally.refused("ann")
        (2.0, 1.0)
        """
        own, others = self._own, self._others
        sums = []
        for rule, name, limit, share in claims:
            total = own.get(name, 0.0) + amount
            known = total + others.get(name, 0.0) if others else total
            if known > limit or (known > free and share and known > max(free, limit - share * self.refused(name))):
                self._refuse(claims, amount)
                return rule
            sums.append((name, total))
        for name, total in sums:
            own[name] = total
            if total >= TOLD_FROM:
                self._changed.add(name)
        if len(own) > self._most:
            self._shrink()
        return ""

    def refused(self, name: str) -> float:
        """How much was claimed for it in vain, where a claim was a share of all."""
        return self.sum(_REFUSED + name)

    def _refuse(self, claims: Sequence[Claim], amount: float) -> None:
        for _, name, _, share in claims:
            if share:
                self.add(_REFUSED + name, amount)

    def sum(self, name: str) -> float:
        """Over all partitions, as far as they have told."""
        own = self._own.get(name, 0.0)
        return own + self._others.get(name, 0.0) if self._others else own

    def others(self, name: str) -> float:
        """What the other partitions have told."""
        return self._others.get(name, 0.0)

    def untold(self, most: int = MAX_NAMES) -> dict[str, float]:
        """Own sums that changed since they were asked for: the largest ones, if there are more than ``most``."""
        own, changed = self._own, self._changed
        known = [name for name in changed if name in own]
        told = known if len(known) <= most else heapq.nlargest(most, known, key=own.__getitem__)
        self._changed = set(known).difference(told)
        return {name: own[name] for name in told}

    def tell_again(self, window: int, names: Iterable[str]) -> None:
        """These could not be told."""
        if window == self.window:
            self._changed.update(names)

    def told(self, window: int, totals: Mapping[str, float]) -> None:
        """The sums over all partitions as they are known to all, this one's included."""
        if window == self.window:
            self._others.update({name: max(0.0, t - self._own.get(name, 0.0)) for name, t in totals.items()})

    def _shrink(self) -> None:
        # For as many as a half, heapq.nlargest takes four times as long.
        largest = sorted(self._own, key=self._own.__getitem__, reverse=True)[: self._most // 2]
        self._own = {name: self._own[name] for name in largest}
