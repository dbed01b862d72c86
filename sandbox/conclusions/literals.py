"""Number literals in model-written text, read exactly and in linear time.

    read_values("about 1{,}234 km")   # [Literal(value=Fraction(1234), ...)]
    read_values("15 * 23")            # None: an expression that still has to be worked out

A literal is an integer, a decimal, a fraction of integers, a mixed number, a percentage or
scientific notation; in plain text, Unicode or LaTeX; with thousands separators, a currency sign or
a unit. Nothing here is computed beyond the literal itself, and no text is evaluated.

Every pattern is linear in the length of the text: repetition is possessive (`*+`) or bounded.
"""

import re
from dataclasses import dataclass
from fractions import Fraction


def listed(text: str) -> list[str]:
    """The words of a table that is written as one text."""
    return text.split()


# ------------------------------------------------------------ one spelling for each sign

SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
FULL_WIDTH = {ord("！") + i: ord("!") + i for i in range(94)}
SIGNS = FULL_WIDTH | str.maketrans(
    {
        "−": "-", "–": "-", "‐": "-", "‑": "-", "﹣": "-", "⁄": "/", "∕": "/", "’": "'", "‘": "'",
        "“": '"', "”": '"', "\u00a0": " ", "\u2007": " ", "\u2009": " ", "\u200a": " ",
        "\u202f": " ", "\u3000": " ", "\t": " ", "~": " ", "½": " 1/2", "⅓": " 1/3", "⅔": " 2/3",
        "¼": " 1/4", "¾": " 3/4", "⅕": " 1/5", "⅖": " 2/5", "⅗": " 3/5", "⅘": " 4/5", "⅙": " 1/6",
        "⅚": " 5/6", "⅛": " 1/8", "⅜": " 3/8", "⅝": " 5/8", "⅞": " 7/8", "%": "%",
    }
)  # fmt: skip
SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]++")
WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|mbox|operatorname|boxed|fbox"
    r"|emph)\*?+ ?"
    r"\{([^{}]{0,300})\}"
)
DEGREES = re.compile(r"\^? ?\{? ?(?:\\circ(?![a-zA-Z])|°|∘) ?\}?|\\degrees?(?![a-zA-Z])")
INVISIBLE = re.compile(
    r"\\(?:left|right|displaystyle|bigl|bigr|big|Big|quad|qquad|limits)(?![a-zA-Z])|\\!|\\[()\[\]]"
    r"|`"
)
THIN_SPACE = re.compile(r"\\[,;: ]|\\(?:quad|qquad|thinspace)(?![a-zA-Z])")
FRACTION = re.compile(r"\\[dtc]frac(?![a-zA-Z])|\\nicefrac(?![a-zA-Z])")
EMPHASIS = [
    re.compile(r"(?<![\w*)])\*\*([^*\n]{1,300})\*\*(?![\w*(])"),
    re.compile(r"(?<![\w*)])\*([^*\s][^*\n]{0,300})\*(?![\w*(])"),
    re.compile(r"(?<![\w_])__([^_\n]{1,300})__(?![\w_])"),
    re.compile(r"(?<![\w_])_([^_\s][^_\n]{0,300})_(?![\w_])"),
]
SPACES = re.compile(r"\s++")


def plain(text: str) -> str:
    """`text` with one spelling for signs, spaces and markup. LaTeX commands that mean something
    stay."""
    text = SUPERSCRIPT.sub(lambda run: "^{" + run[0].translate(SUPERSCRIPTS) + "}", text)
    text = text.translate(SIGNS)
    text = DEGREES.sub(" degrees", text)
    text = text.replace("{,}", ",").replace(",\\!", ",").replace("\\%", "%").replace("\\$", "$")
    text = INVISIBLE.sub("", THIN_SPACE.sub(" ", text))
    text = FRACTION.sub(r"\\frac", text)
    for _ in range(3):  # wrappers may stand in one another
        text = WRAPPER.sub(r"\1", text)
    for emphasis in EMPHASIS:
        text = emphasis.sub(r"\1", text)
    return SPACES.sub(" ", text).strip()


# ------------------------------------------------------------ units

UNITS = {
    alias: name
    for name, aliases in {
        "m": "m meter meters metre metres",
        "cm": "cm centimeter centimeters centimetre centimetres",
        "mm": "mm millimeter millimeters millimetre millimetres",
        "km": "km kilometer kilometers kilometre kilometres", "in": "inch inches",
        "ft": "ft foot feet", "yd": "yd yard yards", "mi": "mi mile miles", "g": "g gram grams",
        "kg": "kg kilogram kilograms", "mg": "mg milligram milligrams", "lb": "lb lbs pound pounds",
        "oz": "oz ounce ounces", "t": "t ton tons tonne tonnes", "s": "s sec secs second seconds",
        "min": "min mins minute minutes", "h": "h hr hrs hour hours", "day": "d day days",
        "week": "week weeks", "month": "month months", "year": "yr yrs year years",
        "L": "L l liter liters litre litres", "mL": "mL ml milliliter milliliters",
        "degree": "degree degrees deg", "rad": "rad radian radians", "K": "K kelvin",
        "C": "C celsius", "F": "F fahrenheit", "N": "N newton newtons", "J": "J joule joules",
        "W": "W watt watts", "V": "V volt volts", "A": "A amp amps ampere amperes",
        "Hz": "Hz hertz", "Pa": "Pa pascal pascals", "dollar": "dollar dollars USD usd",
        "euro": "euro euros EUR", "cent": "cent cents", "unit": "unit units", "mi/h": "mph",
        "km/h": "kmh kph",
    }.items()
    for alias in aliases.split()
}  # fmt: skip
CURRENCY = re.compile("[$€£¥₹]")  # taken away: the dollar sign also encloses formulas
UNIT = re.compile(
    r" ?(?:(?P<prefix>square|cubic|sq"
    r"|cu)\.? )?(?P<first>[A-Za-zµ]{1,15})(?:\^ ?\{?(?P<power>-?[1-3])\}?)?"
    r"(?: ?(?:/|per ) ?(?P<second>[A-Za-zµ]{1,15})(?:\^ ?\{?(?P<power2>[1-3])\}?)?)?"
)
VARIABLES = "AFJKN"  # units that are a variable where they touch the number: 44A
PREFIXES = {"square": "2", "sq": "2", "cubic": "3", "cu": "3"}


def read_unit(text: str, position: int) -> tuple[str, int]:
    """(unit, its end) of what stands behind a number; ("", position) where that is no unit. A plain
    word ("apples") is no unit here: it is read with the sentence."""
    match = UNIT.match(text, position)
    if not match:
        return "", position
    attached = text[position] != " "
    if not is_unit(match["first"], match["second"], attached):
        return "", position

    first = match["first"]
    power = match["power"] or PREFIXES.get(match["prefix"], "")
    unit = UNITS.get(first, first) + power
    second = match["second"]
    if second:
        unit += "/" + UNITS.get(second, second) + (match["power2"] or "")
    return unit, match.end()


def is_unit(first: str, second: str | None, attached: bool) -> bool:
    """Whether `first`, or first/second, is a unit. `attached`: it touches the number, as a variable
    does."""
    if not second:
        if attached and first in VARIABLES:
            return False
        return first in UNITS
    for name in (first, second):
        is_word = len(name) > 1 and not attached
        if name not in UNITS and not is_word:
            return False
    return True


# ------------------------------------------------------------ numbers

MAX_EXPONENT = 999
POWERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
INTEGER = r"(?:[0-9]{1,3}+(?:,[0-9]{3})++(?![0-9])|[0-9]{1,3}+(?:[ ][0-9]{3})++(?![0-9])|[0-9]++)"
NUMBER = re.compile(
    rf"""(?<![\w.\\^}}])(?<![0-9][,\ ])(?:(?P<sign>[-+])\ ?)?
    (?:
        (?:(?P<whole>[0-9]++)\ ?)?
        \\frac\ ?(?:\{{\ ?(?P<minus>-)?(?P<top>{INTEGER})\ ?\}}|(?P<top1>[0-9]))
            \ ?(?:\{{\ ?(?P<bottom>{INTEGER})\ ?\}}|(?P<bottom1>[0-9]))
      | (?:(?P<whole2>[0-9]++)\ (?=[0-9]++/))?
        (?P<top2>{INTEGER})\ ?/\ ?(?P<bottom2>[0-9]++)(?![.,]?[0-9])
      | (?P<decimal>(?:{INTEGER}(?:\.[0-9]++)?|\.[0-9]++))
        (?:
            [eE](?P<exponent>[-+]?[0-9]{{1,4}}+)(?![0-9A-Za-z])
          | \ ?(?:[*×·⋅x]|\\times|\\cdot)\ ?10\ ?
            (?:\^|\*\*)\ ?\{{?\ ?(?P<power>[-+]?[0-9]{{1,4}}+)\ ?\}}?
        )?
    )
    (?![0-9]|[.,][0-9]|\ ?/\ ?[0-9])
    (?:
        \ ?(?P<percent>%|percent\b|per\ cent\b)
      | \ ?(?P<scale>hundred|thousand|million|billion|trillion)\b
    )?""",
    re.VERBOSE,
)  # fmt: skip


@dataclass(frozen=True)
class Literal:
    """One number as it is written. `step` is the value of one unit in its last place, None for a
    fraction."""

    value: Fraction
    step: Fraction | None
    final: bool  # a fraction is final in lowest terms; everything else always is
    unit: str
    start: int  # where it stands in the text that was read
    end: int

    def rounds(self, exact: Fraction) -> bool:
        """Whether this is `exact`, right to the digits shown."""
        if self.value == exact:
            return True
        return self.step is not None and abs(self.value - exact) * 2 <= self.step


def read_number(match: re.Match, text: str) -> Literal | None:
    """The literal of a match of NUMBER; None where it has no value (a zero below, too large an
    exponent)."""
    digits = {}
    for name, group in match.groupdict().items():
        digits[name] = (group or "").replace(",", "").replace(" ", "")

    number = read_decimal(digits) if digits["decimal"] else read_fraction(digits)
    if number is None:
        return None
    value, step, final = number

    # What stands behind and before the digits: percent, million, a unit, a sign.
    scale = Fraction(10) ** POWERS.get(digits["scale"], 0)
    if digits["percent"]:
        scale = Fraction(1, 100)
    if step is not None:
        step *= scale
    if digits["sign"] == "-":
        value = -value
    unit, end = read_unit(text, match.end())
    return Literal(value * scale, step, final, unit, match.start(), end)


def read_fraction(digits: dict[str, str]) -> tuple[Fraction, None, bool] | None:
    """(value, no step, whether it is final) of a fraction or mixed number; None where the
    denominator is zero."""
    top = digits["top"] or digits["top1"] or digits["top2"]
    bottom = int(digits["bottom"] or digits["bottom1"] or digits["bottom2"])
    if bottom == 0:
        return None
    value = Fraction(int(top), bottom)
    final = value.denominator == bottom > 1
    whole = digits["whole"] or digits["whole2"]
    if whole:
        final = final and value < 1
        value += int(whole)
    if digits["minus"]:
        value = -value
    return value, None, final


def read_decimal(digits: dict[str, str]) -> tuple[Fraction, Fraction, bool] | None:
    """(value, step, whether it is final) of an integer or decimal; None where the exponent is too
    large."""
    exponent = int(digits["exponent"] or digits["power"] or 0)
    if abs(exponent) > MAX_EXPONENT:
        return None
    scale = Fraction(10) ** exponent
    places = len(digits["decimal"].partition(".")[2])
    return Fraction(digits["decimal"]) * scale, Fraction(1, 10**places) * scale, True


# ------------------------------------------------------------ sentences that hold a number

MAX_WORDS = 30  # of a sentence that states a number
WORDS = re.compile(r"[A-Za-z\u00c0-\u024f' ,.;:!\"]*+")
WORD = re.compile(r"[A-Za-z\u00c0-\u024f']++")
LONG_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,40}")  # prose rather than algebra
# A sentence with one of these does not state the number that stands in it.
DENIALS = frozenset(
    listed("""not no never nor neither none cannot wrong incorrect false untrue unlikely
    impossible unsure unknown except unless without too""")
)
OTHER_NUMBERS = frozenset(
    listed("""minus plus negative times divided multiplied squared cubed factorial root log half
    halves twice double triple thrice quarter quarters third thirds fifth fifths tenth tenths
    hundredth hundredths thousandth thousandths dozen dozens zero two three four five six seven
    eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen
    twenty thirty forty fifty sixty seventy eighty ninety mod modulo cube inverse reciprocal""")
)
BOUNDS = frozenset(
    listed("""from over under above below beyond exceeding exceeds between than within besides but
    until""")
)
BOUND_PHRASES = re.compile(
    r"\b(?:at (?:least|most)|(?<!add )(?<!adds )up to|(?:more|less|fewer|greater|larger|smaller"
    r"|higher|lower|bigger) than|or (?:more|less"
    r"|fewer|so|higher|lower|above|below)|in the range|ranges? from|somewhere)\b",
    re.IGNORECASE,
)


def read_values(text: str) -> list[Literal] | None:
    """The numbers that a short sentence states, or None: it holds something else as well (an
    operator, a variable, a denial, a bound, digits that are no literal), or it is too long. `text`
    is as `plain` leaves it."""
    text = CURRENCY.sub(" ", text).strip(" ")

    # Take the numbers out.
    found = []
    rest = []
    position = 0
    for match in NUMBER.finditer(text):
        if match.start() < position:  # the power of a unit: cm^{2}
            continue
        literal = read_number(match, text)
        if literal is None:
            return None
        rest.append(text[position : literal.start])
        found.append(literal)
        position = literal.end
        if text[position : position + 1].isalpha():  # 5x, 345k, 2nd
            return None
    if not found:
        return None

    # What is left must be words that leave them as they are.
    rest.append(text[position:])
    if not all(map(harmless, rest)):
        return None
    if not one_sentence(rest, text):
        return None
    return found


def harmless(piece: str) -> bool:
    """Whether the text beside a number is made of words and leaves the number as it is."""
    bare = piece.strip(" ()[]")
    if not WORDS.fullmatch(bare):
        return False
    words = [word.casefold() for word in WORD.findall(bare)]
    if not words:
        return True
    if words[-1] in BOUNDS:
        return False
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word in DENIALS or word in OTHER_NUMBERS or word.endswith("n't"):
            return False
        names_a_value = following in ("is", "equals", "was")
        if is_variable(word) and not names_a_value:
            return False
    return True


def is_variable(word: str) -> bool:
    """Whether a word is a letter other than the words "a" and "I"."""
    return len(word) == 1 and word not in "ai"


def one_sentence(rest: list[str], text: str) -> bool:
    """Whether the words around the numbers are few, name no bound, and no factorial is meant by an
    exclamation."""
    words = " ".join(rest)
    if len(words.split()) > MAX_WORDS:
        return False
    if BOUND_PHRASES.search(text):
        return False
    if WORD.search(rest[0]):
        return True
    return "!" not in words
