"""Conditions as SQL writes them, put as Python does: "psnr < 30 AND label LIKE 'id_%'" for `where.parse_condition`.

Python's own notation passes through as it is. Words of SQL may be in any case; texts are in either kind of quotes.
"""

from __future__ import annotations

import re

_TOKEN = re.compile(r"""\s+|'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.)*"|<>|[<>=!]=|\.?\d[\w.]*|\w+|.""", re.S)
_WORDS = {
    "and": "and", "or": "or", "not": "not", "in": "in", "is": "is", "null": "None", "true": "True", "false": "False",
    "=": "==", "<>": "!=",
}  # fmt: skip
SEARCHES = {"like": "_like", "ilike": "_ilike"}
"""Word -> the function that stands for it: of a text and a pattern."""


def as_python(text: str) -> str:
    """A condition in Python's notation. What is neither is left for the parser to refuse."""
    tokens = [_in_python(token) for token in _TOKEN.findall(text) if not token.isspace()]
    at = 0
    while at < len(tokens):
        word, negated = tokens[at].lower(), at > 0 and tokens[at - 1] == "not"
        first = at - 2 if negated else at - 1
        if word in SEARCHES and first >= 0:
            pattern, stop = _operand(tokens, at + 1)
            _put(tokens, first, stop, f"{SEARCHES[word]}({tokens[first]}, {pattern})", negated)
            at = first
        elif word == "between" and first >= 0:
            least, middle = _operand(tokens, at + 1)
            most, stop = _operand(tokens, middle + 1)
            if tokens[middle : middle + 1] == ["and"]:
                _put(tokens, first, stop, f"({least} <= {tokens[first]} <= {most})", negated)
                at = first
        elif word == "in" and tokens[at + 1 : at + 2] == ["("] and ")" in tokens[at:]:
            # a list of one is no text in parentheses
            tokens[at + 1], tokens[tokens.index(")", at)] = "[", "]"
        at += 1
    return " ".join(tokens)


def _put(tokens: list[str], first: int, stop: int, test: str, negated: bool) -> None:
    tokens[first:stop] = [f"(not {test})" if negated else test]


def _operand(tokens: list[str], at: int) -> tuple[str, int]:
    """A number, text or name, and where it ends."""
    if tokens[at : at + 1] == ["-"]:
        return "".join(tokens[at : at + 2]), at + 2
    return "".join(tokens[at : at + 1]), at + 1


def _in_python(token: str) -> str:
    if token.startswith("'"):
        return "'" + token[1:-1].replace("''", "\\'") + "'" if len(token) > 1 else token
    return _WORDS.get(token.lower(), token)
