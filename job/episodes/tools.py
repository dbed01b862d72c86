"""Which functions the completion of a row may call, what the model is told of them, and whether the
arguments of a call fit.

Their docstrings and typed arguments are what transformers' `get_json_schema` and TRL's `tools=`
expect: https://huggingface.co/docs/transformers/chat_extras#passing-tools
"""

import inspect
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tasks
from job.episodes.interpreter import Interpreter, ToolError
from sandbox import Sandbox

Tool = Callable[..., Any]
# Methods of an Environment that the model cannot call
OWN_METHODS = ("reset", "grade", "reply", "hear", "close", "done")


def methods_of(environment: Any) -> list[Tool]:
    """The methods of an Environment that the model may call, in the order of its class."""
    found = []
    for name in dict.fromkeys(
        name for kind in reversed(type(environment).__mro__) for name in vars(kind)
    ):
        if name.startswith("_") or name in OWN_METHODS:
            continue
        if inspect.isfunction(inspect.getattr_static(environment, name)):
            found.append(getattr(environment, name))
    return found


def tools_of(
    row: Mapping[str, Any],
    options: tasks.Options,
    environment: Any | None,
    interpreter: Interpreter | None,
) -> dict[str, Tool]:
    """All that the completion of a row may call, by name.

    Raises:
        ValueError: if two have the same name.
    """
    task = tasks.load(options.type)
    found: list[Tool] = []
    if environment is not None:
        found += methods_of(environment)
    if hasattr(task, "tools"):
        found += task.tools(row, options)
    if interpreter is not None:
        found.append(interpreter.python)
    by_name = {tool.__name__: tool for tool in found}
    if len(by_name) < len(found):
        names = [tool.__name__ for tool in found]
        raise ValueError(f"{options.type}: two tools have the same name, among {', '.join(names)}")
    return by_name


def schemas(row: Mapping[str, Any], options: tasks.Options) -> list[dict[str, Any]]:
    """What a chat template is told of the tools of a row, as JSON schemas. Nothing is started.

    Raises:
        ValueError: if a docstring or a type is missing.
    """
    from transformers.utils import get_json_schema  # here, because it imports torch

    if not tasks.takes_turns(options):
        return []
    task = tasks.load(options.type)
    environment = interpreter = None
    if hasattr(task, "Environment"):
        environment = object.__new__(task.Environment)  # only its methods are looked at
    if "python" in options.tools:
        interpreter = object.__new__(Interpreter)
    found = []
    for name, tool in tools_of(row, options, environment, interpreter).items():
        try:
            schema = get_json_schema(tool)
        except Exception as error:  # of two types, which are not public
            raise ValueError(f"{options.type}: the tool {name}: {error}") from error
        function = schema["function"]
        function.pop("return", None)  # a result is text, whatever it says
        function["description"] = " ".join(function["description"].split())  # in one line
        found.append(schema)
    return found


def schemas_of_rows(
    mixture: Sequence[tasks.Options],
) -> Callable[[Mapping[str, Any]], Sequence[Mapping[str, Any]]]:
    """What Chat needs to know of the tools of rows."""
    by_name = {options.type: options for options in mixture}

    def schemas_of(row: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        options = by_name.get(tasks.type_of(row), mixture[0])
        return schemas(row, options)

    return schemas_of


def start_interpreter(options: tasks.Options, sandbox: Sandbox) -> Interpreter | None:
    if "python" in options.tools:
        return Interpreter(sandbox, options.max_tool_cpu_s)
    return None


def run_tool(tools: Mapping[str, Tool], name: str, arguments: Any) -> str:
    """The result of a call, as text.

    Raises:
        ToolError: in words for the model, if there is no such tool or the arguments do not fit.
        Exception: of any type, from the tool itself.
    """
    if name not in tools:
        raise ToolError(f"there is no tool {name:.80}, but {', '.join(tools)}")
    tool = tools[name]
    check_arguments(tool, arguments)
    result = tool(**arguments)
    if isinstance(result, str):
        return result
    return json.dumps(result, ensure_ascii=False, default=str)


def check_arguments(tool: Tool, arguments: Any) -> None:
    """Raises ToolError, in words for the model, if the arguments do not fit."""
    name = tool.__name__
    if not isinstance(arguments, dict):
        raise ToolError(f"the arguments of {name} must be a JSON object")
    try:
        inspect.signature(tool).bind(**arguments)
    except TypeError as error:
        raise ToolError(f"{name}: {error}") from None
    wanted = typing.get_type_hints(tool)
    for key, value in arguments.items():
        if key in wanted and not fits(value, wanted[key]):
            raise ToolError(f"{name}: {key} must be {in_words(wanted[key])}, not {value!r:.80}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value that JSON can hold is of this type. Types that are not known here fit."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in inside)
    if origin is typing.Literal:
        return value in inside
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return type(value) in (int, float)
    if hint in (int, str, bool):
        return type(value) is hint
    kind = origin or hint
    if kind in (list, Sequence):
        return isinstance(value, list) and all(fits(item, inside[0]) for item in value if inside)
    if kind is dict:
        return isinstance(value, dict)
    return True


def in_words(hint: Any) -> str:
    """A type as the model knows it."""
    names = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}
    if hint in names:
        return names[hint]
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    return str(hint).replace("typing.", "")
