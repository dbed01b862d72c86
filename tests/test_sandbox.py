"""sandbox.py and jail.py: containment, protocol, policy, clock. SANDBOX_FUZZ=20000 runs the long
fuzz."""

import dataclasses
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from job.grade_file import grade_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from job import config  # noqa: E402
from sandbox import jail  # noqa: E402
from sandbox import sandbox as room  # noqa: E402
from sandbox.sandbox import Limits, Sandbox, SandboxError, Status, clean, parse_json, parse_reply  # noqa: E402

DATA = Path(__file__).parent / "data"
FUZZ = int(os.environ.get("SANDBOX_FUZZ", "0"))
fuzz = settings(max_examples=FUZZ or 300, deadline=None, suppress_health_check=list(HealthCheck))
ECHO = "def f(x):\n    return x\n"
RAW = "import random, struct, json\nos = random._os\n"
CDLL = "next(kind for kind in object.__subclasses__() if kind.__name__ == 'CDLL')"
FORGED = "t = b'[\"ok\",\"\",1]'; forged = struct.pack('!II', len(t), 0) + t\n"


def rows(*names):
    return [
        json.loads(line) for name in names for line in (DATA / name).read_text("utf-8").splitlines()
    ]


def extract(completion):
    """A plain stand-in for the extraction of the rewards room."""
    blocks = re.findall(r"```(?:python|py)?[ ]*\n(.*?)(?:```|\Z)", completion, re.DOTALL)
    blocks = [block for block in blocks if "def " in block or "lambda" in block] or blocks
    return blocks[0] if blocks else completion


def children_of(*pids):
    """Pids whose parent is one of `pids`."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) in pids:
            found.append(int(stat.parent.name))
    return found


def jails(path):
    """Pids of all processes that run this very copy of jail.py."""
    found = []
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(path).encode() in cmdline.read_bytes().split(b"\0"):
                found.append(int(cmdline.parent.name))
        except OSError:
            continue
    return found


def gone(pids, within_s=120.0):
    """Whether all these processes end. The time is generous: only the outcome counts."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{pid}").exists() and "Z" not in state(pid) for pid in pids):
            return True
        time.sleep(0.02)
    return False


def state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


@pytest.fixture(scope="module")
def jail_copy(tmp_path_factory):
    """A copy of jail.py of our own, so that its processes can be told from those of other
    sandboxes."""
    folder = tmp_path_factory.mktemp("jail")
    folder.chmod(0o755)
    return Path(shutil.copy(ROOT / "sandbox" / "jail.py", folder / "jail.py"))


@pytest.fixture(scope="module")
def box(jail_copy):
    room.JAIL, before = jail_copy, room.JAIL
    with Sandbox(
        workers=2,
        limits=Limits(call_cpu_s=1.5, timeout_s=60, total_timeout_s=120, memory_mb=256),
    ) as sandbox:
        yield sandbox
    room.JAIL = before


def one(box, code, *args, name="f", **limits):
    patient = {"call_cpu_s": 1.5, "timeout_s": 60, "total_timeout_s": 120, "memory_mb": 256}
    with box.open(code, name, Limits(**patient | limits)) as program:
        return program.call(list(args))


# ------------------------------------------------------------ the corpus

A = [[float(7 * i + j - 11) for j in range(5)] for i in range(6)]
B = [[1.5 * i - j for j in range(4)] for i in range(5)]
PRODUCT = [[sum(a * b for a, b in zip(r, c, strict=True)) for c in zip(*B, strict=True)] for r in A]


def judge(row, program, run):
    """What is wrong with this outcome of a row, or None."""
    expect, works = row["expect"], run.status == Status.OK
    honest = (
        expect in ("legit", "legit_low") or expect == "wrong" and row["category"] != "scorer_attack"
    )
    if honest and program.findings:
        return f"honest, but has findings {program.findings}"
    if expect in ("legit", "legit_low") and not works:
        return f"honest, but ended {run}"
    if expect == "no_function" and sys.version_info < (3, 12) and program.status == Status.OK:
        return "has no function, but loaded"
    if row["task"] == "matmul":
        right = works and run.value == PRODUCT
        if expect == "legit" and not right:
            return f"honest, but gave {run}"
        if expect in ("crash", "no_function") and right:
            return "should fail, but is right"
        if expect == "timeout" and right and row["id"] != "re_print_8gb":
            return "should not end, but is right"
        is_cheat = expect == "cheat" and row["category"] in ("import_cheat", "introspection")
        if is_cheat and right and not program.findings:
            return "a right answer by a cheat that nobody noticed"
    return None


def test_corpus_is_contained(box, jail_copy, tmp_path):
    out, leak, port = tmp_path / "out", tmp_path / "leak", socket.create_server(("127.0.0.1", 0))
    out.mkdir()
    leak.mkdir()
    (out / "adapter_model.safetensors").write_bytes(b"weights")
    neighbour = subprocess.Popen(["sleep", "600"])
    cases = rows("completions.jsonl", "completions_extra.jsonl")
    assert len(cases) >= 290 and len({row["id"] for row in cases}) == len(cases)

    # Honest programs may take their time on a busy machine. Many of the others never end.
    limits = {True: box.limits, False: dataclasses.replace(box.limits, timeout_s=1.5)}

    def world():
        return (
            dict(os.environ),
            [signal.getsignal(number) for number in signal.valid_signals()],
            signal.pthread_sigmask(signal.SIG_BLOCK, []),
            random.getstate(),
            os.getcwd(),
            os.sched_getaffinity(0),
            sys.getrecursionlimit(),
            sys.gettrace(),
            list(sys.meta_path),
            [
                (path.name, path.read_bytes())
                for folder in (out, leak)
                for path in sorted(folder.iterdir())
            ],
            sorted(jails(jail_copy)),
        )

    def run(row):
        text = row["completion"].replace("@@OUT@@", str(out)).replace("@@LEAK@@", str(leak))
        code = extract(text.replace("@@PORT@@", str(port.getsockname()[1])))
        name = {"matmul": "matmul", "game_2048": "strategy"}.get(row["task"]) or row["entry_point"]
        if row["task"] == "matmul":
            args = [A, B]
        else:
            args = [[[2, 4], [0, 2]]] if row["task"] == "game_2048" else row["tests"][0][0]
        with box.open(
            code, name, limits[row["expect"] in ("legit", "legit_low", "wrong")]
        ) as program:
            outcome = program.call(args)
            problem = judge(row, program, outcome)
        texts = (program.error, outcome.error, *program.findings)
        if any(len(t) > 3000 or not all(c.isprintable() or c == "\n" for c in t) for t in texts):
            problem = f"text not cleaned: {texts}"
        return problem and f"{row['id']}: {problem}"

    before = world()
    with ThreadPoolExecutor(6) as pool:
        problems = [problem for problem in pool.map(run, cases) if problem]
    assert not problems
    after = world()
    assert before == after
    assert neighbour.poll() is None
    assert children_of(*[server.process.pid for server in box._servers]) == []
    port.setblocking(False)
    with pytest.raises(BlockingIOError):
        port.accept()
    port.close()
    neighbour.kill()
    neighbour.wait()
    assert one(box, ECHO, 1).value == 1


def unacceptable(row, verdict):
    """What a verdict says against `accept` of its row."""
    tests = {
        "correct": lambda wanted: verdict["correct"] == wanted,
        "cheating": lambda wanted: verdict["cheating"] == wanted,
        "status": lambda wanted: verdict["status"] in wanted,
        "min_total": lambda wanted: verdict["total"] >= wanted,
        "max_total_below": lambda wanted: verdict["total"] < wanted,
    }
    return [key for key, wanted in row["accept"].items() if not tests[key](wanted)]


@pytest.mark.parametrize("task", ["matmul", "code", "game_2048"])
@pytest.mark.slow
def test_the_third_round_gets_acceptable_verdicts(
    impatient_sandbox, patient_sandbox, tmp_path, task
):
    options = {
        "matmul": ["timing_pairs=1", "timing_max_size=60"],
        "game_2048": ["game_cpu_s=2", "game_timeout_s=4"],
    }
    job = config.load_config(
        None, [f"task.type={task}", *(f"task.{option}" for option in options.get(task, []))]
    )
    cases = [row for row in rows("completions_round3.jsonl") if row["task"] == task]
    verdicts = []
    for row in cases:  # honest ones come to their end, hostile ones may wait forever
        box = patient_sandbox if row["kind"] == "honest" else impatient_sandbox
        line = json.dumps(row).replace("@@OUT@@", str(tmp_path))
        verdicts += map(json.loads, grade_file([line], job, box, None))
    pairs = list(zip(cases, verdicts, strict=True))
    refused = [(row["id"], unacceptable(row, verdict), verdict) for row, verdict in pairs]
    assert [entry for entry in refused if entry[1]] == []
    assert len(cases) >= 8 and list(tmp_path.iterdir()) == []


# ------------------------------------------------------------ what a child can reach


def test_child_has_nothing_but_its_socket(box):
    code = RAW + (
        "def tries(*calls):\n"
        "    out = []\n"
        "    for call in calls:\n"
        "        try:\n"
        "            out.append(repr(call()))\n"
        "        except OSError as error:\n"
        "            out.append('E%d' % error.errno)\n"
        "    return out\n"
        "def f():\n"
        "    signal = __import__('asyncio').unix_events.signal\n"
        f"    libc = {CDLL}(None, use_errno=True)\n"
        "    denied = tries(\n"
        "        lambda: os.open('/', 0), lambda: os.stat('/'), os.getcwdb, lambda: "
        "os.listdir('.'),\n"
        "        lambda: os.fork(), lambda: os.execv('/bin/true', ['x']), lambda: "
        "os.kill(os.getpid(), 0),\n"
        "        lambda: os.kill(1, 9), lambda: os.dup(0), lambda: os.pipe(), lambda: "
        "os.memfd_create('x'),\n"
        "        lambda: os.setsid(), lambda: os.nice(1), lambda: os.sched_setaffinity(0, {0}),\n"
        "        lambda: os.mkdir('x'), lambda: os.chdir('/'), lambda: os.umask(0), lambda: "
        "os.getppid(),\n"
        "        lambda: signal.setitimer(signal.ITIMER_REAL, 1), lambda: "
        "signal.pthread_sigmask(0, [1]))\n"
        "    calls = [libc.socket(1, 1, 0), libc.prctl(4, 1), libc.madvise(0, 0, 100)]\n"
        "    return [denied, dict(os.environ), os.sys.path, os.sys.argv[1:], calls]\n"
    )
    run = one(box, code)
    assert run.status == Status.OK, run
    denied, environ, path, argv, calls = run.value
    # glibc reports no error of umask and getppid
    assert set(denied) <= {"E1", "-1"} and denied[:8] == ["E1"] * 8
    assert (environ, path, argv, calls) == ({}, [], [], [-1, -1, -1])


def test_kernel_agrees_that_the_child_is_locked(box):
    with box.open(ECHO, "f") as program:
        status = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{program.pid}/status").read_text().splitlines()
            if "\t" in line
        )
        limits = Path(f"/proc/{program.pid}/limits").read_text() if os.geteuid() == 0 else ""
        assert (
            status["NoNewPrivs"] == "1"
            and status["Seccomp"] == "2"
            and int(status["CapEff"], 16) == 0
        )
        assert os.getsid(program.pid) == program.pid == os.getpgid(program.pid)
        if limits:
            assert os.listdir(f"/proc/{program.pid}/fd") == ["0"]
            assert Path(f"/proc/{program.pid}/environ").read_bytes() == b""
            assert re.search(r"Max open files +1 +1 ", limits) and re.search(
                r"Max file size +0 +0 ", limits
            )
        pid = program.pid
    assert not Path(f"/proc/{pid}").exists()


def test_trainer_side_imports_only_the_standard_library():
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import sandbox\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "assert not loaded & {'numpy', 'torch', 'transformers'}, loaded"
    )
    subprocess.run([sys.executable, "-S", "-c", code], check=True)


# ------------------------------------------------------------ layers and the filter


def run_filter(program, architecture, number, third_argument=0):
    """Classic BPF, as far as seccomp_filter uses it, over struct seccomp_data."""
    data = struct.pack("<iIQ6Q", number, architecture, 0, 0, 0, third_argument, 0, 0, 0)
    instructions = list(struct.iter_unpack("HBBI", program))
    accumulator = counter = 0
    while True:
        code, jump_true, jump_false, k = instructions[counter]
        counter += 1
        if code == 0x20:
            accumulator = struct.unpack_from("<I", data, k)[0]
        elif code == 0x06:
            return k
        else:
            holds = {0x15: accumulator == k, 0x35: accumulator >= k, 0x45: accumulator & k != 0}[
                code
            ]
            counter += jump_true if holds else jump_false


@pytest.mark.parametrize(
    ("machine", "column", "foreign"), [("x86_64", 0, 0xC00000B7), ("aarch64", 1, 0xC000003E)]
)
def test_filter(machine, column, foreign):
    program, native = jail.seccomp_filter(machine), jail.AUDIT_ARCH[machine]
    kill, deny, allow = 0x80000000, 0x00050001, 0x7FFF0000
    numbers = {pair[column] for pair in jail.SYSCALLS.values()}
    protected = {pair[column] for pair in jail.UNLESS_EXECUTABLE.values()}
    assert len(numbers) == len(jail.SYSCALLS) and not numbers & protected
    for number in range(1024):
        assert run_filter(program, foreign, number) == kill
        assert run_filter(program, 0x40000003, number) == kill  # i386
        expected = allow if number in numbers | protected else deny
        assert run_filter(program, native, number, 3) == expected
        assert run_filter(program, native, number, 7) == (deny if number in protected else expected)
        assert run_filter(program, native, number, 2**32 + 4) == (
            deny if number in protected else expected
        )
        if machine == "x86_64":
            assert run_filter(program, native, number | 0x40000000, 3) == kill  # x32
    assert run_filter(program, native, -1) == (kill if machine == "x86_64" else deny)
    assert len(program) // 8 < 4096


def test_table_agrees_with_libseccomp():
    seccomp = pytest.importorskip("pyseccomp", exc_type=(ImportError, RuntimeError))
    for name, numbers in {**jail.SYSCALLS, **jail.UNLESS_EXECUTABLE}.items():
        for number, arch in zip(numbers, (seccomp.Arch.X86_64, seccomp.Arch.AARCH64), strict=True):
            assert seccomp.resolve_syscall(arch, name) == number, name


def test_unknown_architecture_has_no_filter():
    with pytest.raises(KeyError):
        jail.seccomp_filter("riscv64")


def altered(tmp_path, *pairs):
    text = (ROOT / "sandbox" / "jail.py").read_text("utf-8")
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "jail.py").write_text(text, "utf-8")
    return tmp_path / "jail.py"


def test_layers_are_reported_and_required(box, tmp_path, monkeypatch):
    assert (
        "seccomp" in box.layers
        and "\n" not in str(box)
        and all(layer in str(box) for layer in jail.LAYERS)
    )
    with pytest.raises(SandboxError, match="no_such_layer"):
        Sandbox(1, require=("no_such_layer",))
    no_landlock = (
        "LANDLOCK_CREATE_RULESET, LANDLOCK_RESTRICT_SELF = 444, 446",
        "LANDLOCK_CREATE_RULESET = 9999",
    )
    monkeypatch.setattr(room, "JAIL", altered(tmp_path, no_landlock))
    with Sandbox(1) as sandbox:
        assert "landlock" not in sandbox.layers and "Function not implemented" in str(sandbox)
        assert one(sandbox, ECHO, 2).value == 2
    with pytest.raises(SandboxError, match="landlock.*Function not implemented"):
        Sandbox(1, require=("landlock",))
    monkeypatch.setattr(room, "JAIL", altered(tmp_path, ("os.uname().machine", '"riscv64"')))
    with pytest.raises(SandboxError, match="seccomp.*riscv64"):
        Sandbox(1)


def test_seccomp_alone_and_landlock_alone_hold_files(tmp_path, monkeypatch):
    target = tmp_path / "written"
    code = f"import io\ndef f():\n    io.open({str(target)!r}, 'w').write('x')\n"
    for off in ("landlock", "seccomp"):
        monkeypatch.setattr(room, "JAIL", altered(tmp_path, (f'    "{off}": lock_{off},\n', "")))
        with Sandbox(1, require=()) as sandbox:
            if off == "seccomp" and "landlock" not in sandbox.layers:
                pytest.skip("no Landlock here")
            run = one(sandbox, code)
            assert run.status == Status.CRASH and not target.exists(), (off, run)


# ------------------------------------------------------------ protocol

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=20,
)


def same(a, b):
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return (
            a == b and math.copysign(1, a) == math.copysign(1, b) or math.isnan(a) and math.isnan(b)
        )
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return a == b


@pytest.fixture(scope="module")
def echo(box):
    with box.open(ECHO, "f", Limits(timeout_s=10)) as program:
        yield program


@settings(fuzz, max_examples=FUZZ or 300)
@given(plain)
def test_plain_data_comes_back_exactly(echo, value):
    run = echo.call([value])
    assert run.status == Status.OK and same(run.value, value)


def test_results_of_every_kind(box):
    for text, expected in {
        "(1, (2.5, 'x'))": [1, [2.5, "x"]],
        "__import__('collections').Counter('aab')": {"a": 2, "b": 1},
        "[[1.0, 2.0], [3.0, float('inf')]]": [[1.0, 2.0], [3.0, math.inf]],
        "[[1.0], [2]]": [[1.0], [2]],
        "[[1.0], [2.0, 3.0]]": [[1.0], [2.0, 3.0]],
        "[[], []]": [[], []],
        "[[True], [1.0]]": [[True], [1.0]],
        "10 ** 4299": 10**4299,
        "'\\ud800 \\\\ud800 [[[[['": "? \\ud800 [[[[[",
    }.items():
        run = one(box, f"def f():\n    return {text}\n")
        assert run.status == Status.OK and same(run.value, expected), (text, run)
    for text in (
        "{1: 2}",
        "{1}",
        "b''",
        "1j",
        "object()",
        "[[[0]] * 10 ** 6]",
        "10 ** 4300",
        "print",
        "'x' * 3000000",
    ):
        run = one(box, f"def f():\n    return {text}\n", timeout_s=5)
        assert run.status == Status.BAD_RESULT and run.value is None and run.error, (text, run)
    nested = "def f(n):\n    x = 0\n    for _ in range(n):\n        x = [x]\n    return x\n"
    assert one(box, nested, 64).status == Status.OK
    assert one(box, nested, 65).status == one(box, nested, 10**5).status == Status.BAD_RESULT


@pytest.mark.parametrize(
    ("body", "status"),
    {
        "os.write(0, b'\\xff' * 8)": Status.BAD_RESULT,
        "os.write(0, bytes(8))": Status.BAD_RESULT,
        "os.write(0, b'\\0\\0\\0')": Status.TIMEOUT,
        "os.write(0, struct.pack('!II', 5, 0) + b'[')": Status.TIMEOUT,
        "os.write(0, struct.pack('!II', 10**6, 0) + b'[' * 10**6)": Status.BAD_RESULT,
        "os.write(0, struct.pack('!II', 14, 8) + b'[\"ok\",\"\",null]' + bytes(8))": (
            Status.BAD_RESULT
        ),
        "os.write(0, struct.pack('!II', 13, 0) + b'[\"died\",\"\",1]')": Status.BAD_RESULT,
        "os.write(0, (struct.pack('!II', 1, 2**32 - 1) + b'x') * 100)": Status.BAD_RESULT,
        "os.write(0, struct.pack('!II', 2**32 - 1, 2**32 - 1) + b'x')": Status.BAD_RESULT,
        "os._exit(0)": Status.DIED,
        "os.abort()": Status.DIED,
        f"{CDLL}.__init__.__globals__['_string_at'](1, 9)": Status.DIED,
        "os.read(0, 9)": Status.TIMEOUT,
    }.items(),
)
def test_hostile_replies_end_the_program(box, body, status):
    with box.open(
        RAW + f"def f():\n    {body}\n    while True: pass\n", "f", Limits(timeout_s=0.3)
    ) as program:
        run = program.call([])
        assert run.status == status and run.value is None and run.error, run
        assert program.call([]).status == status
        assert gone([program.pid])


def test_a_reply_before_its_request_ends_the_program(box):
    code = RAW + ("def f():\n    " + FORGED + "    os.write(0, forged * 3)\n    return 2\n")
    with box.open(code, "f") as program:
        assert program.call([]).value == 1
        run = program.call([])
        assert (run.status, run.error) == (Status.BAD_RESULT, "reply before the request")


def mutated(draw):
    text = draw(
        st.builds(
            lambda *parts: json.dumps(parts).encode(),
            st.sampled_from([*Status, "x"]),
            st.text(max_size=9) | plain,
            plain,
        )
        | st.binary(max_size=200)
    )
    for _ in range(draw(st.integers(0, 3))):
        cut = draw(st.integers(0, len(text)))
        token = draw(
            st.sampled_from(
                [b"[", b"]", b'"', b"\\", b"\\ud800", b"{", b"NaN", b"1e999", b"9" * 5000, b"\xff"]
            )
        )
        text = (
            text[:cut]
            + token * draw(st.sampled_from([1, 1, 70]))
            + text[cut + draw(st.integers(0, 4)) :]
        )
    return text


@fuzz
@given(st.composite(mutated)(), st.binary(max_size=64))
def test_reply_parser_gives_plain_data_or_valueerror(text, raw):
    try:
        status, error, value = parse_reply(text, raw)
    except ValueError:
        return
    assert status in room.REPORTABLE and type(error) is str
    json.dumps(value).encode()
    str(value).encode("utf-8")


@pytest.mark.parametrize(
    "reply",
    [
        lambda n: b"[" * n,
        lambda n: b'"\\' * (n // 2),
        lambda n: b'["' + b'\\"' * (n // 2),
        lambda n: b"[" * (n // 2) + b"]" * (n // 2),
        lambda n: b"9" * n,
        lambda n: b"0." + b"1" * n,
        lambda n: b"[" + b"[]," * (n // 4) + b"[]]",
        lambda n: b'"' * n,
        lambda n: b"\\" * n,
        lambda n: b"[" + b'"",' * (n // 4) + b"0]",
        lambda n: b"1e" + b"9" * n,
    ],
    ids=lambda reply: str(reply(8)),
)
def test_no_reply_makes_the_parser_take_more_than_linear_time(times_as_much, reply):
    def parse(text):
        with suppress(ValueError):
            parse_json(text)

    # Bytes: 32 times as many, so quadratic work would take 1024 times as much
    short, long = (2**16, 2**21)
    assert times_as_much(parse, reply(short), reply(long)) < 200


@settings(fuzz, max_examples=FUZZ or 150)
@given(st.text() | st.text("def f(x):\n return[]=*\\'\"0{}@lambda:;#\t\x00\ud800"))
def test_any_text_is_loaded_without_an_exception(box, text):
    with box.open(text, "f") as program:
        assert program.status in Status


def test_arguments_that_are_not_plain_data_are_our_fault(box):
    with box.open(ECHO, "f") as program:
        with pytest.raises(ValueError):
            program.call([object()])
        assert program.call([3]).value == 3


def test_clean():
    dirty = "\x1b[2J\x1b]0;x\x07A\u202e\ud800\r\n\u2028\U000e0041é✓"
    assert re.fullmatch("[\ufffd\nAx0;é✓\\[\\]2J]*", clean(dirty)) and clean(dirty).encode()
    assert len(clean("x" * 10**6)) == jail.MAX_TEXT


# ------------------------------------------------------------ limits


@pytest.mark.parametrize(
    "body",
    [
        "while True: pass",
        "any(__import__('itertools').repeat(0))",
        "__import__('re').match('(a+)+$', 'a' * 64 + 'b')",
        "2 ** 10 ** 10 % 7",
        "[0] * 10 ** 7 + sorted([0] * 10 ** 9)",
    ],
)
def test_a_cpu_budget_ends_what_computes(box, body):
    with box.open(f"def f():\n    {body}\n", "f") as program:
        run = program.call([], cpu_s=0.3)
        assert run.status in (Status.TIMEOUT, Status.MEMORY)
        if run.status == Status.TIMEOUT:
            assert run.error == "stopped after 0.3 s of CPU" and 0.3 <= run.cpu_s < 0.4
    assert gone([program.pid], 0.1)


@pytest.mark.parametrize(
    "body", ["__import__('time').sleep(100)", "__import__('queue').Queue().get()"]
)
def test_the_wall_clock_ends_what_waits(box, body):
    with box.open(f"def f():\n    {body}\n", "f") as program:
        run = program.call([], timeout_s=0.3)
        assert (run.status, run.error) == (Status.TIMEOUT, "stopped after 0.3 s of wall clock")
        assert run.cpu_s < 0.1
    assert gone([program.pid], 0.1)


def test_loading_has_the_limits_of_a_call(box):
    with box.open("while True: pass", "f", Limits(call_cpu_s=0.3)) as program:
        assert (
            program.status == program.call([]).status == Status.TIMEOUT
            and "0.3 s of CPU" in program.error
        )
    with box.open("import time\ntime.sleep(9)", "f", Limits(timeout_s=0.3)) as program:
        assert program.status == Status.TIMEOUT and "0.3 s of wall clock" in program.error


def test_limits_in_total_span_the_program(box):
    spin = "def f(n):\n    for _ in range(n): pass\n"
    with box.open(spin, "f", Limits(call_cpu_s=20, cpu_s=1)) as program:
        assert program.call([10**6]).status == Status.OK
        run = program.call([10**12])
        assert (run.status, run.error) == (Status.TIMEOUT, "stopped after 1 s of CPU in total")
    sleep = "import time\ndef f(s):\n    time.sleep(s)\n"
    with box.open(sleep, "f", Limits(total_timeout_s=0.5)) as program:
        assert program.call([0.1]).status == Status.OK
        run = program.call([9])
        assert (run.status, run.error) == (
            Status.TIMEOUT,
            "stopped after 0.5 s of wall clock in total",
        )


def test_a_budget_that_was_exceeded_counts_though_nobody_looked_in_time(box, monkeypatch):
    monkeypatch.setattr(room, "LEAST_WAIT_S", 5.0)
    with box.open("def f(n):\n    for _ in range(n): pass\n", "f") as program:
        assert program.call([10**6], cpu_s=0.001).status == Status.TIMEOUT


def test_a_busy_machine_costs_a_program_nothing(box):
    code = "def f():\n    for _ in range(10**6): pass\n    return 1\n"
    cpu = min(os.sched_getaffinity(0))
    with box.open(code, "f") as program:
        program.call([])
        needed_s = program.call([]).cpu_s
    rivals = [box.open("def f():\n    while True: pass\n", "f", Limits(cpu_s=60)) for _ in range(4)]
    try:
        with ThreadPoolExecutor(len(rivals)) as pool, box.open(code, "f") as program:
            for rival in [*rivals, program]:
                rival.pin(cpu)
            for rival in rivals:
                pool.submit(rival.call, [], 2.0)
            run = program.call([], cpu_s=4 * needed_s)
            assert run.status == Status.OK, run
    finally:
        for rival in rivals:
            rival.close()


def test_where_the_kernel_refuses_the_clock_the_wall_clock_holds(box, monkeypatch):
    def refuse(clock):
        raise OSError(22, "refused")

    monkeypatch.setattr(time, "clock_gettime_ns", refuse)
    with box.open("def f():\n    while True: pass\n", "f") as program:
        run = program.call([], timeout_s=0.4, cpu_s=0.1)
        assert (run.status, run.error, run.cpu_s) == (
            Status.TIMEOUT,
            "stopped after 0.4 s of wall clock",
            0.0,
        )


def test_memory_limit(box):
    grow = "def f(mb):\n    return len(bytearray(mb << 20))\n"
    assert one(box, grow, 150, memory_mb=200).value == 150 << 20
    assert one(box, grow, 250, memory_mb=200).status == Status.MEMORY


@pytest.mark.parametrize(
    ("code", "status"),
    {
        "def f(:": Status.SYNTAX_ERROR,
        "\0": Status.SYNTAX_ERROR,
        "(" * 5000: Status.SYNTAX_ERROR,
        "": Status.NO_FUNCTION,
        "f = 3": Status.NO_FUNCTION,
        "1 / 0": Status.CRASH,
        "raise SystemExit": Status.CRASH,
        "raise BaseException": Status.CRASH,
        "x = bytearray(1 << 50)": Status.MEMORY,
        "f = lambda: 0": Status.OK,
    }.items(),
)
def test_statuses_of_loading(box, code, status):
    with box.open(code, "f") as program:
        assert program.status == program.call([]).status == status
        assert bool(program.error) == (status != Status.OK)


# ------------------------------------------------------------ policy


def test_tables_do_not_contradict(box):
    assert not (jail.ALLOWED_MODULES | jail.STAND_INS) & set(jail.DENIED_MODULES)
    known = sys.stdlib_module_names
    names = {n for n in jail.ALLOWED_MODULES | jail.STAND_INS if n.partition(".")[0] in known}
    code = "".join(f"import {name}\n" for name in sorted(names) if not name.startswith("_"))
    with box.open("from __future__ import annotations\n" + code + ECHO, "f") as program:
        assert (program.status, program.findings) == (Status.OK, ()), program.error


FINDINGS = {
    "import numpy": "at run time: import of numpy (not in the standard library)",
    "try:\n    from torch.nn import functional\nexcept ImportError: pass": "import of torch.nn",
    "import subprocess": "import of subprocess (processes",
    "from urllib import request": "import of urllib.request (network)",
    "__import__('num' + 'py')": "at run time: import of numpy",
    "exec('import ctypes')": "at run time: import of ctypes",
    "().__class__.__base__.__subclasses__()": "use of __subclasses__",
    "import operator\noperator.attrgetter('a.__globals__')": "use of __globals__",
    "import random\nrandom._os": "use of random._os",
    "from statistics import sys": "use of statistics.sys",
    "import sys\nsys._getframe": "use of _getframe",
    "import sys\nsys.modules": "use of sys.modules",
    "open('x')": "at run time: use of open of 'x' (files)",
    "import io\nio.open('x')": "use of open of 'x'",
    "import io\nio.open_code('x')": "use of open of 'x'",
    "import io\nio.FileIO('x', 'w')": "use of open of 'x'",
    "import codecs\ncodecs.open('x')": "use of open of 'x'",
    "import pathlib\npathlib.Path('x').read_text()": "use of open of 'x'",
    "import pathlib\nlist(pathlib.Path('.').iterdir())": "use of os.listdir",
    "import sys as s\ngetattr(s, 'mod' + 'ules')": "at run time: use of sys.modules",
    "import os\nos.system('id')": "at run time: use of os.system",
    "import os\nos.environ['HOME']": "at run time: use of os.environ",
    "from os import fork": "at run time: use of os.fork",
    "import os\nos.path.os": "use of os.path.os",
    "import gc\ngetattr(gc, 'get_' + 'objects')()": "use of gc.get_objects",
    "import shutil\nshutil.rmtree('x')": "use of shutil.rmtree",
    "getattr(len, '__glo' + 'bals__', 0)": "use of the hidden name __globals__",
    "getattr(len, ''.join(['__glo', 'bals__']), 0)": "use of the hidden name __globals__",
    "getattr(len, f'__{\"globals\"}__', 0)": "use of the hidden name __globals__",
    "getattr(len, '__slabolg__'[::-1], 0)": "use of the hidden name __globals__",
    "getattr(len, '__XXbals__'.replace('XX', 'glo'), 0)": "use of the hidden name __globals__",
    "a = '__glo'\nb = 'bals__'\ngetattr(len, a + b, 0)": "use of the hidden name __globals__",
    "getattr(len, chr(95) + '_globals__', 0)": "use of the hidden name __globals__",
    "getattr(len, bytes([95, 95, 115, 101, 108, 102, 95, 95]).decode())": "use of the hidden "
    "name __self__",
    "vars(__import__('random'))['_o' + 's']": "use of the hidden name _os",
    "vars(__import__('random'))['_os']": "use of random._os",
    "import random\nrandom.__dict__['_os']": "use of random._os",
    "'{0.__globals__}'.format(0) if 0 else 0": "use of __globals__",
    "print.__self__": "use of print.__self__",
    "import time\ntime.perf_counter = lambda: 0": "assignment to time.perf_counter",
    "import time\nsetattr(time, 'time', 0)": "assignment to time.time",
    "import time\nvars(time)['time'] = 0": "assignment to time.time",
    "exec('(lambda: 0).__globals__')": "at run time: use of __globals__",
    "eval('(lambda: 0).__closure__')": "at run time: use of __closure__",
    "f = lambda: 0\nf.__closure__": "use of __closure__",
    "try:\n    1 / 0\nexcept Exception as e:\n"
    "    g = getattr(e.__traceback__, 't' + 'b_frame')": "use of tb_frame",
}


@pytest.mark.parametrize(("code", "words"), FINDINGS.items())
def test_findings(box, code, words):
    with box.open(code, "f") as program:
        assert (
            any(words in finding for finding in program.findings)
            if words
            else program.findings == ()
        )


HARMLESS = [
    "import os, sys, shutil, tempfile, platform, multiprocessing, threading, asyncio, pathlib",
    "import os.path\nassert os.path.join('a', 'b') == 'a/b' and not os.path.exists('/etc/passwd')",
    "import os\nassert os.cpu_count() == 1 and os.sep == '/' and hasattr(os, 'linesep')",
    "from os import path, sep\nassert path.basename('/a/b') == 'b'",
    "from urllib.parse import urlparse, quote\nassert quote('a b') == 'a%20b'",
    "from html.parser import HTMLParser\nHTMLParser().feed('<b>x</b>')",
    "from http import HTTPStatus\nassert HTTPStatus.OK == 200",
    "from pathlib import PurePath, Path\n"
    "assert str(PurePath('a') / 'b') == 'a/b' and Path('a.b').suffix == '.b'",
    "import threading\nwith threading.Lock(), threading.RLock(): pass",
    "import gc\ngc.disable()\ngc.collect()\ngc.enable()\nassert gc.isenabled()",
    "import ast\nassert ast.literal_eval('[1]') == [1]",
    "import argparse\nassert argparse.ArgumentParser(prog='x').parse_args([]) is not None",
    "import argparse\nassert argparse.ArgumentParser(prog='x').format_help()",
    "assert '\u20ac'.encode('cp1252') == b'\\x80' and 'x'.encode('cp437')",
    "import sys\nsys.tracebacklimit = 0\nsys.setrecursionlimit(5000)\nsys.path.append('.')",
    "import sys, io\nkeep, sys.stdout = sys.stdout, io.StringIO()\nprint('x')\n"
    "text, sys.stdout = sys.stdout.getvalue(), keep\nassert text == 'x\\n'",
    "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()) as out: print(1)\n"
    "assert out.getvalue()",
    "import asyncio\nasync def g(): await asyncio.sleep(0.001); return 1\n"
    "assert asyncio.run(g()) == 1",
    "import asyncio\nasync def g():\n    task = asyncio.create_task(asyncio.sleep(0))\n"
    "    assert repr(task)\n    await task\nasyncio.run(g())",
    "import os.path\nassert os.path.abspath('a') == '/a' and os.path.relpath('/a/b', '/a') == 'b'",
    "import inspect\nassert str(inspect.signature(lambda a, b=1: 0)) == '(a, b=1)'",
    "import traceback, logging\ntry: 1 / 0\nexcept ZeroDivisionError:\n"
    "    assert 'division' in traceback.format_exc()\n    logging.exception('x')",
    "from collections import namedtuple\nfrom enum import Enum, IntEnum\n"
    "from typing import NamedTuple, TypeVar\n"
    "P = namedtuple('P', 'a b')\nE = Enum('E', 'A B')\nT = TypeVar('T')\n"
    "class N(NamedTuple): a: int",
    "from dataclasses import dataclass\n@dataclass\nclass P: x: int = 0\nassert P() == P(0)",
    "import unittest, doctest\nclass Test(unittest.TestCase): pass",
    "import copy, pickle\nassert pickle.loads(pickle.dumps([1])) == copy.deepcopy([1])",
    "def curry(g): return g.__code__.co_argcount\nassert curry(lambda a, b: 0) == 2",
    "class Shape: pass\nclass Square(Shape): pass\nassert Shape.__subclasses__() == [Square]",
    "import random\ndef g():\n    class Node: pass\n    random = Node()\n"
    "    setattr(random, 'x', 1)\n"
    "    random.y = 2\ng()",
    "def main():\n    import numpy as np\n    open('x')\nif __name__ == '__main__':\n    main()",
    "def g():\n    import subprocess\n    subprocess.run('id')",
    "if __name__ == '__main__':\n    import ctypes, sys\n    sys._getframe().f_back",
    "for name in ('xml', 'sched', 'bz2'):\n    try: __import__(name)\n    except ImportError: pass",
    "import warnings\nwarnings.simplefilter('always')\nwarnings.warn('x')",
    "class Leaky:\n    def __del__(self): 1 / 0\nLeaky()",
    "import datetime\nassert datetime.datetime.strptime('2020', '%Y').year == 2020",
    "assert '\\N{SNOWMAN}'.encode('idna') if 0 else 1",
    "id(3)\nhash('x')\nimport array\narray.array('d', [1.0])",
]


@pytest.mark.parametrize("code", HARMLESS)
def test_what_is_harmless_works_and_is_no_finding(box, code):
    with box.open(f"{code}\n{ECHO}", "f") as program:
        assert (program.status, program.findings, program.error) == (Status.OK, (), "")
        assert program.call([3]).value == 3


@pytest.mark.parametrize(
    "code",
    [
        "import threading\nthreading.Thread(target=print).start()",
        "from concurrent.futures import ThreadPoolExecutor\n"
        "ThreadPoolExecutor().submit(print).result()",
        "from multiprocessing import Pool",
        "import os\nos.times()",
        "import os\nos.no_such_thing",
        "import xml.etree",
        "input()",
        "breakpoint()",
    ],
)
def test_what_is_refused_fails_as_code_and_is_no_finding(box, code):
    with box.open(f"{code}\n{ECHO}", "f") as program:
        assert (program.status, program.findings) == (Status.CRASH, ())


def test_findings_of_a_call_are_kept(box):
    with box.open(
        "def f(name):\n    try:\n        __import__(name)\n    except ImportError: pass\n", "f"
    ) as program:
        assert program.call(["math"]).status == Status.OK and program.findings == ()
        program.call(["numpy"])
        assert program.findings == ("at run time: import of numpy (not in the standard library)",)


@pytest.mark.parametrize(
    "end", ["os._exit(0)", "while True: pass", "bytearray(1 << 50)", "print('x' * 10)"]
)
def test_a_finding_outlives_the_program_that_caused_it(box, end):
    code = RAW.replace("random._os", "vars(random)[chr(95) + chr(111) + chr(115)]")
    code += f"def f():\n    try:\n        import numpy\n    except ImportError: pass\n    {end}\n"
    with box.open(code, "f", Limits(call_cpu_s=0.3)) as program:
        program.call([])
        assert any("import of numpy" in finding for finding in program.findings)


def test_a_program_may_report_only_so_much(box):
    code = "def f():\n    for i in range(10**4):\n        try: open(f'file{i}')\n"
    code += "        except OSError: pass\n    return 1\n"
    with box.open(code, "f") as program:
        assert program.call([]).value == 1 and len(program.findings) == jail.MAX_FINDINGS


def test_nothing_that_a_program_reaches_leads_to_the_loop_that_runs_it(box):
    """Walks all objects that can be reached without frames, and looks for functions of jail.py
    among them."""
    walk = (
        "import gc, random, sys\n"
        "def f():\n"
        "    todo = [sys, gc, random, print, object.__subclasses__(), globals(), sys.stdout, "
        "__import__('os')]\n"
        "    todo += [sys.stdout, vars(random)['_os'].sys.modules, "
        "vars(random)['_os'].sys.__dict__]\n"
        "    seen, found, kept = set(), [], []\n"
        "    while todo:\n"
        "        item = todo.pop()\n"
        "        if id(item) in seen or type(item).__name__ in ('frame', 'traceback'): continue\n"
        "        seen.add(id(item)); kept.append(item)\n"
        "        code = getattr(item, '__code__', None) if type(item) is type(f) else None\n"
        "        if code is not None and code.co_filename.endswith('jail.py') and 'run_child' "
        "in item.__globals__:\n"
        "            found.append(item.__name__)\n"
        "        if type(item) is dict and 'run_child' in item: found.append('namespace')\n"
        "        if isinstance(item, type): todo.extend(vars(item).values())\n"
        "        elif type(item) is type(f): todo += [item.__globals__, item.__closure__, "
        "item.__defaults__]\n"
        "        elif type(item).__name__ == 'cell':\n"
        "            try: todo.append(item.cell_contents)\n"
        "            except ValueError: pass\n"
        "        elif isinstance(item, dict): todo += [*dict.keys(item), *dict.values(item)]\n"
        "        elif isinstance(item, (list, tuple, set, frozenset)): todo.extend(item)\n"
        "        for name in ('__dict__', '__self__', '__func__', '__wrapped__', 'func', "
        "'fget', 'fset'):\n"
        "            try: todo.append(object.__getattribute__(item, name))\n"
        "            except Exception: pass\n"
        "    return [len(seen) > 20000, found]\n"
    )
    run = one(box, walk, call_cpu_s=20, timeout_s=60)
    assert run.value == [True, []], run


# ------------------------------------------------------------ clock


def test_cpu_clock_counts_work_and_not_sleep(box):
    code = (
        "import time\n"
        "time.perf_counter = time.time = time.process_time = lambda: 0\n"
        "def f(n, s):\n    for _ in range(n): pass\n    time.sleep(s)\n"
    )
    with box.open(code, "f") as program:
        idle, busy = program.call([0, 0.3]), program.call([3 * 10**6, 0])
        assert idle.wall_s >= 0.3 and idle.cpu_s < idle.wall_s / 3
        assert busy.cpu_s > 5 * idle.cpu_s
        total = program.cpu_s()
        assert idle.cpu_s + busy.cpu_s <= total
    assert program.cpu_s() >= total


def test_work_between_calls_shows(box):
    code = RAW + (
        "def f(n):\n"
        "    if not n: return 0\n"
        "    " + FORGED + "    os.write(0, forged)\n"
        "    for _ in range(n): pass\n"
        "    while True: os.read(0, 1)\n"
    )
    with box.open(code, "f") as program:
        assert program.call([0]).value == 0
        resting = program.call([10**7]).idle_cpu_s
        before = program.cpu_s()
        while program.cpu_s() < before + 0.05:
            time.sleep(0.01)
        working = program.call([0], timeout_s=0.3).idle_cpu_s
        assert working >= 0.05 and working > 5 * resting


def test_pin(box):
    cpu = min(os.sched_getaffinity(0))
    with box.open(ECHO, "f") as program:
        assert program.pin(cpu) and os.sched_getaffinity(program.pid) == {cpu}
        assert not program.pin(10**6 % 1024)


# ------------------------------------------------------------ life and death


def test_many_threads_share_one_sandbox(box):
    def run(i):
        with box.open(f"def f(x):\n    return x + {i}\n", "f") as program:
            return [program.call([j]).value for j in range(5)] == [i + j for j in range(5)]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(run, range(100)))


def test_two_programs_of_one_thread_on_one_server():
    with Sandbox(1) as sandbox, sandbox.open(ECHO, "f") as a, sandbox.open(ECHO, "f") as b:
        assert [a.call([1]).value, b.call([2]).value, a.call([3]).value] == [1, 2, 3]


def test_a_dead_server_is_replaced_and_takes_its_children_along():
    with Sandbox(1) as sandbox, sandbox.open(ECHO, "f") as program:
        old = sandbox._servers[0].process.pid
        os.kill(old, signal.SIGKILL)
        assert gone([program.pid, old])
        run = program.call([1])
        assert run.status == Status.DIED and "server" in run.error
        with sandbox.open(ECHO, "f") as next_program:
            assert next_program.call([1]).value == 1
        assert sandbox._servers[0].process.pid != old


def test_a_server_that_cannot_start_is_our_fault(tmp_path, monkeypatch):
    (tmp_path / "jail.py").write_text("raise SystemExit('no such luck')")
    monkeypatch.setattr(room, "JAIL", tmp_path / "jail.py")
    with pytest.raises(SandboxError, match="no such luck"):
        Sandbox(1)


def test_server_that_dies_for_good_raises(tmp_path, monkeypatch):
    with Sandbox(1) as sandbox:
        (tmp_path / "jail.py").write_text("raise SystemExit('gone')")
        monkeypatch.setattr(room, "JAIL", tmp_path / "jail.py")
        os.kill(sandbox._servers[0].process.pid, signal.SIGKILL)
        with pytest.raises(SandboxError, match="gone"):
            sandbox.open(ECHO, "f")
        monkeypatch.undo()
        with sandbox.open(ECHO, "f") as program:
            assert program.call([1]).value == 1


def test_without_pidfd(box, monkeypatch):
    monkeypatch.delattr(os, "pidfd_open")
    with box.open("def f():\n    while True: pass\n", "f") as program:
        assert program.call([], timeout_s=0.2).status == Status.TIMEOUT and gone([program.pid])
    assert one(box, ECHO, 1).value == 1


def test_a_child_that_cannot_lock_itself_runs_nothing(tmp_path, monkeypatch):
    fail = "def lock_capabilities(limits):\n"
    fail += "    if limits['memory_mb'] != 64: raise OSError(12, 'no luck')\n"
    monkeypatch.setattr(room, "JAIL", altered(tmp_path, ("def lock_capabilities(limits):\n", fail)))
    with Sandbox(1) as sandbox:
        for _ in range(2):
            with pytest.raises(SandboxError, match="no luck"):
                sandbox.open(ECHO, "f")
        assert children_of(sandbox._servers[0].process.pid) == []


def test_a_closed_sandbox_opens_nothing():
    sandbox = Sandbox(1)
    program = sandbox.open("def f():\n    while True: pass\n", "f")
    pids = [sandbox._servers[0].process.pid, program.pid]
    sandbox.close()
    assert gone(pids)
    with pytest.raises(SandboxError, match="closed"):
        sandbox.open(ECHO, "f")
    program.close()
    program.close()


@pytest.mark.parametrize("in_thread", [False, True])
def test_nothing_outlives_a_killed_trainer(in_thread):
    script = (
        f"import sys, threading, time; sys.path.insert(0, {str(ROOT)!r})\n"
        "from sandbox import Sandbox\n"
        "def main():\n"
        "    global sandbox, program\n"
        "    sandbox = Sandbox(1)\n"
        "    program = sandbox.open('def f():\\n    while True: pass', 'f')\n"
        "    print(sandbox._servers[0].process.pid, program.pid, flush=True)\n"
        "thread = threading.Thread(target=main)\n"
        f"{'thread.start(); thread.join()' if in_thread else 'main()'}\n"
        "time.sleep(0.3)\n"
        "print(program._server.process.poll(), flush=True)\n"
        "program.call([], timeout_s=60)\n"
    )
    trainer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in trainer.stdout.readline().split()]
    assert trainer.stdout.readline().strip() == "None"
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    assert gone(pids)


def test_interrupt_between_request_and_reply_does_not_shift_answers(box):
    # Ignored where the tests run in the background
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        interrupt_between_request_and_reply(box)
    finally:
        signal.signal(signal.SIGINT, before)


def interrupt_between_request_and_reply(box):
    with box.open("def f(x):\n    while x == 1: pass\n    return x\n", "f") as program:
        before = program.cpu_s()

        def interrupt_the_call():
            while program.cpu_s() < before + 0.05:  # until the program works on its request
                time.sleep(0.01)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

        interrupter = threading.Thread(target=interrupt_the_call)
        interrupter.start()
        with pytest.raises(KeyboardInterrupt):
            program.call([1])
        interrupter.join()
        assert program.call([2]).status == Status.DIED


def test_hostile_runs_leave_nothing_behind(box, jail_copy):
    hostile = [
        RAW + "def f():\n    os._exit(3)\n",
        RAW + "def f():\n    os.write(0, b'\\xff' * 100)\n",
        "def f():\n    return 'x' * 3000000\n",
        "def f():\n    x = []\n    x.append(x)\n    return x\n",
        "def f(:",
        "import numpy",
        "def f():\n    raise SystemExit\n",
        RAW + "def f():\n    os.fork()\n",
    ]

    def footprint():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return (
            len(os.listdir("/proc/self/fd")),
            threading.active_count(),
            len(jails(jail_copy)),
            pages * 4096,
        )

    for code in hostile:
        one(box, code)
    before = footprint()
    for i in range(320):
        assert one(box, hostile[i % len(hostile)]).status != Status.OK
    after = footprint()
    assert before[:3] == after[:3]
    assert after[3] - before[3] < 8 << 20


def test_random_starts_the_same_in_every_program(box):
    code = "import random\ndef f():\n    return [random.random() for _ in range(3)]\n"
    assert one(box, code).value == one(box, code).value


def test_the_layers_are_known_by_name_to_the_config():
    assert list(jail.LAYERS) == room.LAYERS
