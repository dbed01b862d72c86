"""README.md, docs/ and the other pages: what they show is loaded, run or compared with the code."""

import ast
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import reward_functions
import tasks
from job import config, errors, grading, grpo_keys, reward_check, watchdog
from sandbox import LAYERS, Status
from tasks import Grade

ROOT = Path(__file__).parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for folder in (ROOT, ROOT / "docs", ROOT / "benchmarks", ROOT / "tiny_model")
    for path in sorted(folder.glob("*.md"))
}
README = PAGES["README.md"]
MAX_README_LINES = 250
# Named one by one, because nobody must document a task that they add for themselves.
TASKS = ["code", "game_2048", "game_2048_moves", "jsonl", "matmul", "prompt_injection"]
TASKS += ["prompt_injection_talk", "reasoning"]


def blocks(language, *names):
    """The fenced blocks of one language in these pages, by default in all.

    A fence inside a block is indented there.
    """
    found = []
    for name in names or PAGES:
        pattern = rf"^```{language}\n(.*?)^```$"
        found += re.findall(pattern, PAGES[name], re.DOTALL | re.MULTILINE)
    return found


def tables(page):
    """The cells of each row of each table of a page. Titles and rules are included."""
    rows = re.findall(r"^\| (.*) \|$", PAGES[page], re.MULTILINE)
    return [[cell.strip() for cell in row.split(" | ")] for row in rows]


def codes(text):
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", text)


def documented(page):
    """Every name in backticks in the first column of a page's tables."""
    return {name for row in tables(page) for name in codes(row[0])}


def value_of(cell):
    """The value that a cell shows in backticks, read as a config would read it."""
    return OmegaConf.to_container(OmegaConf.create(f"value: {cell.strip('`')}"))["value"]


def section(page, heading):
    """The text under a heading, up to the next one of the same or a higher level."""
    level = heading.split(" ")[0]
    after = PAGES[page].split(f"\n{heading}\n", 1)[1]
    return re.split(rf"\n#{{1,{len(level)}}} ", after)[0]


def anchors(text):
    """The anchors that GitHub makes of the headings of a page."""
    without_blocks = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", without_blocks, re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


# ---- what the pages show runs


@pytest.fixture
def example_functions(monkeypatch):
    """The functions that the README's Python blocks define, as if added to reward_functions.py."""
    for block in blocks("python", "README.md"):
        namespace = {}
        exec(compile(ast.parse(block), "README.md", "exec"), namespace)
        for name, value in namespace.items():
            if callable(value):
                monkeypatch.setattr(reward_functions, name, value, raising=False)
    return reward_functions


@pytest.mark.parametrize("block", blocks("yaml"))
def test_every_yaml_block_is_a_config(block, example_functions, tmp_path):
    (tmp_path / "block.yaml").write_text(block)
    config.load_config(tmp_path / "block.yaml")


def test_the_example_reward_function(example_functions):
    grades = [Grade(Status.OK, correct=True, code="x"), Grade(Status.CRASH, code="x")]
    assert example_functions.short_answer([None, None], grades=grades) == [1.0, 0.0]


@pytest.fixture
def example_task(tmp_path, monkeypatch):
    """The name of the task that docs/tasks.md shows, saved as the page says."""
    (block,) = blocks("python", "docs/tasks.md")
    (tmp_path / "sort.py").write_text(block)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    yield "sort"
    sys.modules.pop("tasks.sort", None)


def test_the_example_task_is_a_task_whose_rewards_cannot_be_beaten(example_task, sandbox):
    assert list(tasks.contract_mistakes(example_task)) == []
    (options,) = config.load_config(overrides=[f"task.type={example_task}"]).tasks
    reward_check.check_rewards(options, sandbox)
    task = tasks.load(example_task)
    grader = grading.Grader([options], sandbox, seed=0)
    kinds = [task.REFERENCE, *task.WRONG, *task.CHEAT]
    right, wrong, cheat = grader.grade(kinds, [{"task": example_task}] * 3)
    assert right.correct and not wrong.correct
    assert cheat.cheating and not right.cheating and not wrong.cheating


# ---- what is public is documented


def test_every_key_of_the_config_is_explained_with_its_default():
    tree = OmegaConf.to_container(config.resolved(config.load_config()))
    keys = {
        f"{section}.{key}"
        for section in ("model", "lora", "evaluate", "train", "sandbox", "watchdog")
        for key in tree[section]
    }
    keys |= {f"task.{field.name}" for field in dataclasses.fields(tasks.Options)}
    keys |= {f"grpo.{key}" for key in OmegaConf.load(ROOT / "config.yaml").grpo}
    keys |= {f"grpo.{key}" for key in grpo_keys.OWN_KEYS}
    rows = [row for row in tables("docs/configuration.md") if row[0].startswith("`")]
    assert keys - documented("docs/configuration.md") == set()
    for names, default, *_ in rows:
        (name,) = codes(names)
        section_name, key = name.split(".")
        assert value_of(default) == tree[section_name].get(key), name


def defaults_of(options):
    """{key: default} of an Options class."""
    defaults = {}
    for field in dataclasses.fields(options):
        if field.default_factory is dataclasses.MISSING:
            defaults[field.name] = field.default
        else:
            defaults[field.name] = field.default_factory()
    return defaults


@pytest.mark.parametrize("name", TASKS)
def test_every_key_of_a_task_is_explained_with_its_default(name):
    shared, defaults = defaults_of(tasks.Options), defaults_of(tasks.load(name).Options)
    own = {key for key in defaults if key not in shared or defaults[key] != shared[key]}
    text = section("docs/tasks.md", f"### `{name}`")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", text, re.MULTILINE))
    assert set(rows) == own
    for key, default in rows.items():
        if default != "see the file":
            assert value_of(default) == defaults[key], key


def test_every_task_is_in_the_table_of_tasks():
    table = section("docs/tasks.md", "## The tasks").split("###")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \| ", table, re.MULTILINE)) == TASKS
    assert set(TASKS) <= set(tasks.names())
    assert all(f"`{name}`" in README for name in TASKS)


def test_every_layer_of_the_sandbox_is_named():
    (row,) = [row for row in tables("docs/configuration.md") if row[0] == "`sandbox.require`"]
    assert codes(row[2]) == LAYERS


def test_every_algorithm_stands_in_the_table_as_it_is():
    table = PAGES["docs/algorithms.md"]
    for name, keys in grpo_keys.ALGORITHMS.items():
        row = re.search(rf"^\| `{name}` \|(.*)$", table, re.MULTILINE)[1].split("|")
        _, loss_type, level, scale, beta, epsilon, others = (cell.strip() for cell in row[:7])
        assert loss_type.split("`")[1] == keys["loss_type"]
        assert level == keys["importance_sampling_level"]
        assert scale.split(":")[0] == keys["scale_rewards"]
        assert float(beta) == keys["beta"]
        low, high = epsilon.split(", ")
        assert float(low) == keys["epsilon"]
        if keys["epsilon_high"] is None:
            assert high == "-"
        else:
            assert float(high) == keys["epsilon_high"]
        special = ("mask_truncated_completions", "zero_std_groups", "multi_objective_aggregation")
        different = [key for key in special if keys[key] != grpo_keys.COMMON[key]]
        assert re.findall(r"`(\w+): ", others) == different


def test_every_metric_of_our_own_is_explained():
    source = "\n".join(path.read_text() for path in sorted((ROOT / "job").glob("*.py")))
    logged = set(re.findall(r'"((?:grades|completions|resampling|episodes)/[a-z_]+)"', source))
    assert {"grades/correct", "completions/distinct", "resampling/tries"} <= logged
    assert logged - documented("docs/metrics.md") == set()
    for name in (
        "grades/status/<status>",
        "reward_weights/<function>",
        "rewards/<function>/mean",
        "watchdog",
    ):
        assert name in documented("docs/metrics.md")


def test_every_diagnosis_is_explained():
    thresholds = {field.name for field in dataclasses.fields(watchdog.Options)} - {"on", "window"}
    explained = re.findall(
        r"^\| `(\w+)` \|", section("docs/metrics.md", "## Watchdog"), re.MULTILINE
    )
    assert set(explained) == thresholds


def test_every_grade_status_is_explained():
    explained = re.findall(
        r"^\| `(\w+)` \|", section("docs/metrics.md", "## Statuses"), re.MULTILINE
    )
    assert explained == [str(status) for status in Status]


def test_every_field_of_a_grade_is_explained():
    explained = re.findall(
        r"^\| `(\w+)` \|", section("docs/rewards.md", "## The Grade"), re.MULTILINE
    )
    assert explained == [field.name for field in dataclasses.fields(Grade)]


def test_every_reward_function_is_explained():
    functions = section("docs/rewards.md", "## The functions")
    rows = re.findall(r"^\| (`.*?) \|", functions, re.MULTILINE)
    explained = [name for row in rows for name in codes(row)]
    assert sorted(explained) == sorted(reward_functions.__all__)


def test_every_exit_code_is_explained():
    explained = re.findall(r"^\| (\d+) \|", section("docs/runs.md", "## Exit codes"), re.MULTILINE)
    known = {kind.exit_code for kind in errors.JobError.__subclasses__()}
    known |= {errors.DONE, errors.UNFORESEEN, errors.STOPPED_BY_WATCHDOG}
    known |= {errors.SANDBOX_FAILED, errors.REQUEUE}
    known |= {errors.STOPPED_BY_SIGNAL + number for number in (2, 15)}
    assert {int(code) for code in explained} == known


# ---- the pages themselves


def test_the_readme_stays_short_enough_to_be_read():
    assert len(README.splitlines()) <= MAX_README_LINES


def tree_of_the_readme():
    """The path of each line of the README's tree. Several names in one line each have a path."""
    (tree,) = [block for block in blocks("text", "README.md") if block.startswith("train.py")]
    paths, folder = [], ""
    for line in tree.splitlines():
        names, comment = re.fullmatch(r"( *\S+(?:, \S+)*)  +(\S.*)", line).groups()
        assert comment
        if not names.startswith(" "):
            folder = ""
        paths += [folder + name.strip() for name in names.split(",")]
        if names.endswith("/"):
            folder = names
    return paths


def test_the_tree_has_every_module_and_nothing_else():
    paths = tree_of_the_readme()
    assert [path for path in paths if not list(ROOT.glob(path))] == []
    # Modules and tasks that users add for themselves need not be in it.
    scripts = [path for path in ROOT.glob("*.py") if "exit_code_of" in path.read_text()]
    modules = [*scripts, *ROOT.glob("job/*.py"), *ROOT.glob("sandbox/*.py")]
    names = {path.relative_to(ROOT).as_posix() for path in modules}
    names |= {f"tasks/{name}.py" for name in TASKS}
    assert names - set(paths) == {"job/__init__.py", "sandbox/__init__.py"}


def test_every_page_of_docs_is_linked_from_the_readme():
    for name in PAGES:
        if name.startswith("docs/"):
            assert f"]({name}" in README, name


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_heading_that_a_page_links_to_exists(page):
    for target, _, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(#([^)]+))?\)", PAGES[page]):
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.exists(), target
        if anchor:
            linked = file.resolve().relative_to(ROOT.resolve()).as_posix()
            assert anchor in anchors(PAGES[linked]), f"{target}#{anchor}"


def test_shell_commands_name_scripts_that_exist():
    for text in PAGES.values():
        for command in re.findall(r"\bbash ((?:[\w./]+/)?[\w.]+\.sh)", text):
            assert (ROOT / command).is_file(), command


def test_no_page_uses_the_words_of_design_talk():
    for name, text in PAGES.items():
        assert not re.search(r"\b(house|rooms?|wings?)\b", text, re.IGNORECASE), name


@pytest.mark.parametrize("script", ["build.sh", "train.sh"])
def test_help_answers(script):
    result = subprocess.run(["bash", ROOT / script, "--help"], capture_output=True, text=True)
    assert result.returncode == 0 and "usage" in result.stdout
