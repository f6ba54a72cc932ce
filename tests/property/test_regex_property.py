"""Regular expressions: an expression that is valid matches the texts that RE2 itself finds it to match."""

import re2
from hypothesis import given
from hypothesis import strategies as st

from nfq_enforcer.policy import regex

_LETTERS = ["a", "B", "/", "é", "\ufffd", "\ud800", "ſ", "\U0010ffff"]
_ATOMS = ["a", "B", "/", "é", "ſ", ".", r"\pL", r"\W", "[^a]", "[a-é]", r"\x{10ffff}", "^", "$", r"\b", r"\z"]
_texts = st.lists(st.sampled_from(_LETTERS), max_size=70).map("".join)  # longer than the compared beginnings
_expressions = st.recursive(
    st.sampled_from(_ATOMS),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map("|".join).map("({})".format),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "*?"])).map(lambda parts: f"({parts[0]}){parts[1]}"),
        inner.map("(?i:{})".format),
        inner.map("(?s:{})".format),
    ),
    max_leaves=8,
)


@given(_expressions, st.lists(_texts, min_size=1, max_size=5))
def test_a_text_matches_as_in_re2(expression: str, texts: list[str]) -> None:
    compiled = re2.compile(expression.encode())
    for text in texts:
        found = compiled.fullmatch(text.encode("utf-8", "surrogatepass"))
        assert regex.matches_whole(expression, text) is (found is not None), text
