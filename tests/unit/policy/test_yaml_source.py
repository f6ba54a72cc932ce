"""Every field of a YAML text has its line and column, and anything but plain YAML is refused."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfq_enforcer.errors import DocumentError
from nfq_enforcer.policy import yaml_source
from nfq_enforcer.policy.yaml_source import MAX_ALIASED, MAX_DEPTH, Place, Position

UNREADABLE = [".nan", ".inf", "-.INF", str(2**63), str(-(2**63)), f"0x{'f' * 6000}"]
OUT_OF_RANGE = (
    "x.yaml:1:4: the number '{}' is out of range; allowed: finite numbers, integers from -9223372036854775807 to "
    "9223372036854775807"
)


def refused(text: str) -> str:
    with pytest.raises(DocumentError) as caught:
        yaml_source.parse(text, "x.yaml")
    return str(caught.value)


def test_documents_of_a_text_are_plain_data() -> None:
    text = '{"json": [1, 1.5, true, null]}\n---\nweb: "80"\nsince: 2026-01-01\n'

    assert [one.data for one in yaml_source.parse(text, "x")] == [
        {"json": [1, 1.5, True, None]},
        {"web": "80", "since": "2026-01-01"},
    ]


@pytest.mark.parametrize("text", ["", "---\n", "# nothing\n---\n---\n...\n", "null"])
def test_empty_documents_are_skipped(text: str) -> None:
    assert yaml_source.parse(text, "x") == []


@pytest.mark.parametrize(
    ("text", "data"),
    [
        (r'{"a": "\ud83d\ude00", "\uD83D\uDE00": [1, "x\ud83d\ude00\ud83d\ude01y"]}', {"a": "😀", "😀": [1, "x😀😁y"]}),
        (r'["\\\ud83d\ude00", "\\ud83d\\ude00", "\udbff\udfff", "\"\ud800\udc00"]',
         ["\\😀", r"\ud83d\ude00", "\U0010ffff", '"\U00010000']),
        ('[\n  -1.5e3, true, false, null, "\\ud83d\\ude00"]', [-1500, True, False, None, "😀"]),
        (r'"\ud83d\ude00"', "😀"),
        (r"a: '\ud83d\ude00'", {"a": r"\ud83d\ude00"}),
        (r"a: \ud83d\ude00", {"a": r"\ud83d\ude00"}),
        (r"['\ud83d\ude00']", [r"\ud83d\ude00"]),
    ],
)  # fmt: skip
def test_two_surrogates_in_json_are_one_character(text: str, data: object) -> None:
    assert [one.data for one in yaml_source.parse(text, "x")] == [data]


@pytest.mark.parametrize(
    "text",
    [
        r'["\ud83d"]',
        r'["\ude00"]',
        r'["\ude00\ud83d"]',
        r'["\ud83dx\ude00"]',
        r'["\ud83d\ud83d\ude00"]',
        r'["\\ud83d\ude00"]',
        r'x: "\ud83d\ude00"',
        '["\\ud83d\\ude00"] # no JSON',
    ],
)
def test_a_lone_surrogate_and_any_in_yaml_is_refused(text: str) -> None:
    assert "x.yaml:1:" in refused(text)
    assert "not valid YAML: found invalid Unicode character escape code" in refused(text)


JSON_TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x7f"), max_size=5)


@settings(derandomize=True, database=None, deadline=None)
@given(st.dictionaries(JSON_TEXTS, st.lists(JSON_TEXTS | st.integers(-99, 99) | st.booleans()), min_size=1))
def test_json_is_read_as_it_was_written(data: object) -> None:
    (document,) = yaml_source.parse(json.dumps(data), "x")

    assert document.data == data


def test_a_long_text_with_surrogates_takes_no_long_time() -> None:
    text = json.dumps(["😀" * 1000, "\\" * 100_000, '"' * 100_000, [[]] * 1000])
    began = time.perf_counter()

    assert yaml_source.parse(text, "x")[0].data == json.loads(text)
    assert time.perf_counter() - began < 2


def test_each_field_has_the_place_of_its_key_and_its_value() -> None:
    (document,) = yaml_source.parse("spec:\n  ips: [10.0.0.1, fe80::1]\n  'a/b': 1.0\n", "x")

    assert document.places[("spec", "ips", 1)] == Place(Position(2, 19), Position(2, 19), "fe80::1")
    assert document.places[("spec", "a/b")] == Place(Position(3, 3), Position(3, 10), "1.0")


def test_a_missing_field_is_where_the_nearest_field_around_it_is() -> None:
    (document,) = yaml_source.parse("\nspec:\n  ips: []\n", "x")

    assert document.place(("spec", "node", "name")).value == Position(3, 3)
    assert str(document.error(("spec", "node"), "is missing")) == "x:3:3: spec.node: is missing"
    assert str(document.error(("spec", "ips"), "unknown", at_key=True)) == "x:3:3: spec.ips: unknown"


def test_a_path_reads_as_in_kubectl() -> None:
    path = ("spec", "ingress", 0, "matchLabels", "k8s:app")

    assert yaml_source.render_path(path) == 'spec.ingress[0].matchLabels["k8s:app"]'


def test_an_alias_stands_for_what_it_names() -> None:
    (document,) = yaml_source.parse("a: &x {b: [1]}\nc: *x\nd: &y e\n*y : 3\n", "x")

    assert document.data == {"a": {"b": [1]}, "c": {"b": [1]}, "d": "e", "e": 3}
    assert document.place(("c", "b", 0)).value == Position(1, 12)


def test_standard_tags_are_followed_and_value_keys_are_text() -> None:
    (document,) = yaml_source.parse("[!!str 80, !!int '3', ! x, =, !!map {}, !!seq []]", "x")

    assert document.data == ["80", 3, "x", "=", {}, []]


def test_plain_scalars_are_those_of_kubectl_and_quoted_ones_are_text() -> None:
    (document,) = yaml_source.parse("[y, 12:30, 1e3, 0o17, 2026-01-01, 'y', \"1e3\", !!str n, !!bool 'on']", "x")

    assert document.data == [True, "12:30", 1000, 15, "2026-01-01", "y", "1e3", "n", True]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\na: 2", "x.yaml:2:1: duplicate key 'a'; it is already given in line 1"),
        ("b: 1\na: 2\n'a': 3", "x.yaml:3:1: duplicate key 'a'; it is already given in line 2"),
        ("80: x", 'x.yaml:1:1: a key must be a string; quote it: "80"'),
        ("y: x", 'x.yaml:1:1: a key must be a string; quote it: "y"'),
        (f"a: {'9' * 5000}", f"x.yaml:1:4: '{'9' * 40}' is not a value of its type"),
        ("? [a]\n: x", "x.yaml:1:3: a key must be a string"),
        ("a: &x 1\nb: *y", "x.yaml:2:4: alias *y has no anchor &y that ends before it"),
        ("a: &x [*x]", "x.yaml:1:8: alias *x has no anchor &x that ends before it"),
        ("a: &x 1\n<<: *x", "x.yaml:2:1: a merge key (<<) merges a mapping, or a list of mappings"),
        ("<<: [{a: 1}, 2]", "x.yaml:1:1: a merge key (<<) merges a mapping, or a list of mappings"),
        ("<<: {a: 1}\n<<: {b: 1}", "x.yaml:2:1: duplicate key '<<'; a list of mappings merges several"),
        ("<<: *x", "x.yaml:1:5: alias *x has no anchor &x that ends before it"),
        ("a: !!python/name:os.system", "x.yaml:1:4: tag '!!python/name:os.system' is not allowed here"),
        ("a: !secret x", "x.yaml:1:4: tag '!secret' is not allowed here"),
        ("!!set {a}", "x.yaml:1:1: tag '!!set' is not allowed here"),
        ("!!map [a]", "x.yaml:1:1: tag '!!map' is not allowed here"),
        ("a: !!int x", "x.yaml:1:4: 'x' is not a value of its type"),
        *((f"a: {number}", OUT_OF_RANGE.format(number[:40])) for number in UNREADABLE),
        ("a: !!bool x", "x.yaml:1:4: 'x' is not a value of its type"),
        ("a: !!float ''", "x.yaml:1:4: '' is not a value of its type"),
        ("a: x\n\x07", "x.yaml:2:1: character U+0007 is not allowed in YAML"),
    ],
)
def test_what_is_no_plain_data_is_refused_with_its_place(text: str, says: str) -> None:
    assert refused(text) == says


@pytest.mark.parametrize("text", ["a: [1\n", "a:\n\tb: 1", "a: 'b\n"])
def test_text_that_is_not_yaml_is_refused_with_its_place(text: str) -> None:
    assert refused(text).startswith("x.yaml:2:1: not valid YAML: ")


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("a: &x {b: 1}\nc: {<<: *x}", {"b": 1}),
        ("a: &x {b: 1, d: 2}\nc:\n  b: 3\n  <<: *x", {"b": 3, "d": 2}),
        ("a: &x {b: 1, d: 2}\nc:\n  <<: *x\n  b: 3", {"b": 3, "d": 2}),
        ("a: &x {b: 1}\nz: &y {b: 2, e: 5}\nc: {<<: [*x, *y]}", {"b": 1, "e": 5}),
        ("a: &x {b: 1}\nz: &y {<<: *x, e: 5}\nc: {<<: *y}", {"b": 1, "e": 5}),
        ("c: {<<: {b: 1}}", {"b": 1}),
        ("c: {<<: []}", {}),
        ("c: {!!merge <<: {b: 1}}", {"b": 1}),
        ("c: {'<<': {b: 1}}", {"<<": {"b": 1}}),
        ("c: <<", "<<"),
    ],
)
def test_a_merge_key_adds_the_fields_that_the_mapping_has_not(text: str, data: object) -> None:
    (document,) = yaml_source.parse(text, "x")

    assert isinstance(document.data, dict)
    assert document.data["c"] == data


def test_a_merged_field_has_the_place_where_it_is_written() -> None:
    (document,) = yaml_source.parse("a: &x\n  b: 1\nc: {<<: *x}", "x")

    assert document.place(("c", "b")) == Place(Position(2, 3), Position(2, 6), "1")


def test_a_bomb_of_merges_is_refused_before_it_is_built() -> None:
    levels = "".join(
        f"a{n}: &a{n} {{{', '.join(f'k{i}: {{<<: *a{n - 1}}}' for i in range(10))}}}\n" for n in range(1, 12)
    )

    assert f"at most {MAX_ALIASED} nodes are allowed" in refused(f"a0: &a0 {{x: 1}}\n{levels}")


def test_a_bomb_of_aliases_is_refused_before_it_is_built() -> None:
    levels = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30))

    assert f"at most {MAX_ALIASED} nodes are allowed" in refused(f"a0: &a0 x\n{levels}")


def test_a_text_has_a_limited_number_of_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_source, "MAX_VALUES", 8)
    text = "a: [1, 2]\n---\n[1, 2]\n"  # 5 values, and 3

    assert len(yaml_source.parse(text, "f.yaml")) == 2
    with pytest.raises(DocumentError, match="too many values; a file has at most 8"):
        yaml_source.parse(text + "---\nb\n", "f.yaml")


def test_the_deepest_nesting_allowed_is_read() -> None:
    (document,) = yaml_source.parse("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "x")

    assert document.place((0,) * MAX_DEPTH).value == Position(1, MAX_DEPTH + 1)


@pytest.mark.parametrize("levels", [MAX_DEPTH + 2, 999, 1001, 100_000])
@pytest.mark.parametrize(
    ("opening", "place"), [("[", "1:66"), ("{a: ", "1:258"), ("- ", "1:131"), ("? ", "1:131"), ("[\n", "66:1")]
)
def test_nesting_without_measure_is_refused(opening: str, place: str, levels: int) -> None:
    """Whatever nesting limit of its own the parser has, and although its scanner may meet that limit first."""
    assert refused(opening * levels) == f"x.yaml:{place}: nested too deep; at most {MAX_DEPTH} levels are allowed"


def test_nesting_is_measured_where_the_text_breaks_off_as_well() -> None:
    text = "ä: &a {b: [1]}\nc: " + "[" * 300 + "@"

    assert refused(text) == f"x.yaml:2:{4 + MAX_DEPTH}: nested too deep; at most {MAX_DEPTH} levels are allowed"


def test_a_valid_text_before_an_error_is_not_measured_too_deep() -> None:
    assert refused("[" * (MAX_DEPTH + 1) + "]" * MAX_DEPTH + "\n").startswith("x.yaml:2:1: not valid YAML: ")


def test_nesting_by_way_of_aliases_counts() -> None:
    levels = "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 100))

    assert "nested too deep" in refused(f"a0: &a0 x\n{levels}")


def test_bytes_are_text_in_utf_8_with_or_without_a_mark() -> None:
    assert yaml_source.decode(b"\xef\xbb\xbfa: \xc3\xa4", "x") == "a: ä"


def test_bytes_that_are_no_utf_8_are_refused_with_their_place() -> None:
    with pytest.raises(DocumentError) as caught:
        yaml_source.decode(b"a: 1\nb: \xff", "x.yaml")

    assert str(caught.value) == "x.yaml:2:4: byte 0xff is not UTF-8; documents are UTF-8 text"
