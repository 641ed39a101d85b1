"""Paragraphs out of a dump of Wikipedia: its markup is taken away."""

import bz2
import html
import re
from collections.abc import Iterator
from xml.etree import ElementTree

# Comments, elements that are no running text, and the tags of all others.
_TAGS = re.compile(
    r"<!--.*?-->|<\w+\b[^<>]*/>"
    r"|<(ref|math|gallery|timeline|source|score|sub|sup)\b[^<>]*>.*?</\1\s*>|<[^<>]*>",
    re.DOTALL | re.IGNORECASE,
)
# Templates and tables, the innermost.
_BRACES = re.compile(r"\{[^{}]*\}")
# Links without a link within: to pages with another text, to pages, and to what is no page.
_LINK = re.compile(r"\[\[(?!File:|Image:|Category:)(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", re.IGNORECASE)
_FILE = re.compile(r"\[\[(?:File|Image|Category):[^\[\]]*\]\]", re.IGNORECASE)
_ADDRESS = re.compile(r"(?:https?|ftp)://[^\s\]|]*")

# What the lines of tables, headings and indented remarks begin with.
_NO_PARAGRAPH = "|!={}<"


def paragraphs(dump: bytes) -> Iterator[str]:
    """The paragraphs, and the points of lists, of all articles.

    Args:
      dump: an XML file of pages as Wikipedia gives them out, compressed by bzip2.

    Yields:
      Texts without markup, each in one line.

    Raises:
      OSError, ElementTree.ParseError: the dump is broken.
    """
    root = ElementTree.fromstring(bz2.decompress(dump))
    for page in root.iterfind("{*}page"):
        if page.find("{*}redirect") is None:
            for line in plain(page.findtext("{*}revision/{*}text") or "").split("\n"):
                if line.strip() and line.lstrip()[0] not in _NO_PARAGRAPH:
                    yield line


def plain(markup: str) -> str:
    """The running text of a page in Wikipedia's markup, with the lines that it has there."""
    text = _repeated(_BRACES, _TAGS.sub(" ", markup))
    text = _FILE.sub(" ", _repeated(_LINK, text, r"\1"))
    return html.unescape(_ADDRESS.sub(" ", text))


def _repeated(pattern: re.Pattern, text: str, by: str = " ") -> str:
    """Replaces what matches until nothing does, from the inside to the outside."""
    count = 1
    while count:
        text, count = pattern.subn(by, text)
    return text
