"""Text forms of values for people and for JSON: times."""

from datetime import UTC, datetime


def utc_time(seconds: float) -> str:
    """Return a time (seconds since the epoch) in UTC, to the second, as in 2026-11-26T03:22:18Z (RFC 3339)."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
