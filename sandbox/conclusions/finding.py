r"""Where a text concludes. In this order:

1. the last \boxed{...} that is closed and not empty; boxes that "or", "and" or a comma joins are
   read together
2. the content of the last <answer>...</answer>
3. what follows the last marker at the start of a line: "Answer:", "Final result:", "####", a
   heading "Answer" with the value below it
4. what follows "the answer is", or "Answer:", in the last sentence
5. only where nothing asked for a marker (`marked` false): the last line, if it is a value or ends
   in one

Further places are kept as well: a text that concludes twice and differently has
concluded nothing. Thinking before </think> and comments are not read. Everything is linear in the
length of the text.
"""

import re
from dataclasses import dataclass

from .literals import WORD, plain, read_values

MAX_PHRASES = 8  # "the answer is" on one line
MAX_VALUE_LINES = 12  # of a display formula below a marker

THINK_END = "</think>"
COMMENT = re.compile(r"<!--|-->")
BRACES = re.compile(r"\\(?:boxed|fbox) ?\{|\\[{}]|[{}]")
BARE_BOX = re.compile(r"\\boxed ?([0-9A-Za-z])(?![A-Za-z{])")
DENIED_BOX = re.compile(
    r"(?:\bnot|n't|\bnever|\bwrong|\bno longer|\\neq?|≠)[\s$:({\\]{0,6}$", re.IGNORECASE
)
JOINED = re.compile(
    r"[\s$,;.)\]}\\]{0,8}(?:(?:or|and|,|;|\\text ?\{ ?(?:or"
    r"|and) ?\})[\s$(\[\\]{0,8})?(?:[A-Za-z]{1,2} ?= ?)?"
)
OR_BEHIND = re.compile(r"[\s$)\]\\]{0,6}(?:,\s?)?or\b", re.IGNORECASE)
DENIED_BEHIND = re.compile(
    r"[\s$)\]\\.,]{0,6}(?:which |that |it |this )?(?:is|was) (?:not|wrong|incorrect|false)\b",
    re.IGNORECASE,
)
TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
DECORATION = " \t#>*_-+•`"
NUMBERING = re.compile(r"[0-9]{1,3}[.)] ?")
KEYWORD = re.compile(
    r"(?:(?:so|thus|therefore|hence|and|finally)[ ,:]{1,3})?(?:(?:the|my|our) )?"
    r"(?:(?:final|correct|best|right|numerical)[ *_]{1,4})?"
    r"(?:answer|ans|result|conclusion|(?<=correct )(?:option|choice))\b",
    re.IGNORECASE,
)
AFTER_KEYWORD = re.compile(
    r"[*_ .]{0,6}(?:\([^()\n]{0,60}\))?[*_ ]{0,6}(?::|：|=|→|[-–—](?= )|(?:is|was):)[*_]{0,6}"
)
HEADING_END = re.compile(r"[*_ :.]{0,8}$")
HASHES = re.compile(r"####(?!#) ?")
HASH_VALUE = re.compile(r"[-+$€£\\(\[{0-9.√π½]|[A-Za-z] ?=|[\w.]{1,40}$")
HEADING = re.compile(
    r"#### ?(?:(?:step|part|case|section|problem|question|example)\b|[0-9]{1,2}[.)] [A-Za-z])",
    re.IGNORECASE,
)
DISPLAY_START = re.compile(
    r"(?:\\\[|\$\$|```[a-z]{0,10}|\\begin ?\{(?:align|equation|gather)\*?\})$"
)
DISPLAY_END = re.compile(r"(?:\\\]|\$\$|```|\\end ?\{(?:align|equation|gather)\*?\})$")
RULE = re.compile(r"[-*_=~ ]++")
PHRASE = re.compile(
    r"\b(?:(?:the|my|our) )?(?:(?:final|correct|best|right) )?(?:answer|result|option"
    r"|choice)(?: to [^.:=]{1,60})? "
    r"(?:is|was|must be|should be|would be)(?: (?:option|choice|therefore|thus"
    r"|simply))?:?(?=[\s$*\\(])",
    re.IGNORECASE,
)
DENIED_PHRASE = re.compile(
    r"\b(?:not (?:the case |true |think |say |believe )?|n't (?:think |say |believe )?"
    r"|doubt |nobody says |no one says |deny |denies |whether |unclear if )(?:that )?$",
    re.IGNORECASE,
)
COURTESY = re.compile(
    r"\W{0,4}(?:i hope|hope this|let me know|if you have|feel free|please|thank)", re.IGNORECASE
)
NO_WORD = re.compile(r"\W*+")
SENTENCE = re.compile(r"(?<=[\w)}%$*\]][.!?])\s(?=[A-Z*$`\\])")
IS_THE_ANSWER = re.compile(
    r"\s(?:is|are) (?:the|my|our|that) (?:final |correct |right )?(?:answer|result|total)\W{0,3}$",
    re.IGNORECASE,
)
OR_LINE = re.compile(r"\W{0,3}or\b", re.IGNORECASE)
STEP = re.compile(r"[-•>* ]{0,4}(?:step |#)?[0-9]{1,3}[.):] {1,4}(?=\S)", re.IGNORECASE)
MAX_TAIL_WORDS = 3  # behind the value at the end of a line: "345 apples in total"
MAX_HEADED_WORDS = 12  # of the line below a heading "Answer"


@dataclass(frozen=True)
class Conclusion:
    """`text`: what is concluded, empty if nothing is. `others`: the conclusions of further places.
    `lines`: the lines of the text before it, without empty ones; that of a box is among them."""

    text: str = ""
    others: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()


class Unreadable(ValueError):
    """The answer in a data set's column holds no conclusion."""


def find(text: str, marked: bool = True) -> Conclusion:
    """The conclusion of a text. `marked`: the prompt asked for a marker, so a last line without one
    does not count."""
    lines = read_lines(text)
    if not lines:
        return Conclusion()

    # The first place counts; the further ones are kept.
    places = []
    for place in (find_box(lines), find_tag(lines), find_marker(lines)):
        if place:
            places.append(place)
    places += find_phrases(lines)
    if not places and not marked:
        places = find_last_line(lines)
    if not places:
        return Conclusion("", (), tuple(lines))
    before, concluded = places[0]
    others = tuple(other for _, other in places[1:])
    return Conclusion(concluded, others, tuple(lines[:before]))


def read_lines(text: str) -> list[str]:
    """The lines behind the thinking, without empty ones and comments, also those of LaTeX."""
    text = text.rpartition(THINK_END)[2].replace("\r", "\n")
    lines = []
    for line in without_comments(text).split("\n"):
        line = line.strip()
        if line and not line.startswith("%"):
            lines.append(line)
    return lines


def without_comments(text: str) -> str:
    """`text` without <!-- comments -->; one that is never closed hides the rest."""
    pieces = []
    position = 0
    hidden = False
    for match in COMMENT.finditer(text):
        opens = match[0] == "<!--"
        if opens and not hidden:
            pieces.append(text[position : match.start()])
            hidden = True
        elif hidden and not opens:
            position = match.end()
            hidden = False
    if not hidden:
        pieces.append(text[position:])
    return "".join(pieces)


# ------------------------------------------------------------ the places
# Each function gives (number of lines before the conclusion, its text).


def find_box(lines: list[str]) -> tuple[int, str] | None:
    r"""The last box, with those that are joined to it; "" where it is denied ("not \boxed{5}")."""
    text = "\n".join(lines)
    boxes = [box for box in read_boxes(text) if text[box[1] : box[2]].strip()]
    if not boxes:
        return None

    # Read the last box, and those before it that are joined to it.
    opened, start, end = boxes[-1]
    contents = [text[start:end].strip()]
    for earlier in reversed(boxes[:-1]):
        joined = JOINED.fullmatch(text, earlier[2] + 1, opened)
        if not joined or len(contents) > 8:
            break
        opened = earlier[0]
        contents.insert(0, text[earlier[1] : earlier[2]].strip())
    concluded = ", ".join(contents)

    # Read what stands around them on their line.
    line_start = text.rfind("\n", 0, opened) + 1
    before = text[max(line_start, opened - 40) : opened]
    line_end = text.find("\n", end)
    if line_end < 0:
        line_end = len(text)
    behind = text[end + 1 : line_end]
    if OR_BEHIND.match(behind):
        concluded += behind
    if DENIED_BOX.search(before) or DENIED_BEHIND.match(behind):
        concluded = "not " + concluded
    return text.count("\n", 0, opened) + 1, concluded


def read_boxes(text: str) -> list[tuple[int, int, int]]:
    """(where the command begins, where its content begins, where it ends) of each closed box that
    stands in no other."""
    boxes: list[tuple[int, int, int]] = []
    opened: list[tuple[int, int] | None] = []  # None: a brace that belongs to no box
    for match in BRACES.finditer(text):
        brace = match[0]
        if brace in ("\\{", "\\}"):
            continue
        if brace == "{":
            opened.append(None)
        elif brace != "}":
            opened.append(match.span())
        elif opened:
            box = opened.pop()
            if box:
                close_box(boxes, box, match.start())
    if boxes:
        return boxes
    return [(match.start(), *match.span(1)) for match in BARE_BOX.finditer(text)]


def close_box(boxes: list[tuple[int, int, int]], box: tuple[int, int], end: int) -> None:
    """Add a box that ends at `end`, and take out those that stand in it."""
    while boxes and boxes[-1][0] > box[0]:
        boxes.pop()
    boxes.append((*box, end))


def find_tag(lines: list[str]) -> tuple[int, str] | None:
    """The content of the last closed <answer>."""
    text = "\n".join(lines)
    start = 0
    content = ""
    opened = None
    for match in TAG.finditer(text):
        if not match[1]:
            opened = match
        elif opened:
            start = opened.start()
            content = text[opened.end() : match.start()].strip()
            opened = None
    if not content:
        return None

    # A marker inside counts as one in the text does.
    number = text.count("\n", 0, start)
    inside = [line.strip() for line in content.split("\n")]
    marker = find_marker(inside)
    if marker:
        return number, marker[1]
    return number, " ".join(inside)


def find_marker(lines: list[str]) -> tuple[int, str] | None:
    """What follows the last marker at the start of a line, or stands below it."""
    last = last_line(lines)
    for number in reversed(range(len(lines))):
        rest = after_marker(lines[number], number == last)
        if rest is None:
            continue
        rest = without_loose_marks(rest)
        following = lines[number + 1 : number + 1 + MAX_VALUE_LINES]

        # The value stands on the line; a line "or ..." below it goes on with it.
        if rest and not DISPLAY_START.match(rest):
            if following and OR_LINE.match(following[0]):
                rest = f"{rest} {following[0]}"
            return number, rest

        # The value stands below, perhaps in a display formula that begins on the line.
        if rest:
            following.insert(0, rest)
        below = value_below(following)
        if below:
            return number, below
    return None


LOOSE = re.compile(r"[*_]{1,3}(?=\W{0,3}$)")


def without_loose_marks(text: str) -> str:
    """`text` without the marks of emphasis that begin before it or end in it: "72**" of "**Answer:
    72**"."""
    text = text.strip()
    for mark in ("**", "__"):
        odd = text.count(mark) % 2 == 1
        if odd and text.startswith(mark):
            text = text.removeprefix(mark)
        elif odd:
            text = LOOSE.sub("", text, count=1)
    if text.count("*") % 2:
        text = LOOSE.sub("", text.removeprefix("* "), count=1)
    return text.strip()


def after_marker(line: str, last: bool) -> str | None:
    """What follows a marker on its line; None if none stands there. #### also marks a heading of
    Markdown: before the `last` line it counts only with a value behind it."""
    # A keyword, behind decoration and the number of a step.
    bare = line.lstrip(DECORATION)
    number = NUMBERING.match(bare)
    if number:
        bare = bare[number.end() :].lstrip(DECORATION)
    keyword = KEYWORD.match(bare)
    if keyword:
        return after_keyword(bare[keyword.end() :])

    # The four signs of GSM8K.
    hashes = HASHES.match(line)
    if not hashes:
        return None
    rest = line[hashes.end() :]
    if last and not HEADING.match(line):
        return rest
    if HASH_VALUE.match(rest.strip(" *")):
        return rest
    return None


def after_keyword(rest: str) -> str | None:
    """What follows the sign behind a keyword; empty if the keyword ends the line as a heading
    does; None if it is a word of a sentence."""
    sign = AFTER_KEYWORD.match(rest)
    if sign:
        return rest[sign.end() :]
    if HEADING_END.match(rest):
        return ""
    return None


def value_below(lines: list[str]) -> str:
    """The line below a marker, or the display formula that begins there; empty where neither states
    a value."""
    lines = [line for line in lines[:MAX_VALUE_LINES] if not RULE.fullmatch(line)]
    if not lines:
        return ""
    first = lines[0]
    if not DISPLAY_START.match(first):
        if len(first.split()) > MAX_HEADED_WORDS:
            return ""
        return first
    inside = []
    for line in lines[1:]:
        if DISPLAY_END.match(line):
            break
        inside.append(line)
    return " ".join(inside)


def find_phrases(lines: list[str]) -> list[tuple[int, str]]:
    """What follows "the answer is" in the last sentence, then in those before it on its line. A
    sentence behind others may also begin with a marker: "6 * 7 = 42. Answer: 42."."""
    number = last_line(lines)
    found = []
    concludes = False  # whether the last sentence does
    is_first = True
    for sentence in SENTENCE.split(lines[number]):
        if says_nothing(sentence):
            continue
        marked = None
        if not is_first:
            marked = after_marker(sentence, last=False)
        is_first = False
        if marked:
            found.append(without_loose_marks(marked).strip("` "))
            concludes = True
        else:
            phrases = read_phrases(sentence)
            found += phrases
            concludes = bool(phrases)
    if not concludes:
        return []
    return [(number, text) for text in found[:-MAX_PHRASES:-1]]


def read_phrases(sentence: str) -> list[str]:
    """What follows each "the answer is" of a sentence, behind "not" where it is denied."""
    found = []
    for match in PHRASE.finditer(sentence):
        text = without_loose_marks(sentence[match.end() :].strip(" :"))
        before = sentence[max(match.start() - 40, 0) : match.start()]
        if DENIED_PHRASE.search(before):
            text = f"not {text}"
        found.append(text)
    return found


def last_line(lines: list[str]) -> int:
    """The number of the last line that is no courtesy and no rule."""
    for number in reversed(range(len(lines))):
        if not says_nothing(lines[number]):
            return number
    return len(lines) - 1


def says_nothing(sentence: str) -> bool:
    return bool(COURTESY.match(sentence) or NO_WORD.fullmatch(sentence))


def find_last_line(lines: list[str]) -> list[tuple[int, str]]:
    """The last line without the number of its step, if it is a value, ends in one, or holds none.
    Whether it is a word is judged with the answer."""
    number = last_line(lines)
    line = lines[number]
    step = STEP.match(line)
    if step:
        line = line[step.end() :]
    line = IS_THE_ANSWER.sub("", line)
    bare = plain(line)
    if ends_in_number(bare) or not read_values(bare):
        return [(number, line)]
    return []


def ends_in_number(line: str) -> bool:
    """Whether at most a few words (a unit) follow the last number of a line."""
    for position in reversed(range(len(line))):
        if line[position].isdigit():
            words = WORD.findall(line[position + 1 :])
            return len(words) <= MAX_TAIL_WORDS
    return False


# ------------------------------------------------------------ a data set's column

MAX_ANSWER_WORDS = 20
MAX_PLAIN = 60  # characters of an answer that is read as it stands, unless it looks like a solution
SOLUTION = re.compile(r"[\n#:：]|<|boxed|\b(?:is|was|be)\b|(?:answer|result)", re.IGNORECASE)


def read_expected(text: str) -> str:
    """The answer in a data set's column: the text itself, or the conclusion of a worked solution.

    Raises:
        Unreadable: if it is empty, or a text of several lines or many words that concludes nowhere.
    """
    text = text.strip()
    if text and len(text) <= MAX_PLAIN and not SOLUTION.search(text):
        return text
    found = find(text)
    if found.text:
        return found.text
    if not text:
        raise Unreadable("it is empty")
    if "\n" in text or len(text.split()) > MAX_ANSWER_WORDS:
        raise Unreadable("it has no conclusion (#### 72, \\boxed{72}, Answer: 72)")
    return text
