"""Single values of foreign records: identities, times and counts as apps write them."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from clickloop.codec import FIRST_YEAR, LAST_YEAR, split_key
from clickloop.errors import InvalidMessageError

TimeFormat = Literal["rfc3339", "epoch_s", "epoch_ms"]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MOST_RESULTS = 1001
"""One more than an impression may have, so that the codec refuses it; a longer list is not looked at in full."""
_LAST_SECOND = (datetime(LAST_YEAR, 12, 31, tzinfo=UTC) - EPOCH).total_seconds()


def identity(value: Any, name: str) -> str:
    """An id as text; many apps number their documents. Raises InvalidMessageError."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise InvalidMessageError(f"{name} is {shown(value)}, neither text nor an integer")


def pseudonym(value: Any, name: str) -> str:
    """The split key of a user by name; "" where the name is empty or blank, since many apps write that for no one.

    Raises InvalidMessageError.
    """
    user = identity(value, name)
    return split_key(user) if user.strip() else ""


def moment(value: Any, name: str, form: TimeFormat) -> datetime | str:
    """A time; RFC 3339 stays text, which the codec reads and checks. Raises InvalidMessageError."""
    if isinstance(value, datetime):
        return value
    if form == "rfc3339":
        if not isinstance(value, str):
            raise InvalidMessageError(f"{name} is {shown(value)}, no RFC 3339 text; time_format says otherwise")
        return value
    seconds = number(value, name) / (1000.0 if form == "epoch_ms" else 1.0)
    if not 0.0 <= seconds < _LAST_SECOND:
        raise InvalidMessageError(f"{name} is {shown(value)} in {form}, not in the years {FIRST_YEAR}-{LAST_YEAR}")
    return EPOCH + timedelta(milliseconds=round(seconds * 1000.0))


def number(value: Any, name: str) -> float:
    """A finite number, also where it comes as text. Raises InvalidMessageError."""
    try:
        if isinstance(value, str | int | float) and not isinstance(value, bool) and math.isfinite(float(value)):
            return float(value)
    except (ValueError, OverflowError):
        pass
    raise InvalidMessageError(f"{name} is {shown(value)}, no number")


def whole(value: Any, name: str) -> int:
    """A count; ``3.0`` and ``"3"`` are 3. Raises InvalidMessageError."""
    found = number(value, name)
    if not found.is_integer():
        raise InvalidMessageError(f"{name} is {shown(value)}, no whole number")
    return int(found)


def shown(value: Any) -> str:
    """A value in an error's text: short, and whatever it is."""
    kinds = {dict: "an object", list: "a list", type(None): "null"}
    text = kinds.get(type(value)) or (repr(value) if isinstance(value, str | bool | float) else f"{value!s:.40}")
    return text if len(text) <= 60 else f"{text[:57]}..."
