"""Does a conclusion state an expected number? It must be one literal of that value, alone or in a
short sentence.

Of a chain of equalities the last side counts, if all sides are equal; behind ≈ stands a rounding. A
side that is no literal becomes an Ask for computer algebra, which is only put when the last side
has the expected value.
"""

import re
from fractions import Fraction

from .asks import NO, Ask, Verdict
from .literals import CURRENCY, LONG_WORD, Literal, plain, read_values
from .reasons import cut_reasons
from .words import DIGIT, denies

MAX_SIDES = 8  # of a chain of equalities
MIN_DECIMALS = 6  # of a decimal that stands for a value with more of them, as in math-verify

CHAIN = re.compile(r"(=|≈|≃|≅|\\(?:approx|simeq|cong)(?![a-zA-Z]))(?!=)")
NAME = re.compile(
    r"\s?(?:\\[a-zA-Z]{1,12}\s?)?(?:[A-Za-zα-ωΑ-Ω]{0,2}|[A-Z]{2,4}|gcd|lcm|max|min)"
    r"(?:_ ?\{?[A-Za-z0-9]{1,6}\}?)?(?:\^ ?\{?(?:\\prime|-1)\}?)?'{0,3}"
    r"(?:\([-A-Za-z0-9., \\]{1,30}\))?\s?"
)
DERIVATIVE = re.compile(
    r"\s?(?:d\^?2?[a-z]\s?/\s?d[a-z](?:\^2)?|\\frac ?\{d\^?2?[a-z]\} ?\{d[a-z](?:\^2)?\})\s?"
)
NO_NAME = re.compile(r"\\(?:sqrt|frac|pm|mp|neg|sum|int)(?![a-zA-Z])")
LABEL = re.compile(r"[A-Za-z\u00c0-\u024f ,.'():{}_/°∠%\\]{0,300}")
TWO_LETTERS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2}")
PROSE = re.compile(r"(?<![\\A-Za-z])(?!of\b)[A-Za-z]{2,40}[ :,]{1,3}(?=[-+0-9.($\\]|$)")
APPROXIMATELY = re.compile(
    r"\s?(?:≈|~|\\approx|\\sim|approximately|approx\.?|about|around|roughly)\s?", re.IGNORECASE
)
SENTENCE_END = re.compile(r"(?<=[\w)}%$*])(?:[.!]\s(?=[A-Z])|\s?—\s?|\s-\s(?=[A-Za-z]{2}))")
EXPLANATION = re.compile(
    r"\W{0,3}(?:because|since|as|this is because|explanation|reason|here|indeed)\b", re.IGNORECASE
)
TURN = re.compile(r"\W{0,3}(?:or|no|not|wait|actually|that is|this is|it is|but)\b", re.IGNORECASE)
JOINS = re.compile(r"\b(?:or|and|but)\b", re.IGNORECASE)
OF = re.compile(r"(?<=[0-9%}]) of (?=[-0-9.\\])")
UNITS = re.compile(
    r"(?<=[0-9)}]) ?(?:[A-Za-z]{2,15}|[mhsg])\b(?:\^\{?[23]\}?)?(?:/[A-Za-z]{1,10})?"
)
ARITHMETIC = re.compile(
    r"[-+*/^!().,0-9 {}×·÷√%⋅π]|\\(?:frac|cdot|times|div|sqrt|pi|binom)(?![a-zA-Z])"
)


def read_expected(said: str) -> Literal | None:
    """The number that an expected answer is, perhaps with a name before it ("x = 5") and a unit
    behind it."""
    rest = APPROXIMATELY.sub("", without_name(said)[1], count=1)
    values = read_values(rest)
    if not values or len(values) > 1:
        return None
    before = CURRENCY.sub(" ", rest).strip(" ")[: values[0].start]
    if LONG_WORD.search(before):
        return None
    return values[0]


def without_name(text: str) -> tuple[str, str]:
    """(name, the rest) of "v = 80" or "f'(x) = 2x"; no name where no lone symbol stands on the
    left."""
    left, _, right = text.partition("=")
    if not right or right.startswith("="):
        return "", text
    if not is_name(left):
        return "", text
    return left.strip(" $"), right.strip()


def names_differ(wanted: str, given: str) -> bool:
    """Whether two lone symbols name different things: x = 5 is no answer for y = 5. f(x) may stand
    for y."""
    both_lone = len(wanted) == len(given) == 1
    return both_lone and wanted != given


def is_name(text: str) -> bool:
    """Whether `text` is a lone symbol, a function of one, or a derivative."""
    text = text.replace("$", "")
    if not text.strip():
        return False
    if DERIVATIVE.fullmatch(text):
        return True
    if NO_NAME.search(text):
        return False
    return NAME.fullmatch(text) is not None


def compare(said: str, text: str) -> Verdict:
    """Whether the conclusion `text` states the number that the answer `said` is."""
    expected = read_expected(said)
    given = first_sentence(plain(cut_reasons(text)))
    if given.endswith("?") or denies(given):
        return NO
    wanted_name, _ = without_name(said)
    given_name, _ = without_name(given)
    if names_differ(wanted_name, given_name):
        return NO

    # Sides and signs take turns. Nothing stands before the sign of "= 345" and "≈ 80 km/h".
    parts = CHAIN.split(given)
    begins_with_sign = len(parts) > 1 and not parts[0].strip(" $")
    if begins_with_sign:
        parts = parts[2:]
    sides = parts[::2]
    signs = parts[1::2]
    if len(sides) > MAX_SIDES:
        return NO
    if signs:
        return compare_chain(expected, sides, signs)
    return Verdict(states(expected, read_values(sides[0])))


def first_sentence(text: str) -> str:
    """The first sentence if what follows explains it or states nothing, else the whole text."""
    end = SENTENCE_END.search(text)
    if not end:
        return text
    first = text[: end.start()]
    rest = text[end.end() :]
    if EXPLANATION.match(rest):
        return first
    if DIGIT.search(rest) or TURN.match(rest):
        return text
    return first


def states(expected: Literal, values: list[Literal] | None) -> bool:
    """Whether all numbers of a sentence are final and have the expected value, and no unit
    contradicts."""
    if not values:
        return False
    return all(states_one(expected, value) for value in values)


def states_one(expected: Literal, given: Literal) -> bool:
    """Whether one number is final and the expected one."""
    return given.final and same_number(expected, given)


def same_number(expected: Literal, given: Literal) -> bool:
    """Whether two numbers have the same value and no different units. A fraction may be given as a
    decimal with enough places."""
    units_differ = expected.unit != given.unit
    if units_differ and expected.unit and given.unit:
        return False
    if expected.value == given.value:
        return True
    if expected.step is not None or given.step is None:
        return False
    if given.step > Fraction(1, 10**MIN_DECIMALS):
        return False
    return given.rounds(expected.value)


def compare_chain(expected: Literal, sides: list[str], signs: list[str]) -> Verdict:
    """The last side counts if each other side is equal to it, or before ≈ rounds to it."""
    # Leave out what only names the value, and the words before the first expression.
    while len(sides) > 1 and is_label(sides[0]):
        sides, signs = sides[1:], signs[1:]
    if signs:
        sides = [without_prose(sides[0]), *sides[1:]]

    last = one_literal(sides[-1])
    if last is None:
        return NO
    if not signs:
        return Verdict(states(expected, read_values(sides[-1])))

    # Compare each other side with the last one. Before ≈ it may itself be the answer.
    rounded = any(sign != "=" for sign in signs)
    stated = [last]
    asks = []
    for side in sides[:-1]:
        literal = lone_literal(side)
        if literal is None:
            ask = ask_about(side, last, rounded)
            if ask is None:
                return NO
            asks.append(ask)
            continue
        if not goes_with(literal, last, rounded):
            return NO
        if rounded:
            stated.append(literal)

    if not any(states_one(expected, value) for value in stated):
        return NO
    return Verdict(True, tuple(asks))


def goes_with(literal: Literal, last: Literal, rounded: bool) -> bool:
    """Whether a side is equal to the last one, or in a chain with ≈ rounds to it."""
    if literal.value == last.value:
        return True
    return rounded and last.rounds(literal.value)


def lone_literal(side: str) -> Literal | None:
    """The one value of a side that joins no two."""
    if JOINS.search(side):
        return None
    return one_literal(side)


def is_label(side: str) -> bool:
    """Whether a left side only names what is computed: a lone symbol, or words without a number or
    an operator."""
    if is_name(side):
        return True
    if NO_NAME.search(side) or not LABEL.fullmatch(side):
        return False
    return bool(TWO_LETTERS.search(side))


def without_prose(side: str) -> str:
    """What follows the last word before a number: "So 15 × 23" is 15 × 23."""
    start = 0
    for match in PROSE.finditer(side):
        start = match.end()
    return side[start:]


def one_literal(side: str) -> Literal | None:
    """The one value of a side of a chain."""
    values = read_values(side)
    if not values:
        return None
    first = values[0]
    if any(value.value != first.value for value in values):
        return None
    return first


def ask_about(side: str, last: Literal, rounded: bool) -> Ask | None:
    """Is a side that is no literal equal to the last one? None where it is no arithmetic."""
    side = OF.sub(" * ", side)
    side = UNITS.sub("", CURRENCY.sub(" ", side)).strip()
    if not DIGIT.search(side) or ARITHMETIC.sub("", side):
        return None
    if rounded and last.step:
        return Ask("rounds", side, f"{last.value};{last.step / 2}")
    if last.value.denominator == 1:
        return Ask("equal", side, str(last.value))
    return Ask("equal", side, rf"\frac{{{last.value.numerator}}}{{{last.value.denominator}}}")


def contradicts(expected: Literal, text: str) -> bool:
    """Whether `text` states one number, and another one than expected."""
    sides = CHAIN.split(first_sentence(plain(cut_reasons(text))))
    last = one_literal(sides[-1])
    return last is not None and not same_number(expected, last)
