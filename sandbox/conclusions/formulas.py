"""Does a conclusion state an expected formula: a closed form, list, set, tuple, interval, matrix,
equation?

It must be of the same kind and in final form; then its parts are compared, as literals or by an
Ask. Final form means: no operation is left that the expected answer does not have (a derivative, an
integral, a function of a constant), like terms are collected, a product is expanded where the
expected one is, and factored where that is.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .asks import NO, Ask, Verdict
from .literals import EMPHASIS, UNITS, listed, plain, read_values
from .numbers import is_name, names_differ, without_name
from .reasons import cut_reasons
from .words import denies

MAX_ELEMENTS = 64  # of a list, set, tuple or matrix
MAX_CHARACTERS = 500  # of a text for math-verify

DELIMITERS = re.compile(r"\$|\\[()\[\]]|`")
LEFT_RIGHT = re.compile(
    r"\\(?:left|right|displaystyle|bigl?|bigr?|Bigl?|Bigr?)(?![a-zA-Z])|\\[!,;: ]"
)
PROSE_END = re.compile(
    r"(?:\b(?:is|are|equals|be|by|get|gives|obtain|have|as)\b|:)\s{1,3}", re.IGNORECASE
)
FUNCTIONS = frozenset(
    listed("""sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp sqrt pi infty
    inf infinity max min gcd lcm mod det and or text for all real numbers where pmatrix bmatrix
    matrix vmatrix begin end""")
)
PROSE_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,40}")
ALL = re.compile(r"(?:for )?all (?:real (?:numbers )?)?(?=[a-z]\b)", re.IGNORECASE)
UNIT_BEHIND = re.compile(r"(?<=[0-9)}a-zπ]) ([A-Za-z]{1,15})(?:\^ ?\{?[23]\}?)?$")
RELATION = re.compile(r"[<>≤≥≠∈]|\\(?:leq?|geq?|neq?|lt|gt|in|leqslant|geqslant)(?![a-zA-Z])")
MEMBER = re.compile(r"\s?[A-Za-z]{1,2}\s?(?:∈|\\in(?![a-zA-Z]))\s?")
MATRIX = re.compile(r"\\begin ?\{([pbvBV]?)matrix\}(.{0,900}?)\\end ?\{[pbvBV]?matrix\}", re.DOTALL)
CONJUNCTION = re.compile(r",? ?\b(?:and|or)\b ?|;|\\(?:text|mathrm) ?\{ ?(?:and|or) ?\}")
OR = re.compile(r",? ?\bor\b ?|\\(?:text|mathrm) ?\{ ?or ?\}|\\lor(?![a-zA-Z])|∨")
CHAIN = re.compile(r"=|≈|\\approx(?![a-zA-Z])")


@dataclass(frozen=True)
class Formula:
    """A formula taken apart. `name`: a lone symbol before its first "="; `parts`: elements, sides
    or the text itself."""

    kind: str  # matrix, set, tuple, list, union, relation, equation or expression
    text: str
    name: str = ""
    brackets: str = ""  # of a tuple or an interval: "(]"; of a matrix its shape
    parts: tuple[str, ...] = ()


def compare(expected: str, text: str, compare_part: Callable[[str, str], Verdict]) -> Verdict:
    """Whether the conclusion `text` states the formula `expected`; `compare_part` compares two
    elements."""
    given_text = formula_of(cut_reasons(text))
    if given_text is None or len(given_text) > MAX_CHARACTERS:
        return NO
    wanted = read_formula(formula_of(expected) or expected)
    given = read_formula(given_text)

    # It must be about the same symbol, and worked out.
    if names_differ(wanted.name, given.name):
        return NO
    last = given.text
    if given.parts:
        last = given.parts[-1]
    if unfinished(wanted.text, last):
        return NO

    # Several elements are compared one by one.
    if wanted.kind in ("tuple", "matrix") and given.kind in ("tuple", "matrix", "list"):
        return compare_in_order(wanted, given, compare_part)
    names = element_names(wanted)
    if len(set(names)) > 1 and given.kind in ("list", "tuple"):
        return compare_by_name(wanted, given, names, compare_part)
    if wanted.kind in ("set", "list"):
        return compare_collections(wanted, given)

    # Everything else is compared as a whole.
    if given.kind not in ALLOWED[wanted.kind]:
        return NO
    if wanted.kind == "expression":
        return compare_expressions(wanted, given)
    return ask(wanted, given)


# What may be given where a kind is expected, beside the kinds that are compared part by part.
ALLOWED = {
    "tuple": ("relation",),  # an interval, by the inequality that describes it
    "matrix": (),
    "union": ("union", "relation"),
    "relation": ("relation", "tuple", "union"),
    "equation": ("equation", "expression"),
    "expression": ("expression", "equation"),
}


# ------------------------------------------------------------ taking apart


def formula_of(text: str) -> str | None:
    """The formula in a text, without markup, delimiters and the words before it; None if prose is
    left."""
    for emphasis in EMPHASIS:
        text = emphasis.sub(r"\1", text)
    text = DELIMITERS.sub(" ", text).strip(" .;,\n")
    if denies(text) or text.endswith("?"):
        return None
    if has_prose(text):
        text = behind_prose(text)
    text = ALL.sub("", text, count=1)
    text = without_unit(text)
    if not text or has_prose(text):
        return None
    return text


def behind_prose(text: str) -> str:
    """What follows the last verb or colon of a text; the text itself if it has none."""
    start = 0
    for match in PROSE_END.finditer(text):
        start = match.end()
    return text[start:].strip()


def without_unit(text: str) -> str:
    """A formula without the unit at its end, unless that may be a variable."""
    match = UNIT_BEHIND.search(plain(text))
    if not match:
        return text
    unit = match[1]
    if unit not in UNITS or unit in "mgshtdlLNJWVAKCF":
        return text
    text = text[: text.rfind(unit)].rstrip()
    return text.removesuffix("\\text{").removesuffix("\\mathrm{").strip()


def has_prose(text: str) -> bool:
    """Whether words stand in the text that are neither names of functions nor part of LaTeX."""
    words = PROSE_WORD.findall(plain(text))
    return not FUNCTIONS.issuperset(map(str.casefold, words))


def split_top(text: str, separator: str) -> list[str]:
    """The parts of `text` between separators that stand in no brackets of any kind."""
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == separator and depth == 0:
            parts.append(text[start:position].strip())
            start = position + 1
    parts.append(text[start:].strip())
    return parts[: MAX_ELEMENTS + 1]


def read_formula(text: str) -> Formula:
    """Take a formula apart."""
    flat = LEFT_RIGHT.sub("", text).strip()
    name, rest = without_name(flat)
    member = MEMBER.match(rest)
    if member:
        rest = rest[member.end() :].strip()

    # What brackets enclose, and unions of such.
    matrix = MATRIX.fullmatch(rest)
    if matrix:
        shape, cells = read_cells(matrix[2])
        return Formula("matrix", rest, name, shape, cells)
    if "\\cup" in rest or "∪" in rest:
        return Formula("union", rest, name)
    inner = enclosed(rest, r"\{", r"\}") or enclosed(rest, "{", "}")
    if inner:
        return Formula("set", rest, name, "", tuple(split_top(inner, ",")))
    if is_tuple(rest):
        brackets = rest[0] + rest[-1]
        return Formula("tuple", rest, name, brackets, tuple(split_top(rest[1:-1], ",")))

    # What signs and commas join.
    if RELATION.search(rest):
        return Formula("relation", OR.sub(" , ", text), name)
    elements = CONJUNCTION.sub(",", rest)
    if len(split_top(elements, ",")) > 1:
        named = CONJUNCTION.sub(",", flat)  # "x = 5 or x = -5": each has its name
        return Formula("list", elements, "", "", tuple(split_top(named, ",")))
    if "±" in rest or "\\pm" in rest:
        return Formula("list", rest, name, "", (rest,))

    # One expression, or a chain of equal ones.
    sides = tuple(side.strip() for side in CHAIN.split(rest))
    if len(sides) > 1:
        return Formula("equation", rest, name, "", sides)
    return Formula("expression", rest, name, "", sides)


def read_cells(text: str) -> tuple[str, tuple[str, ...]]:
    r"""(shape, cells row by row) of what stands between \begin{matrix} and \end{matrix}. The shape
    is the list of the lengths of the rows, as text."""
    lengths = []
    cells = []
    for row in text.strip().removesuffix("\\\\").split("\\\\"):
        row_cells = row.split("&")
        lengths.append(len(row_cells))
        cells += map(str.strip, row_cells)
    return str(lengths), tuple(cells)


def is_tuple(text: str) -> bool:
    """Whether one pair of parentheses or square brackets encloses elements."""
    if not text.startswith(("(", "[")) or not text.endswith((")", "]")):
        return False
    return "," in text and closes_at_end(text)


def enclosed(text: str, opening: str, closing: str) -> str:
    """What stands between `opening` and `closing`; empty if they do not enclose the text."""
    if not text.startswith(opening) or not text.endswith(closing):
        return ""
    if len(text) <= len(opening) + len(closing):
        return ""
    return text[len(opening) : -len(closing)].strip()


def closes_at_end(text: str) -> bool:
    """Whether the first bracket is closed by the last character."""
    depth = 0
    for position, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        if depth == 0:
            return position == len(text) - 1
    return False


# ------------------------------------------------------------ comparing


def ask(wanted: Formula, given: Formula) -> Verdict:
    """Leave two whole formulas to computer algebra."""
    return Verdict(True, (Ask("equal", wanted.text, given.text),))


def compare_in_order(
    wanted: Formula, given: Formula, compare_part: Callable[[str, str], Verdict]
) -> Verdict:
    """Tuples, intervals and matrices: the same brackets or shape, and equal elements. "x = 5, y =
    3" is (5, 3)."""
    if given.kind == "list":
        parts = values_in_order(wanted, given)
    elif wanted.kind != given.kind or wanted.brackets != given.brackets:
        return NO
    else:
        parts = given.parts
    if len(parts) != len(wanted.parts) or len(parts) > MAX_ELEMENTS:
        return NO
    asks: list[Ask] = []
    for one, other in zip(wanted.parts, parts, strict=True):
        verdict = compare_part(one, other)
        if not verdict.agrees:
            return NO
        asks.extend(verdict.asks)
    return Verdict(True, tuple(asks))


def values_in_order(wanted: Formula, given: Formula) -> tuple[str, ...]:
    """The values of a list that stands for a tuple; none where it cannot: each needs a name of its
    own."""
    if wanted.brackets != "()":
        return ()
    names = set()
    values = []
    for part in given.parts:
        name, value = without_name(part)
        if not name or name in names:
            return ()
        names.add(name)
        values.append(value)
    return tuple(values)


def element_names(formula: Formula) -> list[str]:
    """The names of the elements of a list, where each has one: "x = 2, y = 3"."""
    if formula.kind != "list":
        return []
    names = [without_name(part)[0] for part in formula.parts]
    if not all(names):
        return []
    return names


def element_texts(parts: Iterable[str]) -> list[str]:
    """Elements without their names."""
    return [without_name(part)[1] for part in parts]


def compare_by_name(
    wanted: Formula, given: Formula, names: list[str], compare_part: Callable[[str, str], Verdict]
) -> Verdict:
    """The values of several symbols, by their names, or in order as (2, 3)."""
    values = element_texts(given.parts)
    brackets = given.brackets
    if given.kind == "list":
        named = dict(zip(element_names(given), values, strict=False))
        if set(named) != set(names):
            return NO
        values = [named[name] for name in names]
        brackets = "()"

    # In the same order they are two tuples.
    expected = tuple(element_texts(wanted.parts))
    one = Formula("tuple", wanted.text, "", "()", expected)
    other = Formula("tuple", given.text, "", brackets, tuple(values))
    return compare_in_order(one, other, compare_part)


def compare_collections(wanted: Formula, given: Formula) -> Verdict:
    """Sets and lists: the same elements in any order, each in final form."""
    if given.kind not in ("set", "list", "expression"):
        return NO
    if given.kind == "expression" and len(wanted.parts) > 1:
        return NO
    if len(given.parts) > MAX_ELEMENTS:
        return NO
    one_symbol = len(symbols_of(wanted, given)) <= 1

    # Literals are compared here, everything else by computer algebra.
    elements = element_texts(given.parts)
    wanted_elements = element_texts(wanted.parts)
    values = element_values(elements)
    wanted_values = element_values(wanted_elements)
    if values is not None and wanted_values is not None:
        return Verdict(one_symbol and values == wanted_values)
    if not one_symbol:
        return ask(wanted, given)
    return Verdict(True, (Ask("equal", ", ".join(wanted_elements), ", ".join(elements)),))


def symbols_of(wanted: Formula, given: Formula) -> set[str]:
    """The symbols whose values two collections are; x_1 and x_2 are values of x."""
    symbols = {wanted.name}
    for part in given.parts:
        name, _ = without_name(part)
        symbols.add(name.partition("_")[0])
    return symbols - {""}


def element_values(elements: list[str]) -> list | None:
    """The sorted values of elements that are all literals in final form, else None."""
    values = set()
    for element in elements:
        read = read_values(plain(element))
        if not read or len(read) > 1:
            return None
        literal = read[0]
        if not literal.final:
            return None
        values.add(literal.value)
    return sorted(values)


def compare_expressions(wanted: Formula, given: Formula) -> Verdict:
    """A closed form or polynomial. Of a chain the last side counts, if the others equal it."""
    last = given.parts[-1]
    if not same_form(wanted.text, last):
        return NO
    rounded = "≈" in given.text or "\\approx" in given.text

    # "√2 ≈ 1.41" states √2; in any other chain the last side is the answer.
    stated = last
    if rounded and len(given.parts) == 2:
        stated = given.parts[0]
        if not same_form(wanted.text, stated):
            return NO
    asks = [Ask("equal", wanted.text, stated)]

    # The other sides must equal the last one or round to it; a name is a side of no value.
    for side in given.parts[:-1]:
        if is_name(side):
            continue
        if rounded:
            asks.append(rounding(side, last))
        else:
            asks.append(Ask("equal", side, last))
    return Verdict(True, tuple(asks))


def same_form(expected: str, given: str) -> bool:
    """Whether an expression is worked out as far as the expected one."""
    if unfinished(expected, given):
        return False
    return same_structure(expected, given)


def rounding(side: str, last: str) -> Ask:
    """Does a side round to the last one? Are they equal, where that shows no digits to round to?"""
    values = read_values(plain(last))
    if not values or len(values) > 1:
        return Ask("equal", side, last)
    literal = values[0]
    if literal.step is None:
        return Ask("equal", side, last)
    return Ask("rounds", side, f"{literal.value};{literal.step / 2}")


# ------------------------------------------------------------ final form

UNEVALUATED = re.compile(
    r"\\(?:int|iint|oint|sum|prod|lim|binom|tbinom|dbinom|choose|det|gcd|lcm|min|max|bmod|pmod|mod"
    r"|partial|nabla)(?![a-zA-Z])"
    r"|\\frac ?\{? ?d ?(?:\}|\^)|\bd ?/ ?d[a-z]|!|'|\b(?:lim|sum|int|derivative|mod|gcd|lcm|binom"
    r"|choose)\b|[∫∑∏]"
)
FUNCTION = re.compile(
    r"\\?(?<![A-Za-z])(?:arc)?(?:sin|cos|tan|cot|sec|csc|ln|log|exp)h?(?![A-Za-z])"
)
COMMAND = re.compile(r"\\[a-zA-Z]{1,30}")
VARIABLE = re.compile(r"[a-df-hj-zA-Z]")
ARITHMETIC = [  # of two numbers
    re.compile(
        r"(?<![0-9^{_.√t])[0-9.]{1,30} ?(?:[*/·×⋅÷]|\\cdot(?![a-z])|\\times(?![a-z])"
        r"|\\div(?![a-z])) ?[0-9]"
    ),
    re.compile(
        r"(?<![0-9^_.√A-Za-z])[0-9.]{1,30} ?[-+] ?[0-9.]{1,30}(?![0-9.]| ?[a-zA-Z\\√π(^{*/])"
    ),
    re.compile(r"(?<![0-9^_.√A-Za-z])[0-9.]{1,30}\^ ?\{? ?[0-9]{1,10}(?![0-9/])"),
]
SUM_IN_PARENTHESES = re.compile(r"\([^()]{0,200}[^(){}^,*/ ] ?[-+][^()]{0,200}\)")
COEFFICIENT = re.compile(
    r"^ ?(?:[0-9.]{1,30}|\\frac ?\{[0-9]{1,30}\} ?\{[0-9]{1,30}\})? ?(?:\*|·|\\cdot(?![a-z]))? ?"
)
SPACE = re.compile(r"\s++")


def unfinished(expected: str, given: str) -> bool:
    """Whether an operation is left in `given` that `expected` does not have."""
    expected = plain(expected)
    given = plain(given)
    _, bare = without_name(given)
    if matches(UNEVALUATED, bare) - matches(UNEVALUATED, expected):
        return True
    expected = expected.replace("**", "^")
    given = given.replace("**", "^")
    for operation in ARITHMETIC:
        if operation.search(given) and not operation.search(expected):
            return True
    return False


def matches(pattern: re.Pattern, text: str) -> set[str]:
    """The different matches of a pattern in `text`."""
    return {match[0] for match in pattern.finditer(text)}


def same_structure(expected: str, given: str) -> bool:
    """Whether two expressions are worked out to the same degree."""
    expected = plain(expected)
    given = plain(given)
    further = names(FUNCTION, given) - names(FUNCTION, expected)
    if further and is_constant(expected):
        return False  # arctan(1) for π/4
    if uncollected(given) and not uncollected(expected):
        return False
    return factors(expected) == factors(given)


def names(pattern: re.Pattern, text: str) -> set[str]:
    """The different matches of a pattern in `text`, without the backslash of a command."""
    return {match[0].lstrip("\\") for match in pattern.finditer(text)}


def is_constant(text: str) -> bool:
    """Whether no variable stands in `text`."""
    text = COMMAND.sub(" ", FUNCTION.sub(" ", text)).replace("pi", "")
    return not VARIABLE.search(text)


def uncollected(text: str) -> bool:
    """Whether two terms of a sum differ by their numbers only: x + x, 3 + 2 + x."""
    kinds = set()
    for term in terms(text):
        kind = COEFFICIENT.sub("", SPACE.sub(" ", term), count=1).strip()
        if kind in kinds:
            return True
        kinds.add(kind)
    return False


def terms(text: str) -> list[str]:
    """The terms of a sum that stand in no brackets."""
    found = split_top(text.replace("-", "+"), "+")
    return list(filter(None, found))


def factors(text: str) -> int:
    """How many sums in parentheses are multiplied or raised to a power, each counted as often as it
    stands."""
    count = 0
    for match in SUM_IN_PARENTHESES.finditer(text):
        behind = text[match.end() :].lstrip()[:2]
        power = ""
        if behind.startswith("^"):
            power = behind[1:].strip("{")
        if power.isdigit():
            count += int(power)
        elif power or is_multiplied(text, match):
            count += 1
    return count


def is_multiplied(text: str, match: re.Match) -> bool:
    """Whether a sum in parentheses is multiplied, and is no argument of a function."""
    before = text[max(match.start() - 8, 0) : match.start()]
    if FUNCTION.search(before + "("):
        return False
    left = text[: match.start()].rstrip()[-1:]
    right = text[match.end() :].lstrip()[:1]
    if left.isalnum() or right.isalnum():
        return True
    return left in ("*", ")", "}", "·") or right in ("(", "*", "·")
