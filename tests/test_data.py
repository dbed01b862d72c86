"""tasks/data/: every form of file gives the same rows, mistakes are told with their places, and
columns are found by their names."""

import bz2
import csv
import gzip
import io
import json
import os
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tasks
from job.config import load_config, save
from job.errors import ConfigError
from job.rows import mixed_rows
from tasks import jsonl
from tasks.data import columns, formats, sources
from tasks.data.mistakes import Mistakes, RowMistake
from tasks.jsonl import Options

ROOT = Path(__file__).parent.parent
ROWS = [
    {"prompt": "What is 2 + 2?", "answer": "4", "topic": "sums, of two"},
    {"prompt": "Was kostet ein\n„Brötchen“?", "answer": "1/2", "topic": "prices"},
]


@pytest.fixture(autouse=True)
def nothing_remembered():
    """What one test read or said is not there for the next."""
    yield
    for remembered in (sources.load_split, sources.described_rows, tasks.note_once):
        remembered.cache_clear()
    for remembered in (jsonl.read_split, jsonl.row_count):
        remembered.cache_clear()


def options(data, **settings):
    return Options(type="jsonl", data=str(data), **{"num_rows": None, **settings})


def texts(rows):
    return [row["prompt"][-1]["content"] for row in rows]


def as_lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(rows, delimiter=","):
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def as_parquet(rows):
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


FORMS = {
    "jsonl": as_lines,
    "json": lambda rows: json.dumps(rows, indent=2).encode(),
    "csv": as_csv,
    "tsv": lambda rows: as_csv(rows, "\t"),
    "parquet": as_parquet,
}
COMPRESSIONS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": lambda content: pa.compress(content, "zstd", asbytes=True),
}


# ------------------------------------------------------------ forms of files


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rows(tmp_path, form, compression):
    path = tmp_path / f"rows.{form}{compression}"
    path.write_bytes(COMPRESSIONS[compression](FORMS[form](ROWS)))
    read = jsonl.rows(options(path))
    assert texts(read) == [row["prompt"] for row in ROWS]
    assert [(row["answer"], row["topic"]) for row in read] == [
        ("4", "sums, of two"),
        ("1/2", "prices"),
    ]


def test_a_glob_may_mix_forms(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(as_lines(ROWS[:1]))
    (tmp_path / "b.csv").write_bytes(as_csv(ROWS[1:]))
    assert texts(jsonl.rows(options(tmp_path / "*"))) == [row["prompt"] for row in ROWS]


@pytest.mark.parametrize("form", ["jsonl", "json", "csv"])
def test_a_mark_of_utf_8_is_no_letter(tmp_path, form):
    path = tmp_path / f"rows.{form}"
    path.write_bytes(b"\xef\xbb\xbf" + FORMS[form](ROWS))
    assert len(jsonl.rows(options(path))) == 2


def test_values_of_a_csv_are_as_they_are_written(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(
        "prompt,answer,id,day,missing,flag\nx,007,007,2024-01-02,,yes\ny,NA,1e3,null,,no\n"
    )
    first, second = jsonl.rows(options(path))
    assert [first[name] for name in ("answer", "id", "day", "missing", "flag")] == [
        "007", "007", "2024-01-02", None, "yes",
    ]  # fmt: skip
    assert (second["answer"], second["id"], second["day"]) == ("NA", "1e3", "null")


def test_a_csv_with_semicolons_is_one(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(as_csv(ROWS, ";"))
    assert texts(jsonl.rows(options(path))) == [row["prompt"] for row in ROWS]


BAD_LINES = {
    "a lone surrogate": (r'{"prompt": "\ud800", "answer": 1}', "half of a letter"),
    "one in a name": (r'{"prompt": "x", "answer": 1, "\udfff": 1}', "half of a letter"),
    "one deep inside": (r'{"prompt": "x", "answer": [[{"a": "\uDc00"}]]}', "half of a letter"),
    "an escaped NUL": (r'{"prompt": "a\u0000b", "answer": 1}', "NUL"),
    "a NUL": ('{"prompt": "a\0b", "answer": 1}', "not JSON"),
    "NaN": ('{"prompt": "x", "answer": NaN}', "NaN is no number of JSON"),
    "Infinity": ('{"prompt": "x", "answer": -Infinity}', "Infinity is no number of JSON"),
    "too large a float": ('{"prompt": "x", "answer": 1e999}', "too large for a float"),
    "too long an integer": ('{"prompt": "x", "answer": %s}' % ("9" * 5000), "not JSON"),
    "a name twice": ('{"prompt": "x", "answer": 1, "answer": 2}', "'answer' is there twice"),
    "twice deep inside": ('{"prompt": "x", "m": {"a": 1, "a": 2}}', "'a' is there twice"),
    "an end without a beginning": ('{"prompt": "x"}}', "not JSON"),
    "no UTF-8": (b'{"prompt": "Br\xf6tchen"}', "byte 0xf6 at column 15"),
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_what_json_cannot_say_is_refused_with_its_line(tmp_path, line):
    bad, why = BAD_LINES[line]
    path = tmp_path / "rows.jsonl"
    good = as_lines(ROWS[:1])
    bad = bad if isinstance(bad, bytes) else bad.encode()
    path.write_bytes(good + bad + b"\n" + good)
    with pytest.raises(ValueError, match=rf"^data: .*rows\.jsonl:2: .*{why}"):
        options(path)


def test_a_whole_pair_of_surrogates_is_a_letter(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(r'{"prompt": "\ud83d\ude00 \\u0000 \\ud800", "answer": 1}' + "\n")
    assert texts(jsonl.rows(options(path))) == ["😀 \\u0000 \\ud800"]


def test_a_large_integer_is_an_answer(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "21!", "answer": 51090942171709440000}\n')
    (row,) = jsonl.rows(options(path))
    assert row["answer"] == "51090942171709440000"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"prompt": "x"},\n {"prompt": "y", "a": NaN}]', ":2: not JSON: NaN"),
        ('[{"prompt": "x"}\n {"prompt": "y"}]', ":1: not JSON: a comma or ]"),
        ('[{"prompt": "x"},\n', ":2: not JSON: the list has no end"),
        ('[\n{"prompt": "x"},\n{"prompt": }]', ":3: not JSON: Expecting value at line 3, column"),
        ('[\n{"prompt": "x"},\n\n["y"]]', ":4: must be an object, not list"),
    ],
)
def test_mistakes_in_a_list_have_lines(tmp_path, content, message):
    path = tmp_path / "rows.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"rows\.json" + message.replace("[", r"\[")):
        options(path, rewards=["clarity"])


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)
SIMPLE = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
)
VALUES = SIMPLE | TEXTS | st.lists(SIMPLE, max_size=2) | st.dictionaries(TEXTS, SIMPLE, max_size=2)


@settings(max_examples=50)
@given(st.lists(st.dictionaries(TEXTS, VALUES, max_size=3), max_size=4))
def test_a_list_and_its_lines_are_read_alike(values):
    for indent in (None, 1):
        items = list(formats.read_items(json.dumps(values, indent=indent), "x"))
        assert [value for _, value in items] == values
    assert [formats.read_line(json.dumps(value).encode()) for value in values] == values


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "prompt,answer\nx,1\ny\nz,1,2\n",
            r":3: fields: 1, but .*\(2 rows: 3, 4\)",
        ),
        ("prompt,prompt\nx,1\n", ":1: two columns are called 'prompt'"),
        ("prompt,,b\nx,1,2\n", ":1: column 2 has no name"),
        ('prompt,answer\nx,1\n"y,2\n', ":3: not CSV: unexpected end of data"),
        ('prompt,answer\n"x"y,1\n', ":2: not CSV"),
        (b"prompt,answer\nx,1\nBr\xf6tchen,1\n", ":3: not UTF-8: byte 0xf6"),
        (b"prompt,answer\nx,1\na\0b,1\n", ":3: .*NUL"),
        ("prompt,answer\nx,1\n".encode("utf-16"), "is UTF-16"),
        ("", "holds no row to train on"),
        ("prompt,answer\n", "holds no row to train on"),
    ],
)
def test_mistakes_in_a_csv_have_lines(tmp_path, content, message):
    path = tmp_path / "rows.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        options(path)


def test_a_field_may_hold_lines_and_the_next_row_has_its_own_line(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('prompt,answer\n"a\nb\nc",1\nx\n')
    with pytest.raises(ValueError, match=":5: fields: 1, but the header names 2"):
        options(path)


def test_columns_are_recognised_in_capitals_and_an_empty_prompt_is_told(tmp_path, capsys):
    file = tmp_path / "own.csv"
    file.write_text("Question,SOLUTION\nWhat is 2 + 2?,4\nAnd 3?,3\n")
    rows = jsonl.rows(options(file))
    assert [(row["prompt"][0]["content"], row["answer"]) for row in rows] == [
        ("What is 2 + 2?", "4"),
        ("And 3?", "3"),
    ]
    assert "prompt from column Question, answer from column SOLUTION" in capsys.readouterr().err
    file.write_text("question,solution\nWhat is 2 + 2?,4\n,3\nAnd 3?,3\n")
    with pytest.raises(ValueError, match=r"own.csv:3: the prompt, column 'question', is empty"):
        jsonl.rows(options(file))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.zst", "a.parquet", "a.parquet.gz"])
@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x1f\x8b\x08"])
def test_a_file_that_is_not_what_its_name_says_is_told(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read|no row to train on"):
        options(path)


def test_a_file_that_is_cut_off_is_told(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(as_lines(ROWS * 2000))[:-20])
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz cannot be read"):
        options(path)


# ------------------------------------------------------------ where files are


def test_paths_are_sought_where_the_user_stands_and_then_in_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sources.find_files("configs/sums.jsonl") == [ROOT / "configs/sums.jsonl"]
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/sums.jsonl").write_bytes(as_lines(ROWS))
    assert len(jsonl.rows(options("configs/sums.jsonl"))) == 2
    monkeypatch.chdir("/")
    monkeypatch.setenv("START_FOLDER", str(tmp_path))
    assert len(jsonl.rows(options("configs/*.jsonl"))) == 2


def test_a_saved_config_finds_its_data_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.csv").write_bytes(as_csv(ROWS))
    job = load_config(None, ["task.type=jsonl", "task.data=mine.*"])
    save(job, tmp_path / "saved.yaml")
    monkeypatch.chdir("/")
    saved = load_config(tmp_path / "saved.yaml")
    assert jsonl.rows(saved.tasks[0]) == jsonl.rows(options(tmp_path / "mine.csv"))
    for data in ("configs/sums.jsonl", "openai/gsm8k"):
        assert sources.from_anywhere(data) == data


@pytest.mark.parametrize(
    ("file", "overrides", "wanted"),
    [
        ("task: {type: jsonl}\n", [], None),
        ("", ["task.type=jsonl"], None),
        ("task: {type: jsonl, num_rows: 7}\n", [], 7),
        ("task: {type: matmul, num_rows: 7}\n", ["task.type=jsonl"], 7),
        ("task: {num_rows: 7}\n", ["task.type=jsonl"], 7),
        ("task: {type: reasoning}\n", ["task.type=jsonl"], None),
        ("task: {type: jsonl}\n", ["task.type=reasoning"], 1000),
        ("", [], 1000),
    ],
)
def test_rows_of_ones_own_are_repeated_only_where_the_user_says_so(
    tmp_path, file, overrides, wanted
):
    path = tmp_path / "job.yaml"
    path.write_text(file or "{}")
    assert load_config(path, overrides).tasks[0].num_rows == wanted


def test_the_message_about_a_missing_file_says_where_it_was_sought(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.parquet").write_bytes(as_parquet(ROWS))
    with pytest.raises(ValueError) as error:
        options("row.parquet")
    message = str(error.value)
    assert f"there is no file row.parquet in {tmp_path} or in {ROOT}" in message
    assert "did you mean rows.parquet?" in message


@pytest.mark.parametrize(
    "data", ["x.parquet", "a/x.csv", "x.jsonl.gz", "x.json.zst", "x.tsv", "x.xlsx", "x.txt"]
)
def test_a_name_with_the_ending_of_a_file_is_never_asked_of_the_hub(data, monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("asked the Hub"))
    with pytest.raises(ValueError, match=f"there is no file {data}"):
        options(data)


def test_a_folder_is_told_from_a_data_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for data in ("mine", str(tmp_path), ".."):
        with pytest.raises(ValueError, match=r"is a folder; name its files, as in .*/\*\.jsonl"):
            options(data)


# ------------------------------------------------------------ which column is which


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        ({"question": "q", "answer": "so\n#### 72"}, "q", "so\n#### 72"),
        ({"problem": "q", "solution": r"thus \boxed{\frac12}."}, "q", r"thus \boxed{\frac12}."),
        ({"messages": [{"role": "user", "content": "q"}], "ground_truth": 7}, "q", 7),
        ({"prompt": [{"role": "user", "content": "q"}],
          "reward_model": {"style": "rule", "ground_truth": "34"}}, "q", "34"),
        ({"prompt": "q", "question": "other", "answer": 1, "solution": "2"}, "q", 1),
        ({"instruction": "q", "final_answer": "2"}, "q", "2"),
    ],
)  # fmt: skip
def test_columns_are_recognised_by_name_and_said(tmp_path, capsys, row, prompt, answer):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(as_lines([row]))
    (read,) = jsonl.rows(options(path))
    assert texts([read]) == [prompt] and read["answer"] == answer
    assert set(row) <= set(read)  # nothing is lost
    said = capsys.readouterr().err
    assert said.count("\n") == ("prompt" not in row or "answer" not in row)
    if "prompt" not in row:
        assert f"prompt from column {next(iter(row))}" in said and "task.columns" in said


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.string(), pa.large_string()])
def test_texts_of_parquet_may_be_kept_as_bytes(tmp_path, kind):
    path = tmp_path / "rows.parquet"
    column = pa.array(["Käse?".encode(), b"2 + 2"]).cast(kind)
    picture = pa.array([b"\xff\xd8", None], pa.binary())
    columns = {"prompt": column, "answer": [1, 4], "picture": picture}
    pq.write_table(pa.table(columns), path)
    read = [row for _, row in formats.read_parquet(path, None, "rows.parquet")]
    assert [row["prompt"] for row in read] == ["Käse?", "2 + 2"]
    assert [row["picture"] for row in read] == [b"\xff\xd8", None]


def test_a_text_of_parquet_that_is_no_utf_8_spoils_its_row_alone(tmp_path):
    path = tmp_path / "rows.parquet"
    broken = pa.array([b"fine", b"K\xe4se", b"fine"])
    broken = pa.StringArray.from_buffers(3, *broken.buffers()[1:])
    pq.write_table(pa.table({"prompt": broken, "answer": [1, 2, 3]}), path)
    with pytest.raises(ValueError) as caught:
        jsonl.rows(options(path))
    assert f"{path}:2: not UTF-8: byte 0xe4 in prompt" in str(caught.value)


def test_messages_may_end_with_the_answer(tmp_path):
    path = tmp_path / "rows.parquet"
    row = {
        "messages": [
            {"role": "user", "content": "q", "name": None},
            {"role": "assistant", "content": "it is 5", "name": None},
        ]
    }
    path.write_bytes(as_parquet([row]))
    (read,) = jsonl.rows(options(path))
    assert read["prompt"] == [{"role": "user", "content": "q"}] and read["answer"] == "it is 5"


def test_worked_solutions_are_answers(tmp_path, sandbox):
    path = tmp_path / "rows.csv"
    solutions = [
        ("#", "3 + 4 = <<3+4=7>>7\n#### 7", "7"),
        ("box", r"Thus the area is $\boxed{\frac{3}{4}}$.", "0.75"),
    ]
    path.write_bytes(as_csv([{"problem": q, "solution": s} for q, s, _ in solutions]))
    settings = options(path)
    for row, (_, _, right) in zip(jsonl.rows(settings), solutions, strict=True):
        assert jsonl.grade(f"Answer: {right}", row, settings, sandbox, None).correct
        assert not jsonl.grade("Answer: 11", row, settings, sandbox, None).correct


def test_columns_are_named_by_the_config(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    path.write_text("frage,loesung,answer,step\nq,5,no answer,3\n")
    job = load_config(
        None,
        [
            "task.type=jsonl",
            f"task.data={path}",
            "task.columns={prompt: frage, answer: loesung, my_step: step}",
        ],
    )
    row = jsonl.rows(job.tasks[0])[0]
    assert texts([row]) == ["q"] and (row["answer"], row["my_step"]) == ("5", "3")
    assert "step" not in row and row["frage"] == "q"
    assert "column" not in capsys.readouterr().err


def test_a_name_with_dots_goes_into_nested_values(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(as_lines([{"in": {"text": "q"}, "out": {"value": 3}}]))
    (row,) = jsonl.rows(options(path, columns={"prompt": "in.text", "answer": "out.value"}))
    assert texts([row]) == ["q"] and row["answer"] == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"columns": {"answer": "solutoin"}}, "no value in a column solutoin; did you mean solut"),
        ({"columns": {"prompt": "missing"}}, r"column missing The columns are|column missing"),
        ({"columns": ["question"]}, "columns: must be a mapping"),
        ({"columns": {"answer:solution": None}}, "space behind each colon"),
        ({"columns": {"grades": "question"}}, "columns: grades is a name that the trainer"),
        ({"prompt_template": "the same for all"}, "prompt_template: names no column"),
        ({"prompt_template": " "}, "prompt_template: is empty"),
        ({"system_prompt": ""}, "system_prompt: is empty"),
    ],
)
def test_mistakes_in_what_the_config_says_of_columns(tmp_path, settings, message):
    path = tmp_path / "rows.csv"
    path.write_text("question,solution\nq,5\n")
    with pytest.raises(ValueError, match=message):
        options(path, **settings)


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("Solve {prompt} now", "Solve 1 + 1 now"),
        ("{question}{hint}\nUse \\boxed{}, for {set}", "1 + 1\nUse \\boxed{}, for {set}"),
        ("{extra.unit}: {prompt}", "cm: 1 + 1"),
        ("{extra}", '{"unit": "cm"}'),
    ],
)  # fmt: skip
def test_a_template_goes_around_columns(tmp_path, template, prompt):
    path = tmp_path / "rows.jsonl"
    row = {"question": "1 + 1", "answer": 2, "hint": None, "extra": {"unit": "cm"}}
    path.write_bytes(as_lines([row]))
    chosen = options(path, prompt_template=template, system_prompt="Be brief.")
    (read,) = jsonl.rows(chosen)
    assert read["prompt"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": prompt},
    ]


def test_a_row_keeps_its_own_system_message(tmp_path):
    path = tmp_path / "rows.jsonl"
    messages = [{"role": "system", "content": "Own."}, {"role": "user", "content": "q"}]
    path.write_bytes(as_lines([{"prompt": messages, "answer": 1}]))
    (read,) = jsonl.rows(options(path, system_prompt="Other.", prompt_template="<{prompt}>"))
    assert read["prompt"] == [messages[0], {"role": "user", "content": "<q>"}]


@pytest.mark.parametrize("name", sorted(tasks.RESERVED_COLUMNS))
def test_a_column_with_a_name_of_ours_is_refused_and_can_be_renamed(tmp_path, name):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(as_lines([{"prompt": "x", "answer": 1, name: "theirs"}]))
    with pytest.raises(ValueError, match=r"names that the trainer itself uses; .*task\.columns"):
        options(path)
    (row,) = jsonl.rows(options(path, columns={"my_own": name}))
    assert row["my_own"] == "theirs" and name not in row


# ------------------------------------------------------------ the Hub


def write_cached_dataset(home, name, configuration, splits):
    """A data set in the layout of the cache of `datasets`, as downloading it leaves it."""
    short = name.rpartition("/")[2]
    folder = home / "datasets" / name.replace("/", "___") / configuration / "0.0.0" / "c0ffee12"
    folder.mkdir(parents=True)
    infos = datasets.SplitDict()
    for split, rows in splits.items():
        table = datasets.Dataset.from_list(rows)
        path = str(folder / f"{short}-{split}.arrow")
        with datasets.arrow_writer.ArrowWriter(features=table.features, path=path) as writer:
            for row in rows:
                writer.write(row)
            examples, size = writer.finalize()
        infos.add(datasets.SplitInfo(split, size, examples, dataset_name=short))
    datasets.DatasetInfo(
        features=table.features,
        builder_name="parquet",
        dataset_name=short,
        config_name=configuration,
        version="0.0.0",
        splits=infos,
    ).write_to_directory(str(folder))


@pytest.fixture
def gsm8k(tmp_path, monkeypatch):
    """openai/gsm8k in the cache, with two configurations, as the Hub has it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    for configuration in ("main", "socratic"):
        splits = {}
        for split, count in (("train", 12), ("test", 3)):
            splits[split] = [
                {"question": f"{configuration} {split} {i}?", "answer": f"It is {i}.\n#### {i}"}
                for i in range(count)
            ]
        write_cached_dataset(tmp_path, "openai/gsm8k", configuration, splits)


def test_gsm8k_works_by_two_keys(gsm8k, capsys, sandbox):
    job = load_config(None, ["task.type=jsonl", "task.data=openai/gsm8k"])
    trained_on, held_out = mixed_rows(job.tasks)
    assert set(texts(trained_on)) == {f"main train {i}?" for i in range(12)} and not held_out
    said = capsys.readouterr().err
    assert "task.configuration is main" in said and "prompt from column question" in said
    grade = jsonl.grade("So\nAnswer: 3", trained_on[3], job.tasks[0], sandbox, None)
    assert grade.correct


def test_a_configuration_a_split_and_streaming_are_chosen(gsm8k):
    settings = {"configuration": "socratic", "split": "test", "eval_split": "train[:2]"}
    chosen = options("openai/gsm8k", **settings)
    assert texts(jsonl.rows(chosen)) == [f"socratic test {i}?" for i in range(3)]
    assert texts(jsonl.eval_rows(chosen)) == ["socratic train 0?", "socratic train 1?"]
    streamed = options("openai/gsm8k", streaming=True)
    assert texts(jsonl.stream(streamed, Mistakes())) == [f"main train {i}?" for i in range(12)]


def test_a_large_data_set_of_the_hub_is_streamed_and_not_downloaded(gsm8k, monkeypatch):
    monkeypatch.setattr(jsonl, "STREAMED_ROWS", 10)
    monkeypatch.setattr(jsonl, "SAMPLED_ROWS", 4)
    asked = []
    load = datasets.load_dataset
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *names, **keys: asked.append(keys) or load(*names, **keys)
    )
    large = options("openai/gsm8k")
    assert jsonl.is_streamed(large) and len(jsonl.rows(large)) == 4
    assert len(list(jsonl.stream(large, Mistakes()))) == 12
    assert asked and all(keys.get("streaming") for keys in asked)
    assert not jsonl.is_streamed(options("openai/gsm8k", split="test"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "trian"}, r"split 'trian'.*Should be one of \['train', 'test'\]"),
        ({"configuration": "other"}, r"configuration 'other'.*\['main', 'socratic'\]"),
        ({"revision": "deadbeef"}, "revision 'deadbeef'.*c0ffee12"),
    ],
)
def test_what_the_hub_does_not_have_is_told(gsm8k, settings, message):
    with pytest.raises(ValueError, match=message):
        options("openai/gsm8k", **settings)


def test_a_revision_that_is_the_one_in_the_cache_is_taken(gsm8k):
    assert len(jsonl.rows(options("openai/gsm8k", revision="c0ffee12"))) == 12


@pytest.mark.parametrize("key", ["configuration", "revision", "eval_split", "split"])
def test_keys_of_the_hub_are_refused_beside_files(tmp_path, key):
    (tmp_path / "a.jsonl").write_bytes(as_lines(ROWS))
    with pytest.raises(ValueError, match=f"^{key}: is for a dataset of the Hub"):
        options(tmp_path / "a.jsonl", **{key: "x"})


# ------------------------------------------------------------ messages


def test_mistakes_of_a_kind_are_one_line():
    mistakes = Mistakes()
    for i in range(5):
        mistakes.add(f"a:{i}", RowMistake(f"no {i}", "none", "add one"))
    mistakes.add("a:9", RowMistake("other"))
    assert mistakes.count == 6
    assert mistakes.lines() == [
        "a:0: no 0 (5 rows: 0, 1, 2, ...); add one",
        "a:9: other",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (["task.data=x"], "task.data: no such key in matmul, but in code and jsonl: set task.t"),
        (["task.type=jsonl", "task.prompt=x"], "task.prompt: no such key; the rows hold the promp"),
        (["task.type=jsonl", "task.config=main"], "no such key; write task.configuration"),
        (["grpo.loss_type=gpro"], r"there is no 'gpro'; did you mean grpo\? \(there are \['bnpo'"),
        (["grpo.algorithm=gpro"], r"there is no 'gpro'; did you mean grpo\? \(there are \['grpo'"),
    ],
)
def test_messages_name_the_key_to_change(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, override)


def test_nothing_in_the_environment_is_changed_by_reading(tmp_path):
    before = dict(os.environ)
    (tmp_path / "a.jsonl").write_bytes(as_lines(ROWS))
    assert columns.settle([{"question": 1}], columns.Wishes(), "x").columns == (
        ("prompt", "question"),
    )
    jsonl.rows(options(tmp_path / "a.jsonl"))
    assert dict(os.environ) == before
