"""What a model concludes, and whether that is the expected answer. Standard library only; linear in
the text.

    find("... Answer: 345")                # where a text concludes
    read_expected("... #### 72")           # the answer in a data set's column
    compare("345", "15 × 23 = 345")        # Verdict(True, asks=(Ask("equal", "15 × 23", "345"),))
    compare("345", "15 × 23")              # Verdict(False): it still has to be worked out
    compare("B", "The correct choice is B.")  # Verdict(True)

The kind of the expected answer decides what a conclusion must look like:

    yes or no, letters, words         the word itself, not denied, no other beside it (words.py)
    a date, a ratio, a phone number   the same text (words.py)
    a number                          one literal of that value (literals.py, numbers.py)
    a closed form, list, set, tuple, interval, matrix, equation, inequality
                                      of the same kind, in final form, and equal (formulas.py)

Equal is not enough: whatever is equal to the answer includes the question. An expression that
stands in the question, or that still has to be worked out, is therefore no answer. The expected
answer is read as it stands, never changed. Only an Ask needs computer algebra; verifier.py puts it
to math-verify in a process that can be killed.
"""

import re

from . import formulas, numbers, words
from .asks import NO, YES, Ask, Verdict
from .finding import Conclusion, Unreadable, find, read_expected
from .literals import plain
from .reasons import cut_reasons

__all__ = [
    "Ask",
    "Conclusion",
    "Unreadable",
    "Verdict",
    "compare",
    "contradicts",
    "find",
    "kind_of",
    "read_expected",
    "repeats",
]

# Of a conclusion. A longer one states no value; of one in words only the beginning is read.
MAX_CHARACTERS = 1000
CHEMICAL = re.compile(r"(?:[A-Z][a-z]?[0-9]{0,3}){1,12}")


def kind_of(said: str) -> str:
    """yes_no, letter, letters, text, number, words or formula. `said` is an answer as `plain`
    leaves it."""
    bare = bare_answer(said)
    if words.words_of(bare) in words.TRUTH:
        return "yes_no"
    if words.LETTER.fullmatch(bare) and not bare.islower():
        return "letter"
    if words.LETTERS.fullmatch(bare):
        return "letters"
    if words.TEXTUAL.fullmatch(bare) or words.DATE.fullmatch(bare):
        return "text"
    if numbers.read_expected(said):
        return "number"
    if formulas.has_prose(bare):
        return "words"
    if len(bare) > 1 and CHEMICAL.fullmatch(bare):
        return "words"
    return "formula"


def bare_answer(said: str) -> str:
    """An answer without dollar signs, spaces around it and a full stop."""
    return said.replace("$", "").strip(" .")


def compare(expected: str, text: str, question: str = "") -> Verdict:
    """Whether the conclusion `text` states the answer `expected` (an empty question: not known)."""
    said = plain(expected)
    kind = kind_of(said)
    given = plain(text[:MAX_CHARACTERS]).replace("$", "")
    bare = bare_answer(said)

    # Answers in words: the beginning of the conclusion is enough.
    if kind == "yes_no":
        return Verdict(words.read_yes_no(given) == words.TRUTH[words.words_of(bare)])
    if kind == "letter":
        return Verdict(words.read_letter(given) == words.read_letter(bare))
    if kind == "letters":
        return Verdict(words.read_letters(given) == words.read_letters(bare))
    if kind == "words":
        return Verdict(words.states_words(bare, given))

    # Values: the whole conclusion counts, and the question's own expressions are no answers.
    if len(text) > MAX_CHARACTERS or not text.strip():
        return NO
    if squeeze(given) == squeeze(said):
        return YES
    if kind == "text":
        return Verdict(words.same_text(said, plain(cut_reasons(text))))
    if echoes(question, text):
        return NO
    if kind == "number":
        return numbers.compare(said, text)
    return formulas.compare(expected, text, compare)


def contradicts(expected: str, text: str) -> bool:
    """Whether `text` plainly states another value of the kind of `expected`."""
    text = text[:MAX_CHARACTERS]
    said = plain(expected)
    given = plain(text).replace("$", "")
    bare = bare_answer(said)
    kind = kind_of(said)
    if kind == "yes_no":
        return words.read_yes_no(given) not in (None, words.TRUTH[words.words_of(bare)])
    if kind == "letter":
        return words.read_letter(given) not in (None, words.read_letter(bare))
    if kind == "number":
        return numbers.contradicts(numbers.read_expected(said), text)
    return False


# ------------------------------------------------------------ equal texts, and the question again

SQUEEZED = re.compile(r"[${}]|(?<![0-9]) | (?![0-9])|\\(?=[{}])|[.;]$")
OPERATORS = re.compile(r"[-+*/^!=<>]|\\[a-zA-Z]")
SIGNS = re.compile(r"[\s${}`]++|\\(?:left|right)(?![a-zA-Z])|[.?!:;]$")
SAME_OPERATORS = [
    ("\\times", "*"),
    ("\\cdot", "*"),
    ("×", "*"),
    ("·", "*"),
    ("÷", "/"),
    ("\\div", "/"),
    ("**", "^"),
]
MAX_PLACES = 50  # of a conclusion in the question that are looked at


def squeeze(text: str) -> str:
    """`text` without spaces, dollar signs and braces."""
    return SQUEEZED.sub("", text).casefold()


def squeeze_expression(text: str) -> str:
    """`text` with one sign for each operator, and without spaces and braces."""
    text = plain(text)
    for sign, operator in SAME_OPERATORS:
        text = text.replace(sign, operator)
    return SIGNS.sub("", text).casefold()


def echoes(question: str, text: str) -> bool:
    """Whether the conclusion is an expression that stands in the question: repeating it answers
    nothing."""
    if not question:
        return False
    said = squeeze_expression(cut_reasons(text))
    if not OPERATORS.search(said.lstrip("-+")):  # a number alone may well be the answer
        return False

    # Look for a place where no digit goes on before or behind it.
    asked = squeeze_expression(question)
    place = -1
    for _ in range(MAX_PLACES):
        place = asked.find(said, place + 1)
        if place < 0:
            return False
        end = place + len(said)
        cut_before = digits_go_on(asked[:place][-1:] + said[:1])
        cut_behind = digits_go_on(said[-1:] + asked[end : end + 1])
        if not cut_before and not cut_behind:
            return True
    return False


def repeats(question: str, text: str) -> bool:
    """Whether a whole text is a piece of the question of more than one line, or all of it."""
    lines = filled_lines(text)
    asked = set(filled_lines(question))
    if not lines or not asked.issuperset(lines):
        return False
    return len(lines) > 1 or len(asked) == 1


def filled_lines(text: str) -> list[str]:
    """The lines of `text` that are not empty, without the spaces around them."""
    stripped = [line.strip() for line in text.split("\n")]
    return list(filter(None, stripped))


def digits_go_on(pair: str) -> bool:
    """Whether two neighbouring characters belong to one number, so that the find is only a piece of
    it."""
    if len(pair) != 2:
        return False
    digits = pair.replace(".", "")
    return not digits or digits.isdigit()
