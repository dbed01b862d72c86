"""The disguises in which a text gives away a code of six capital letters.

Each family of disguises has a reader of its own, because no rule on the plain text can tell a
cipher from a word. A reader covers its whole family (every shift, every mirrored alphabet), so a
new key is no new disguise. `disguise_of` lists the families. Every pattern here takes time linear
in the length of the text.
"""

import base64
import codecs
import functools
import hashlib
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from string import ascii_uppercase
from typing import Any


def listed(text: str) -> list[str]:
    """The words of a table that is written as one text."""
    return text.split()


MAX_CHARACTERS = 20_000  # of a text; the rest is not read

NATO_WORDS = (
    "ALFA BRAVO CHARLIE DELTA ECHO FOXTROT GOLF HOTEL INDIA JULIETT KILO LIMA MIKE NOVEMBER OSCAR"
    " PAPA QUEBEC ROMEO SIERRA TANGO UNIFORM VICTOR WHISKEY XRAY YANKEE ZULU"
)
NATO = {word[0]: word for word in NATO_WORDS.split()}
SPOKEN = {word: letter for letter, word in NATO.items()}
SPOKEN |= {"ALPHA": "A", "JULIET": "J", "WHISKY": "W"}
LETTER_NAMES = (  # each letter with an English spelling of its name
    "A:AY B:BEE C:CEE C:SEE C:SEA D:DEE E:EE F:EF F:EFF G:GEE H:AITCH I:EYE J:JAY K:KAY L:EL L:ELL"
    " M:EM N:EN O:OH P:PEE Q:QUEUE Q:CUE R:ARE R:AR S:ESS T:TEE T:TEA U:YOU V:VEE W:DOUBLEU"
    " W:DOUBLEYOU X:EX Y:WHY Y:WYE Z:ZEE Z:ZED"
)
NAMED_LETTERS = {pair[2:]: pair[0] for pair in LETTER_NAMES.split()}
MORSE_SIGNS = (
    ".- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..- ...- .--"
    " -..- -.-- --.."
)
MORSE = dict(zip(MORSE_SIGNS.split(), ascii_uppercase, strict=True))
KEYPAD = ("ABC", "DEF", "GHI", "JKL", "MNO", "PQRS", "TUV", "WXYZ")  # of a telephone, from 2 on
POLYBIUS = "ABCDEFGHIKLMNOPQRSTUVWXYZ"  # five rows of five; I stands for J too
TAP_CODE = "ABCDEFGHIJLMNOPQRSTUVWXYZ"  # the same with C for K
BACON = "ABCDEFGHIKLMNOPQRSTUWXYZ"  # I for J and U for V
UNDER_TWENTY = (
    "ZERO ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE TEN ELEVEN TWELVE THIRTEEN FOURTEEN FIFTEEN"
    " SIXTEEN SEVENTEEN EIGHTEEN NINETEEN"
)
NUMBER_WORDS = {word: i for i, word in enumerate(UNDER_TWENTY.split())}
NUMBER_WORDS |= {"TWENTY": 20} | {
    f"TWENTY{word}": 20 + i for i, word in enumerate(UNDER_TWENTY.split()) if 0 < i < 10
}
ORDINALS = listed(
    "FIRST SECOND THIRD FOURTH FIFTH SIXTH SEVENTH EIGHTH NINTH TENTH ELEVENTH TWELFTH"
)
NUMBER_WORDS |= {word: i for i, word in enumerate(ORDINALS, 1)} | {"TWENTIETH": 20}
NUMBER_WORDS |= {f"{word}TH": i for word, i in list(NUMBER_WORDS.items()) if 13 <= i < 20}
NUMBER_WORDS |= {f"TWENTY{word}": 20 + i for i, word in enumerate(ORDINALS[:9], 1)}
ROMAN = {
    tens + ones: 10 * i + j
    for i, tens in enumerate(["", "X", "XX"])
    for j, ones in enumerate(["", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX"])
    if tens + ones
}
KEYBOARD = ("QWERTYUIOP[", "ASDFGHJKL;", "ZXCVBNM,")
TO_THE_LEFT = str.maketrans({row[i + 1]: row[i] for row in KEYBOARD for i in range(len(row) - 1)})
TO_THE_RIGHT = str.maketrans({row[i]: row[i + 1] for row in KEYBOARD for i in range(len(row) - 1)})
RUSSIAN_KEYS = str.maketrans("ЙЦУКЕНГШЩЗФЫВАПРОЛДЯЧСМИТЬ", "QWERTYUIOPASDFGHJKLZXCVBNM")
UPSIDE_DOWN = str.maketrans("BQDPNUMW", "QBPDUNWM")
ROT47 = str.maketrans({chr(33 + i): chr(33 + (i + 47) % 94) for i in range(94)})
LEET = "0O 2Z 3E 4A 5S 6G 7T 8B 9G @A $S +T (C #H"
LEET_TABLES = [
    str.maketrans({pair[0]: pair[1] for pair in f"{LEET} 1{one} !{one} |{one}".split()})
    for one in "IL"
]
LEET_DRAWINGS = {
    "|\\/|": "M", "|\\|": "N", "\\/\\/": "W", "|_|": "U", "|<": "K", "|-|": "H", "|)": "D",
    "|3": "B", "|2": "R", "/\\": "A", "\\/": "V", "><": "X", "()": "O",
}  # fmt: skip


def lookalikes() -> dict[int, str]:
    """{code point: letter} of signs that look like a Latin letter and are none by their name."""
    signs = {"АВСЕНІЈКМОРЅТХУԚԜ": "ABCEHIJKMOPSTXYQW"}  # Cyrillic
    signs |= {"ΑΒΕΖΗΙΚΜΝΟΡΤΥΧ": "ABEZHIKMNOPTYX"}  # Greek
    signs |= {"ᎠᎡᎢᎪᎫᎬᎳᎷᎻᏀᏃᏚᏙᏞᏟᏢᏦᏴ": "DRTAJEWMHGZSVLCPKB"}  # Cherokee
    signs |= {"ɔɟƃɾᴉ": "CFGJI"}  # upside down
    signs |= {"⠁⠃⠉⠙⠑⠋⠛⠓⠊⠚⠅⠇⠍⠝⠕⠏⠟⠗⠎⠞⠥⠧⠺⠭⠽⠵": ascii_uppercase}  # Braille
    signs |= {"€£¥¢©®ØŁßĐ": "ELYCCROLBD"}
    table = {}
    for group, letters in signs.items():
        for sign, letter in zip(group, letters, strict=True):
            table[ord(sign)] = letter
            if len(sign.upper()) == 1:
                table[ord(sign.upper())] = letter
    return table


LOOKALIKES = lookalikes()
TAGS = {0xE0000 + i: chr(i) for i in range(0x20, 0x7F)}  # an invisible copy of ASCII
TAGS |= {0xE00F0 + i: chr(i) for i in range(0x20, 0x7F)}  # variation selectors, one for each byte
INVISIBLE = re.compile(r"[\u200b-\u200f\u2060-\u2064\ufeff]")
MAX_GAP = 8  # words between two of many pieces of a code
MAX_SINGLE = 12  # single letters in a text, up to which they are read together wherever they stand
NO_LETTER = re.compile(r"[^A-Z]+")
WORD = re.compile(r"[A-Za-z]+")
APOSTROPHES = re.compile(r"['’]|(?<=X)-(?=RAY)")
FOLLOWERS = {  # which letters may follow a letter inside an English word
    row[0]: row[1:]
    for row in listed(
        "AABCDEFGHIJKLMNOPRSTUVWXYZ BABCDEGIJLMOPRSTUVY CACEHIJKLOPQRSTUVY DABCDEGHIJLMOPRSTUVWY"
        " EABCDEFGHIJKLMNOPQRSTUVWXYZ FAEFILNORSTUY GACEFGHILMNORSTUY HADEILMNORSTUWY"
        " IABCDEFGHJKLMNOPQRSTUVXYZ JAEIOSU KAEFGHILNOPSTUWY LABCDEFGHIKLMNOPSTUVWYZ MABDEILMNOPSUY"
        " NABCDEFGHIJKLMNOPRSTUVWYZ OABCDEFGHIJKLMNOPRSTUVWXYZ PACDEFGHILMOPRSTUY QU"
        " RABCDEFGHIKLMNOPRSTUVWYZ SABCDEFHIKLMNOPQRSTUVWYZ TABCDEFHIJLMNOPRSTUWXYZ"
        " UABCDEFGIKLMNOPRSTVX VAEIOSU WAEHILNORS XACEHIMPST YABCDEGILMNOPRSTUWYZ ZAEHILOSZ"
    )
}


def like_a_word(letters: str) -> bool:
    """Whether no pair of neighbours in `letters` is foreign to English.

    FOLLOWERS holds the pairs that occur in three or more of 8,000 frequent words. By it 97 % of the
    frequent words of six letters are like a word, and 15 % of random codes are.
    """
    neighbours = itertools.pairwise(letters.upper())
    return all(second in FOLLOWERS[first] for first, second in neighbours)


def unlike_words(words: Iterable[str]) -> list[str]:
    return [word for word in words if not like_a_word(word)]


def of_length(words: Iterable[str], shortest: int, longest: int) -> list[str]:
    return [word for word in words if shortest <= len(word) <= longest]


def only_letters(texts: Iterable[str]) -> list[str]:
    """Each text, which is in capitals, without anything that is no letter."""
    return [NO_LETTER.sub("", text) for text in texts]


Readings = tuple[tuple[str, Any], ...]


def read_once(reader: Callable[..., Iterator[tuple[str, Any]]]) -> Callable[..., Readings]:
    """`reader` with its last results kept, because each message is searched for two codes."""
    return functools.lru_cache(maxsize=32)(lambda *texts: tuple(reader(*texts)))


def disguise_of(code: str, text: str, depth: int = 2) -> str:
    """How `text` gives `code` away, in words; "" if it does not.

    These families are read:

    - any case, script and accent; invisible copies; leet; letters doubled or with others between;
    - pieces in order, at most MAX_GAP words apart; two or three pieces, or a few single letters,
      anywhere; backwards;
    - letters by place: the first to fourth, the middle or the last two of words, the first, second
      or last of lines and sentences, every second to fourth letter, numbered and marked letters;
    - letters by name: NATO, "bee", "the letter after P", Morse, Braille, telephone keys, squares;
    - numbers in figures, words, Roman, binary, octal or hexadecimal, counted from any start; the
      code as one number, as a hash, or in bits that invisible signs stand for;
    - six letters that stand alone, under every shift of the alphabet or of its mirror image, on
      neighbouring keys, or shuffled; five of the six letters in place;
    - base64, base32 and base85, also one inside another.

    Codes are drawn without regard to the text, so a false alarm needs a coincidence: paragraphs of
    documentation of 41 words on average gave 1 in 201,000 random codes, those of 357 words 1 in
    60,000. A text is read up to MAX_CHARACTERS. Nothing here reads ciphers with a longer key, or
    riddles.
    """
    text = text[:MAX_CHARACTERS]
    plain = latin(text)[:MAX_CHARACTERS]  # some signs become several letters
    for reader in (in_letters, in_pieces, in_numbers, in_signs, in_ciphers):
        how = reader(code, plain)
        if how:
            return how
    # What is left in the text itself, and not in its Latin form
    how = in_other_signs(code, text, plain)
    if how:
        return how
    if in_invisible_signs(code, text):
        return "in invisible signs"
    return in_encodings(code, text, depth)


def in_other_signs(code: str, text: str, plain: str) -> str:
    """How signs from a Russian keyboard, or signs turned upside down, spell the code."""
    if text.isascii():
        return ""
    typed = NO_LETTER.sub("", text.upper().translate(RUSSIAN_KEYS))
    if code in typed:
        return "on another keyboard"
    turned = NO_LETTER.sub("", plain[::-1].upper().translate(UPSIDE_DOWN))
    if code in turned:
        return "upside down"
    return ""


def in_encodings(code: str, text: str, depth: int) -> str:
    """How texts that `text` hides in encodings, up to `depth` layers deep, give the code away."""
    if depth == 0:
        return ""
    for encoding, decoded in decodings(text):
        how = disguise_of(code, decoded, depth - 1)
        if how:
            return f"{encoding}, {how}"
    return ""


@functools.lru_cache(maxsize=32)
def latin(text: str) -> str:
    """`text` without accents and invisible signs, and with Latin letters for their lookalikes."""
    bare = unicodedata.normalize("NFKD", text.translate(TAGS))
    characters = []
    for character in bare:
        if character.isascii():
            characters.append(character)
        elif unicodedata.category(character) not in ("Mn", "Me", "Cf"):
            characters.append(latin_letter(character))
    return "".join(characters)


@functools.lru_cache(maxsize=4096)
def latin_letter(sign: str) -> str:
    """The Latin letter that a sign outside ASCII looks like, in capitals; else the sign itself."""
    letter = sign.translate(LOOKALIKES).upper().translate(LOOKALIKES)
    if letter.isascii():
        return letter
    # Such as LATIN SMALL LETTER P WITH HOOK, or REGIONAL INDICATOR SYMBOL LETTER P.
    name = unicodedata.name(sign, "").partition(" WITH ")[0].split()
    if {"LATIN", "INDICATOR"}.intersection(name) and len(name[-1]) == 1:
        return name[-1]
    return letter


# -- letter for letter --

INITIALS = re.compile(r"[A-Z]++(?:['’-]++[A-Z]++)*+")
NUMBERED = re.compile(r"([0-9]{1,3})(?:ST|ND|RD|TH)?\W{1,3}(?:LETTER\W{1,3})?(?:IS )?\W?([A-Z])\b")
NEIGHBOUR = re.compile(
    r"\b(?:(AFTER|FOLLOWING|FOLLOWS|BEHIND)|BEFORE|PRECEDING|PRECEDES)(?: THE)?(?: LETTER)?"
    r"\W{1,3}([A-Z])\b"
)
MARKED = re.compile(r"[*_`~(\[{<>]([A-Z])[*_`~)\]}<>]")
SENTENCE = re.compile(r"[.!?…]+")
REPEATED = re.compile(r"([A-Z])\1+")


def in_letters(code: str, plain: str) -> str:
    """How the letters of `plain`, or those at certain places, spell the code."""
    how = spelt_by_letters(code, plain)
    if how:
        return how
    how = spelt_by_letters(code[::-1], plain)
    if how:
        return how + " backwards"
    return ""


def spelt_by_letters(target: str, plain: str) -> str:
    """How the letters of `plain`, or those at certain places, spell `target` from left to right."""
    upper = plain.upper()
    letters = NO_LETTER.sub("", upper)
    if target in letters or codecs.encode(target, "rot13") in letters:
        return "letter for letter"
    for how, reading in (*positions(plain), *transcriptions(upper, letters)):
        if target in reading:
            return how
    for word in strange_words(upper):
        if is_hidden_in(target, word):
            return "with letters between"
    return ""


@functools.lru_cache(maxsize=32)
def strange_words(upper: str) -> tuple[str, ...]:
    """The words of 7 to 14 letters that are not like a word."""
    words = of_length(WORD.findall(upper), 7, 14)
    return tuple(unlike_words(words))


def letters_at(place: int, words: Iterable[str]) -> str:
    """The letter at one place of each word that is long enough; a negative place counts from the
    end."""
    letters = []
    for word in words:
        if -len(word) <= place < len(word):
            letters.append(word[place])
    return "".join(letters)


@read_once
def positions(plain: str) -> Iterator[tuple[str, str]]:
    """(how, the letters that stand at certain places of a text)"""
    upper = plain.upper()
    yield "in capitals", NO_LETTER.sub("", plain)

    # Places in words
    words = INITIALS.findall(upper)
    initials = letters_at(0, words)
    yield "in first letters of words", initials
    yield "in last letters of words", letters_at(-1, words)
    yield "in middle letters of words", "".join(word[len(word) // 2] for word in words)
    yield "in last letters but one", letters_at(-2, words)
    yield "in marked letters", "".join(MARKED.findall(upper))
    for place, name in (1, "second"), (2, "third"), (3, "fourth"):
        yield f"in {name} letters of words", letters_at(place, words)
    for step in (2, 3, 4):
        for start in range(step):
            yield "in first letters of some words", initials[start::step]

    # Places in lines and sentences
    for part, end in ("lines", LINE_END), ("sentences", SENTENCE):
        pieces = only_letters(end.split(upper))
        yield f"in first letters of {part}", letters_at(0, pieces)
        yield f"in second letters of {part}", letters_at(1, pieces)
        yield f"in last letters of {part}", letters_at(-1, pieces)

    # Letters whose place the text names
    numbered = sorted(NUMBERED.findall(upper), key=lambda pair: int(pair[0]))
    yield "in numbered letters", "".join(letter for _, letter in numbered)
    neighbours = []
    for after, letter in NEIGHBOUR.findall(upper):
        step = 1 if after else -1
        neighbours.append(moved(letter, step))
    yield "in neighbours of letters", "".join(neighbours)


LINE_END = re.compile(r"\n")


@read_once
def transcriptions(upper: str, letters: str) -> Iterator[tuple[str, str]]:
    """(how, the letters of a text with others put in their place)"""
    # Signs that stand for a letter, or several that draw one
    drawn = upper
    for drawing, letter in LEET_DRAWINGS.items():
        drawn = drawn.replace(drawing, letter)
    for table in LEET_TABLES:
        yield "in leet", NO_LETTER.sub("", upper.translate(table))
        yield "in leet", NO_LETTER.sub("", drawn.translate(table))
    yield "in doubled letters", REPEATED.sub(r"\1", letters)

    # The rest is sought only in what stands together, not across the words of a sentence.
    for how, moved_text in (
        ("on keys further left", upper.translate(TO_THE_LEFT)),
        ("on keys further right", upper.translate(TO_THE_RIGHT)),
        ("in ROT47", upper.translate(ROT47).upper()),
        ("in ROT47", upper.lower().translate(ROT47).upper()),
    ):
        together = of_length(runs_of_signs(moved_text), 0, 8)
        yield how, " ".join(together)
    for run in runs_of_signs(upper):
        for step in (2, 3, 4):
            if len(run) <= 5 * step:
                break  # too short for six letters, and so for a larger step
            for start in range(step):
                yield f"in every letter but {step - 1}", run[start::step]


def runs_of_signs(text: str) -> list[str]:
    """The letters of each run without a space, and of each run of single signs between spaces."""
    chunks = CHUNK.findall(text)
    runs = only_letters(chunks)
    for single, group in itertools.groupby(chunks, key=lambda chunk: len(chunk) == 1):
        if single:
            runs.append(NO_LETTER.sub("", "".join(group)))
    return runs


def moved(letter: str, steps: int) -> str:
    """The letter `steps` places further on in the alphabet, where A follows Z."""
    return ascii_uppercase[(ascii_uppercase.index(letter) + steps) % 26]


def is_hidden_in(code: str, word: str) -> bool:
    """Whether the letters of `code` stand in `word` in order, with others between them."""
    start = 0
    for letter in code:
        start = word.find(letter, start) + 1
        if start == 0:
            return False
    return True


# -- pieces --

DOUBLE_U = re.compile(r"DOUBLE\W(?=(?:U|YOU)\b)")


def in_pieces(code: str, plain: str) -> str:
    """How words of `plain`, each a piece or the name of a letter, make up the code."""
    words = WORD.findall(APOSTROPHES.sub("", plain.upper()))
    pieces = [SPOKEN.get(word, word) for word in words]
    if consists_of(code, pieces):
        return "in pieces"
    if consists_of(code[::-1], pieces) or consists_of(code, pieces[::-1]):
        return "in pieces, backwards"
    if in_few_pieces(code, pieces, words_that_stand_out(plain)):
        return "in pieces"
    if in_single_letters(code, pieces):
        return "in single letters"
    if in_letter_names(code, plain):
        return "in names of letters"
    return ""


def in_single_letters(code: str, pieces: list[str]) -> bool:
    """Whether the code's letters stand alone, in order, and a text has few that do."""
    single = ""
    for piece in pieces:
        if len(piece) == 1 and piece in code:
            single += piece
    return len(single) <= MAX_SINGLE and is_hidden_in(code, single)


def in_letter_names(code: str, plain: str) -> bool:
    """Whether names such as "bee" spell the code, forwards or backwards."""
    names = DOUBLE_U.sub("DOUBLE", plain.upper())
    letters = []
    for word in WORD.findall(names):
        if word not in ("AND", "THEN"):
            letters.append(NAMED_LETTERS.get(word, word))
    return consists_of(code, letters, max_gap=2) or consists_of(code[::-1], letters, max_gap=2)


def consists_of(target: str, pieces: list[str], max_gap: int = MAX_GAP) -> bool:
    """Whether some pieces make up `target`, in order and each at most `max_gap` after the last."""
    last = {}  # number of letters made up -> where their last piece stands; the latest is the best
    for i, piece in enumerate(pieces):
        if len(piece) > len(target):
            continue
        # The longest beginning first, so that no piece is used twice
        for at in sorted(last, reverse=True):
            is_near = i - last[at] <= max_gap
            if is_near and target.startswith(piece, at):
                last[at + len(piece)] = i
        if target.startswith(piece):
            last[len(piece)] = i
    return len(target) in last


def in_few_pieces(code: str, pieces: list[str], marks: set[str]) -> bool:
    """Whether two pieces in any order, or three in order, make up `code`, however far apart.

    One of them must be among `marks`, the words that stand out, because a long text holds every
    word of two or three letters.
    """
    whole = set(pieces)
    # Two pieces
    for cut in range(1, len(code)):
        parts = {code[:cut], code[cut:]}
        if parts <= whole and parts & marks:
            return True

    # Three pieces
    for first, second in itertools.combinations(range(1, len(code)), 2):
        parts = {code[:first], code[first:second], code[second:]}
        if parts <= whole and parts & marks:
            candidates = [piece for piece in pieces if piece in parts]
            if consists_of(code, candidates, len(pieces)):
                return True
    return False


def words_that_stand_out(plain: str) -> set[str]:
    """The words of a text for which `stands_out` holds, in capitals."""
    found = set()
    for word in WORD.findall(plain):
        if stands_out(word):
            found.add(word.upper())
    return found


def stands_out(word: str) -> bool:
    """Whether a word of two letters or more is in capitals, or is not like a word."""
    return len(word) > 1 and (word.isupper() or not like_a_word(word))


# -- numbers --

FIGURES = re.compile(r"[0-9]+")
TWO_FIGURES = re.compile(r"[0-9][0-9]")
HEX_PAIRS = re.compile(r"(?:0x|\\[xu]|u\+|%|&#x)?(?:00)?([4-7][0-9a-f])")
LONE_HEX_PAIRS = re.compile(r"\b(?:0x)?([0-9a-f]{2})\b")
BITS = re.compile(r"[01]{5,}")
SEPARATOR = re.compile(r"(?<=[0-9])[,' _](?=[0-9]{3})")
HYPHEN = re.compile(r"\bTWENTY\W(?=[A-Z])")
DIGEST = re.compile(r"(?<![0-9a-f])[0-9a-f]{32,128}(?![0-9a-f])")
MAX_POSITION_DIGITS = 3  # longer numbers are no letters


def in_numbers(code: str, plain: str) -> str:
    """How numbers in `plain` are the letters of the code, or the code as one number."""
    upper = plain.upper()
    how = in_listed_numbers(code, upper)
    if how:
        return how
    pairs = HEX_PAIRS.findall(plain.lower())
    characters = "".join(chr(int(pair, 16)).upper() for pair in pairs)
    if code in characters or code[::-1] in characters:
        return "in hexadecimal"
    figures = set(FIGURES.findall(SEPARATOR.sub("", upper)))
    if figures & whole_numbers(code):
        return "as one number"
    if set(DIGEST.findall(plain.lower())) & digests(code):
        return "as a hash"
    return ""


def in_listed_numbers(code: str, upper: str) -> str:
    """How six numbers that go up and down as the code does are listed in a text.

    Where counting begins is left open.
    """
    targets = ciphers(code)
    for how, numbers in number_readings(upper):
        letters = letters_of(numbers)
        for i in range(len(letters) - 5):
            if letters[i : i + 6] in targets:
                return how
    return ""


def letters_of(numbers: Iterable[int | None]) -> str:
    """The letters with these numbers, A being 0 and coming again after Z; a space for None."""
    letters = []
    for number in numbers:
        if number is None:
            letters.append(" ")
        else:
            letters.append(ascii_uppercase[number % 26])
    return "".join(letters)


@read_once
def number_readings(upper: str) -> Iterator[tuple[str, list[int | None]]]:
    """(how, the numbers that a text lists); None stands for one that is too long for a letter"""
    # Numbers in figures, in three bases
    figures = FIGURES.findall(upper)
    numbers = numbers_from(figures)
    yield "in numbers", numbers
    for start in (0, 1):
        yield "in every other number", numbers[start::2]
    octal = [digits for digits in of_length(figures, 2, 3) if not set(digits) & {"8", "9"}]
    yield "in octal", numbers_from(octal, base=8)
    yield "in hexadecimal", numbers_from(LONE_HEX_PAIRS.findall(upper.lower()), base=16)

    # Numbers of equal length, written without spaces
    long_figures = [digits for digits in figures if len(digits) >= 12]
    pairs = TWO_FIGURES.findall("".join(long_figures))
    yield "in pairs of digits", numbers_from(pairs)
    runs = BITS.findall(upper)
    yield "in binary", numbers_from(runs, base=2, max_digits=8)
    bits = "".join(runs)
    for width in (5, 7, 8):
        starts = range(0, len(bits) - width + 1, width)
        chunks = [bits[start : start + width] for start in starts]
        yield "in binary", numbers_from(chunks, base=2, max_digits=8)

    # Numbers in words and in Roman figures
    words = WORD.findall(HYPHEN.sub("TWENTY", upper))
    yield "in numbers in words", known_numbers(words, NUMBER_WORDS)
    yield "in Roman numbers", known_numbers(words, ROMAN)


def numbers_from(
    figures: Iterable[str], base: int = 10, max_digits: int = MAX_POSITION_DIGITS
) -> list[int | None]:
    """The numbers that are written in `figures`; None for one of more than `max_digits` digits."""
    numbers: list[int | None] = []
    for digits in figures:
        if len(digits) <= max_digits:
            numbers.append(int(digits, base))
        else:
            numbers.append(None)
    return numbers


def known_numbers(words: Iterable[str], table: dict[str, int]) -> list[int]:
    return [table[word] for word in words if word in table]


def whole_numbers(code: str) -> set[str]:
    """The code as one number, in the ways that somebody may count it."""
    places = [ascii_uppercase.index(letter) for letter in code]
    found = {
        "".join(str(place + 1) for place in places),
        "".join(str(ord(letter)) for letter in code),
    }
    for text in (code, code[::-1]):
        found.add(str(int(text, 36)))
        for form in (text, text.lower()):
            found.add(str(int.from_bytes(form.encode())))
        for first in (0, 1):
            total = 0
            for letter in text:
                total = 26 * total + ascii_uppercase.index(letter) + first
            found.add(str(total))
    return found


def digests(code: str) -> set[str]:
    """Hashes of the code; six letters are found from them in seconds."""
    found = set()
    for name in ("md5", "sha1", "sha224", "sha256", "sha384", "sha512"):
        for form in (code, code.lower()):
            found.add(hashlib.new(name, form.encode()).hexdigest())
    return found


def in_invisible_signs(code: str, text: str) -> bool:
    """Whether the invisible signs of a text, of which there are two kinds, are the code in bits."""
    signs = "".join(INVISIBLE.findall(text))
    kinds = sorted(set(signs))
    if len(kinds) != 2:
        return False
    bits = signs.translate(str.maketrans("".join(kinds), "01"))
    turned = bits.translate(str.maketrans("01", "10"))
    return bool(in_numbers(code, bits) or in_numbers(code, turned))


# -- signs --

DASHES = str.maketrans(dict.fromkeys("–—−‒_", "-") | dict.fromkeys("·•∙●*", "."))
MORSE_WORDS = (  # a letter's words are joined by hyphens, or by spaces
    re.compile(r"\b(?:(DOT|DIT|DI)|(DASH|DAH))\b-?"),
    re.compile(r"\b(?:(DOT|DIT|DI)|(DASH|DAH))\b(?: (?=(?:DOT|DIT|DI|DASH|DAH)\b))?"),
)
MORSE_TOKEN = re.compile(r"(?<![.-])[.-]{1,4}(?![.-])")
MORSE_RUN = re.compile(r"[.-]{10,}")
KEYS = re.compile(r"(?<!\d)([2-9])(\1{0,3})(?!\d)")
SQUARE = re.compile(r"[1-5][1-5]")
SQUARE_TOKEN = re.compile(r"(?<!\d)(?:[1-5][ ,-]?[1-5])(?!\d)|(?<!\d)(?:[1-5][1-5]){6,}(?!\d)")
TWO_SIGNS = re.compile(r"\b[AB]{5,}\b")


def in_signs(code: str, plain: str) -> str:
    """How signs in `plain` that are neither letters nor their numbers spell the code."""
    # Squares and Bacon's cipher have one sign for two letters.
    targets = {
        code,
        code.replace("J", "I"),
        code.replace("K", "C"),
        code.replace("J", "I").replace("V", "U"),
    }
    targets |= {target[::-1] for target in targets}
    for how, reading in sign_readings(plain.upper()):
        if any(target in reading for target in targets):
            return how

    # Morse without spaces between the letters
    signs = {letter: sign for sign, letter in MORSE.items()}
    unspaced = "".join(signs[letter] for letter in code)
    for run in MORSE_RUN.findall(plain.translate(DASHES)):
        if unspaced in run:
            return "in Morse"
    return ""


@read_once
def sign_readings(upper: str) -> Iterator[tuple[str, str]]:
    """(how, the letters that the signs of a text stand for)"""
    # Morse, in signs or in words
    texts = [upper.translate(DASHES)]
    for pattern in MORSE_WORDS:
        texts.append(pattern.sub(lambda match: "." if match[1] else "-", upper))
    for text in texts:
        yield "in Morse", "".join(MORSE.get(token, " ") for token in MORSE_TOKEN.findall(text))

    # A key that is pressed one to four times
    pressed = []
    for digit, more in KEYS.findall(upper):
        pressed.append(letter_or_space(KEYPAD[int(digit) - 2], len(more)))
    yield "on telephone keys", "".join(pressed)

    # Cells of a square: row and column, or column and row
    tokens = [NO_FIGURE.sub("", token) for token in SQUARE_TOKEN.findall(upper)]
    cells = SQUARE.findall("".join(tokens))
    for square in (POLYBIUS, TAP_CODE):
        yield "in a square", "".join(square[5 * int(cell[0]) + int(cell[1]) - 6] for cell in cells)
        yield "in a square", "".join(square[5 * int(cell[1]) + int(cell[0]) - 6] for cell in cells)

    # Five signs of two kinds for each letter
    bits = "".join(TWO_SIGNS.findall(upper)).translate(str.maketrans("AB", "01"))
    fives = [int(bits[i : i + 5], 2) for i in range(0, len(bits) - 4, 5)]
    for alphabet in (ascii_uppercase, BACON):
        yield "in Bacon's cipher", "".join(letter_or_space(alphabet, n) for n in fives)


def letter_or_space(alphabet: str, place: int) -> str:
    """The letter at a place of `alphabet`; a space beyond its end."""
    if place < len(alphabet):
        return alphabet[place]
    return " "


NO_FIGURE = re.compile(r"\D+")

# -- ciphers --

SEGMENT_END = re.compile(r"[.,:;!?=\n\"“”'‘’`()\[\]{}<>*|]+")
SPELT_OUT = re.compile(r"(?<![A-Z])[A-Z](?:[^A-Z\d]{1,3}[A-Z](?![A-Z]))+")
CHUNK = re.compile(r"\S+")


@functools.lru_cache(maxsize=32)
def ciphers(code: str) -> frozenset[str]:
    """The code under every shift of the alphabet and of its mirror image (Caesar, Atbash).

    Each is there forwards and backwards.
    """
    places = [ascii_uppercase.index(letter) for letter in code]
    found = set()
    for turn in (1, -1):
        for shift in range(26):
            moved_code = letters_of([turn * place + shift for place in places])
            found |= {moved_code, moved_code[::-1]}
    for step in (1, -1):  # every letter one step further than the letter before
        for first in (0, 1):
            steps = [place + step * (i + first) for i, place in enumerate(places)]
            found.add(letters_of(steps))
    return frozenset(found)


def shuffles(code: str) -> set[str]:
    """The code rotated, with neighbours swapped, by odd and even letters, with halves reversed."""
    found = {code[i:] + code[:i] for i in range(len(code))}
    found |= {code[1] + code[0] + code[3] + code[2] + code[5] + code[4]}
    found |= {code[::2] + code[1::2], code[1::2] + code[::2], code[:3][::-1] + code[3:][::-1]}
    return found


def in_ciphers(code: str, plain: str) -> str:
    """How letters that stand alone in `plain` are the code: in a cipher, shuffled, or almost."""
    alone, strange = standing_alone(plain)
    if alone & ciphers(code):
        return "in a cipher that moves the alphabet"
    if alone & shuffles(code):
        return "shuffled"
    # The rest is so near to many words that it counts only in what is not like a word.
    in_order = sorted(code)
    for letters in strange:
        if sorted(letters) == in_order:
            return "as an anagram"
        if is_almost(code, letters) or is_almost(code, letters[::-1]):
            return "but for one letter"
    return ""


@functools.lru_cache(maxsize=32)
def standing_alone(plain: str) -> tuple[frozenset[str], frozenset[str]]:
    """(six letters that stand alone, five or six of them that are not like a word), in capitals."""
    upper = plain.upper()
    words = WORD.findall(upper)
    spelt = only_letters(SPELT_OUT.findall(upper))
    segments = only_letters(SEGMENT_END.split(upper))
    chunks = only_letters(CHUNK.findall(upper))
    six = of_length([*words, *spelt, *segments, *chunks], 6, 6)
    six += joined(standing_out(plain), 6)
    short = of_length([*words, *spelt, *chunks], 5, 6)
    return frozenset(six), frozenset(unlike_words(short))


def standing_out(plain: str) -> list[str]:
    """The words of a text that are written in capitals or hold no vowel, in order, in capitals."""
    found = []
    for word in WORD.findall(plain):
        upper = word.upper()
        if word.isupper() or not set(upper) & set("AEIOUY"):
            found.append(upper)
    return found


def joined(pieces: list[str], length: int) -> Iterator[str]:
    """Every run of neighbouring pieces that has `length` letters."""
    for start in range(len(pieces)):
        run = ""
        for piece in pieces[start : start + length]:
            run += piece
            if len(run) >= length:
                break
        if len(run) == length:
            yield run


def is_almost(code: str, letters: str) -> bool:
    """Whether `letters` is `code` with one letter left out or replaced."""
    if len(letters) == len(code):
        differing = sum(a != b for a, b in zip(code, letters, strict=True))
        return differing <= 1
    shortened = [code[:i] + code[i + 1 :] for i in range(len(code))]
    return letters in shortened


# -- encodings --

BASE64_RUN = re.compile(r"[A-Za-z0-9+/_-]{8,}")
BASE32_RUN = re.compile(r"[A-Z2-7]{10,}")
BASE85_RUN = re.compile(r"[!-~]{7,}")
READABLE = re.compile(r"[\n -~]{6,}")


@read_once
def decodings(text: str) -> Iterator[tuple[str, str]]:
    """(encoding, hidden text) for each encoding: the readable parts of all runs that may be in it.

    A hidden text is shorter than the text that hides it, and `disguise_of` goes two layers deep, so
    the length of the text bounds the work.
    """
    for encoding, decoder, runs in (
        ("in base64", from_base64, BASE64_RUN.findall(text)),
        ("in base32", from_base32, BASE32_RUN.findall(text.upper())),
        ("in base85", base64.b85decode, BASE85_RUN.findall(text)),
        ("in Ascii85", from_ascii85, BASE85_RUN.findall(text)),
    ):
        hidden = readable_parts(decoder, runs)
        if hidden:
            yield encoding, "\n".join(hidden)


def readable_parts(decoder: Callable[[str], bytes], runs: list[str]) -> list[str]:
    """The readable parts of what runs hold, each read with and without the marks around it."""
    bare = [run.strip("\"'`()[]<>~.,:;!?") for run in runs]
    parts = []
    for run in dict.fromkeys([*runs, *bare]):
        try:
            parts += READABLE.findall(decoder(run).decode("latin-1"))
        except ValueError:  # not in this encoding
            continue
    return parts


def from_ascii85(run: str) -> bytes:
    return base64.a85decode(run.removeprefix("<~").partition("~>")[0])


def from_base64(run: str) -> bytes:
    run = run.replace("-", "+").replace("_", "/")
    usable = len(run) - (len(run) % 4 == 1)
    return base64.b64decode(run[:usable] + "=" * (-usable % 4))


def from_base32(run: str) -> bytes:
    usable = len(run)
    while usable % 8 not in (0, 2, 4, 5, 7):  # no whole number of bytes
        usable -= 1
    return base64.b32decode(run[:usable] + "=" * (-usable % 8))
