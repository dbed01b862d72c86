"""The forms of files: each is read row by row, and each row has a place, as in "a.jsonl:7".

JSON and CSV are read here, not by the readers of `datasets`: those turn dates, `007` and `NA` into
other values, fill short lines with nothing, and name no line. What a row says is what a task gets,
or it is refused with its line. JSON is read as RFC 8259 has it, and its advice is a rule here:
names are unique, and every text is Unicode. https://www.rfc-editor.org/rfc/rfc8259

A CSV has no types: its values are texts, and an empty field is none.
https://www.rfc-editor.org/rfc/rfc4180

The endings .gz, .bz2 and .zst (.zstd) may follow those of every form.
"""

import csv
import functools
import io
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.data.mistakes import RowMistake

Placed = Iterator[tuple[str, Any]]  # (place, row), the row being a RowMistake if it cannot be read

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".zstd": "zstd"}
DELIMITERS = ",;\t"
PARQUET_BATCH = 1000  # rows that are read at once
BYTES = (pa.binary(), pa.large_binary())  # what some writers keep texts as
# Marks of files whose texts have two or four bytes a letter
WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
SAVE_AS_UTF_8 = "save the file as UTF-8"


def read_file(path: Path, shown: str) -> Placed:
    """The rows of a file, in the form that its name says; any other name stands for JSON lines.

    Args:
        shown: the file's name in messages.

    Raises:
        ValueError: if the file cannot be read at all.
    """
    ending, compression = endings(path)
    read = FORMATS.get(ending, read_json_lines)
    try:
        yield from read(path, compression, shown)
    except (OSError, EOFError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"data: {shown} cannot be read: {reason}") from error


def endings(path: Path | str) -> tuple[str, str | None]:
    """(form, compression) that a name ends in: (".jsonl", "gzip") of a.jsonl.gz."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in COMPRESSIONS:
        return Path(path.stem).suffix.lower(), COMPRESSIONS[suffix]
    return suffix, None


def count_rows(path: Path, limit: int) -> int:
    """Rows of a file, counted without reading them; no further than somewhat above `limit`.

    Lines are counted for a text, so it may be more than there are.
    """
    ending, compression = endings(path)
    try:
        if ending == ".parquet":
            return open_parquet(path, compression).metadata.num_rows
        lines = 0
        with open_bytes(path, compression) as file:
            while lines <= limit and (block := file.read(1 << 20)):
                lines += block.count(b"\n")
        return lines
    except (OSError, EOFError, pa.ArrowException):
        return 0  # reading it will say what is wrong


def open_bytes(path: Path, compression: str | None) -> io.BufferedIOBase:
    if compression is None:
        return path.open("rb")
    return io.BufferedReader(pa.input_stream(str(path), compression=compression))


# ---- JSON


def read_json_lines(path: Path, compression: str | None, shown: str) -> Placed:
    with open_bytes(path, compression) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            place = f"{shown}:{number}"
            if number == 1 and line.startswith(WIDE_MARKS):
                yield place, RowMistake(f"not UTF-8 but UTF-16 or UTF-32; {SAVE_AS_UTF_8}")
                return
            yield place, read_line(line)


def read_line(line: bytes) -> Any:
    """The value of a line of JSON, or the mistake in its place."""
    try:
        return parse(line.decode("utf-8-sig"), decoder().decode)
    except UnicodeDecodeError as error:
        return not_utf_8(line[error.start], error.start)
    except RowMistake as mistake:
        return mistake


def read_json(path: Path, compression: str | None, shown: str) -> Placed:
    """The items of a list, each with the line in which it begins; of anything else, its lines."""
    with open_bytes(path, compression) as file:
        start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"["):
        yield from read_json_lines(path, compression, shown)
        return
    with open_bytes(path, compression) as file:
        content = file.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - content.rfind(b"\n", 0, error.start) - 1
        yield f"{shown}:{line}", not_utf_8(content[error.start], column)
        return
    yield from read_items(text, shown)


def read_items(text: str, shown: str) -> Placed:
    """The items of the list that `text` is. A mistake in its syntax ends it."""
    line, counted = 1, 0
    at = skip_space(text, skip_space(text, 0) + 1)
    while at < len(text) and text[at] != "]":
        line += text.count("\n", counted, at)
        counted = at
        place = f"{shown}:{line}"
        try:
            value, at = parse(text, decoder().raw_decode, at)
        except RowMistake as mistake:
            yield place, mistake
            return
        yield place, value
        at = skip_space(text, at)
        if text[at : at + 1] not in (",", "]"):
            yield place, RowMistake("not JSON: a comma or ] is missing after this item")
            return
        if text[at] == ",":
            at = skip_space(text, at + 1)
    if at >= len(text):
        yield f"{shown}:{text.count(chr(10)) + 1}", RowMistake("not JSON: the list has no end")


def skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def parse(text: str, decode: Callable[..., Any], *start: int) -> Any:
    """What `decode` makes of a JSON text.

    Raises:
        RowMistake: if it is no JSON, or says something that no reader can be sure of.
    """
    try:
        value = decode(text, *start)
    except RowMistake:
        raise
    except json.JSONDecodeError as error:
        where = f"column {error.colno}"
        if start:
            where = f"line {error.lineno}, {where}"
        raise RowMistake(f"not JSON: {error.msg} at {where}", f"not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise RowMistake(f"not JSON: {error}", "not JSON") from error
    # Only an escape can write what UTF-8 cannot
    if "\\u" in text:
        found = value[0] if start else value
        check_texts(found)
    return value


def check_texts(value: Any) -> None:
    """Refuse half letters and the letter NUL, in every text of a value.

    Raises:
        RowMistake: which shows the letter.
    """
    for text in texts_in(value):
        check_text(text)


def check_text(text: str) -> None:
    """The same for one text."""
    if "\0" in text:
        raise RowMistake("a text holds the letter NUL (\\u0000)")
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise RowMistake(
            f"a text holds {half}, half of a letter without the other half (a lone surrogate)",
            "lone surrogate",
        ) from None


def texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from texts_in(key)
            yield from texts_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts_in(item)


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, of which Python would keep the last of two equal names."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RowMistake(f"the name {twice!r} is there twice in one object")
    return found


def no_number(text: str) -> Any:
    raise RowMistake(f"not JSON: {text} is no number of JSON; null stands for none")


def finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise RowMistake(f"the number {text} is too large for a float", "too large for a float")
    return value


@functools.cache
def decoder() -> json.JSONDecoder:
    """What reads JSON. No global: `datasets` pickles what a streaming function refers to."""
    return json.JSONDecoder(
        parse_constant=no_number, parse_float=finite, object_pairs_hook=unique_names
    )


def not_utf_8(byte: int, start: int) -> RowMistake:
    return RowMistake(
        f"not UTF-8: byte 0x{byte:02x} at column {start + 1}; {SAVE_AS_UTF_8}", "not UTF-8"
    )


# ---- CSV


def read_csv(path: Path, compression: str | None, shown: str) -> Placed:
    """The rows of a CSV, whose first line names the columns."""
    csv.field_size_limit(sys.maxsize)
    with open_bytes(path, compression) as file:
        first = file.readline()
        if first.startswith(WIDE_MARKS):
            raise ValueError(f"data: {shown} is UTF-16 or UTF-32; {SAVE_AS_UTF_8}")
        # A byte that is no UTF-8 becomes a half letter, which is found in its row.
        lines = (
            line.decode("utf-8", errors="surrogateescape")
            for line in itertools.chain([first.removeprefix(b"\xef\xbb\xbf")], file)
        )
        counts = {letter: first.count(letter.encode()) for letter in DELIMITERS}
        delimiter = max(DELIMITERS, key=counts.get)  # a comma where there is none of them
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        yield from read_records(reader, shown)


def read_records(reader: Any, shown: str) -> Placed:
    header = read_header(reader, shown)
    while header:
        place = f"{shown}:{reader.line_num + 1}"
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield place, RowMistake(f"not CSV: {error}")
            continue
        if fields:
            yield place, record(header, fields)


def read_header(reader: Any, shown: str) -> list[str]:
    """The names of the columns; none of an empty file.

    Raises:
        ValueError: if they cannot name columns.
    """
    try:
        header = [name.strip() for name in next(reader, [])]
        check_fields(header)
    except (csv.Error, RowMistake) as error:
        raise ValueError(f"data: {shown}:1: {error}") from error
    for name in header:
        if not name:
            raise ValueError(f"data: {shown}:1: column {header.index(name) + 1} has no name")
        if header.count(name) > 1:
            raise ValueError(f"data: {shown}:1: two columns are called {name!r}")
    return header


def record(header: list[str], fields: list[str]) -> dict[str, str | None] | RowMistake:
    """The row of a line, or the mistake in its place."""
    if len(fields) != len(header):
        return RowMistake(
            f"fields: {len(fields)}, but the header names {len(header)} columns",
            "fields",
            "a field with a comma, a quote or a line break in it needs quotes",
        )
    try:
        check_fields(fields)
    except RowMistake as mistake:
        return mistake
    return {name: field or None for name, field in zip(header, fields, strict=True)}


def check_fields(fields: Iterable[str]) -> None:
    """Raises:
    RowMistake: for a field that was no UTF-8, or holds NUL.
    """
    for field in fields:
        if "\0" in field:
            raise RowMistake("a text holds the letter NUL")
        if not field.isascii():
            half = next((letter for letter in field if "\udc80" <= letter <= "\udcff"), None)
            if half is not None:
                raise RowMistake(
                    f"not UTF-8: byte 0x{ord(half) - 0xDC00:02x} in a field; {SAVE_AS_UTF_8}",
                    "not UTF-8",
                )


# ---- Parquet


def read_parquet(path: Path, compression: str | None, shown: str) -> Placed:
    """The rows of a Parquet file, numbered from 1."""
    file = open_parquet(path, compression)
    names = file.schema_arrow.names
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"data: {shown}: two columns are called {name!r}")
    # Bytes, so that a text that is no UTF-8 spoils its own row alone
    types = {field.name: field.type for field in file.schema_arrow}
    texts = {name for name, kind in types.items() if kind in (pa.string(), pa.large_string())}
    maybe_texts = texts | {name for name, kind in types.items() if kind in BYTES}
    number = 0
    for batch in file.iter_batches(PARQUET_BATCH):
        columns = [
            column.cast(pa.large_binary()) if name in texts else column
            for name, column in zip(names, batch.columns, strict=True)
        ]
        try:
            rows = pa.RecordBatch.from_arrays(columns, names).to_pylist()
        except UnicodeDecodeError as error:  # in lists and the like
            raise ValueError(
                f"data: {shown}: a text of the rows from {number + 1} on is not UTF-8"
            ) from error
        for row in rows:
            number += 1
            yield f"{shown}:{number}", decoded(row, maybe_texts, texts)


def decoded(row: dict[str, Any], names: Iterable[str], texts: Iterable[str]) -> Any:
    """A row with texts in place of bytes, or the mistake in its place.

    Args:
        names: columns that hold bytes.
        texts: of these, the columns that must be texts. Other bytes may be something else.
    """
    for name in names:
        if row[name] is None:
            continue
        try:
            row[name] = row[name].decode("utf-8")
        except UnicodeDecodeError as error:
            if name in texts:
                byte = row[name][error.start]
                return RowMistake(f"not UTF-8: byte 0x{byte:02x} in {name}", "not UTF-8")
    return row


def open_parquet(path: Path, compression: str | None) -> pq.ParquetFile:
    if compression is None:
        return pq.ParquetFile(path)
    # Parquet is read from its end, and a compressed file from its start only
    with open_bytes(path, compression) as file:
        return pq.ParquetFile(pa.BufferReader(file.read()))


FORMATS: dict[str, Callable[[Path, str | None, str], Placed]] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
}
