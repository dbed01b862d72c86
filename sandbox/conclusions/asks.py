"""What a comparison comes to: a verdict, or questions for computer algebra (verifier.py puts them
to math-verify)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Ask:
    """One question. "equal": do `text` and `other` have the same value? "rounds": is `text` within
    a distance of a value? `other` then holds both as "value;distance", two fractions."""

    relation: str
    text: str
    other: str


@dataclass(frozen=True)
class Verdict:
    """`agrees` holds if every question in `asks` is answered with yes; without questions it is
    final."""

    agrees: bool
    asks: tuple[Ask, ...] = ()


YES, NO = Verdict(True), Verdict(False)
