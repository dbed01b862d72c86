"""How a program defines a function: python -I -S definitions.py NAME < program

This runs in a process of its own, because deep nesting can exhaust the parser and end the process
that parses. It prints one word:

    documented    NAME is a function, method or class of the program, with a docstring
    undocumented  NAME is one of these, without a docstring
    lambda        NAME is a lambda expression, which cannot have a docstring
    absent        NAME is no function of the program (`NAME = sorted`), or code in a string is run
"""

import ast
import sys
from collections.abc import Iterator

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
MAX_ALIASES = 10  # aliases of aliases that are followed


def verdict(program: str, name: str) -> str:
    """One of the four words above.

    Raises:
        SyntaxError, RecursionError, MemoryError: if the program cannot be parsed.
    """
    tree = ast.parse(program)
    bindings = dict(bound_names(tree.body))
    definition = defined_as(bindings.get(name), bindings)
    if definition is None or runs_text(tree):
        return "absent"
    if isinstance(definition, ast.Lambda):
        return "lambda"
    docstring = ast.get_docstring(definition) or ""
    if any(map(str.isalnum, docstring)):
        return "documented"
    return "undocumented"


def bound_names(statements: list[ast.stmt]) -> Iterator[tuple[str, ast.AST]]:
    """(name, definition or value) of each binding at the top level, in order, blocks included."""
    for statement in statements:
        if isinstance(statement, Definition):
            yield statement.name, statement
            continue
        yield from assigned_names(statement)
        # The blocks of if, try, match, with, for and while belong to the top level too.
        for block in ("body", "handlers", "cases", "orelse", "finalbody"):
            yield from bound_names(getattr(statement, block, []))


def assigned_names(statement: ast.stmt) -> Iterator[tuple[str, ast.expr]]:
    """(name, value) of each plain name that an assignment binds; nothing of other statements."""
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
        targets = [statement.target]
    else:
        return
    for target in targets:
        if isinstance(target, ast.Name):
            yield target.id, statement.value


def defined_as(
    value: ast.AST | None, bindings: dict[str, ast.AST], aliases: int = MAX_ALIASES
) -> Definition | ast.Lambda | None:
    """The definition in the program that a value comes down to; None if there is none.

    Followed are aliases (`g`), methods (`C.g`, `C().g`), instances of a class with `__call__`,
    functions that wrap one (`cache(g)`, `partial(g, 2)`) and functions that make one (`make(3)`).
    """
    if isinstance(value, Definition | ast.Lambda):
        return value
    if value is None or aliases == 0:
        return None
    for candidate in sources_of(value, bindings):
        definition = defined_as(candidate, bindings, aliases - 1)
        if definition is not None:
            return definition
    return None


def sources_of(value: ast.AST, bindings: dict[str, ast.AST]) -> list[ast.AST | None]:
    """What an expression may get its function from, the likeliest first."""
    match value:
        case ast.Name(name):
            return [bindings.get(name)]
        case ast.Attribute(ast.Name(owner) | ast.Call(ast.Name(owner)), attribute):
            return [method(bindings.get(owner), attribute)]
        case ast.Call(ast.Name(owner)) if isinstance(bindings.get(owner), ast.ClassDef):
            return [method(bindings[owner], "__call__")]
        case ast.Call(function, arguments):
            return [*arguments[:1], function]
        case _:
            return []


def method(owner: ast.AST | None, name: str) -> ast.AST | None:
    if not isinstance(owner, ast.ClassDef):
        return None
    return dict(bound_names(owner.body)).get(name)


def runs_text(tree: ast.Module) -> bool:
    """Whether the program names `exec`, or `eval` or `compile` outside of every function."""
    if any(is_name(node, {"exec"}) for node in ast.walk(tree)):
        return True
    outside: list[ast.AST] = [tree]
    while outside:
        node = outside.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if is_name(node, {"eval", "compile"}):
            return True
        outside += ast.iter_child_nodes(node)
    return False


def is_name(node: ast.AST, names: set[str]) -> bool:
    return isinstance(node, ast.Name) and node.id in names


if __name__ == "__main__":
    print(verdict(sys.stdin.buffer.read().decode(errors="replace"), sys.argv[1]))
