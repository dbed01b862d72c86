"""report_completions.py: which completions a report shows."""

import json

from fake_run import completion, write_completions, write_run
from hypothesis import given
from hypothesis import strategies as st

from job.report.report_completions import (
    MAX_CHARACTERS,
    grouped,
    is_flat,
    read_groups,
    safe_json,
    shortened,
    spread,
    with_prompts_once,
    within,
    within_bytes,
)
from job.report.run_record import read_run


def groups_of(sizes):
    """Groups of so many completions. "<" takes six bytes in a page."""
    groups = []
    for i, size in enumerate(sizes):
        groups.append({"step": i, "prompt": str(i % 2), "completions": ["<" * 50] * size})
    return groups


def test_groups_are_told_apart_though_their_prompts_are_the_same(tmp_path):
    rows = [completion(group=i // 2, total=float(i // 3)) for i in range(6)]
    run = read_run(write_run(tmp_path / "run", rows=rows))
    groups, logged = read_groups(run, 7, 100)
    assert logged == 6 and [len(group["completions"]) for group in groups] == [2, 2, 2]
    assert [group["flat"] for group in groups] == [True, False, True]
    first = groups[0]
    assert first["run"] == 7 and first["prompt"] == "Multiply two matrices."
    shown = first["completions"][0]
    assert shown["thinking"] == "Let me see." and shown["text"].startswith("```python")
    assert shown["rewards"] == {"function_works": 1.0} and shown["correct"] is True


def test_a_completion_of_several_turns_is_shown_with_calls_and_results(tmp_path):
    called = {"function": {"name": "python", "arguments": {"code": "1 +\\\n1"}}}
    messages = [
        {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [called]},
        {"role": "tool", "name": "python", "content": "2", "status": "ok"},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "Answer: 2"},
    ]
    rows = [completion(transcript=json.dumps(messages))]
    rows += [completion(transcript=text) for text in (None, "", "{", "[1]", "[1, 2]", "7")]
    run = read_run(write_run(tmp_path / "run", rows=rows))
    groups, _ = read_groups(run, 0, 100)
    first, *others = [item for group in groups for item in group["completions"]]
    assert [(turn["who"], turn["text"], turn["status"]) for turn in first["turns"]] == [
        ("thinking", "hm", ""),
        ("call of python", "1 +\\\n1", ""),
        ("result of python", "2", "ok"),
        ("user", "And?", ""),
        ("model", "Answer: 2", ""),
    ]
    assert [item["turns"] for item in others] == [[]] * 6


def test_files_of_older_versions_have_groups_too():
    """Without a column `group`, the config says how large one is, or prompts tell them apart."""
    rows = [{"prompt": prompt, "advantage": 0.0} for prompt in "aaaabb"]
    assert [len(group) for group in grouped(rows, 2)] == [2, 2, 2]
    assert [len(group) for group in grouped(rows, None)] == [4, 2]
    assert is_flat(rows) and not is_flat([*rows, {"prompt": "b", "advantage": 0.5}])


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_shown(tmp_path):
    folder = write_run(tmp_path / "run")
    write_completions(folder, 3, [completion(step=3)])
    (folder / "completions" / "completions_00021.parquet").write_bytes(b"PAR1 half a file")
    (folder / "completions" / "completions_00022.parquet").write_bytes(b"")
    run = read_run(folder)
    groups, _ = read_groups(run, 0, 100)
    assert [group["step"] for group in groups] == [3, 1]
    (problem,) = run.problems
    assert "completions_00021.parquet" in problem and "completions_00022.parquet" in problem


def test_a_run_without_completions_has_none(tmp_path):
    run = read_run(write_run(tmp_path / "run", rows=[]))
    assert read_groups(run, 0, 100) == ([], 0)
    assert run.problems == ["no completions were logged"]


def test_columns_of_other_types_do_no_harm(tmp_path):
    rows = [
        completion(total=None, advantage=float("nan"), status=None, correct=None, mine=[1, 2]),
        completion(total=None, advantage=float("inf"), answer=None, mine=None),
    ]
    run = read_run(write_run(tmp_path / "run", rows=rows))
    (group,), _ = read_groups(run, 0, 100)
    first, second = group["completions"]
    assert group["flat"] and first["total"] is None and first["status"] == ""
    assert first["correct"] is None and second["text"] == "thinking and answer"
    json.dumps(group, allow_nan=False)


def test_of_a_long_run_the_first_and_the_last_step_are_shown(tmp_path):
    folder = write_run(tmp_path / "run", rows=[])
    for step in range(1, 31):
        write_completions(folder, step, [completion(step=step, group=i // 2) for i in range(4)])
    groups, logged = read_groups(read_run(folder), 0, 20)
    assert logged == 120 and [group["step"] for group in groups][::9] == [1, 30]
    assert sum(len(group["completions"]) for group in groups) == 20


@given(st.lists(st.integers()), st.integers(1, 20))
def test_a_spread_is_even_and_keeps_both_ends(items, count):
    chosen = spread(list(enumerate(items)), count)
    places = [place for place, _ in chosen]
    assert len(chosen) == min(len(items), count)
    assert places == sorted(set(places))
    if items:
        assert places[-1] == len(items) - 1
    if items and count > 1:
        assert places[0] == 0
        gaps = [after - before for before, after in zip(places, places[1:], strict=False)]
        assert max(gaps, default=0) - min(gaps, default=0) <= 1


@given(st.lists(st.integers(1, 9), max_size=30), st.integers(1, 40))
def test_no_more_completions_than_the_limit(sizes, limit):
    kept = within(groups_of(sizes), limit)
    assert sum(len(group["completions"]) for group in kept) <= limit
    assert bool(kept) == bool(sizes)
    if sum(sizes) <= limit:
        assert len(kept) == len(sizes)


@given(st.lists(st.integers(1, 9), max_size=30), st.integers(1, 40_000))
def test_no_more_bytes_than_the_limit(sizes, limit):
    kept = within_bytes(groups_of(sizes), limit)
    assert not kept or len(safe_json(with_prompts_once(kept))) <= limit
    if len(safe_json(with_prompts_once(groups_of(sizes)))) <= limit:
        assert kept == groups_of(sizes)


def test_a_prompt_of_several_groups_is_in_the_page_once():
    content = with_prompts_once(groups_of([1, 2, 3]))
    assert content["prompts"] == ["0", "1"]
    assert [group["prompt"] for group in content["groups"]] == [0, 1, 0]


@given(st.dictionaries(st.text(), st.text() | st.lists(st.text())))
def test_json_in_the_page_is_the_same_and_ends_no_element(content):
    text = safe_json(content)
    assert json.loads(text) == content and text.isascii()
    assert not set(text) & set("<>&")


@given(st.text(max_size=50), st.integers(0, 500))
def test_a_text_is_shortened_in_its_middle(text, times):
    text = text * times
    short = shortened(text)
    assert len(short) <= MAX_CHARACTERS + 60
    if len(text) <= MAX_CHARACTERS:
        assert short == text
    else:
        assert short[:100] == text[:100] and short[-100:] == text[-100:]
