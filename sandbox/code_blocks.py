"""Finds the program in a completion: its fenced code blocks. The text is only searched, never
parsed, and every search is linear in its length."""

import re
import textwrap
from dataclasses import dataclass, field
from typing import Any

# Of a quote or a list item, where a block may begin. Possessive throughout: linear time on any line
MARKER = r"(?:>[ \t]*+|(?:[-*+]|\d{1,9}+[.)])[ \t]++)"
FENCE = re.compile(rf"([ \t]*+{MARKER}*+)(`{{3,}}+|~{{3,}}+)([^`]*+)")
QUOTE = re.compile(r"[ \t]*+> ?")
TAB_COLUMNS = 4
MARKDOWN = ("markdown", "md")


def code_blocks(text: str) -> list[tuple[str, bool]]:
    """(code, closed) of each fenced block of `text`, in order; dedented, because it may be part of
    a list.

    The rules are CommonMark's (section 4.5), so a reader of the rendered answer sees the same
    blocks. A block ends at a fence of its own character that is at least as long, has nothing
    behind it and is indented by less than 4 columns more: a fence in an indented docstring ends
    nothing. It also ends with the quote that it is part of. Three rules are more lenient, for what
    models write: an opening fence may be indented at will; one that names a language ends the block
    before, whose end was forgotten; of a block of Markdown the blocks inside it count, not itself.
    """
    reader = Reader()
    plain = text.replace("\ufeff", "").replace("\r\n", "\n").replace("\r", "\n")
    for line in plain.split("\n"):
        reader.read(line)
    return [(textwrap.dedent("\n".join(block.lines)), block.closed) for block in reader.blocks]


@dataclass
class Block:
    lines: list[str] = field(default_factory=list)
    closed: bool = False


class Reader:
    """Reads lines one after the other, and knows whether it is in a block."""

    def __init__(self):
        self.blocks: list[Block] = []
        self._wrappers: list[str] = []  # fences of the Markdown blocks around
        self._fence = ""  # of the open block; empty outside
        self._indent = 0  # columns, of the open block
        self._quotes = 0  # nested quotes that the open block is part of

    def read(self, line: str) -> None:
        content = unquote(line, self._quotes)
        if content is None:  # the quote has ended, and the block with it
            content = line
            self._leave()
        # The parts of a fence; all empty in any other line
        lead = mark = info = ""
        match = FENCE.fullmatch(content)
        if match:
            lead, mark, info = match[1], match[2], match[3].strip()

        if self._fence and not self._ends_block(lead, mark):
            self.blocks[-1].lines.append(content)
        elif self._fence and not info:
            self.blocks[-1].closed = True
            self._leave()
        elif info.lower() in MARKDOWN:
            self._wrappers.append(mark)
            self._leave()
        elif mark and not info and self._ends_wrapper(mark):
            self._wrappers.pop()
        elif mark:
            self.blocks.append(Block())
            self._fence = mark
            self._indent = columns(lead.rpartition(">")[2])
            self._quotes += lead.count(">")

    def _ends_block(self, lead: str, mark: str) -> bool:
        """Whether a line is a fence that closes the open block, or opens another instead."""
        is_fence = mark.startswith(self._fence) and not lead.strip()
        return is_fence and columns(lead) < self._indent + TAB_COLUMNS

    def _ends_wrapper(self, mark: str) -> bool:
        """Whether a fence closes the innermost of the Markdown blocks around."""
        return bool(self._wrappers) and mark.startswith(self._wrappers[-1])

    def _leave(self) -> None:
        self._fence, self._quotes = "", 0


def unquote(line: str, depth: int) -> str | None:
    """`line` without the marks of `depth` nested quotes; None if it has fewer."""
    position = 0
    for _ in range(depth):
        match = QUOTE.match(line, position)
        if not match:
            return None
        position = match.end()
    return line[position:]


def columns(lead: str) -> int:
    return len(lead.expandtabs(TAB_COLUMNS))


def extract_code(completion: Any, function: str) -> tuple[str | None, bool]:
    """(code, unclosed): the last fenced block that defines `function`, by `def` or by an assignment
    at its top level, and whether nothing closes it. (None, False) if no block does, or if the
    completion is not text.

    The text is only searched here. Parsing untrusted source can exhaust the parser, so the sandbox
    does that. It also decides whether the function is really there: a `def` in a docstring or a
    class defines nothing.
    """
    if not isinstance(completion, str):
        return None, False
    name = re.escape(function)
    definition = re.compile(
        rf"^[ \t]*+(?:async[ \t]++)?def(?:[ \t]|\\\n)++{name}\b|^{name}[ \t]*+(?::[^=\n]*+)?=(?!=)",
        re.MULTILINE,
    )
    for code, closed in reversed(code_blocks(completion)):
        if definition.search(code):
            return code, not closed
    return None, False
