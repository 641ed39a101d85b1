"""Sentences with entities out of a manual in HTML, whose classes say what a term is."""

from html.parser import HTMLParser

from models.ner.sentences import OUTSIDE, Sentence, words_of

# Class in DocBook's HTML -> type of entity.
TYPES = {
    "command": "COMMAND",
    "function": "FUNCTION",
    "type": "TYPE",
    "literal": "LITERAL",
    "varname": "SETTING",
    "option": "OPTION",
    "filename": "FILE",
    "structname": "TABLE",
    "structfield": "COLUMN",
    "application": "PROGRAM",
    "productname": "PRODUCT",
}

_VOID = {"br", "hr", "img", "input", "link", "meta"}  # Tags without an end.


def read(path: str) -> list[Sentence]:
    """The paragraphs of prose in a page, each as a sentence; terms are entities by their class.

    Args:
      path: of a page that DocBook's stylesheets made.
    """
    with open(path, encoding="utf-8") as f:
        return parse(f.read())


def parse(page: str) -> list[Sentence]:
    """As `read`, of the page's content."""
    parser = _Paragraphs()
    parser.feed(page)
    parser.close()
    return parser.found


class _Paragraphs(HTMLParser):
    """Collects `<p>` without a class; those with one are signatures, titles and the like."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Sentence] = []
        self._open: list[str] = []  # For each tag that is open in the paragraph, its type, or "".
        self._inside = False
        self._begin()

    def _begin(self) -> None:
        self._text = ""
        self._types: list[tuple[str, int]] = []  # Of each character: type, number of the entity.
        self._entity = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        kind = dict(attrs).get("class")
        if tag == "p":
            self._inside, self._open = kind is None, []
            self._begin()
        elif self._inside and tag not in _VOID:
            # A term within a term is a part of the outer one.
            outer = self._open[-1] if self._open else ""
            self._entity += not outer
            self._open.append(outer or TYPES.get(kind or "", ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "p" and self._inside:
            self._inside = False
            self._end()
        elif self._inside and self._open and tag not in _VOID:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._inside:
            kind = self._open[-1] if self._open else ""
            self._text += data
            self._types += [(kind, self._entity)] * len(data)

    def _end(self) -> None:
        words, tags, last = [], [], ("", 0)
        for at, word in words_of(self._text):
            kind = self._types[at]
            mark = "I" if kind == last else "B"
            words.append(word)
            tags.append(f"{mark}-{kind[0]}" if kind[0] else OUTSIDE)
            last = kind
        if words:
            self.found.append(Sentence(words, tags))
