"""Finds the program in a completion: its fenced code blocks. The text is only searched, never parsed."""

import re
import textwrap
from typing import Any

MARKER = r"(?:>[ \t]*+|(?:[-*+]|\d{1,9}+[.)])[ \t]++)"  # of a quote or a list item, where a block may stand
FENCE = re.compile(
    rf"([ \t]*+{MARKER}*+)(`{{3,}}+|~{{3,}}+)([^`]*+)"
)  # possessive throughout: linear time on any line
QUOTE = re.compile(r"[ \t]*+> ?")


def code_blocks(text: str) -> list[tuple[str, bool]]:
    """(code, closed) of each fenced block of `text`, in order; dedented, because it may stand in a list.

    The rules are CommonMark's (section 4.5), so a reader of the rendered answer sees the same blocks: one ends at a
    fence of its own character that is at least as long, has nothing behind it and is indented by less than 4 columns
    more (a fence in an indented docstring ends nothing), or with the quote that it stands in. Three rules are more
    lenient, for what models write: an opening fence may be indented at will; one that names a language ends the block
    before, whose end was forgotten; and the blocks in a block of Markdown count, not itself.
    """
    blocks: list[tuple[list[str], bool]] = []
    wrappers: list[str] = []  # fences of the Markdown blocks around
    fence, indent, quotes = "", 0, 0  # of the open block; no fence means outside
    for line in text.replace("\ufeff", "").replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        content = unquote(line, quotes)
        if content is None:
            content, fence, quotes = line, "", 0
        match = FENCE.fullmatch(content)
        lead, mark, info = (match[1], match[2], match[3].strip()) if match else ("", "", "")
        if fence and not (
            mark.startswith(fence) and not lead.strip() and columns(lead) < indent + 4
        ):
            blocks[-1][0].append(content)
        elif fence and not info:
            blocks[-1] = (blocks[-1][0], True)
            fence, quotes = "", 0
        elif info.lower() in ("markdown", "md"):
            wrappers.append(mark)
            fence, quotes = "", 0
        elif mark and not info and wrappers and mark.startswith(wrappers[-1]):
            wrappers.pop()
        elif mark:
            blocks.append(([], False))
            fence, indent, quotes = mark, columns(lead.rpartition(">")[2]), quotes + lead.count(">")
    return [(textwrap.dedent("\n".join(lines)), closed) for lines, closed in blocks]


def unquote(line: str, depth: int) -> str | None:
    """`line` without the marks of `depth` nested quotes; None if it does not have so many."""
    position = 0
    for _ in range(depth):
        match = QUOTE.match(line, position)
        if not match:
            return None
        position = match.end()
    return line[position:]


def columns(lead: str) -> int:
    return len(lead.expandtabs(4))


def extract_code(completion: Any, function: str) -> tuple[str | None, bool]:
    """(code, unclosed): the last fenced block that defines `function`, by `def` or by an assignment at its top level,
    and whether nothing closes it; (None, False) if there is none, or if the completion is no text.

    The text is only searched here, never parsed: parsing untrusted source can exhaust the parser, so the sandbox does
    that. It also decides whether the function is really there: a `def` in a docstring or a class defines nothing.
    """
    if not isinstance(completion, str):
        return None, False
    name = re.escape(function)
    definition = re.compile(
        rf"^[ \t]*+(?:async[ \t]++)?def(?:[ \t]|\\\n)++{name}\b|^{name}[ \t]*+(?::[^=\n]*+)?=(?!=)",
        re.MULTILINE,
    )
    found = [block for block in code_blocks(completion) if definition.search(block[0])]
    return (found[-1][0], not found[-1][1]) if found else (None, False)
