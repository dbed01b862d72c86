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
    """Whether a word of `text` denies: "not", "never", "isn't"."""
    words = words_of(text).split()
    if not DENIALS.isdisjoint(words):
        return True
    return any(word.endswith("n't") for word in words)


def unsure(text: str) -> bool:
    """Whether what follows `text` is denied or left open."""
    if denies(text):
        return True
    words = words_of(text).split()
    return not UNSURE.isdisjoint(words)


def leaves_open(sentence: str, start: int) -> bool:
    """Whether a sentence denies, doubts or asks what it says from `start` on."""
    if sentence.endswith("?"):
        return True
    return unsure(sentence[:start])


def only_one(found: set[str]) -> str | None:
    """The element of a set of one; None for any other set."""
    if len(found) != 1:
        return None
    return found.pop()


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
    # At the beginning it must be a clause of its own.
    opening = OPENING.match(text)
    if opening:
        said = TRUTH[opening[1].casefold()]
        rest = text[opening.end() :]
        if not FOLLOWING.match(rest) or TURNS[said].search(rest):
            return None
        return said

    # Elsewhere it must stand behind "is", and every such place must say the same.
    found = set()
    for sentence in SENTENCE.split(text):
        for match in IS_TRUE.finditer(sentence):
            said = TRUTH[match[1].casefold()]
            rest = sentence[match.end() :]
            if leaves_open(sentence, match.start()) or TURNS[said].search(rest):
                return None
            found.add(said)
    return only_one(found)


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
    # At the beginning it must be the whole text, or a capital with a clause of its own.
    opening = OPENING_LETTER.match(text)
    if opening:
        said = opening[1]
        rest = text[opening.end() :]
        if not rest.strip(" ."):
            return said.upper()
        if begins_with_letter(opening, rest):
            if DENIED_LETTER.match(rest) or offers_other(rest, said):
                return None
            return said

    # Elsewhere it must stand behind "is", and every such place must say the same.
    found = set()
    for sentence in SENTENCE.split(text):
        for match in IS_LETTER.finditer(sentence):
            said = match[1] or match[2]
            rest = sentence[match.end() :]
            if leaves_open(sentence, match.start()) or offers_other(rest, said):
                return None
            found.add(said)
    return only_one(found)


def begins_with_letter(opening: re.Match, rest: str) -> bool:
    """Whether the letter that a text begins with is that of a choice: a capital with a bracket, or
    with the end of a clause behind it."""
    if not opening[1].isupper():
        return False
    bracket = opening[2]
    if ")" in bracket or "]" in bracket:
        return True
    return bool(AFTER_LETTER.match(rest))


def offers_other(rest: str, said: str) -> bool:
    """Whether a second letter is offered behind the first."""
    rest = cut_reasons("1" + rest)[1:]  # the letter stands for a value that may be explained
    for match in (OTHER_LETTER.match(rest), HEDGED_LETTER.search(rest)):
        if match is not None and match[1] != said:
            return True
    return False


# ------------------------------------------------------------ several letters

LETTERS = re.compile(r"[(\[]?[A-Z][)\]]?(?: ?(?:,|&|and\b|, ?and\b) ?[(\[]?[A-Z][)\]]?){1,9}")
LETTERS_ONLY = re.compile(r"(?:[A-Z]|and|[,&()\[\]. ]){1,60}")


def read_letters(text: str) -> list[str] | None:
    """The letters, sorted, of a text that states nothing else ("A, C", "The answers are A and C"),
    or None."""
    for verb in (" is ", " are ", ": "):
        if not denies(text):
            text = text.rpartition(verb)[2]
    if not LETTERS_ONLY.fullmatch(text):
        return None
    return sorted(filter(str.isupper, text))


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
    if not words:
        return False

    # The words alone.
    text = text.strip(" \"'([")
    if words_of(ARTICLE.sub("", text, count=1)) == " ".join(words).casefold():
        return True

    # At the beginning, with the end of a clause behind them.
    phrase = r"\W{1,3}".join(map(re.escape, words)) + r"(?!\w)"
    opening = re.match(rf"(?:(?:the|an|a)\s)?{phrase}", text, re.IGNORECASE)
    if opening:
        return ends_there(text[opening.end() :])

    # Behind "is", in the first sentence that does not leave them open.
    said = re.compile(rf"{IS}{ADVERBS}(?:(?:the|an|a)\s)?[\"']?{phrase}", re.IGNORECASE)
    for sentence in SENTENCE.split(text):
        match = said.search(sentence)
        if match and not leaves_open(sentence, match.start()):
            return ends_there(sentence[match.end() :])
    return False


def ends_there(rest: str) -> bool:
    """Whether the words before `rest` are a whole clause, and `rest` does not deny them."""
    if not AFTER_WORD.match(rest) or DENIED_WORD.match(rest):
        return False
    first = SENTENCE.split(rest.strip())[0]
    if first.startswith(","):  # a remark on them may hold a "not"
        return True
    return not denies(first)


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
    day = read_date(said)
    other_day = read_date(text)
    if day and other_day:
        return day == other_day

    # What stands around the text must be words that do not deny it.
    wanted = even_text(said).casefold()
    before, found, after = even_text(text).casefold().partition(wanted)
    if not found or text.rstrip().endswith("?"):
        return False
    around = before + after
    if DIGIT.search(around) or denies(around):
        return False

    # It must not be a piece of a longer word.
    begins = not before[-1:].strip(" (\"'")
    ends = not after[:1].strip(" .,;!)\"'")
    return begins and ends


def even_text(text: str) -> str:
    """`text` with the same spelling for "3 to 4", "3 : 4" and "3:4"."""
    text = TO.sub(":", bare_text(text))
    return AROUND_SIGNS.sub(r"\1", text)


NOON = re.compile(r" ?([ap])\.? ?m\b\.?", re.IGNORECASE)
MARKS = re.compile(r"[${}]|(?<=_) ")


def bare_text(text: str) -> str:
    return NOON.sub(r"\1m", MARKS.sub("", text)).strip(" .")


def read_date(text: str) -> tuple[int, int, int] | None:
    """(year, month, day) of the one date in a text."""
    found = list(DATE.finditer(text))
    if len(found) != 1:
        return None
    match = found[0]
    around = text[: match.start()] + text[match.end() :]
    if DIGIT.search(around) or denies(text):
        return None

    # Only the groups of the form that matched hold something.
    year = match["year"] or match["year2"] or match["year3"]
    day = match["day"] or match["day2"] or match["day3"]
    if match["month"]:
        return int(year), int(match["month"]), int(day)
    name = (match["name2"] or match["name3"]).casefold()[:3]
    if name not in MONTHS:
        return None
    return int(year), MONTHS.index(name) + 1, int(day)
