"""tasks/problems: problems as data sets write them, graded by tasks/code.py."""

import base64
import json
import pickle
import zlib

import pytest

import tasks
from job import config
from job.errors import ConfigError
from job.reward_check import check_rewards
from sandbox import Status
from tasks import code
from tasks.problems.asserts import split_asserts
from tasks.problems.shapes import parameters_of, read_row

LEETCODE = {
    "task_id": "two-sum",
    "problem_description": "Return the indices of the two numbers that add up to target.",
    "starter_code": "class Solution:\n"
    "    def twoSum(self, nums: List[int], target: int) -> List[int]:\n        ",
    "prompt": "import random\nfrom typing import *\nfrom sortedcontainers import SortedList\n\n"
    "class ListNode:\n    def __init__(self, val=0, next=None):\n        self.val = val\n",
    "entry_point": "Solution().twoSum",
    "test": "def check(candidate):\n"
    "    assert candidate(nums = [3,3],target = 6) == [0, 1]\n"
    "    assert candidate(target = 9, nums = [2,7,11,15]) == [0, 1]\n",
    "input_output": [{"input": "nums = [3,3], target = 6", "output": "[0, 1]"}],
}
LEETCODE_RIGHT = """
class Solution:
    def twoSum(self, nums: List[int], target: int) -> List[int]:
        seen = defaultdict(int)
        for i, number in enumerate(nums):
            if target - number in seen:
                return [seen[target - number], i]
            seen[number] = i
"""
HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": "from typing import List\n\n\ndef helper(x):\n    return x + 1\n\n\n"
    'def grown(numbers: List[int]) -> List[int]:\n    """ Add one to each.\n    >>> grown([1])\n'
    '    [2]\n    """\n',
    "canonical_solution": "    return [helper(x) for x in numbers]\n",
    "entry_point": "grown",
    "test": "\n\nMETADATA = {\n    'author': 'jt',\n    'dataset': 'test'\n}\n\n\n"
    "def check(candidate):\n    assert True, 'this prints if the assertion passes'\n"
    "    assert candidate([1, 2]) == [2, 3], 'why not'\n    assert candidate([]) == []\n\n"
    "check(grown)\n",
}
MBPP = {
    "task_id": 2,
    "text": "Write a function to find the shared elements of two tuples.",
    "code": "...",
    "test_list": [
        "assert shared((3, 4, 5), (5, 4)) == (4, 5)",
        "assert shared((1, 2), (3,)) == ()",
    ],
    "test_setup_code": "import math",
    "challenge_test_list": ["assert shared((7,), (7,)) == (7,)"],
}
MBPP_SANITIZED = {
    "prompt": MBPP["text"], "test_imports": ["import math"], "test_list": MBPP["test_list"]
}  # fmt: skip
APPS = {
    "problem_id": 1,
    "question": "Read two numbers and print their sum.",
    "solutions": '["..."]',
    "input_output": json.dumps({"inputs": ["1 2\n", ["3", "4"]], "outputs": ["3\n", ["7"]]}),
    "starter_code": "",
}
APPS_FUNCTION = {
    "question": "Double it.",
    "input_output": json.dumps(
        {"fn_name": "double", "inputs": [[1], [[2]]], "outputs": [[2], [[2, 2]]]}
    ),
    "starter_code": "\nclass Solution:\n    def double(self, x):\n        ",
}
TACO = {
    "question": "Print the number rounded.",
    "input_output": {"inputs": ["1\n"], "outputs": ["0.333333\n"]},
    "starter_code": "",
    "difficulty": "EASY",
}
PRIVATE = [{"input": "5 5\n", "output": "10\n", "testtype": "stdin"}]
PACKED = base64.b64encode(zlib.compress(pickle.dumps(json.dumps(PRIVATE)))).decode()
LIVECODEBENCH = {
    "question_title": "Sum",
    "question_content": "Print the sum of the numbers of a line.",
    "starter_code": "",
    "public_test_cases": json.dumps([{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]),
    "private_test_cases": PACKED,
    "metadata": "{}",
}
LIVECODEBENCH_FUNCTION = {
    "question_content": "Repeat the text.",
    "starter_code": "class Solution:\n    def again(self, text: str, times: int) -> str:\n        ",
    "public_test_cases": json.dumps(
        [{"input": '"ab"\n2', "output": '"abab"', "testtype": "functional"}]
    ),
    "private_test_cases": "[]",
    "metadata": '{"func_name": "again"}',
}
ASSERTS = {
    "instruction": "Write `area(w, h)`.",
    "tests": "import math\n\n"
    "def test_area():\n    assert area(2, 3) == 6\n    assert area(0, 1) == 0",
}
OWN = {"task": "doubles a number", "entry_point": "double", "tests": [[[2], 4]]}

SUM = "print(sum(map(int, {read}.split())))"
# (row, a right program, a wrong one)
ROWS = {
    "leetcode": (LEETCODE, LEETCODE_RIGHT, "def twoSum(nums, target): return [1, 0]"),
    "humaneval": (
        HUMANEVAL,
        "def grown(numbers: List[int]) -> List[int]:\n    return [helper(x) for x in numbers]",
        "def grown(numbers): return numbers",
    ),
    "mbpp": (
        MBPP,
        "def shared(a, b):\n    return tuple(sorted(x for x in a if x in b)) + () * math.floor(1)",
        "def shared(a: Tuple, b: Tuple): return a",
    ),
    "mbpp sanitized": (
        MBPP_SANITIZED,
        "def shared(a, b): return tuple(sorted(set(a) & set(b)))",
        "def shared(a, b): return ()",
    ),
    "apps": (APPS, SUM.format(read="open(0).read()" and "__import__('sys').stdin.read()"), "1"),
    "apps function": (
        APPS_FUNCTION,
        "class Solution:\n    def double(self, x: Optional[int]):\n        return x * 2",
        "class Solution:\n    def double(self, x):\n        return x",
    ),
    "taco": (TACO, "print(int(input()) / 3)", "print(int(input()) // 3)"),
    "livecodebench": (
        LIVECODEBENCH,
        f"def main():\n    {SUM.format(read='input()')}\n\nif __name__ == '__main__':\n    main()",
        "print(3)",
    ),
    "livecodebench function": (
        LIVECODEBENCH_FUNCTION,
        "class Solution:\n    def again(self, text: str, times: int) -> str:\n"
        "        return text * times",
        "def again(text, times): return text",
    ),
    "asserts": (ASSERTS, "def area(w, h): return w * h", "def area(w, h): return 6"),
    "our own": (OWN, "def double(x): return 2 * x", "def double(x): return x"),
}


def fenced(program):
    return f"Here:\n```python\n{program}\n```\n"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A file with a row of each shape."""
    path = tmp_path_factory.mktemp("data") / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row, _, _ in ROWS.values()))
    return path


@pytest.fixture(scope="module")
def options(file):
    return code.Options(type="code", data=str(file), num_rows=len(ROWS), rewards=["tests_passed"])


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_each_data_set_becomes_a_problem(name, options, sandbox):
    _, right, wrong = ROWS[name]
    row = code.rows(options)[list(ROWS).index(name)]
    graded = code.grade(fenced(right), row, options, sandbox, None)
    assert (graded.status, graded.correct, graded.cheating) == (Status.OK, True, ()), graded.detail
    assert graded.code == right and graded.data["tests"] >= 1
    graded = code.grade(fenced(wrong), row, options, sandbox, None)
    assert not graded.correct and not graded.cheating


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_a_file_of_completions_may_have_any_shape(name, sandbox):
    row, right, wrong = ROWS[name]
    if name == "asserts" or name == "our own":
        return  # there, `task` and `prompt` are columns of every task
    options = code.Options(type="code")
    assert code.grade(fenced(right), row, options, sandbox, None).correct
    assert not code.grade(fenced(wrong), row, options, sandbox, None).correct


@pytest.mark.parametrize("name", ["apps", "livecodebench function"])
def test_known_answers_to_each_problem_are_paid_as_they_should(name, tmp_path, quick_sandbox):
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps(ROWS[name][0]))
    options = code.Options(type="code", data=str(path), num_rows=1)
    table, line = check_rewards(options, quick_sandbox)
    assert "honest ones earn" in line


def test_a_prompt_says_what_is_asked(options):
    prompts = [row["prompt"][0]["content"] for row in code.rows(options)]
    texts = dict(zip(ROWS, prompts, strict=True))
    assert "add up to target" in texts["leetcode"] and "class Solution" in texts["leetcode"]
    assert "Add one to each." in texts["humaneval"] and "[2, 3]" not in texts["humaneval"]
    assert "`shared((3, 4, 5), (5, 4))` is `(4, 5)`" in texts["mbpp"]
    assert "(7,)" not in texts["mbpp"]  # a challenge stays hidden
    for name in ("apps", "taco", "livecodebench"):
        assert code.ASK_FOR_SCRIPT in texts[name]
    assert "Call it `area`." in texts["asserts"]
    assert texts["our own"].startswith("Write a Python function that doubles a number.")
    own = code.rows(
        code.Options(type="code", data=options.data, num_rows=1, prompt_template="Do: {task}")
    )
    assert own[0]["prompt"][0]["content"].startswith("Do: Return the indices")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "What?"}, "no known shape of a problem: it has the columns"),
        ({**APPS, "input_output": "{"}, "input_output cannot be read"),
        ({**APPS, "input_output": '{"inputs": ["1"], "outputs": []}'}, "1 inputs and 0 outputs"),
        ({**HUMANEVAL, "test": "for i in range(3):\n    candidate(i)"}, "not of the form"),
        ({**HUMANEVAL, "test": "x = 1\nassert candidate(x) == 1"}, "a test may depend on it"),
        ({**ASSERTS, "tests": "assert True"}, "there is no assert line in it"),
        ({**LIVECODEBENCH, "metadata": "{}", "public_test_cases": "[]",
          "private_test_cases": "[]"}, "its tests are of the kinds"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_says_why(row, message):
    with pytest.raises(ValueError, match=message):
        read_row(row)


def test_a_csv_holds_lists_as_texts(tmp_path, sandbox):
    path = tmp_path / "mbpp.csv"
    path.write_text('text,test_list\nWrite f.,"[""assert f(1) == 2""]"\n')
    options = code.Options(type="code", data=str(path), num_rows=1)
    (row,) = code.rows(options)
    assert code.grade(fenced("def f(x): return x + 1"), row, options, sandbox, None).correct


@pytest.mark.parametrize(
    ("num_rows", "says"),
    [
        (2, "the first 2 of 3 problems are used"),
        (3, ""),
        (7, "3 problems are repeated to 7 rows"),
        (1, ""),
    ],
)
def test_problems_that_are_cut_or_repeated_are_said(tmp_path, capsys, num_rows, says):
    path = tmp_path / "problems.jsonl"
    kept = [row for row, _, _ in list(ROWS.values())[:3]]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    options = code.Options(type="code", data=str(path), num_rows=num_rows)
    tasks.note_once.cache_clear()
    assert len(code.rows(options)) == num_rows
    assert ("task.num_rows" in capsys.readouterr().err) == bool(says)
    tasks.note_once.cache_clear()
    code.rows(options)
    assert says in capsys.readouterr().err


def test_a_pickle_that_holds_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "made"), "w")

    packed = base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode()
    with pytest.raises(ValueError, match="private_test_cases cannot be read: it holds"):
        read_row({**LIVECODEBENCH, "private_test_cases": packed})
    assert not (tmp_path / "made").exists()


def test_problems_that_cannot_be_read_are_refused_or_dropped_by_choice(tmp_path, capsys):
    path = tmp_path / "some.jsonl"
    unreadable = {**HUMANEVAL, "test": "assert abs(candidate(1.5) - 0.5) < 1e-6"}
    path.write_text("\n".join([json.dumps(OWN), "", json.dumps(unreadable), "{cut off"]))
    keys = ["task.type=code", f"task.data={path}", "task.num_rows=4"]
    with pytest.raises(ConfigError) as caught:
        config.load_config(None, keys)
    first, second = caught.value.mistakes
    assert first.startswith("task.data: ") and second.startswith("task.data: ")
    assert "some.jsonl:3: hidden_tests[0]: 'assert abs(grown(1.5)" in first
    assert "some.jsonl:4: not JSON" in second
    assert second.endswith("2 of 3 problems cannot be read; task.unreadable_problems: drop leaves "
                           "them out")  # fmt: skip
    options = code.Options(type="code", data=str(path), unreadable_problems="drop", num_rows=4)
    assert [row["problem"] for row in code.rows(options)] == [json.dumps(OWN)] * 4
    assert "2 of 3 problems cannot be read and are left out" in capsys.readouterr().err


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="^task.data: there is no file nowhere.jsonl"):
        config.load_config(None, ["task.type=code", "task.data=nowhere.jsonl"])
    with pytest.raises(ConfigError, match="task.data: is in place of problems"):
        config.load_config(None, ["task.type=code", "task.data=x", "task.problems=[sorts]"])


def test_asserts_are_found_and_the_candidate_is_renamed():
    text = "def check(candidate):\n    assert candidate(1) == 2, 'no'\n    assert not candidate(0)"
    assert split_asserts(text, "f") == ["assert f(1) == 2", "assert not f(0)"]
    head = "class Solution:\n    def f(self, a: List[int], b=1) -> int:\n        "
    assert parameters_of(head, "f") == ["a", "b"] and parameters_of("def f(", "f") == []


# ---- programs that read standard input

SCRIPT = {"stdin": True, "hidden_tests": [["1 2\n", "3\n"], ["4 5\n", "9\n"]]}


@pytest.mark.parametrize(
    ("program", "status", "passed", "says"),
    [
        (
            "import sys\nfor line in sys.stdin:\n    print(sum(map(int, line.split())))",
            "ok",
            1.0,
            "",
        ),
        ("import sys\nsys.stdout.write('3')\nsys.exit(0)", "ok", 0.5, "test 2 of 2: wrong output"),
        ("a, b = map(int, input().split())\nprint(a + b)\nexit()", "ok", 1.0, ""),
        ("print(3)\nraise SystemExit(1)", "crash", 0.0, "SystemExit: 1"),
        ("input(), input()", "crash", 0.0, "EOFError"),
        ("print(", "syntax_error", 0.0, "was never closed"),
        ("while True: pass", "timeout", 0.0, "of CPU"),
    ],
)
def test_a_script_is_run_for_each_input(program, status, passed, says, quick_sandbox):
    options = code.Options(type="code")
    graded = code.grade(fenced(program), SCRIPT, options, quick_sandbox, None)
    assert (graded.status, graded.passed, graded.correct) == (status, passed, passed == 1.0)
    assert says in graded.detail and not graded.cheating


@pytest.mark.parametrize(
    ("program", "finding"),
    [
        ("import numpy", "import of numpy"),
        ("print(open('/etc/passwd').read())", "use of open"),
        ("if __name__ == '__main__':\n    import os\n    os.system('ls')", "use of os.system"),
        ("print(().__class__.__base__.__subclasses__())", "use of __subclasses__"),
        ("import sys\nprint(3)\nsys.modules['os']", "use of sys.modules"),
    ],
)
def test_the_policy_holds_for_scripts(program, finding, quick_sandbox):
    options = code.Options(type="code")
    graded = code.grade(fenced(program), SCRIPT, options, quick_sandbox, None)
    assert any(finding in each for each in graded.cheating)


@pytest.mark.parametrize(
    ("printed", "expected", "is_same"),
    [
        ("1 2 \n3\n\n", "1 2\n3", True),
        ("1\n2", "1 2", False),
        ("0.3333333333", "0.333333", True),
        ("0.3334", "0.333333", False),
        ("1e-7", "0.0", True),
        ("2", "2.0", True),
        ("2.0", "2", False),  # a whole number is expected as such
        ("nan", "0.5", False),
        ("YES", "yes", False),
        ("", "", True),
        (None, "", False),
    ],
)
def test_outputs_are_compared_word_by_word(printed, expected, is_same):
    assert code.same_output(printed, expected) is is_same


def test_all_runs_of_a_script_share_one_budget(quick_sandbox):
    quick_sandbox.limits = type(quick_sandbox.limits)(call_cpu_s=1.0, cpu_s=0.2, timeout_s=60.0)
    row = {"stdin": True, "hidden_tests": [[str(i), "x"] for i in range(9)]}
    busy = "import time\nend = time.process_time() + 0.1\nwhile time.process_time() < end: pass"
    graded = code.grade(fenced(busy), row, code.Options(type="code"), quick_sandbox, None)
    assert graded.status is Status.TIMEOUT and not graded.correct


def test_the_last_program_is_run_not_the_example_of_its_output(sandbox):
    text = fenced("print(sum(map(int, input().split())))") + "For 1 2 it says:\n```\n3\n```\n"
    assert code.grade(text, SCRIPT, code.Options(type="code"), sandbox, None).correct
    nothing = code.grade("no code", SCRIPT, code.Options(type="code"), sandbox, None)
    assert nothing.status is Status.NO_FUNCTION


def test_style_is_asked_of_a_class_solution_and_of_a_script(sandbox):
    options = code.Options(type="code")
    documented = (
        'class Solution:\n    """Adds."""\n\n'
        "    def twoSum(self, nums: list[int], target: int) -> list[int]:\n"
        '        """Return where."""\n        return [0, 1]'
    )
    graded = code.grade(fenced(documented), LEETCODE, options, sandbox, None)
    assert graded.correct and graded.data["style"] == graded.data["documentation"] == 1.0
    graded = code.grade(fenced("print(sum(map(int, input().split())))"), SCRIPT, options, sandbox,
                        None)  # fmt: skip
    assert graded.correct and graded.data["style"] == 1.0


def test_what_a_problem_brings_along_is_no_fault_of_a_program(sandbox):
    row = {"entry_point": "f", "tests": [[[], 2]], "setup": "import sqlite3\nimport math\ntwo = 2"}
    graded = code.grade(
        fenced("def f(): return two"), row, code.Options(type="code"), sandbox, None
    )
    assert graded.correct and not graded.cheating
