"""Times on the command line: how ``--since`` and ``--until`` are written, in the forms of ``hubble observe``."""

import re
from datetime import datetime

from nfq_enforcer.errors import BadInput
from nfq_enforcer.text import shorten

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h|d)")
_ALLOWED = "allowed: an age such as 90s, 5m or 1h30m, or a time such as 2026-11-28T09:30:00Z, 2026-11-28 or 09:30"


def parse_time(text: str, now: float) -> float:
    """Return a time in seconds since the epoch; an age counts back from ``now``; raise BadInput.

    A time without a zone is local time; a time of day without a date is that of today.
    """
    age = _duration(text)
    if age is not None:
        return now - age
    local = datetime.fromtimestamp(now).astimezone()
    for written in (text, f"{local:%Y-%m-%d}T{text}"):
        try:
            return datetime.fromisoformat(written).timestamp()
        except (ValueError, OverflowError):
            continue
    raise BadInput(f"'{shorten(text)}' is no time; {_ALLOWED}")


def parse_duration(text: str) -> float:
    """Return a duration such as ``90s`` or ``1h30m`` in seconds; raise BadInput."""
    duration = _duration(text)
    if duration is None:
        raise BadInput(f"'{shorten(text)}' is no duration; allowed: 90s, 5m, 1h30m and the like")
    return duration


def _duration(text: str) -> float | None:
    parts = _PART.findall(text)
    if not parts or "".join(map("".join, parts)) != text:
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in parts)
