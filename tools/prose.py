"""Measure the house language: the rate of two kinds of words in the project's prose.

Both kinds mark sentences that hide their subject: ``what, who, whose ...`` replace a thing that has a name,
``there is ...`` postpones it. Prose is comments, docstrings and help texts of Python files, comments of scripts and
YAML files, and Markdown without code. Each file is masked: the mask keeps the file's length and lines but only its
prose, so that an offset in the mask gives the line in the file.

    tools/prose.py                  one row a part, and the total that the targets apply to
    tools/prose.py --list FILE ...  each occurrence as file:line, and the text around it
"""

import argparse
import ast
import re
import sys
import tokenize
from collections.abc import Callable, Iterable, Iterator
from io import StringIO
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "nfq_enforcer"
METRICS = PACKAGE / "observe/metrics.py"

WHAT_TARGET = 3.0  # occurrences in 1,000 words; the total must stay below
THERE_TARGET = 1.5

_WORD = re.compile(r"[^\W\d_][^\W_]*(?:['’-][^\W_]+)*")
_WHAT = re.compile(r"\b(?:what|who|whom|whose|whoever|whatever)\b", re.IGNORECASE)
_THERE = re.compile(r"\bthere(?:\s+(?:is|are|was|were)\b|['’](?:s|re)\b)", re.IGNORECASE)

_CODE = "\0"  # masks all that is not prose; no pattern matches across it
_DIRECTIVE = re.compile(r"#!|#\s*(?:noqa|type:|pragma:|fmt:|shellcheck\b|yaml-language-server|-\*-)")
_HASH_COMMENT = re.compile(r"(?:^|(?<=\s))#.*", re.MULTILINE)
_NOT_WORDS = re.compile(r"(``?)[^`\0]+\1|\]\([^)]*\)|https?://[^\s)>]+|\{[^{}]*\}")  # code spans, links, placeholders
_FENCED = re.compile(r"^[ \t]*(```|~~~).*?^[ \t]*\1[ \t]*$", re.MULTILINE | re.DOTALL)

Span = tuple[int, int]


class Count(NamedTuple):
    """Count: the words of some prose, and the occurrences of each kind."""

    words: int = 0
    what: int = 0
    there: int = 0

    def plus(self, other: "Count") -> "Count":
        """Add another count."""
        return Count(self.words + other.words, self.what + other.what, self.there + other.there)

    @property
    def what_rate(self) -> float:
        """Occurrences of ``what, who ...`` in 1,000 words."""
        return 1000 * self.what / max(self.words, 1)

    @property
    def there_rate(self) -> float:
        """Occurrences of ``there is ...`` in 1,000 words."""
        return 1000 * self.there / max(self.words, 1)

    @property
    def on_target(self) -> bool:
        """Whether both rates are below their targets."""
        return self.what_rate < WHAT_TARGET and self.there_rate < THERE_TARGET


class Occurrence(NamedTuple):
    """Occurrence: one of the words of the two kinds, in its place."""

    line: int
    text: str  # with a few words before and after it


class Part(NamedTuple):
    """Part: one row of the table."""

    name: str
    counted: Count
    targeted: bool = False  # enters the total that the targets apply to


def python_prose(source: str) -> str:
    """Mask a Python file: keep its comments and docstrings."""
    return _mask(source, [*_comments(source), *_docstrings(source)], hashes=True)


def help_prose(source: str) -> str:
    """Mask a Python file: keep the strings given as ``help=``, the help texts of the command line."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    texts = (keyword.value for call in calls for keyword in call.keywords if keyword.arg == "help")
    return _mask(source, _spans(source, (text for text in texts if _is_string(text))))


def sentence_prose(source: str) -> str:
    """Mask a Python file: keep all strings that end with a period and are not docstrings, such as the metrics' help."""
    documented = set(_docstrings(source))
    strings = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    texts = (node for node in strings if isinstance(node.value, str) and re.search(r"\s.*\.$", node.value))
    return _mask(source, [span for span in _spans(source, texts) if span not in documented])


def markdown_prose(source: str) -> str:
    """Mask a Markdown file: drop code blocks and code spans, keep all other text with that of tables."""
    fences = [match.span() for match in _FENCED.finditer(source)]
    edges = [0, *(edge for span in fences for edge in span), len(source)]
    return _mask(source, list(zip(edges[::2], edges[1::2], strict=True)))


def comment_prose(source: str) -> str:
    """Mask a shell script, YAML file or the like: keep the comments that start with ``#``."""
    return _mask(source, [match.span() for match in _HASH_COMMENT.finditer(source)], hashes=True)


def count(prose: str) -> Count:
    """Count the words, and the occurrences of each kind, of masked prose."""
    return Count(*(sum(1 for _ in pattern.finditer(prose)) for pattern in (_WORD, _WHAT, _THERE)))


def occurrences(prose: str) -> Iterator[Occurrence]:
    """Find each occurrence of both kinds, in the order of the file."""
    found = [match for pattern in (_WHAT, _THERE) for match in pattern.finditer(prose)]
    for match in sorted(found, key=lambda match: match.start()):
        around = prose[max(match.start() - 50, 0) : match.end() + 50]
        text = " ".join(around.replace(_CODE, " ").split())
        yield Occurrence(prose.count("\n", 0, match.start()) + 1, text)


def package_parts() -> list[Part]:
    """Measure the package, one part a folder directly below it, and its help texts."""
    rooms: dict[str, Count] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        below = path.relative_to(PACKAGE).parts
        room = f"{PACKAGE.name}/{below[0]}" if len(below) > 1 else PACKAGE.name
        rooms[room] = rooms.get(room, Count()).plus(_read(path, python_prose))
    helps = [_total(PACKAGE.rglob("*.py"), help_prose), _total([METRICS], sentence_prose)]
    return [*(Part(*room, targeted=True) for room in rooms.items()), Part("help texts", helps[0].plus(helps[1]), True)]


def document_parts() -> list[Part]:
    """Measure the README, the changelog, each folder of docs, and the comments of scripts and examples."""
    folders = sorted({path.parent for path in (ROOT / "docs").rglob("*.md")})
    scripts = [ROOT / "Makefile", ROOT / "Vagrantfile", *(ROOT / ".ci").iterdir(), *(PACKAGE / "systemd").iterdir()]
    return [
        Part("README.md", _read(ROOT / "README.md", markdown_prose), targeted=True),
        Part("CHANGELOG.md", _read(ROOT / "CHANGELOG.md", markdown_prose)),
        *(Part(str(folder.relative_to(ROOT)), _total(folder.glob("*.md"), markdown_prose)) for folder in folders),
        Part("scripts", _total((path for path in scripts if path.is_file()), comment_prose)),
        Part("policies", _total((ROOT / "policies").glob("*.yaml"), comment_prose)),
    ]


def parts_of_tests() -> list[Part]:
    """Measure the comments and docstrings of the tests and tools."""
    return [Part(folder, _total((ROOT / folder).rglob("*.py"), python_prose)) for folder in ("tests", "tools")]


def targeted(parts: Iterable[Part]) -> Count:
    """Add the parts that the targets apply to: package, help texts and README."""
    return _sum(part.counted for part in parts if part.targeted)


def table(parts: Iterable[Part]) -> str:
    """Render the parts and their total as a table."""
    rows = list(parts)
    total = targeted(rows)
    lines = [f"{'part':<24}{'words':>8}{'what/who':>12}{'there is':>12}"]
    lines += [_row(part.name, part.counted) for part in (row for row in rows if row.targeted)]
    lines += [_row("total", total), f"{'target, below':<32}{WHAT_TARGET:>12.1f}{THERE_TARGET:>12.1f}", ""]
    lines += [_row(part.name, part.counted) for part in (row for row in rows if not row.targeted)]
    return "\n".join(lines)


def listing(paths: Iterable[Path]) -> Iterator[str]:
    """Render each occurrence in the files, and in the files of the folders, as file:line and text."""
    for path in paths:
        files = (each for each in sorted(path.rglob("*")) if each.suffix in (".py", ".md", ".sh", ".yaml"))
        for file in files if path.is_dir() else [path]:
            source = file.read_text()
            found = {one for prose in _masks(file) for one in occurrences(prose(source))}
            yield from (f"{file}:{one.line}: {one.text}" for one in sorted(found))


def main(arguments: list[str] | None = None) -> int:
    """Print the table, or with ``--list`` the occurrences; return 1 if the total misses a target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", action="store_true", help="measure tests and tools too; no target applies to them")
    parser.add_argument(
        "--list", nargs="+", type=Path, metavar="FILE", help="print the occurrences in files or folders"
    )
    options = parser.parse_args(arguments)
    if options.list:
        print(*listing(options.list), sep="\n")
        return 0
    parts = [*package_parts(), *document_parts(), *(parts_of_tests() if options.tests else ())]
    print(table(parts))
    return 0 if targeted(parts).on_target else 1


def _row(name: str, counted: Count) -> str:
    return f"{name:<24}{counted.words:>8}{counted.what_rate:>12.1f}{counted.there_rate:>12.1f}"


def _sum(counts: Iterable[Count]) -> Count:
    total = Count()
    for each in counts:
        total = total.plus(each)
    return total


def _read(path: Path, prose: Callable[[str], str]) -> Count:
    return count(prose(path.read_text()))


def _total(paths: Iterable[Path], prose: Callable[[str], str]) -> Count:
    return _sum(_read(path, prose) for path in paths)


def _masks(file: Path) -> list[Callable[[str], str]]:
    """Return the masks that apply to a file."""
    if file.suffix == ".py":
        sentences = [sentence_prose] if file.resolve() == METRICS else []
        return [python_prose, help_prose, *sentences]
    return [markdown_prose if file.suffix == ".md" else comment_prose]


def _comments(source: str) -> Iterator[Span]:
    starts = _line_starts(source)
    for token in tokenize.generate_tokens(StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            begin = starts[token.start[0] - 1] + token.start[1]
            yield begin, begin + len(token.string)


def _docstrings(source: str) -> Iterator[Span]:
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, documented) and node.body)
    first = (node.body[0] for node in nodes)
    yield from _spans(source, (one.value for one in first if isinstance(one, ast.Expr) and _is_string(one.value)))


def _is_string(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _spans(source: str, nodes: Iterable[ast.expr]) -> Iterator[Span]:
    """Convert the places of syntax nodes, given as lines and columns in UTF-8 bytes, to offsets."""
    lines = source.splitlines(keepends=True)
    starts = _line_starts(source)

    def offset(line: int, column: int) -> int:
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())

    for node in nodes:
        end_line, end_column = node.end_lineno or node.lineno, node.end_col_offset or 0
        yield offset(node.lineno, node.col_offset), offset(end_line, end_column)


def _line_starts(source: str) -> list[int]:
    return list(accumulate((len(line) for line in source.splitlines(keepends=True)), initial=0))


def _mask(source: str, spans: Iterable[Span], *, hashes: bool = False) -> str:
    """Keep the spans, white space and nothing else; with ``hashes``, drop the ``#`` of comments as well."""
    mask = list(re.sub(r"\S", _CODE, source))
    for begin, end in spans:
        text = source[begin:end]
        if hashes and text.startswith("#"):
            text = _CODE * len(text) if _DIRECTIVE.match(text) else f" {text[1:]}"
        mask[begin:end] = text
    return _NOT_WORDS.sub(lambda match: re.sub(r"\S", _CODE, match[0]), "".join(mask))


if __name__ == "__main__":
    sys.exit(main())
