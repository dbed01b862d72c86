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
    for match in REASON.finditer(text):
        if VALUE_BEFORE.search(text[max(match.start() - REACH, 0) : match.start()]):
            text = text[: match.start()]
            break
    pieces, position = [], 0
    for match in PARENTHESIS.finditer(text):
        if explains(text[max(match.start() - REACH, 0) : match.start()], match[1]):
            pieces.append(text[position : match.start()])
            position = match.end()
    return ("".join(pieces) + text[position:]).strip()


def explains(before: str, inside: str) -> bool:
    """Whether a parenthesis is a remark on the value before it, and offers or denies nothing that
    matters."""
    if not before.endswith((" ", "*", "$")) or not VALUE_BEFORE.search(before.rstrip(" *$")):
        return False
    hedge = HEDGE.match(inside)
    if not hedge:
        return bool(REMARK.search(inside))
    values, others = read_values(plain(before)), read_values(plain(inside[hedge.end() :]))
    if not values or not others:
        return False
    same = all(other.value == values[-1].value for other in others)
    return bool(hedge["or"] and same or hedge["not"] and not same)
