"""Write a function that does what a sentence says.

Three questions judge it: does it run, how many tests does it pass, is it tidy and documented?
A problem is a sentence, or a mapping:

    task: sorts a list of numbers
    entry_point: sort_numbers      # the function's name; the prompt tells it
    tests:                         # visible: the prompt shows the first `show_tests` of them
      - [[[3, 1, 2]], [1, 2, 3]]   # [[arguments], expected]
      - assert sort_numbers([]) == []   # the same, as Python
    hidden_tests: [...]            # same forms, never shown

Further keys, which rows of data sets need (`task.data`; tasks/problems/shapes.py reads them):

    statement: the whole question, in place of `task`
    starter: the code that it gives
    setup: imports and helpers that are there before the program begins
    stdin: true                    # a program that reads standard input: tests are [input, output]
    parameters: [nums, target]     # of the function, for assert lines that give arguments by name

Programs get the arguments alone. Expected values stay in the trainer, which compares plain data
(see `same`). An assert line is therefore never run: it is read once, as `f(literals) == literal`
(see tasks/problems/asserts.py). Any other form is refused with its place in the config. The names
of `typing` are there without an import, and a class Solution may hold the function. A problem
without tests can only be seen to run; nothing is claimed about its correctness.
"""

import functools
import itertools
import json
import math
import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

import tasks
from sandbox import Program, Sandbox, Status, definitions
from tasks import Grade, Measure, code_blocks, flag_unclosed, grade_program, problem_mistakes
from tasks import Options as SharedOptions
from tasks.data import sources
from tasks.data.mistakes import Mistakes, RowMistake
from tasks.problems import shapes
from tasks.problems.asserts import read_assert

TEMPLATE = """\
Write a Python function that {task}.
Use only the standard library.
Output the function in backticks."""

# In its place where a problem has a whole statement
STATEMENT_TEMPLATE = """\
{task}

Use only the standard library.
Output the code in backticks."""
ASK_FOR_SCRIPT = "Write a program that reads from standard input and prints to standard output."
SETUP = "from typing import *\n"

PROBLEMS = [
    {
        "task": "sorts a list of numbers",
        "entry_point": "sort_numbers",
        "tests": [[[[3, 1, 2]], [1, 2, 3]], [[[]], []]],
        "hidden_tests": [
            [[[5, -1, 5, 0]], [-1, 0, 5, 5]],
            [[[2.5, -7, 1e3, 0.25]], [-7, 0.25, 2.5, 1e3]],
            [[[9, 8, 7, 6, 5, 4, 3, 2, 1]], [1, 2, 3, 4, 5, 6, 7, 8, 9]],
            [[[10, 9, 100, 1]], [1, 9, 10, 100]],
        ],
    },
    {
        "task": "finds the factorial of n",
        "entry_point": "factorial",
        "tests": ["assert factorial(5) == 120", "assert factorial(0) == 1"],
        "hidden_tests": [
            "assert factorial(1) == 1",
            "assert factorial(10) == 3628800",
            "assert factorial(21) == 51090942171709440000",
        ],
    },
]

REWARDS = ["function_works", "no_cheating", "tests_passed", "style", "documentation"]
FIXED_INPUTS = True
MEASURES = [Measure("tests passed", lambda grade, row: share_of_tests(grade), is_share=True)]

REFERENCE = '''\
```python
def sort_numbers(numbers: list[float]) -> list[float]:
    """Return the numbers in ascending order."""
    return sorted(numbers)
```
'''
SLOWER = ["```python\ndef sort_numbers( xs ):\n    xs.sort() ;\n    return xs\n```\n"]

# Answers to any problem: NAME stands for the entry point.
WRONG_BODIES = [
    "return None",
    "return arguments[0]",
    "return 1",
    "raise ValueError",
    "while True:\n        pass",
]
CHEAT_PROGRAMS = """\
import numpy as np

def NAME(*arguments):
    return np.sort(*arguments)
---
class Anything:
    def __eq__(self, other):
        return True

    def __ne__(self, other):
        return False

def NAME(*arguments):
    return Anything()
---
import os

def NAME(*arguments):
    os._exit(0)
---
import builtins

builtins.all = lambda *_: True

def NAME(*arguments):
    return -1
---
import gc

def NAME(*arguments):
    lists = [one for one in gc.get_objects() if isinstance(one, list)]
    return [one for one in lists if one[:1] == [arguments]][0][1]
---
def NAME(*arguments):
    raise SystemExit(0)
---
import sys

def NAME(*arguments):
    sys._getframe(1).f_locals["status"] = "ok"
"""
CHEATS = CHEAT_PROGRAMS.split("---\n")


WRONG_SCRIPTS = ["pass\n", "print(input())\n", "raise ValueError\n", "print(\n"]
CHEAT_SCRIPTS = [
    "import numpy\n\nprint(numpy.array(1))\n",
    "import os\n\nos._exit(0)\n",
    'print(open("/etc/passwd").read())\n',
    "import sys\n\nprint(sys._getframe(0).f_back)\n",
]


def fenced(code: str) -> str:
    return f"```python\n{code}```\n"


def wrong_answers(name: str) -> list[str]:
    bodies = [fenced(f"def {name}(*arguments):\n    {body}\n") for body in WRONG_BODIES]
    return [
        *bodies,
        fenced(f"def {name}(*arguments:\n    return 1\n"),
        f"def {name}(*arguments): ...",
    ]


def cheating_answers(name: str) -> list[str]:
    return [fenced(code.replace("NAME", name)) for code in CHEATS]


WRONG = wrong_answers("sort_numbers")
CHEAT = cheating_answers("sort_numbers")


def find_ruff() -> str | None:
    """Where ruff is; None if it is not installed."""
    try:
        from ruff.__main__ import find_ruff_bin

        return find_ruff_bin()
    except (ImportError, FileNotFoundError):
        return None


# Once and here: its search through sysconfig fails when two threads begin it together
RUFF = find_ruff()
RUFF_MAX_CHARACTERS = 200_000  # longer programs get no style and no documentation score
RUFF_TIMEOUT_S = 10.0
RUFF_REWARDS = {"style", "documentation"}
STYLE_RULES = "E,F,W,N,UP,B,SIM"
DOCUMENTATION_RULES = "D101,D102,D103,D419,ANN001,ANN201,ANN202"
AMBIGUOUS_NAMES = {"l", "O", "I"}  # ruff refuses them as names
WORD = re.compile(r"\w+")
DEFINITION = re.compile(r"^(?:async[ \t]++)?def[ \t]++(\w++)", re.MULTILINE)
SOLUTION = re.compile(r"^class[ \t]++Solution\b", re.MULTILINE)
# Keys of a problem that a row of a file may have; its `task` is the type of its task
KEYS_OF_ROWS = (
    "entry_point", "tests", "hidden_tests", "setup", "stdin", "parameters", "results_in_lists"
)  # fmt: skip
SCRIPT = "script"  # stands for the entry point of a program that reads standard input
DECIMAL = re.compile(r"[-+]?\d{1,30}+\.\d{0,30}+(?:[eE][-+]?\d{1,3}+)?")
DECIMAL_OR_INT = re.compile(r"[-+]?\d{1,30}+(?:\.\d{0,30}+)?(?:[eE][-+]?\d{1,3}+)?")
PRINTS = re.compile(r"\bprint\b|\bstdout\b")
MAX_REFERENCE = 2_000_000  # characters of the tests that known answers are made of
PROBLEM_CACHE = 64  # problems of data sets that a process holds

Tests = tuple[tuple[Any, Any], ...]  # (arguments, expected); of a script (input, output)


@dataclass(frozen=True)
class Problem:
    task: str = ""
    entry_point: str | None = None
    tests: Tests = ()
    hidden_tests: Tests = ()
    statement: str = ""  # in place of `task`
    starter: str = ""
    setup: str = ""
    stdin: bool = False
    parameters: tuple[str, ...] = ()
    # Whether a result may stand in a list of its own, as APPS has them
    results_in_lists: bool = False


@dataclass(frozen=True)
class Options(SharedOptions):
    prompt_template: str = TEMPLATE  # {task} becomes the sentence
    problems: Any = field(default_factory=lambda: PROBLEMS)  # sentences, or mappings as above
    eval_problems: Any = field(default_factory=list)  # held out for evaluation
    show_tests: int = 2  # visible tests a prompt
    data: str | None = None  # a file, a glob, or the id of a Hub dataset, in place of `problems`
    configuration: str | None = None  # of a Hub dataset
    split: str = "train"  # of a Hub dataset
    revision: str | None = None  # of a Hub dataset
    unreadable_problems: Literal["refuse", "drop"] = "refuse"  # of `data`

    def __post_init__(self):
        mistakes = []
        if "{task}" not in self.prompt_template:
            mistakes.append("prompt_template: {task} must stand in it")
        if self.data and self.problems != PROBLEMS:
            mistakes.append("data: is in place of problems; leave one of them out")
        if self.show_tests < 0:
            mistakes.append(f"show_tests: must be 0 or more, not {self.show_tests}")
        mistakes += problem_mistakes(self, read_problem)
        wanted = self.rewards if isinstance(self.rewards, list | Mapping) else REWARDS
        if RUFF is None and RUFF_REWARDS.intersection(wanted):
            mistakes.append(
                f"rewards: {' and '.join(sorted(RUFF_REWARDS))} need ruff, which is not installed: "
                "bring .venv up to date with `bash train.sh --setup`, or the image with "
                "`bash build.sh`, or leave them out"
            )
        if mistakes:
            raise ValueError("; ".join(mistakes))
        if self.data:
            problems_of(self)


def read_problem(problem: Any) -> Problem:
    """A problem of the config. Raises ValueError, which says what is wrong."""
    if isinstance(problem, str):
        problem = {"task": problem}
    if not isinstance(problem, Mapping):
        raise ValueError(
            f"must be a sentence or a mapping with task, entry_point and tests, not {problem!r}"
        )
    unknown = set(map(str, problem)) - set(Problem.__dataclass_fields__)
    if unknown:
        raise ValueError(
            f"unknown keys {sorted(unknown)}; there are {list(Problem.__dataclass_fields__)}"
        )
    key = "statement" if "statement" in problem else "task"
    if not isinstance(problem.get(key), str) or not problem[key].strip():
        raise ValueError(f"{key} must be a sentence")
    texts = {}
    for name in ("task", "statement", "starter", "setup"):
        texts[name] = problem.get(name) or ""
        if not isinstance(texts[name], str):
            raise ValueError(f"{name} must be a text, not {texts[name]!r:.200}")
    stdin = problem.get("stdin", False)
    if not isinstance(stdin, bool):
        raise ValueError(f"stdin must be true or false, not {stdin!r:.200}")
    entry_point, tests, hidden_tests = read_tests(problem)
    if stdin and not (tests or hidden_tests):
        raise ValueError("stdin: a program that reads its input needs tests")
    return Problem(
        **texts,
        entry_point=entry_point,
        tests=tests,
        hidden_tests=hidden_tests,
        stdin=stdin,
        parameters=tuple(problem.get("parameters") or ()),
        results_in_lists=bool(problem.get("results_in_lists")),
    )


def read_tests(row: Mapping[str, Any]) -> tuple[str | None, Tests, Tests]:
    """(entry point, tests, hidden tests) of a mapping. Raises ValueError."""
    if row.get("stdin"):
        return None, read_pairs(row, "tests"), read_pairs(row, "hidden_tests")
    name, read = row.get("entry_point"), {}
    for key in ("tests", "hidden_tests"):
        read[key] = []
        for i, test in enumerate(listed(row, key)):
            try:
                function, arguments, expected = read_test(test, name, row.get("parameters") or ())
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{key}[{i}]: {error}") from error
            if name is None:
                name = function
            if function != name:
                raise ValueError(f"{key}[{i}]: tests {function}, but the entry point is {name}")
            read[key].append((arguments, expected))

    # The name, which an assert line may have given
    if name is None and any(read.values()):
        raise ValueError("entry_point is missing")
    if name is not None and not (isinstance(name, str) and name.isidentifier()):
        raise ValueError(f"entry_point must be a function name, not {name!r}")
    return name, tuple(read["tests"]), tuple(read["hidden_tests"])


def listed(row: Mapping[str, Any], key: str) -> list:
    tests = row.get(key) or []
    if not isinstance(tests, list):
        raise ValueError(f"{key} must be a list")
    return tests


def read_pairs(row: Mapping[str, Any], key: str) -> Tests:
    """(input, output) of each test of a script. Raises ValueError."""
    pairs = []
    for i, test in enumerate(listed(row, key)):
        match test:
            case [str(given), str(printed)]:
                pairs.append((given, printed))
            case _:
                raise ValueError(
                    f"{key}[{i}]: must be [input, output], two texts, not {test!r:.200}"
                )
    return tuple(pairs)


def read_test(test: Any, name: Any, parameters: Collection[str] = ()) -> tuple[Any, list, Any]:
    """(function, arguments, expected) of a test; only an assert line names a function of its own.

    Raises ValueError.
    """
    if isinstance(test, str):
        function, arguments, expected = read_assert(test, list(parameters))
    else:
        function = name
        arguments, expected = read_pair(test)
    check_expected(expected)
    return function, arguments, expected


def read_pair(test: Any) -> tuple[list, Any]:
    match test:
        case [list(arguments), expected]:
            return arguments, expected
    hint = " (YAML wants quotes round a line with a colon in it)" if isinstance(test, dict) else ""
    raise ValueError(f"must be [[arguments], expected] or an assert line, not {test!r}{hint}")


def check_expected(value: Any, depth: int = 60) -> None:
    """Raise ValueError unless a program could return `value`."""
    if depth == 0:
        raise ValueError("the expected value is nested too deeply")
    if isinstance(value, list | tuple):
        for item in value:
            check_expected(item, depth - 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(
                    f"the expected value has the key {key!r}, but programs return only text keys"
                )
            check_expected(item, depth - 1)
    elif not (value is None or isinstance(value, bool | int | float | str)):
        raise ValueError(
            f"no program can return {value!r}:"
            " results are None, bool, int, float, str, and lists and dicts of them"
        )


def rows(options: Options) -> list[dict[str, Any]]:
    """One row for each of num_rows, problem by problem in turn.

    Tests of a config stay here: a row holds the problem's number. A row of `data` holds its own.
    """
    if options.data:
        problems = problems_of(options)
        count, wanted = len(problems), options.num_rows
        if 1 < wanted < count:  # one row is what check.py asks for
            tasks.note_once(f"task.num_rows: the first {wanted} of {count} problems are used")
        elif wanted > count:
            tasks.note_once(f"task.num_rows: {count} problems are repeated to {wanted} rows")
        return [row_of(text, options) for text in repeat(problems, options)]
    return [make_row(number, options) for number in repeat(range(len(options.problems)), options)]


def repeat(items: Collection[Any], options: Options) -> Iterator[Any]:
    return itertools.islice(itertools.cycle(items), options.num_rows)


def eval_rows(options: Options) -> list[dict[str, Any]]:
    """One row for each problem that is held out."""
    first = len(options.problems)
    return [make_row(first + i, options) for i in range(len(options.eval_problems))]


def make_row(number: int, options: Options) -> dict[str, Any]:
    problem = read_problem([*options.problems, *options.eval_problems][number])
    return row_with(problem, number, options)


def row_of(text: str, options: Options) -> dict[str, Any]:
    """The row of a problem of `data`, which is JSON text: its tests may be of any type."""
    return row_with(problem_from(text), text, options)


def row_with(problem: Problem, key: int | str, options: Options) -> dict[str, Any]:
    text = prompt_of(problem, options)
    return {"prompt": [{"role": "user", "content": text}], "problem": key}


def prompt_of(problem: Problem, options: Options) -> str:
    template, asked = options.prompt_template, problem.task
    if problem.statement:
        asked = problem.statement.strip()
        if template == TEMPLATE:
            template = STATEMENT_TEMPLATE
    if problem.starter.strip():
        asked += f"\n\n```python\n{problem.starter.strip()}\n```"
    if problem.stdin:
        asked += f"\n\n{ASK_FOR_SCRIPT}"
    text = template.replace("{task}", asked).rstrip()
    if problem.entry_point and not problem.starter.strip():
        text += f"\nCall it `{problem.entry_point}`."
    for given, expected in problem.tests[: options.show_tests]:
        if problem.stdin:
            text += f"\nFor the input\n```\n{given.strip()}\n```\nit prints\n"
            text += f"```\n{expected.strip()}\n```"
        else:
            text += f"\n`{problem.entry_point}({', '.join(map(repr, given))})` is `{expected!r}`."
    return text


def problems_of(options: Options) -> list[str]:
    """The problems of `data`. Raises ValueError, as `read_data` does."""
    source = sources.find(options.data, options.configuration, options.revision, False)
    return read_data(source, options.split, options.unreadable_problems == "drop")


@functools.lru_cache(maxsize=2)
def read_data(source: sources.Files | sources.HubDataset, split: str, drops: bool) -> list[str]:
    """The problems of a split, each as JSON text.

    Args:
        drops: whether problems that cannot be read are left out.

    Raises:
        ValueError: with all mistakes, one line for each kind.
    """
    problems, mistakes, count = [], Mistakes(), 0
    for place, row in source.rows(split):
        count += 1
        try:
            text = problem_text(row)
            problem_from(text)
            problems.append(text)
        except (ValueError, RecursionError) as mistake:
            mistakes.add(place, unreadable(mistake))
    words = f"{mistakes.count} of {count} problems cannot be read"
    if mistakes and (not drops or not problems):
        advice = f"{words}; task.unreadable_problems: drop leaves them out"
        raise ValueError("\n".join(f"data: {line}; {advice}" for line in mistakes.lines()))
    if mistakes:
        tasks.note_once("\n".join([f"{words} and are left out:", *mistakes.lines()]))
    if not problems:
        raise ValueError("data: holds no problem")
    return problems


def problem_text(row: Any) -> str:
    """The problem of a row as JSON text.

    Raises:
        ValueError: if there is none.
    """
    if isinstance(row, ValueError):  # the file's own mistake in the row's place
        raise row
    if not isinstance(row, Mapping):
        raise ValueError("a problem must be an object with columns")
    try:
        return json.dumps(shapes.read_row(row))
    except (KeyError, TypeError, AttributeError) as error:  # a value of another type
        raise ValueError(f"a column is not as expected: {one_line(error)}") from error


def unreadable(mistake: Exception) -> RowMistake:
    """The mistake of a row. Tests that cannot be read are of one kind, however they look."""
    words = f"{mistake}"[:300]
    if isinstance(mistake, RowMistake):
        return mistake
    if "not of the form" in words:
        return RowMistake(words, "a test that is not a call and its value")
    return RowMistake(words)


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


@functools.lru_cache(PROBLEM_CACHE)
def problem_from(text: str) -> Problem:
    """The problem of a row of `data`. Raises ValueError."""
    return read_problem(json.loads(text))


def problem_of(row: Mapping[str, Any], options: Options) -> Problem:
    """The problem that a row of `rows` names or holds, or that a row of a file spells out, in our
    form or in that of a data set.

    Raises ValueError if there is no such problem.
    """
    key = row.get("problem")
    if isinstance(key, str) and key.startswith("{"):
        return problem_from(key)
    if key is None or isinstance(key, str):
        for is_shape, read in shapes.OF_DATA_SETS:
            if is_shape(row):
                return read_problem(read(row))
        known = {name: row[name] for name in KEYS_OF_ROWS if row.get(name) is not None}
        return read_problem({"statement": "(that of the row)"} | known)
    problems = [*options.problems, *options.eval_problems]
    if type(key) is not int or not 0 <= key < len(problems):
        raise ValueError(f"problem must be a number below {len(problems)}, not {key!r}")
    return read_problem(problems[key])


def grade(
    completion: Any,
    row: Mapping[str, Any],
    options: Options,
    sandbox: Sandbox,
    rng: np.random.Generator,
) -> Grade:
    """Run the completion's function on every test, hidden ones included.

    `passed` is the share of the tests that it passes.

    The status is that of the first call that failed, so a program "works" only if it survives all
    tests. Changing an argument is no mistake here: arguments are copies, and a function may sort in
    place. `data` holds the number of tests, and ruff's verdicts ("style", "documentation", 0 to 1)
    for a program that works and was not caught cheating.
    """
    try:
        problem = problem_of(row, options)
    except ValueError as error:
        return Grade(Status.BAD_ROW, detail=str(error))
    tests = problem.tests + problem.hidden_tests
    data: dict[str, Any] = {"tests": len(tests)}
    setup = SETUP + problem.setup
    if problem.stdin:
        name, graded = SCRIPT, grade_script(completion, tests, setup, sandbox, data)
    else:
        name = problem.entry_point or last_function(completion)
        if name is None:
            return Grade(Status.NO_FUNCTION, detail="no code block defines a function", data=data)

        def try_tests(program: Program) -> Grade:
            return try_program(program, tests, problem.results_in_lists)

        def adapt(code: str) -> str:
            return with_function(code, name)

        graded = grade_program(
            completion,
            name,
            sandbox,
            try_tests,
            data,
            plain_subclasses=True,
            setup=setup,
            adapt=adapt,
        )

    # Ask ruff about an honest program that works, if its verdict is paid.
    is_honest = graded.status is Status.OK and not graded.cheating
    if is_honest and pays_for_ruff(options):
        asked_names = WORD.findall(problem.task + problem.starter)
        judged = verdicts(graded.code, name, asked_names)
        graded = replace(graded, data={**graded.data, **judged})
    return graded


def pays_for_ruff(options: Options) -> bool:
    """Whether a reward of these options reads ruff's verdict."""
    paid = tasks.reward_weights(options.type, options.rewards)
    return not RUFF_REWARDS.isdisjoint(paid)


def last_function(completion: Any) -> str | None:
    """The function to judge without an entry point: the last one of the last block with any."""
    if not isinstance(completion, str):
        return None
    for block, _ in reversed(code_blocks(completion)):
        names = DEFINITION.findall(block)
        if names:
            return names[-1]
    return None


def with_function(code: str, name: str) -> str:
    """The program, in which a method of its class Solution can be called as a function: of a fresh
    object each time, as LeetCode does."""
    top_level = re.compile(rf"^(?:async[ \t]++)?def[ \t]++{name}\b|^{name}[ \t]*+=", re.MULTILINE)
    if not SOLUTION.search(code) or top_level.search(code):
        return code
    return f"{code}\n\n\ndef {name}(*arguments):\n    return Solution().{name}(*arguments)\n"


def grade_script(
    completion: Any, tests: Tests, setup: str, sandbox: Sandbox, data: Mapping[str, Any]
) -> Grade:
    """Run a completion's program once for each input, each time in a fresh process.

    All runs share the CPU budget of one program.
    """
    code, unclosed = last_program(completion)
    if code is None:
        return Grade(Status.NO_FUNCTION, detail="there is no code block", data=data)
    status, passed, mistakes, used_s = Status.OK, 0, [], 0.0
    findings: dict[str, None] = {}
    for i, (given, expected) in enumerate(tests):
        if status in (Status.TIMEOUT, Status.SYNTAX_ERROR) or used_s > sandbox.limits.cpu_s:
            status = Status.TIMEOUT if status is Status.OK else status
            mistakes.append(f"test {i + 1} of {len(tests)} was not run: no time is left")
            break
        with sandbox.open(code, SCRIPT, setup=setup, stdin=given) as program:
            used_s += program.load_cpu_s
            findings |= dict.fromkeys(program.findings)
            if program.status is not Status.OK:
                status = program.status if status is Status.OK else status
                mistakes.append(f"test {i + 1} of {len(tests)}: {program.error}")
            elif same_output(program.output, expected):
                passed += 1
            else:
                mistakes.append(f"test {i + 1} of {len(tests)}: wrong output")
    graded = Grade(
        status,
        code=code,
        correct=not mistakes,
        cheating=tuple(findings),
        passed=passed / len(tests),
        detail=mistakes[0] if mistakes else "",
        data=data,
    )
    return flag_unclosed(graded) if unclosed else graded


def last_program(completion: Any) -> tuple[str | None, bool]:
    """(code, unclosed): the last block that prints, else the last one. An example of what a program
    prints may follow it."""
    if not isinstance(completion, str):
        return None, False
    blocks = [(code, not closed) for code, closed in code_blocks(completion) if code.strip()]
    printing = [block for block in blocks if PRINTS.search(block[0])]
    return (printing or blocks or [(None, False)])[-1]


def same_output(printed: Any, expected: str) -> bool:
    """Whether a program has printed what is expected: the same words in each line. White space at
    the ends and empty lines at the end do not count. A decimal number may differ by 1e-6, or by
    that share of its size."""
    if not isinstance(printed, str):
        return False
    lines, wanted = printed.rstrip().split("\n"), expected.rstrip().split("\n")
    if len(lines) != len(wanted):
        return False
    for line, other in zip(lines, wanted, strict=True):
        words, others = line.split(), other.split()
        if len(words) != len(others) or not all(map(same_word, words, others)):
            return False
    return True


def same_word(word: str, expected: str) -> bool:
    if word == expected:
        return True
    if not DECIMAL.fullmatch(expected) or not DECIMAL_OR_INT.fullmatch(word):
        return False
    return math.isclose(float(word), float(expected), rel_tol=1e-6, abs_tol=1e-6)


def share_of_tests(grade: Grade) -> float | None:
    """How many tests were passed, from 0 to 1; None for a problem without tests."""
    if grade.data.get("tests") == 0:
        return None
    return grade.passed


def try_program(program: Program, tests: Tests, results_in_lists: bool = False) -> Grade:
    if program.status is not Status.OK:
        return Grade(program.status, detail=program.error)
    if not tests:
        return Grade(Status.OK, detail="loads; there are no tests to say whether it is right")
    status, passed, mistakes = Status.OK, 0, []
    for i, (arguments, expected) in enumerate(tests):
        run = program.call(arguments)
        if run.status is not Status.OK:
            if status is Status.OK:
                status = run.status
            mistakes.append(f"test {i + 1} of {len(tests)}: {run.error}")
        elif same(run.value, expected) or (results_in_lists and same([run.value], expected)):
            passed += 1
        else:
            mistakes.append(f"test {i + 1} of {len(tests)}: wrong result")
    return Grade(
        status,
        correct=not mistakes,
        passed=passed / len(tests),
        detail=mistakes[0] if mistakes else "",
    )


def same(value: Any, expected: Any) -> bool:
    """Whether a result is the expected plain data.

    Lists and tuples are one kind (results arrive as lists); the order of a dict is nothing. bool is
    bool: 1 is not True. An expected int must be met exactly, 2.0 counts as 2; an expected float
    within 1e-9 of its size (1e-12 near zero), NaN by NaN.
    """
    if isinstance(expected, list | tuple):
        if not isinstance(value, list) or len(value) != len(expected):
            return False
        return all(map(same, value, expected))
    if isinstance(expected, dict):
        if not isinstance(value, dict) or value.keys() != expected.keys():
            return False
        return all(same(value[key], item) for key, item in expected.items())
    is_number = type(value) in (int, float)
    if isinstance(expected, float) and is_number:
        return is_close(value, expected)
    if type(expected) is int and is_number:
        return value == expected
    return type(value) is type(expected) and value == expected


def is_close(value: float, expected: float) -> bool:
    if math.isnan(expected):
        return value != value  # only NaN is not itself
    try:
        return math.isclose(value, expected, rel_tol=1e-9, abs_tol=1e-12)
    except OverflowError:  # an int beyond every float
        return False


def verdicts(code: str, entry_point: str, asked_names: Collection[str] = ()) -> dict[str, float]:
    """{"style": ..., "documentation": ...}, each 0 to 1, from processes that may die.

    style: 1, less 0.2 for each complaint of ruff (errors, names, bugs, outdated or roundabout
    code). A name that the task asks for is no fault: the entry point and `asked_names`.

    documentation: 0.5 if the entry point and every public function, method and class has a
    docstring, 0.5 if every argument and result is annotated; 0 for a lambda expression.

    A program gets 0 for both if it does not define the entry point itself (`NAME = sorted`), if it
    runs code out of a string (definitions.py), or if a tool cannot finish it.
    """
    nothing = {"style": 0.0, "documentation": 0.0}
    if len(code) > RUFF_MAX_CHARACTERS:
        return nothing
    text = (code.strip() + "\n").encode(errors="replace")
    whole = text + defining(code, entry_point).encode(errors="replace")
    defined = run_tool([sys.executable, "-I", "-S", definitions.__file__, entry_point], whole)
    found = run_tool(ruff_command({entry_point, *asked_names}), text)
    if not defined or found is None or defined == b"absent\n":
        return nothing

    # Complaints about docstrings, about annotations, and about the style
    undocumented = unannotated = untidy = 0
    for entry in json.loads(found or b"[]"):
        rule, count = str(entry["code"]), entry["count"]
        if rule.startswith("D"):
            undocumented += count
        elif rule.startswith("ANN"):
            unannotated += count
        else:
            untidy += count

    documentation = 1.0
    if undocumented or defined != b"documented\n":
        documentation -= 0.5
    if unannotated:
        documentation -= 0.5
    # An empty __all__ would make every function private, and private ones need no docstring.
    if "__all__" in code or defined == b"lambda\n":
        documentation = 0.0
    return {"style": round(max(0.0, 1.0 - 0.2 * untidy), 1), "documentation": documentation}


def defining(code: str, entry_point: str) -> str:
    """What makes the entry point a function of the program, for definitions.py: of a script, which
    has none, and of a method."""
    if entry_point == SCRIPT:
        return f"\ndef {SCRIPT}(): pass\n"
    if with_function(code, entry_point) != code:
        return f"\n{entry_point} = Solution().{entry_point}\n"
    return ""


def ruff_command(asked_names: Collection[str]) -> list[str]:
    """ruff as a command that counts the complaints about a program on its standard input."""
    rules = f"{STYLE_RULES},{DOCUMENTATION_RULES}"
    command = [RUFF, "check", "--isolated", "--no-cache", "--ignore-noqa", "--quiet"]
    command += ["--statistics", "--output-format=json", f"--select={rules}"]
    command += [f"--target-version=py{sys.version_info.major}{sys.version_info.minor}"]
    command += [f"--config=lint.pep8-naming.extend-ignore-names={json.dumps(sorted(asked_names))}"]
    if AMBIGUOUS_NAMES.intersection(asked_names):
        command.append("--ignore=E741,E743")
    return [*command, "-"]


def run_tool(command: list[str], text: bytes) -> bytes | None:
    """What a tool prints about a program; None if it fails or takes more than RUFF_TIMEOUT_S."""
    try:
        result = subprocess.run(
            ["/bin/sh", "-c", 'ulimit -c 0; exec "$@"', "sh", *command],  # no core file if it dies
            input=text,
            capture_output=True,
            timeout=RUFF_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return None
    if result.returncode not in (0, 1):
        return None
    return result.stdout


def known_answers(row: Mapping[str, Any], options: Options) -> list[tuple[str, Any]]:
    """(kind, completion) for check.py, whatever the first problem is. The reference is the tests
    themselves as a table, so a problem whose tests also accept `return None` is found out; without
    tests it is only unverified."""
    problem = problem_of(row, options)
    name, tests = problem.entry_point or "solve", problem.tests + problem.hidden_tests
    if sum(len(repr(test)) for test in tests) > MAX_REFERENCE:
        return []
    if problem.stdin:
        kinds = script_answers(tests)
        return [(kind, text) for kind, texts in kinds.items() for text in texts]
    bare = f"def {name}(*arguments):\n    return TABLE[repr(arguments)]\n"
    documented = (
        f"def {name}(*arguments: object) -> object:\n"
        '    """Look it up."""\n'
        "    return TABLE[repr(arguments)]\n"
    )
    wrong, cheats = wrong_answers(name), cheating_answers(name)
    if tests:
        table = table_of(tests)
        kinds = {"reference": [fenced(table + documented)], "slower": [fenced(table + bare)]}
    else:
        # Without tests, only two kinds are known to be wrong: what cannot be read, and what is
        # forbidden before it is called.
        kinds = {"unverified": [fenced(documented), fenced(bare)]}
        wrong = wrong[-2:]
        cheats = [text for text in cheats if "import" in text and "import os" not in text]
    kinds |= {"wrong": wrong, "cheat": cheats}
    known = [(kind, text) for kind, texts in kinds.items() for text in texts]
    if tests:
        known += tasks.python_answers(kinds["slower"][0], wrong[0], options)
    return known


def script_answers(tests: Tests) -> dict[str, list[str]]:
    """Known answers to a problem whose programs read standard input, by their kinds."""
    table = "".join(f"    {given!r}: {printed!r},\n" for given, printed in tests)
    reference = f"import sys\n\nTABLE = {{\n{table}}}\nprint(TABLE[sys.stdin.read()])\n"
    return {
        "reference": [fenced(reference)],
        "wrong": [fenced(code) for code in WRONG_SCRIPTS],
        "cheat": [fenced(code) for code in CHEAT_SCRIPTS],
    }


def table_of(tests: Tests) -> str:
    """The start of a program: TABLE, with the expected value of each test's arguments."""
    lines = ""
    for arguments, expected in tests:
        lines += f"    {repr(tuple(arguments))!r}: {expected!r},\n"
    return f'inf, nan = float("inf"), float("nan")\nTABLE = {{\n{lines}}}\n\n\n'
