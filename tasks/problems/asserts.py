"""Tests that are given as Python. They are read, never run: the expected value must not reach the
program that is tested.

    assert f(1, [2]) == 3        also `is`, `not f(...)`, bare `f(...)`, and the value first
    assert f(n=1) == 3, "why"    where the parameters of the function are known
    assert Solution().f(1) == 3  a method
"""

import ast
from collections.abc import Iterator, Sequence
from typing import Any

FORM = "`assert f(literals) == literal`"


def read_assert(line: str, parameters: Sequence[str] = ()) -> tuple[str, list, Any]:
    """(function, arguments, expected) of one assert line.

    Args:
        parameters: of the function, in order, for arguments that are given by name.

    Raises:
        ValueError: for any other line.
    """
    statements = parsed(line)
    call, value = call_and_value(statements)
    if isinstance(call, ast.Call):
        try:
            arguments = [ast.literal_eval(argument) for argument in ordered(call, parameters)]
            return function_of(call.func), arguments, ast.literal_eval(value)
        except ValueError:
            pass
    raise ValueError(
        f"{line!r:.300} is not of the form {FORM}; write the test as [[arguments], expected]"
    )


def parsed(text: str) -> list[ast.stmt]:
    try:
        return ast.parse(text.strip()).body
    except (SyntaxError, RecursionError, MemoryError, ValueError) as error:
        raise ValueError(f"{text!r:.300} cannot be parsed: {error}") from error


def call_and_value(statements: list[ast.stmt]) -> tuple[ast.expr | None, ast.expr | None]:
    """What an assert line calls and the value that it expects; (None, None) for other lines."""
    match statements:
        case [ast.Assert(ast.Compare(left, [ast.Eq() | ast.Is()], [right]))]:
            if isinstance(left, ast.Call):
                return left, right
            return right, left
        case [ast.Assert(ast.UnaryOp(ast.Not(), call))]:
            return call, ast.Constant(False)
        case [ast.Assert(call)]:
            return call, ast.Constant(True)
        case _:
            return None, None


def function_of(function: ast.expr) -> str:
    """The name of what is called: a function, or a method of a fresh Solution."""
    match function:
        case ast.Name(name):
            return name
        case ast.Attribute(ast.Call(ast.Name("Solution"), [], []), name):
            return name
    raise ValueError


def ordered(call: ast.Call, parameters: Sequence[str]) -> list[ast.expr]:
    """The arguments of a call by position.

    Raises:
        ValueError: if one is given by a name that is not the next parameter's.
    """
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    following = list(parameters)[len(call.args) :][: len(named)]
    if set(following) != set(named) or len(named) < len(call.keywords):
        raise ValueError
    return [*call.args, *(named[name] for name in following)]


def split_asserts(text: str, candidate: str | None = None) -> list[str]:
    """The assert lines of a text: at its top level, and in the functions that it defines, as in
    `def check(candidate)`.

    Args:
        candidate: what the tests call `candidate`; None: nothing.

    Raises:
        ValueError: if it holds other tests: a loop, a value that is worked out first, or none.
    """
    lines = []
    for statement in statements_of(parsed(text)):
        if not isinstance(statement, ast.Assert):
            raise ValueError(
                f"{ast.unparse(statement)!r:.300} is not of the form {FORM}, and a test may depend "
                "on it"
            )
        if not isinstance(statement.test, ast.Constant):  # `assert True` tests nothing
            bare = ast.Assert(renamed(statement.test, candidate))
            lines.append(ast.unparse(ast.fix_missing_locations(bare)))
    if not lines:
        raise ValueError("there is no assert line in it")
    return lines


def statements_of(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """What a text of tests does, without what tests nothing: imports, docstrings, METADATA, and the
    call of its own check."""
    for statement in body:
        match statement:
            case ast.Import() | ast.ImportFrom() | ast.Pass():
                pass
            case ast.Expr(ast.Constant()) | ast.Assign([ast.Name("METADATA")]):
                pass
            case ast.Expr(ast.Call(ast.Name("check"))):
                pass
            case ast.FunctionDef():
                yield from statements_of(statement.body)
            case _:
                yield statement


def renamed(test: ast.expr, candidate: str | None) -> ast.expr:
    if candidate:
        for node in ast.walk(test):
            if isinstance(node, ast.Name) and node.id == "candidate":
                node.id = candidate
    return test
