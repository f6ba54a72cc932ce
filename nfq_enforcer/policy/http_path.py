"""Normal form of the path of an HTTP request: the one that Envoy gives it, or its refusal of the request.

Envoy is configured with ``normalize_path``, ``merge_slashes`` and the refusal of escaped slashes. Dot segments are
resolved, several slashes are one, unreserved characters are not escaped, and some others are. A server that resolves
the path after that finds nothing left to resolve.
"""

import re
from typing import NamedTuple

BAD_REQUEST, FORBIDDEN = 400, 403

_CONTROL = re.compile(r"[\x00-\x20\x7f]")
_ESCAPED_SLASH = re.compile(r"%2[fF]|%5[cC]")
_DOTS_WITH_PARAMETERS = re.compile(r"/(\.\.?);[^/]*")
_DOT, _DOTS = re.compile(r"\.|%2[eE]"), re.compile(r"(?:\.|%2[eE]){2}")
_HIDDEN_DOTS = re.compile(r"/\.\.?(?:;|%3[bB])")
_ESCAPE_OR_OTHER = re.compile(r'%[0-9A-Fa-f]{2}|[%"<>^`{|}]|[^\x00-\x7f]')
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_LONE = "\0"  # stands for a percent sign that begins no escape, until all escapes are decoded
_LONE_BEFORE_DIGITS = re.compile(rf"{_LONE}(?=[0-9A-Fa-f]{{2}})")


class HttpRefusal(NamedTuple):
    """HTTP refusal: the proxy's answer to a request before any rule."""

    code: int
    reason: str

    def __str__(self) -> str:
        """Render as ``the proxy answers 400: its path has an escaped slash``."""
        return f"the proxy answers {self.code}: {self.reason}"


def normal_path(target: str) -> str | HttpRefusal:
    """Return the normal form of a path with its query, which stays as it is."""
    path, mark, query = target.partition("?")
    if _CONTROL.search(target):
        return HttpRefusal(BAD_REQUEST, "its path has a blank or a control character")
    if "#" in target:
        return HttpRefusal(BAD_REQUEST, "its path has a fragment (#)")
    if _ESCAPED_SLASH.search(path):
        return HttpRefusal(BAD_REQUEST, "its path has an escaped slash or backslash (%2f, %5c)")
    path = _DOTS_WITH_PARAMETERS.sub(r"/\1", path)
    if "%00" in path:
        return HttpRefusal(BAD_REQUEST, "its path has an escaped NUL (%00)")
    normal = _merge_slashes(_resolve(path))
    if _HIDDEN_DOTS.search(normal):
        return HttpRefusal(FORBIDDEN, "a path parameter hides a dot segment in its path (..;)")
    return f"{normal}{mark}{query}"


def _resolve(path: str) -> str:
    """Return the path without dot segments (RFC 3986 section 5.2.4), with its characters in their normal form."""
    segments: list[str] = []
    last = ""
    for last in path.replace("\\", "/").split("/")[1:]:
        if _DOTS.fullmatch(last):
            del segments[-1:]
        elif not _DOT.fullmatch(last):
            segments.append(_normal_segment(last))
    if _DOT.fullmatch(last) or _DOTS.fullmatch(last):
        segments.append("")
    return "/" + "/".join(segments)


def _normal_segment(segment: str) -> str:
    """Return a segment with unreserved characters decoded, and with others escaped if they are not allowed in a path.

    A percent sign that begins no escape stays, unless what follows it was decoded to two digits.
    """
    decoded = _ESCAPE_OR_OTHER.sub(_normal_character, segment)
    return _LONE_BEFORE_DIGITS.sub("%25", decoded).replace(_LONE, "%") if _LONE in decoded else decoded


def _normal_character(found: re.Match[str]) -> str:
    text = found[0]
    if text == "%":
        return _LONE
    if text.startswith("%"):
        character = chr(int(text[1:], 16))
        return character if character in _UNRESERVED else text
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "surrogatepass"))


def _merge_slashes(path: str) -> str:
    if "//" not in path:
        return path
    end = "/" if path.endswith("/") else ""
    return "/" + "/".join(filter(None, path.split("/"))) + end
