"""Which clicked documents are wanted beyond doubt.

A mistaken click falls on whatever was looked at. The more often a query is asked, the more of its documents are
clicked twice by mistake, so a count says little. But if all its clicks were mistakes, each document's share of
them would be about its place's share of looks. A document is wanted beyond doubt if it has more of its query's
clicks than that explains, by an exact binomial test, one-sided. Where all that is shown is wanted alike, nothing
is sure.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc

from trainer.dataset import Clicks

CONFIRMED = 2.0
"""Evidence that it takes at least: two clicks, or a good rating."""
BY_MISTAKE = 0.01
"""Chance, at most, that a document which is no more wanted than the others shown is held to be wanted."""


def surely_wanted(clicks: Clicks) -> NDArray[np.bool_]:
    """(rows,) whether the row's document is wanted beyond doubt; by its evidence where no places are known."""
    enough = np.asarray(clicks.evidence >= CONFIRMED)
    if not len(clicks.looks):
        return enough
    own = clicks.evidence.astype(np.float64)
    of_query = np.bincount(clicks.query, own, len(clicks.queries))[clicks.query]
    # The binomial tail by the incomplete beta function, which takes parts of a click too (Abramowitz and Stegun,
    # "Handbook of Mathematical Functions", 26.5.24).
    chance: NDArray[np.float64] = betainc(np.maximum(own, 1e-9), of_query - own + 1.0, clicks.looks)
    return enough & (chance <= BY_MISTAKE)
