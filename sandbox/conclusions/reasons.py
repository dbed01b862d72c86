"""What explains a value is not part of it: a parenthesis behind it, "because ...", "since ...", "so
..."."""

import re

from .literals import plain, read_values

REASON = re.compile(
    r"[,;:\s-]\s?(?:because|since|as|so|which is|which equals|given that)\b", re.IGNORECASE
)
PARENTHESIS = re.compile(r"\(([^()]{0,300}(?:\([^()]{0,100}\)[^()]{0,100}){0,4})\)")
VALUE_BEFORE = re.compile(r"[0-9\\½¼¾⅓⅔⅛π√∞)}\]⁰-⁹²³¹]|(?:^|[ *$])[A-Za-z][*$ ]{0,3}$")
HEDGE = re.compile(
    r"\W{0,3}(?:(?P<or>or|alternatively)|(?P<not>not)|maybe|perhaps|possibly|could be|wrong|false"
    r"|incorrect)\b",
    re.IGNORECASE,
)
REMARK = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2}|[=≈]|\\approx")
REACH = 60  # characters before a reason in which its value is looked for


def cut_reasons(text: str) -> str:
    """`text` without the reasons for a value that stands in it. Reads at most a few hundred
    characters a step."""
    # A clause that gives a reason goes to the end of the text.
    for match in REASON.finditer(text):
        if VALUE_BEFORE.search(reach_before(text, match)):
            text = text[: match.start()]
            break

    # A parenthesis is left out by itself.
    pieces = []
    position = 0
    for match in PARENTHESIS.finditer(text):
        if explains(reach_before(text, match), match[1]):
            pieces.append(text[position : match.start()])
            position = match.end()
    pieces.append(text[position:])
    return "".join(pieces).strip()


def reach_before(text: str, match: re.Match) -> str:
    """The last REACH characters before a match."""
    start = max(match.start() - REACH, 0)
    return text[start : match.start()]


def explains(before: str, inside: str) -> bool:
    """Whether a parenthesis is a remark on the value before it, and offers or denies nothing that
    matters."""
    if not before.endswith((" ", "*", "$")):
        return False
    if not VALUE_BEFORE.search(before.rstrip(" *$")):
        return False
    hedge = HEDGE.match(inside)
    if not hedge:
        return bool(REMARK.search(inside))

    # "or" may give the same value again, "not" another one; any other hedge matters.
    values = read_values(plain(before))
    others = read_values(plain(inside[hedge.end() :]))
    if not values or not others:
        return False
    same = all(other.value == values[-1].value for other in others)
    if hedge["or"]:
        return same
    if hedge["not"]:
        return not same
    return False
