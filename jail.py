"""The far side of the sandbox: the program of a fork server (`python -I -S jail.py`) and of its locked children.

`sandbox.py` starts this file as a fresh interpreter with an empty environment. It imports the modules that
model-written code may use, then forks one child per completion. The child locks itself down before it reads
a byte of code; parsing, the policy scan and execution all happen behind the lock. Nothing that a child says
is believed: `sandbox.py` parses its replies as plain data and reads its clock from outside.

Both seccomp and Landlock are applied through ctypes. pyseccomp needs the system library libseccomp.so.2, which
pip cannot install, and `-S` hides site-packages from this process; py-landlock adds 3 ms a run. What they
would replace is the 40 lines of `seccomp_filter` and `landlock_ruleset`, which the tests interpret for x86-64 and arm64.

Sources: man 2 seccomp, man 7 landlock, linux/filter.h, asm/unistd_64.h (x86-64), asm-generic/unistd.h (arm64).
"""

import ast
import codecs
import ctypes
import functools
import gc
import importlib
import io
import marshal
import os
import random
import resource
import signal
import socket
import struct
import sys
import tempfile
import types
import warnings
from array import array
from collections import Counter, OrderedDict, defaultdict
from contextlib import suppress
from json import dumps, loads  # by name: a completion that patches the json module forges nothing by accident

# ---------------------------------------------------------------- policy: what counts as an attempt to cheat

# Importable inside. Everything is loaded by the server, because a child cannot open files.
ALLOWED_MODULES = frozenset(
    """
    __future__ _strptime abc array base64 binascii bisect calendar cmath codecs collections collections.abc colorsys
    contextlib copy copyreg csv dataclasses datetime decimal difflib enum fractions functools graphlib hashlib
    heapq html io itertools json keyword locale logging math numbers operator pickle pprint queue random re
    reprlib secrets statistics string struct sys textwrap time timeit token traceback types typing unicodedata
    warnings weakref zlib""".split()
)

# An import of these is a finding. Standard modules in neither table cannot be imported, but are no finding.
DENIED_MODULES = {
    name: reason
    for reason, names in {
        "operating system and files": """os posix nt posixpath ntpath pathlib shutil tempfile glob fileinput fcntl
            mmap pwd grp crypt spwd pty tty termios resource platform getpass site sysconfig""",
        "processes, threads and signals": """subprocess multiprocessing threading _thread concurrent asyncio signal
            _posixsubprocess _signal""",
        "network": """socket _socket ssl select selectors socketserver http urllib ftplib smtplib poplib imaplib
            telnetlib nntplib xmlrpc webbrowser wsgiref""",
        "native code": "ctypes _ctypes sqlite3 _sqlite3 dbm readline curses tkinter venv ensurepip",
        "the interpreter itself": """builtins __main__ importlib imp _imp runpy pkgutil zipimport code codeop inspect
            gc trace faulthandler marshal""",
    }.items()
    for name in names.split()
}

# `import sys` gives a module with these alone; an attempt at the second group is a finding.
SAFE_SYS = """
    maxsize maxunicode float_info int_info hash_info byteorder version version_info hexversion implementation intern
    getsizeof getrecursionlimit setrecursionlimit stdin stdout stderr exit set_int_max_str_digits
    get_int_max_str_digits
""".split()
DENIED_SYS = frozenset(
    "modules meta_path path_hooks _getframe _current_frames settrace setprofile addaudithook".split()
)

# Attributes that have no use in an answer but to leave it.
ESCAPE_ATTRIBUTES = frozenset(
    """__subclasses__ __globals__ __code__ __builtins__ __import__ __loader__ __spec__ f_globals f_locals f_back
    f_builtins f_code tb_frame gi_frame cr_frame ag_frame gi_code cr_code ag_code _getframe __closure__""".split()
)
ESCAPE_NAMES = frozenset({"__builtins__", "__loader__", "__spec__", "__import__"})
ATTRIBUTE_READERS = frozenset({"getattr", "attrgetter", "methodcaller", "get_field"})


def import_finding(module: str) -> str | None:
    """What is wrong with importing `module`, in words, or None."""
    top = module.partition(".")[0]
    if top in DENIED_MODULES:
        return f"import of {module[:80]} ({DENIED_MODULES[top]})"
    if top not in sys.stdlib_module_names:
        return f"import of {module[:80]} (not in the standard library)"
    return None


def attribute_finding(module: str, name: str) -> str | None:
    """What is wrong with reading `module.name`, in words, or None."""
    if module == "sys":
        return f"use of sys.{name} (the interpreter itself)" if name in DENIED_SYS else None
    if module in ALLOWED_MODULES and (name.lstrip("_") in DENIED_MODULES or name.lstrip("_") == "sys"):
        return f"use of {module}.{name} (a way round the import rules)"
    return None


def never_runs(test: ast.expr) -> bool:
    """True for the tests of `if __name__ == "__main__":` and `if TYPE_CHECKING:`; their bodies attempt nothing."""
    match test:
        case ast.Compare(left=ast.Name(id="__name__"), ops=[ast.Eq()], comparators=[ast.Constant(value="__main__")]):
            return True
        case ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING"):
            return True
    return False


def scan(tree: ast.Module) -> list[str]:
    """Findings of the static policy, in order of lines. Certain cases only: what honest code does is never one."""
    nodes, todo = [], [tree]
    while todo:
        node = todo.pop()
        nodes.append(node)
        todo.extend(node.orelse if isinstance(node, ast.If) and never_runs(node.test) else ast.iter_child_nodes(node))
    modules, bound = {}, set()
    for node in nodes:
        match node:
            case ast.Import():
                modules.update({a.asname or a.name.partition(".")[0]: a.name for a in node.names})
            case ast.ImportFrom():
                bound.update(a.asname or a.name for a in node.names)
            case ast.Name(ctx=ast.Store()):
                bound.add(node.id)
            case ast.arg():
                bound.add(node.arg)
            case ast.FunctionDef() | ast.ClassDef() | ast.AsyncFunctionDef():
                bound.add(node.name)
    found = []

    def note(node, text):
        if text:
            found.append((node.lineno, text))

    for node in nodes:
        match node:
            case ast.Import():
                for alias in node.names:
                    note(node, import_finding(alias.name))
            case ast.ImportFrom(level=0):
                note(node, import_finding(node.module))
                for alias in node.names:
                    note(node, alias.name != "*" and attribute_finding(node.module, alias.name))
            case ast.Attribute(attr=name) if name in ESCAPE_ATTRIBUTES:
                note(node, f"use of {name} (reaches into the interpreter)")
            case ast.Attribute(value=ast.Name(id=module), attr=name) if module in modules and module not in bound:
                note(node, attribute_finding(modules[module], name))
            case ast.MatchClass(kwd_attrs=names):
                for name in ESCAPE_ATTRIBUTES.intersection(names):
                    note(node, f"use of {name} (reaches into the interpreter)")
            case ast.Call(func=ast.Name(id="__import__"), args=[ast.Constant(value=str(module)), *_]):
                note(node, import_finding(module))
            case ast.Call(func=ast.Name(id=reader) | ast.Attribute(attr=reader)) if reader in ATTRIBUTE_READERS:
                for arg in node.args:
                    if isinstance(arg, ast.Constant) and isinstance(arg.value, str):
                        for name in ESCAPE_ATTRIBUTES.intersection(arg.value.split(".")):
                            note(node, f"use of {name} (reaches into the interpreter)")
            case ast.Call(func=ast.Name(id="open")) if "open" not in bound:
                note(node, "use of open (files)")
            case ast.Name(id="__builtins__" | "__loader__" | "__spec__", ctx=ast.Load()):
                note(node, f"use of {node.id} (reaches into the interpreter)")
    return list(dict.fromkeys(f"line {line}: {text}" for line, text in sorted(found)))


# ---------------------------------------------------------------- layers: what a child does to itself

SYSCALLS = {  # all that a child may call: (x86-64, arm64). Anything else fails with EPERM.
    "read": (0, 63),
    "write": (1, 64),
    "futex": (202, 98),
    "brk": (12, 214),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "gettimeofday": (96, 169),
    "getrandom": (318, 278),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "sched_yield": (24, 124),
    "rt_sigreturn": (15, 139),
    "restart_syscall": (219, 128),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
UNLESS_EXECUTABLE = {"mmap": (9, 222), "mprotect": (10, 226)}  # third argument: protection
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT, PROT_EXEC = 0x40000000, 4
KILL_PROCESS, EPERM_ERRNO, ALLOW = 0x80000000, 0x00050001, 0x7FFF0000
LOAD, JUMP_EQ, JUMP_GE, JUMP_SET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCHITECTURE, THIRD_ARGUMENT = 0, 4, 32  # offsets in struct seccomp_data, low words (little-endian)


@functools.cache
def seccomp_filter(machine: str) -> bytes:
    """The allow-list as classic BPF (struct sock_filter[]) for `machine`, as platform.machine() names it.

    Raises KeyError for an architecture that has no table."""
    column = ["x86_64", "aarch64"].index(machine) if machine in AUDIT_ARCH else None
    program = [
        (LOAD, 0, 0, ARCHITECTURE),
        (JUMP_EQ, 1, 0, AUDIT_ARCH[machine]),
        (RETURN, 0, 0, KILL_PROCESS),
        (LOAD, 0, 0, NUMBER),
    ]
    if machine == "x86_64":  # x32 calls carry the same architecture word
        program += [(JUMP_GE, 0, 1, X32_BIT), (RETURN, 0, 0, KILL_PROCESS)]
    for numbers in SYSCALLS.values():
        program += [(JUMP_EQ, 0, 1, numbers[column]), (RETURN, 0, 0, ALLOW)]
    for numbers in UNLESS_EXECUTABLE.values():
        program += [
            (JUMP_EQ, 0, 4, numbers[column]),
            (LOAD, 0, 0, THIRD_ARGUMENT),
            (JUMP_SET, 1, 0, PROT_EXEC),
            (RETURN, 0, 0, ALLOW),
            (RETURN, 0, 0, EPERM_ERRNO),
        ]
    program.append((RETURN, 0, 0, EPERM_ERRNO))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


class FilterProgram(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


MACHINE = os.uname().machine if sys.maxsize > 2**32 else "a 32-bit interpreter"
libc = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
LANDLOCK_CREATE_RULESET, LANDLOCK_RESTRICT_SELF = 444, 446


def call(function: str, *args) -> int:
    """libc.function(*args); raises OSError when it returns -1."""
    result = getattr(libc, function)(*(ctypes.c_ulong(a) if isinstance(a, int) else a for a in args))
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def landlock_ruleset() -> int:
    """Descriptor of a ruleset that handles every access this kernel knows and allows none. Raises OSError."""
    abi = call("syscall", LANDLOCK_CREATE_RULESET, None, 0, 1)
    files = (1 << (13 + (abi >= 2) + (abi >= 3) + (abi >= 5))) - 1
    attributes = struct.pack("QQQ", files, 3, 3)[: 8 + 8 * (abi >= 4) + 8 * (abi >= 6)]  # files, TCP, scopes
    return call("syscall", LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0)


def lock_session(limits, _):
    os.setsid()
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != limits["server_pid"]:
        os._exit(0)


def lock_descriptors(limits, _):
    os.closerange(1, 64)  # 0 is the socket; a server never holds as many as 64


def lock_rlimits(limits, _):
    space = limits["memory_mb"] * 2**20 + limits["base_bytes"]
    for kind, soft, hard in [
        (resource.RLIMIT_CPU, limits["cpu_s"], limits["cpu_s"] + 1),
        (resource.RLIMIT_AS, space, space),
        (resource.RLIMIT_STACK, 8 * 2**20, 8 * 2**20),
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NOFILE, 1, 1),
        (resource.RLIMIT_NPROC, 0, 0),
    ]:
        ceiling = resource.getrlimit(kind)[1]
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(kind, (soft, hard))


def lock_undumpable(limits, _):
    call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)


def lock_no_new_privs(limits, _):
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def lock_landlock(limits, ruleset):
    call("syscall", LANDLOCK_RESTRICT_SELF, ruleset if ruleset is not None else landlock_ruleset(), 0)


def lock_seccomp(limits, _):
    instructions = seccomp_filter(MACHINE)
    program = FilterProgram(len(instructions) // 8, instructions)
    call("prctl", PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0)


LAYERS = {  # in the order of application: Landlock needs a descriptor and no_new_privs; seccomp forbids the rest
    "session": lock_session,
    "undumpable": lock_undumpable,
    "no_new_privs": lock_no_new_privs,
    "landlock": lock_landlock,
    "descriptors": lock_descriptors,
    "rlimits": lock_rlimits,
    "seccomp": lock_seccomp,
}


def probe_layers(limits: dict, ruleset: int | None) -> dict[str, str]:
    """Try every layer in a throw-away child: {layer: "" where it holds, else why it does not}."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(writer, 0)
        report = {}
        for name, lock in LAYERS.items():
            try:
                lock(limits, ruleset)
                report[name] = ""
            except (OSError, KeyError, ValueError) as error:
                report[name] = str(error) or type(error).__name__
        os.write(0, dumps(report).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return loads(text)


# ---------------------------------------------------------------- the locked child

MAX_DEPTH = 64  # of a result
MAX_TEXT = 2000  # characters of an error
DICTS = frozenset({dict, OrderedDict, defaultdict, Counter})
SCALARS = frozenset({int, float, str, bool, type(None)})
HEADER = struct.Struct("!II")  # reply: bytes of JSON, bytes of raw float64
LENGTH = struct.Struct("!I")  # request: bytes of marshal


class Discard(io.TextIOBase):
    """Where prints go."""

    def write(self, text):
        return len(text)


class BadResult(Exception):
    """The result is not plain data."""


def read_request():
    data = b""
    needed = LENGTH.size
    while len(data) < needed:
        chunk = os.read(0, needed - len(data))
        if not chunk:
            os._exit(0)
        data += chunk
    needed = LENGTH.unpack(data)[0]
    data = bytearray()
    while len(data) < needed:
        chunk = os.read(0, min(needed - len(data), 1 << 20))
        if not chunk:
            os._exit(0)
        data += chunk
    return marshal.loads(data)


def send_reply(text: bytes, raw: bytes):
    data = memoryview(HEADER.pack(len(text), len(raw)) + text + raw)
    while data:
        data = data[os.write(0, data) :]


def type_name(value) -> str:
    return type.__dict__["__name__"].__get__(type(value))[:80]  # a metaclass may have its own idea of __name__


def check_plain(value, depth: int = MAX_DEPTH):
    """Raise BadResult unless `value` is made of exact plain types (the dicts of collections count as dicts)."""
    kind = type(value)
    if depth == 0:
        raise BadResult(f"result nested deeper than {MAX_DEPTH}")
    if kind is list or kind is tuple:
        if not set(map(type, value)) <= SCALARS:
            for item in value:
                check_plain(item, depth - 1)
    elif kind in DICTS:
        for key, item in dict.items(value):
            if type(key) is not str:
                raise BadResult(f"dictionary key of type {type_name(key)}; only str is plain data")
            check_plain(item, depth - 1)
    elif kind not in SCALARS:
        raise BadResult(f"result of type {type_name(value)} is not plain data")


def float_matrix(value) -> tuple[int, bytes] | None:
    """(columns, row-major float64) of a list of equally long lists of float, else None: half of JSON's cost."""
    if type(value) is not list or not value or set(map(type, value)) != {list}:
        return None
    columns = len(value[0])
    if columns == 0 or any(len(row) != columns or set(map(type, row)) != {float} for row in value):
        return None
    return columns, b"".join([array("d", row).tobytes() for row in value])


def describe(error: BaseException) -> str:
    line = ""
    tb = error.__traceback__
    while tb is not None:
        if tb.tb_frame.f_code.co_filename == "<completion>":
            line = f" (line {tb.tb_lineno})"
        tb = tb.tb_next
    try:
        text = str(error)[:MAX_TEXT]
    except BaseException:  # __str__ is the completion's own code
        text = "(no text)"
    return f"{type_name(error)}: {text}{line}"


def load(code: str, entry_point: str, findings: list[str]) -> tuple[str, str, object]:
    """(status, error, function); findings are appended, also when loading fails."""
    try:
        tree = ast.parse(code.removeprefix("\ufeff"), "<completion>")
        findings += scan(tree)
        compiled = compile(tree, "<completion>", "exec")
    except SyntaxError as error:
        return "syntax_error", f"SyntaxError: {error.msg} (line {error.lineno})", None
    except (ValueError, RecursionError, MemoryError) as error:
        return "syntax_error", f"cannot be parsed: {describe(error)}", None
    module = types.ModuleType("completion")
    sys.modules["completion"] = module  # dataclasses and typing look their module up
    module.__dict__["__builtins__"] = guarded_builtins(findings)
    try:
        exec(compiled, module.__dict__)
    except MemoryError:
        return "memory", "MemoryError while loading", None
    except BaseException as error:
        return "crash", describe(error), None
    function = module.__dict__.get(entry_point)
    if not callable(function):
        return "no_function", f"no function {entry_point}", None
    return "ok", "", function


def guarded_builtins(findings: list[str]) -> dict:
    """The builtins that the completion sees: its imports are checked and noted; the library's own are not."""
    import builtins

    def note(text):
        if text and not any(text in finding for finding in findings):
            findings.append(f"at run time: {text}")

    def guarded_import(name, globals=None, locals=None, fromlist=(), level=0):
        if level:
            raise ImportError("relative import outside a package")
        text = import_finding(name)
        note(text)
        if text:
            raise ImportError(text)
        if name == "sys":
            return safe_sys
        if name not in ALLOWED_MODULES:
            raise ImportError(f"{name} is not available in the sandbox")
        return builtins.__import__(name, globals, locals, fromlist)

    def missing(name):
        note(attribute_finding("sys", name))
        raise AttributeError(f"module 'sys' has no attribute {name!r} in the sandbox")

    safe_sys = types.ModuleType("sys")
    for name in SAFE_SYS:
        setattr(safe_sys, name, getattr(sys, name))
    safe_sys.__getattr__ = missing
    names = {**vars(builtins), "__import__": guarded_import}
    del names["breakpoint"]  # it would import pdb in the completion's name
    return names


def run_child():
    """Serve one completion over descriptor 0: first (code, entry_point), then argument lists, until end of file."""
    code, entry_point = read_request()
    findings: list[str] = []
    status, error, function = load(code, entry_point, findings)
    del code
    text = dumps([status, error, findings, None])
    send_reply(text.encode(errors="replace"), b"")
    while True:
        reported = len(findings)
        arguments = read_request()
        value, raw = None, b""
        try:
            status, error = "ok", ""
            value = function(*arguments)
            matrix = float_matrix(value)
            if matrix:
                value, raw = matrix
            else:
                check_plain(value)
            text = dumps(["ok", "", findings[reported:], value], ensure_ascii=False, check_circular=False).encode()
        except MemoryError:
            status, error = "memory", "MemoryError"
        except BadResult as problem:
            status, error = "bad_result", str(problem)
        except BaseException as problem:
            status, error = "crash", describe(problem)
        if status != "ok":
            text, raw = dumps([status, error, findings[reported:], None]).encode(errors="replace"), b""
        del arguments, value  # freed before the reply, so that the idle clock stands still
        send_reply(text, raw)


# ---------------------------------------------------------------- the fork server


def serve(control: socket.socket):
    """Answer `open` (one descriptor attached) with the pid of a locked child and `wait` with its exit status."""
    parent = os.getppid()
    with suppress(OSError):  # the kernel's memory killer takes a child or its server before the trainer
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    base_bytes = 256 * 2**20
    with suppress(OSError), open("/proc/self/statm") as file:
        base_bytes = int(file.read().split()[0]) * resource.getpagesize()
    extra = {"server_pid": os.getpid(), "base_bytes": base_bytes}
    ruleset = None
    with suppress(OSError, KeyError):  # probe_layers tells why
        seccomp_filter(MACHINE)
        ruleset = landlock_ruleset()
    report = probe_layers({"cpu_s": 10, "memory_mb": 64, **extra}, ruleset)
    active = [lock for name, lock in LAYERS.items() if not report[name]]
    control.send(dumps(report).encode())
    control.settimeout(1.0)
    gc.collect()
    gc.freeze()
    while os.getppid() == parent:  # a forked trainer process may keep the control socket open after its death
        try:
            data, descriptors, _, _ = socket.recv_fds(control, 65536, 1)
        except TimeoutError:
            continue
        if not data:
            return
        request = loads(data)
        if request["op"] == "wait":
            status = os.waitpid(request["pid"], 0)[1]
            control.send(dumps(os.waitstatus_to_exitcode(status)).encode())
            continue
        pid = os.fork()
        if pid == 0:
            try:
                control.detach()
                os.dup2(descriptors[0], 0)
                for lock in active:
                    lock({**request["limits"], **extra}, ruleset)
                run_child()
            finally:
                os._exit(70)
        os.close(descriptors[0])
        control.send(dumps(pid).encode())


def main():
    for name in sorted(ALLOWED_MODULES):
        importlib.import_module(name)
    for name in "ascii latin-1 utf-16 utf-32 rot13 hex base64 unicode_escape".split():
        codecs.lookup(name)
    random.seed(0)  # every completion sees the same stream: equal code gets an equal grade
    warnings.simplefilter("ignore")
    sys.path.clear()
    sys.stdin = sys.__stdin__ = None
    sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = Discard()
    try:  # the working directory is empty and already deleted: nothing can be found or made in it
        folder = tempfile.mkdtemp()
        os.chdir(folder)
        os.rmdir(folder)
    except OSError:
        os.chdir("/")
    serve(socket.socket(fileno=0))


if __name__ == "__main__":
    main()
