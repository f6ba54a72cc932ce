"""Filter of the page: the words of ``nfq-enforcer observe``, as parameters of the agent's method ``observe``. Pure."""

import shlex
from collections.abc import Mapping
from typing import Any

from nfq_enforcer.errors import BadInput
from nfq_enforcer.observe.flow import VERDICTS
from nfq_enforcer.text import shorten

MAX_TEXT = 2_000  # characters of a filter


def params(text: str) -> Mapping[str, Any]:
    """Return the parameters of a filter; raise BadInput with one sentence."""
    if len(text) > MAX_TEXT:
        raise BadInput(f"a filter has at most {MAX_TEXT} characters")
    try:
        words = shlex.split(text)
    except ValueError:
        raise BadInput("the filter has a quotation mark without its other one") from None
    match words:
        case []:
            return {}
        case ["--verdict", verdict] if verdict.upper() in VERDICTS:
            return {"verdict": verdict.upper()}
    raise BadInput(f"unknown filter '{shorten(text)}'; allowed: --verdict with one of {', '.join(VERDICTS)}")
