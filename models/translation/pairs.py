"""Sentences and their translations: the help of LibreOffice, or line-aligned files."""

import dataclasses
import html
import re

import tfps
from models import packages, tables

Pair = tuple[str, str]  # A text in the source language, and its translation.

_HELP = "./usr/share/libreoffice/help/"
_HELD_OUT = 0.1  # Of files, or of lines.
# A paragraph or heading has an id of its own, which is the same in all languages.
_PARAGRAPH = re.compile(r'<(p|h[1-6])\b[^>]*?\bid="((?:par|hd)_id\w+)"[^>]*>(.*?)</\1>', re.DOTALL)
# What is shown on another system than the usual one, such as the names of keys on a Mac.
_ELSEWHERE = re.compile(
    r'<span hidden="true" id="(?!default)[^"]*"[^>]*>'
    r"(?:[^<]|<span[^>]*>[^<]*</span>|<(?!/?span)[^>]*>)*</span>"
)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs to train on and pairs that are held out; no text is a source in both."""

    training: list[Pair]
    held_out: list[Pair]


def read_help() -> Pairs:
    """The paragraphs and headings of LibreOffice's help, in English and German.

    A tenth of the files is held out. Left out are pairs of equal texts, such as names of functions.

    Raises:
      DataError: a package is missing or broken.
    """
    pages = {language: _pages(language) for language in ("en-us", "de")}
    shared = sorted(pages["en-us"].keys() & pages["de"].keys())
    held = set(tables.held_out(len(shared), _HELD_OUT)[1].tolist())
    parts: tuple[dict[Pair, None], dict[Pair, None]] = ({}, {})  # Dictionaries keep the order.
    for i, name in enumerate(shared):
        source, target = (paragraphs(pages[language][name]) for language in ("en-us", "de"))
        both = ((source[key], target[key]) for key in source if key in target)
        parts[i in held].update(dict.fromkeys(pair for pair in both if pair[0] != pair[1]))
    return _apart(*map(list, parts))


def read_lines(prefix: str, source: str, target: str) -> Pairs:
    """Reads two files of which line n of one is the translation of line n of the other.

    A tenth of the lines, drawn at random but always the same, is held out.

    Args:
      prefix: of the names of both files.
      source: the ending of the file in the source language, without a dot.
      target: the ending of the other file.

    Raises:
      DataError: a file cannot be read, or the numbers of lines differ.
    """
    texts = []
    for path in (f"{prefix}.{source}", f"{prefix}.{target}"):
        texts.append(read_texts(path, "data"))
    if len(texts[0]) != len(texts[1]):
        raise tfps.DataError(
            f"--data={prefix}: the file .{source} has {len(texts[0])} lines, but .{target} has "
            f"{len(texts[1])}; line n of one must be the translation of line n of the other"
        )
    pairs = list(dict.fromkeys(pair for pair in zip(*texts, strict=True) if all(pair)))
    training, held = tables.held_out(len(pairs), _HELD_OUT)
    return _apart([pairs[i] for i in training], [pairs[i] for i in held])


def read_texts(path: str, flag: str) -> list[str]:
    """The lines of a file in UTF-8, each with single spaces.

    Args:
      path: of the file.
      flag: the flag that named the file, for errors.

    Raises:
      DataError: the file cannot be read.
    """
    try:
        with open(path, encoding="utf-8-sig") as f:
            lines = f.read().split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise tfps.DataError(f"--{flag}: {path} is no text in UTF-8 that can be read: {e}") from e
    if not lines[-1]:  # The last line has an end, too.
        lines.pop()
    return [" ".join(line.split()) for line in lines]


def paragraphs(page: str) -> dict[str, str]:
    """Id -> text of the paragraphs and headings of a page of LibreOffice's help, without markup."""
    found = {}
    for _, key, inside in _PARAGRAPH.findall(page):
        text = re.sub(r"<[^>]*>", "", _ELSEWHERE.sub("", inside))
        if text := " ".join(html.unescape(text).split()):
            found[key] = text
    return found


def _pages(language: str) -> dict[str, str]:
    package = f"libreoffice-help-{language}.tar"
    names = [n for n in packages.names(package, "translation") if _HELP in n and "/text/" in n]
    names = [name for name in names if name.endswith(".html")]
    contents = packages.read(package, names, "translation")
    return {
        name.partition("/text/")[2]: content.decode()
        for name, content in zip(names, contents, strict=True)
    }


def _apart(training: list[Pair], held_out: list[Pair]) -> Pairs:
    known = {source for source, _ in training}
    return Pairs(training, [pair for pair in held_out if pair[0] not in known])
