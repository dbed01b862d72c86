"""Answers in words: yes or no, a letter of a choice, names, dates, ratios.

A conclusion states a word if it is the word, begins with it, or says it after "is"; and if it does
not deny it, does not ask, and offers no second one. Texts are as `plain` (literals.py) leaves them.
"""

import re

from .literals import DENIALS, listed
from .reasons import cut_reasons

WORD = re.compile(r"\w++(?:'\w++)?")
SENTENCE = re.compile(r"(?<=[.!?;])\s(?=\S)")
# Behind a word that is the whole answer, or its first clause.
END = r"(?=[\"')\]*]{0,3}\s?(?:$|[.,;:!)]|—|-\s|because\b|since\b|as\b|so\b))"
ADVERBS = (
    r"(?:(?:definitely|clearly|certainly|indeed|simply|therefore|thus|always|actually|then|option"
    r"|choice|answer) ){0,2}"
)
IS = r"(?:\b(?:is|are|was|were|be|equals|named|called|choose|select|pick)|[:=])[ :]{1,2}"


def words_of(text: str) -> str:
    """The words of `text` in lower case, with one space between them."""
    return " ".join(word.casefold() for word in WORD.findall(text))


UNSURE = frozenset(
    listed("whether unclear hard doubt doubtful depends might may could uncertain if")
)


def denies(text: str) -> bool:
    return any(word in DENIALS or word.endswith("n't") for word in words_of(text).split())


def unsure(text: str) -> bool:
    """Whether what follows `text` is denied or left open."""
    return denies(text) or not UNSURE.isdisjoint(words_of(text).split())


# ------------------------------------------------------------ yes or no

TRUTH = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}
OPENING = re.compile(r"[\"'(\[ ]{0,4}(yes|no|true|false)\b[\"')\]]{0,3}", re.IGNORECASE)
# What may follow "yes" or "no". "No way" and "no idea" are not answers.
FOLLOWING = re.compile(
    r"$|[.,;:!)(]|\s\(|\s?—|\s-\s|\s(?:because|since|as|so|it|they|we|you|he|she|this|that|these"
    r"|those|there|indeed|of course"
    r"|definitely|certainly|absolutely|i)\b",
    re.IGNORECASE,
)
IS_TRUE = re.compile(rf"{IS}{ADVERBS}[\"'(]?(yes|no|true|false)\b{END}", re.IGNORECASE)
TURN = (
    r"(?:^|[.,;:!?(/]|\b(?:or|and|but|rather|maybe|perhaps|also|is|answer"
    r"|actually))\s?(?:{})\b(?=\s?(?:$|[.,;:!?)]))"
)
TURNS = {  # the other verdict, behind the first
    "yes": re.compile(TURN.format("no|false"), re.IGNORECASE),
    "no": re.compile(TURN.format("yes|true"), re.IGNORECASE),
}


def read_yes_no(text: str) -> str | None:
    """yes, no, or None where neither is plainly said."""
    opening = OPENING.match(text)
    if opening:
        said, rest = TRUTH[opening[1].casefold()], text[opening.end() :]
        turns = TURNS[said].search(rest)
        return said if FOLLOWING.match(rest) and not turns else None
    found = set()
    for sentence in SENTENCE.split(text):
        for match in IS_TRUE.finditer(sentence):
            said = TRUTH[match[1].casefold()]
            if (
                unsure(sentence[: match.start()])
                or sentence.endswith("?")
                or TURNS[said].search(sentence[match.end() :])
            ):
                return None
            found.add(said)
    return found.pop() if len(found) == 1 else None


# ------------------------------------------------------------ a letter of a choice

LETTER = re.compile(r"(?:option |choice )?[(\[]?([A-Z])[)\].:]{0,2}", re.IGNORECASE)
OPENING_LETTER = re.compile(
    r"(?:(?:option|choice|answer) )?[\"'(\[]{0,3}([A-Za-z])(?![A-Za-z'])([\"')\]]{0,3})",
    re.IGNORECASE,
)
IS_LETTER = re.compile(rf"{IS}{ADVERBS}(?:[(\[]([A-Z])[)\]]|[\"']?([A-Z])(?:\)|:|{END}))")
AFTER_LETTER = re.compile(
    r"$|[.:;!,]|\s?—|\s-\s|\s\(|\s(?:because|since|as|so)\b"
    r"|\s(?:is|was)\s(?:the\s)?(?:(?:correct|right|best)\b|answer\b|true\b)",
    re.IGNORECASE,
)
OTHER_LETTER = re.compile(  # right behind the first
    r"(?:[.:,;/&-] ?| ){0,3}(?:\b(?:and|or|also|maybe|perhaps|possibly)\s){0,2}(?:(?:option"
    r"|choice)\s)?[(\[]?([A-H])"
    r"(?:[)\].,;:/]|\s?$|\s(?:and|or|is)\b|\s[A-H]\b)"
)
HEDGED_LETTER = re.compile(
    r"\b(?:or|maybe|perhaps|possibly|and)\s(?:(?:even|option|choice|maybe"
    r"|perhaps)\s){0,2}[(\[]?([A-H])(?![A-Za-z'])"
)
DENIED_LETTER = re.compile(
    r"[,.):; ]{0,3}(?:(?:which|that|it|this) )?"
    r"(?:(?:is|was) (?:not|wrong|false|incorrect|the wrong)\b|isn't|cannot|can't|(?:wrong|false"
    r"|incorrect)\b)",
    re.IGNORECASE,
)


def read_letter(text: str) -> str | None:
    """The one letter of a choice that `text` states, as a capital, or None."""
    opening = OPENING_LETTER.match(text)
    if opening:
        said, rest = opening[1], text[opening.end() :]
        if rest.strip(" .") == "":
            return said.upper()
        labelled = ")" in opening[2] or "]" in opening[2]
        if said.isupper() and (labelled or AFTER_LETTER.match(rest)):
            return None if DENIED_LETTER.match(rest) or offers_other(rest, said) else said
    found = set()
    for sentence in SENTENCE.split(text):
        for match in IS_LETTER.finditer(sentence):
            said = match[1] or match[2]
            rest = sentence[match.end() :]
            if (
                unsure(sentence[: match.start()])
                or sentence.endswith("?")
                or offers_other(rest, said)
            ):
                return None
            found.add(said)
    return found.pop() if len(found) == 1 else None


def offers_other(rest: str, said: str) -> bool:
    """Whether a second letter is offered behind the first."""
    rest = cut_reasons("1" + rest)[1:]  # the letter stands for a value that may be explained
    matches = (OTHER_LETTER.match(rest), HEDGED_LETTER.search(rest))
    return any(match is not None and match[1] != said for match in matches)


# ------------------------------------------------------------ several letters

LETTERS = re.compile(r"[(\[]?[A-Z][)\]]?(?: ?(?:,|&|and\b|, ?and\b) ?[(\[]?[A-Z][)\]]?){1,9}")
LETTERS_ONLY = re.compile(r"(?:[A-Z]|and|[,&()\[\]. ]){1,60}")


def read_letters(text: str) -> list[str] | None:
    """The letters, sorted, of a text that states nothing else ("A, C", "The answers are A and C"),
    or None."""
    for verb in (" is ", " are ", ": "):
        text = text.rpartition(verb)[2] if not denies(text) else text
    if not LETTERS_ONLY.fullmatch(text):
        return None
    return sorted(letter for letter in text if letter.isupper())


# ------------------------------------------------------------ names and other words

ARTICLE = re.compile(r"(?:(?:on|in|at)\s)?(?:the|an|a)\s|(?:on|in|at)\s", re.IGNORECASE)
AFTER_WORD = re.compile(
    r"[\"')\]]{0,3}(?:[.!;]?\s?$|[.;:!]\s|\s?—|\s-\s|\s?\(|,?\s(?:because|since|as|so)\b"
    r"|\s(?!or\b|and\b|nor\b|but\b|vs\b|versus\b)[a-z]|,\s(?:which|who|where|the|a|an|it|he|she"
    r"|not|that|this)\b)",
)
DENIED_WORD = re.compile(
    r"\W{0,3}(?:(?:which|that|it|this) )?(?:is|was) (?:the wrong|not|wrong|false|incorrect)\b",
    re.IGNORECASE,
)


def states_words(wanted: str, text: str) -> bool:
    """Whether `text` is the wanted words, begins with them, or says them after "is"."""
    words = WORD.findall(ARTICLE.sub("", wanted, count=1))
    text = text.strip(" \"'([")
    if not words or words_of(ARTICLE.sub("", text, count=1)) == " ".join(words).casefold():
        return bool(words)
    phrase = r"\W{1,3}".join(map(re.escape, words)) + r"(?!\w)"
    opening = re.match(rf"(?:(?:the|an|a)\s)?{phrase}", text, re.IGNORECASE)
    if opening:
        return ends_there(text[opening.end() :])
    said = re.compile(rf"{IS}{ADVERBS}(?:(?:the|an|a)\s)?[\"']?{phrase}", re.IGNORECASE)
    for sentence in SENTENCE.split(text):
        match = said.search(sentence)
        if match and not unsure(sentence[: match.start()]) and not sentence.endswith("?"):
            return ends_there(sentence[match.end() :])
    return False


def ends_there(rest: str) -> bool:
    first = SENTENCE.split(rest.strip())[0] if rest.strip() else ""
    denied = denies(first) and not first.startswith(",") or bool(DENIED_WORD.match(rest))
    return bool(AFTER_WORD.match(rest)) and not denied


# ------------------------------------------------------------ texts such as dates and ratios

TEXTUAL = re.compile(
    r"[0-9]{1,4} ?: ?[0-9]{1,4}(?: ?: ?[0-9]{1,4}){0,3}(?: ?[ap]\.?m\.?)?"  # ratio, time
    r"|[0-9]{1,4}[-./][0-9]{1,2}[-./][0-9]{1,4}"  # date
    r"|\+?[0-9()]{1,6}(?:[- ][0-9()]{2,6}){0,4}-[0-9]{2,6}"  # phone number
    r"|[0-9A-F]{1,40}_ ?\{?[0-9]{1,2}\}?",  # a number in another base
    re.IGNORECASE,
)
DATE = re.compile(
    r"(?P<year>[0-9]{4})-(?P<month>[0-9]{1,2})-(?P<day>[0-9]{1,2})"
    r"|(?P<day2>[0-9]{1,2})(?:st|nd|rd"
    r"|th)? (?:of )?(?P<name2>[A-Za-z]{3,9})\.?,? (?P<year2>[0-9]{4})"
    r"|(?P<name3>[A-Za-z]{3,9})\.? (?P<day3>[0-9]{1,2})(?:st|nd|rd|th)?,? (?P<year3>[0-9]{4})"
)
MONTHS = listed("jan feb mar apr may jun jul aug sep oct nov dec")
AROUND_SIGNS = re.compile(r"\s?([:/.-])\s?(?=[0-9])")
TO = re.compile(r"(?<=[0-9]) to (?=[0-9])")
DIGIT = re.compile(r"[0-9]")


def same_text(said: str, text: str) -> bool:
    """Whether `text` holds the expected text and no other digits; dates are compared as dates."""
    if (day := read_date(said)) and (other := read_date(text)):
        return day == other
    wanted, given = (AROUND_SIGNS.sub(r"\1", TO.sub(":", bare_text(part))) for part in (said, text))
    before, found, after = given.casefold().partition(wanted.casefold())
    if (
        not found
        or DIGIT.search(before + after)
        or denies(before + after)
        or text.rstrip().endswith("?")
    ):
        return False
    return not before[-1:].strip(" (\"'") and not after[:1].strip(" .,;!)\"'")


NOON = re.compile(r" ?([ap])\.? ?m\b\.?", re.IGNORECASE)
MARKS = re.compile(r"[${}]|(?<=_) ")


def bare_text(text: str) -> str:
    return NOON.sub(r"\1m", MARKS.sub("", text)).strip(" .")


def read_date(text: str) -> tuple[int, int, int] | None:
    """(year, month, day) of the one date in a text."""
    found = list(DATE.finditer(text))
    if (
        len(found) != 1
        or DIGIT.search(text[: found[0].start()] + text[found[0].end() :])
        or denies(text)
    ):
        return None
    parts = found[0].groupdict()
    year, day = (parts[name] or parts[name + "2"] or parts[name + "3"] for name in ("year", "day"))
    name = (parts["name2"] or parts["name3"] or "").casefold()[:3]
    if not parts["month"] and name not in MONTHS:
        return None
    month = int(parts["month"]) if parts["month"] else MONTHS.index(name) + 1
    return int(year), month, int(day)
