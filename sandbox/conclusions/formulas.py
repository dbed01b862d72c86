"""Does a conclusion state an expected formula: a closed form, list, set, tuple, interval, matrix,
equation?

It must be of the same kind and in final form; then its parts are compared, as literals or by an
Ask. Final form means: no operation is left that the expected answer does not have (a derivative, an
integral, a function of a constant), like terms are collected, a product is expanded where the
expected one is, and factored where that is.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from .asks import NO, YES, Ask, Verdict
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
CLOSED_BY = {"(": ")", "[": "]", "{": "}"}


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
    wanted, given = read_formula(formula_of(expected) or expected), read_formula(given_text)
    if names_differ(wanted.name, given.name) or unfinished(
        wanted.text, given.parts[-1] if given.parts else given.text
    ):
        return NO
    if wanted.kind in ("tuple", "matrix") and given.kind in ("tuple", "matrix", "list"):
        return compare_in_order(wanted, given, compare_part)
    names = element_names(wanted)
    if len(set(names)) > 1 and given.kind in ("list", "tuple"):
        return compare_by_name(wanted, given, names, compare_part)
    if wanted.kind in ("set", "list"):
        return compare_collections(wanted, given)
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
        start = 0
        for match in PROSE_END.finditer(text):
            start = match.end()
        text = text[start:].strip()
    text = ALL.sub("", text, count=1)
    unit = UNIT_BEHIND.search(plain(text))
    if unit and unit[1] in UNITS and unit[1] not in "mgshtdlLNJWVAKCF":
        text = (
            text[: text.rfind(unit[1])]
            .rstrip()
            .removesuffix("\\text{")
            .removesuffix("\\mathrm{")
            .strip()
        )
    return None if has_prose(text) or not text else text


def has_prose(text: str) -> bool:
    """Whether words stand in the text that are neither names of functions nor part of LaTeX."""
    return any(word.casefold() not in FUNCTIONS for word in PROSE_WORD.findall(plain(text)))


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
    if member := MEMBER.match(rest):
        rest = rest[member.end() :].strip()
    matrix = MATRIX.fullmatch(rest)
    if matrix:
        rows = [
            [cell.strip() for cell in row.split("&")]
            for row in matrix[2].strip().removesuffix("\\\\").split("\\\\")
        ]
        cells = tuple(cell for row in rows for cell in row)
        return Formula("matrix", rest, name, f"{[len(row) for row in rows]}", cells)
    elements = CONJUNCTION.sub(",", rest)
    if "\\cup" in rest or "∪" in rest:
        return Formula("union", rest, name)
    if inner := enclosed(rest, r"\{", r"\}") or enclosed(rest, "{", "}"):
        return Formula("set", rest, name, "", tuple(split_top(inner, ",")))
    if rest[:1] in ("(", "[") and rest[-1:] in (")", "]") and "," in rest and closes_at_end(rest):
        return Formula("tuple", rest, name, rest[0] + rest[-1], tuple(split_top(rest[1:-1], ",")))
    parts = tuple(split_top(elements, ","))
    if RELATION.search(rest):
        return Formula("relation", OR.sub(" , ", text), name)
    if len(parts) > 1:
        return Formula("list", elements, "", "", split_names(flat, parts))
    if "±" in rest or "\\pm" in rest:
        return Formula("list", rest, name, "", (rest,))
    sides = tuple(side.strip() for side in CHAIN.split(rest))
    return Formula("equation" if len(sides) > 1 else "expression", rest, name, "", sides)


def split_names(flat: str, parts: tuple[str, ...]) -> tuple[str, ...]:
    """The elements of "x = 5 or x = -5", with their names."""
    return tuple(split_top(CONJUNCTION.sub(",", flat), ",")) if len(parts) > 1 else parts


def enclosed(text: str, opening: str, closing: str) -> str:
    if (
        text.startswith(opening)
        and text.endswith(closing)
        and len(text) > len(opening) + len(closing)
    ):
        return text[len(opening) : -len(closing)].strip()
    return ""


def closes_at_end(text: str) -> bool:
    """Whether the first bracket is closed by the last character."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return position == len(text) - 1
    return False


# ------------------------------------------------------------ comparing


def ask(wanted: Formula, given: Formula) -> Verdict:
    return Verdict(True, (Ask("equal", wanted.text, given.text),))


def compare_in_order(
    wanted: Formula, given: Formula, compare_part: Callable[[str, str], Verdict]
) -> Verdict:
    """Tuples, intervals and matrices: the same brackets or shape, and equal elements. "x = 5, y =
    3" is (5, 3)."""
    parts = given.parts
    if given.kind == "list":
        split = [without_name(part) for part in parts]
        if (
            wanted.brackets != "()"
            or not all(name for name, _ in split)
            or len({name for name, _ in split}) < len(split)
        ):
            return NO
        parts = tuple(rest for _, rest in split)
    elif wanted.kind != given.kind or wanted.brackets != given.brackets:
        return NO
    if len(parts) != len(wanted.parts) or len(parts) > MAX_ELEMENTS:
        return NO
    asks: list[Ask] = []
    for one, other in zip(wanted.parts, parts, strict=True):
        verdict = compare_part(one, other)
        if not verdict.agrees:
            return NO
        asks.extend(verdict.asks)
    return Verdict(True, tuple(asks))


def element_names(formula: Formula) -> list[str]:
    """The names of the elements of a list, where each has one: "x = 2, y = 3"."""
    names = [without_name(part)[0] for part in formula.parts if formula.kind == "list"]
    return names if all(names) else []


def compare_by_name(
    wanted: Formula, given: Formula, names: list[str], compare_part: Callable[[str, str], Verdict]
) -> Verdict:
    """The values of several symbols, by their names, or in order as (2, 3)."""
    values = [without_name(part)[1] for part in given.parts]
    if given.kind == "list":
        named = dict(zip(element_names(given), values, strict=False))
        if set(named) != set(names):
            return NO
        values = [named[name] for name in names]
    expected = tuple(without_name(part)[1] for part in wanted.parts)
    pair = Formula("tuple", wanted.text, "", "()", expected)
    brackets = "()" if given.kind == "list" else given.brackets
    return compare_in_order(
        pair, Formula("tuple", given.text, "", brackets, tuple(values)), compare_part
    )


def compare_collections(wanted: Formula, given: Formula) -> Verdict:
    """Sets and lists: the same elements in any order, each in final form."""
    if given.kind not in ("set", "list", "expression"):
        return NO
    if len(given.parts) > MAX_ELEMENTS or (given.kind == "expression" and len(wanted.parts) > 1):
        return NO
    names = {wanted.name} - {""}
    elements = []
    for part in given.parts:
        name, rest = without_name(part)
        names |= {name.partition("_")[0]} - {""}  # x_1 and x_2 are values of x
        elements.append(rest)
    wanted_elements = [without_name(part)[1] for part in wanted.parts]
    values, wanted_values = element_values(elements), element_values(wanted_elements)
    if values is not None and wanted_values is not None:
        return YES if len(names) <= 1 and values == wanted_values else NO
    if len(names) > 1:
        return ask(wanted, given)
    return Verdict(True, (Ask("equal", ", ".join(wanted_elements), ", ".join(elements)),))


def element_values(elements: list[str]) -> list | None:
    """The sorted values of elements that are all literals in final form, else None."""
    values = []
    for element in elements:
        read = read_values(plain(element))
        if not read or len(read) > 1 or not read[0].final:
            return None
        values.append(read[0].value)
    return sorted(set(values))


def compare_expressions(wanted: Formula, given: Formula) -> Verdict:
    """A closed form or polynomial. Of a chain the last side counts, if the others equal it."""
    last = given.parts[-1]
    if unfinished(wanted.text, last) or not same_structure(wanted.text, last):
        return NO
    asks = [Ask("equal", wanted.text, last)]
    for side in given.parts[:-1]:
        if not is_name(side):
            asks.append(
                rounding(side, last)
                if "≈" in given.text or "\\approx" in given.text
                else Ask("equal", side, last)
            )
    if ("≈" in given.text or "\\approx" in given.text) and len(given.parts) == 2:
        first = given.parts[0]
        if unfinished(wanted.text, first) or not same_structure(wanted.text, first):
            return NO
        asks[0] = Ask("equal", wanted.text, first)
    return Verdict(True, tuple(asks))


def rounding(side: str, last: str) -> Ask:
    values = read_values(plain(last))
    if values and len(values) == 1 and values[0].step:
        return Ask("rounds", side, f"{values[0].value};{values[0].step / 2}")
    return Ask("equal", side, last)


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
    wanted = {match[0] for match in UNEVALUATED.finditer(plain(expected))}
    left = {match[0] for match in UNEVALUATED.finditer(without_name(plain(given))[1])}
    if left - wanted:
        return True
    given, expected = plain(given).replace("**", "^"), plain(expected).replace("**", "^")
    return any(
        operation.search(given) and not operation.search(expected) for operation in ARITHMETIC
    )


def same_structure(expected: str, given: str) -> bool:
    """Whether two expressions are worked out to the same degree."""
    expected, given = plain(expected), plain(given)
    if is_constant(expected) and names(FUNCTION, given) - names(FUNCTION, expected):
        return False  # arctan(1) for π/4
    if uncollected(given) and not uncollected(expected):
        return False
    return factors(expected) == factors(given)


def names(pattern: re.Pattern, text: str) -> set[str]:
    return {match[0].lstrip("\\") for match in pattern.finditer(text)}


def is_constant(text: str) -> bool:
    return not VARIABLE.search(COMMAND.sub(" ", FUNCTION.sub(" ", text)).replace("pi", ""))


def uncollected(text: str) -> bool:
    """Whether two terms of a sum differ by their numbers only: x + x, 3 + 2 + x."""
    kinds = [COEFFICIENT.sub("", SPACE.sub(" ", term), count=1).strip() for term in terms(text)]
    return len(set(kinds)) < len(kinds)


def terms(text: str) -> list[str]:
    """The terms of a sum that stand in no brackets."""
    found = split_top(text.replace("-", "+"), "+")
    return [term for term in found if term]


def factors(text: str) -> int:
    """How many sums in parentheses are multiplied or raised to a power, each counted as often as it
    stands."""
    count = 0
    for match in SUM_IN_PARENTHESES.finditer(text):
        before, after = text[: match.start()].rstrip()[-1:], text[match.end() :].lstrip()[:2]
        power = after[1:].strip("{") if after.startswith("^") else ""
        multiplied = (
            before.isalnum()
            or before in ("*", ")", "}", "·")
            or after[:1] in ("(", "*", "·")
            or after[:1].isalnum()
        )
        if power:
            count += int(power) if power.isdigit() else 1
        elif multiplied and not FUNCTION.search(
            text[max(match.start() - 8, 0) : match.start()] + "("
        ):
            count += 1
    return count
