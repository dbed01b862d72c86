"""What is wrong with rows, grouped: one line for each kind of mistake."""

from collections.abc import Sequence
from dataclasses import dataclass, field

SHOWN_PLACES = 3
SHOWN_KINDS = 20


class RowMistake(ValueError):
    """What is wrong with one row.

    Args:
        text: in words, for this row.
        kind: what rows with the same mistake have in common; left out, it is the text.
        remedy: what to change, in words; it is told once for all of a kind.
    """

    def __init__(self, text: str, kind: str = "", remedy: str = ""):
        super().__init__(text)
        self.kind = kind or text
        self.remedy = remedy


def short_place(place: str, first: str) -> str:
    """A place without the file that `first` names too: "7" of "a.csv:7"."""
    file, _, number = place.rpartition(":")
    return number if file == first.rpartition(":")[0] else place


def shown_places(places: Sequence[str]) -> str:
    """The first few places, with the file named once: "a.csv:2, 7, 9, ..."."""
    words = [places[0]]
    words += [short_place(place, places[0]) for place in places[1:SHOWN_PLACES]]
    if len(places) > SHOWN_PLACES:
        words.append("...")
    return ", ".join(words)


@dataclass
class Group:
    """The rows with one kind of mistake."""

    text: str  # of the first of them
    remedy: str
    count: int = 0
    places: list[str] = field(default_factory=list)  # of the first few

    def line(self) -> str:
        words = f"{self.places[0]}: {self.text}"
        if self.count > 1:
            numbers = [short_place(place, self.places[0]) for place in self.places]
            others = "" if self.count <= SHOWN_PLACES else ", ..."
            words += f" ({self.count} rows: {', '.join(numbers)}{others})"
        if self.remedy:
            words += f"; {self.remedy}"
        return words


class Mistakes:
    """The mistakes of many rows."""

    def __init__(self):
        self._groups: dict[str, Group] = {}

    def __bool__(self) -> bool:
        return bool(self._groups)

    def first(self, place: str, mistake: ValueError) -> None:
        """Called for the first mistake of each kind; to be overridden."""

    def add(self, place: str, mistake: ValueError) -> None:
        """Add the mistake of one row."""
        kind = getattr(mistake, "kind", str(mistake))
        is_new = kind not in self._groups
        if is_new:
            remedy = getattr(mistake, "remedy", "")
            self._groups[kind] = Group(str(mistake), remedy)
        group = self._groups[kind]
        group.count += 1
        if len(group.places) < SHOWN_PLACES:
            group.places.append(place)
        if is_new:
            self.first(place, mistake)

    @property
    def count(self) -> int:
        """Rows in all."""
        return sum(group.count for group in self._groups.values())

    def lines(self) -> list[str]:
        """One line for each kind, in the order in which they were found."""
        lines = [group.line() for group in self._groups.values()]
        left_out = len(lines) - SHOWN_KINDS
        if left_out > 0:
            lines[SHOWN_KINDS:] = [f"and {left_out} more kinds of mistakes"]
        return lines
