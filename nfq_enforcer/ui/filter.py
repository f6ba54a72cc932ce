"""Filter of the page: the words of ``nfq-enforcer observe``, as parameters of the agent's method ``observe``. Pure."""

from typing import Any

from nfq_enforcer.errors import BadInput
from nfq_enforcer.observe.query import Query, parameters, parse_words

MAX_TEXT = 2_000  # characters of a filter


def read(text: str) -> dict[str, Any]:
    """Return the parameters of a filter; raise BadInput with one sentence."""
    if len(text) > MAX_TEXT:
        raise BadInput(f"a filter has at most {MAX_TEXT} characters")
    params = parameters(*parse_words(text))
    Query(**params)  # a mistake is found without the agent
    return params
