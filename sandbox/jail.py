"""The far side of the sandbox: the program of a fork server (`python -I -S jail.py`) and of its children.

`sandbox.py` starts this file as a fresh interpreter with an empty environment. It imports the modules that
model-written code may use, then forks one child per completion. The child locks itself down before it reads
a byte of code; parsing, the policy scan and execution all happen behind the lock. Nothing that a child says
is believed: `sandbox.py` parses its replies as plain data and reads its clock from outside.

seccomp and Landlock are applied through ctypes. pyseccomp needs the system library libseccomp.so.2, which pip
cannot install, and py-landlock adds 3 ms a run; `-S` hides both from this process. They would replace the 40
lines of `seccomp_filter` and `landlock_ruleset`, which the tests interpret for x86-64 and arm64.

Sources: man 2 seccomp, man 7 landlock, linux/filter.h; call numbers from asm/unistd_64.h (x86-64) and
asm-generic/unistd.h (arm64).
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
from json import dumps, loads

# ------------------------------------------------------------ policy: what counts as an attempt to cheat

# Importable inside. The server loads them all, because a child cannot open files. The last line is what C
# code imports in the completion's name: for strptime, for long integers as text, and its own module.
ALLOWED_MODULES = frozenset(
    """
    __future__ abc array base64 binascii bisect calendar cmath codecs collections collections.abc
    colorsys contextlib copy copyreg csv dataclasses datetime decimal difflib enum fractions functools
    graphlib hashlib heapq html io itertools json keyword locale logging math numbers operator pprint
    queue random re reprlib secrets statistics string struct sys textwrap time timeit token traceback
    types typing unicodedata warnings weakref zlib
    _strptime _pylong completion
    """.split()
)

# An import of these, or of anything outside the standard library, is a finding. Standard modules in neither
# table (pickle, pdb, xml ...) cannot be imported, but wanting them is no attempt to cheat.
DENIED_MODULES = {
    name: reason
    for reason, names in {
        "operating system and files": """os posix nt posixpath ntpath pathlib shutil tempfile glob fileinput
            fcntl mmap pwd grp crypt spwd pty tty termios resource platform getpass site sysconfig""",
        "processes, threads and signals": """subprocess multiprocessing threading _thread concurrent asyncio
            signal _signal _posixsubprocess""",
        "network": """socket _socket ssl select selectors socketserver http urllib ftplib smtplib poplib
            imaplib telnetlib nntplib xmlrpc webbrowser wsgiref""",
        "native code": "ctypes _ctypes sqlite3 _sqlite3 dbm readline curses tkinter venv ensurepip",
        "the interpreter itself": """builtins __main__ importlib imp _imp runpy pkgutil zipimport code codeop
            inspect gc trace faulthandler marshal""",
    }.items()
    for name in names.split()
}

# `import sys` gives a module with these alone; an attempt at the second group is a finding.
SAFE_SYS = """
    maxsize maxunicode float_info int_info hash_info byteorder version version_info hexversion implementation
    intern getsizeof getrecursionlimit setrecursionlimit stdin stdout stderr exit set_int_max_str_digits
    get_int_max_str_digits argv platform
""".split()
DENIED_SYS = frozenset(
    "modules meta_path path_hooks _getframe _current_frames settrace setprofile addaudithook".split()
)

# Attributes and names that have no use in an answer but to leave it; `open` too, unless it is redefined.
ESCAPES = frozenset(
    """
    __subclasses__ __globals__ __code__ __builtins__ __import__ __loader__ __spec__ _getframe tb_frame
    f_globals f_locals f_back f_builtins f_code gi_frame gi_code cr_frame cr_code ag_frame ag_code
    """.split()
)
ESCAPE_NAMES = frozenset({"__builtins__", "__loader__", "__spec__"})
ATTRIBUTE_READERS = frozenset({"getattr", "attrgetter", "methodcaller", "get_field"})


def import_finding(module: str) -> str | None:
    """What is wrong with importing `module`, in words, or None."""
    top = module.partition(".")[0]
    if top in DENIED_MODULES:
        return f"import of {module[:80]} ({DENIED_MODULES[top]})"
    if top not in sys.stdlib_module_names and top not in ALLOWED_MODULES:
        return f"import of {module[:80]} (not in the standard library)"
    return None


def attribute_finding(module: str, name: str) -> str | None:
    """What is wrong with reading `module.name`, in words, or None."""
    if module == "sys":
        return f"use of sys.{name} (the interpreter itself)" if name in DENIED_SYS else None
    if module in ALLOWED_MODULES and name.lstrip("_") in {"sys", *DENIED_MODULES}:
        return f"use of {module}.{name} (a way round the import rules)"
    return None


def never_runs(test: ast.expr) -> bool:
    """True for `if __name__ == "__main__":` and `if TYPE_CHECKING:`, whose bodies attempt nothing here."""
    match test:
        case ast.Compare(ast.Name(id="__name__"), [ast.Eq()], [ast.Constant("__main__")]):
            return True
        case ast.Compare(ast.Constant("__main__"), [ast.Eq()], [ast.Name(id="__name__")]):
            return True
        case ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING"):
            return True
    return False


def scan(tree: ast.Module) -> list[str]:
    """Findings of the static policy, by line. Certain cases only: what honest code does is never one."""
    nodes, todo = [], [tree]
    modules, bound = {}, set()  # local name: module; names that the completion defines itself
    while todo:
        node = todo.pop()
        nodes.append(node)
        guarded = isinstance(node, ast.If) and never_runs(node.test)
        todo.extend(node.orelse if guarded else ast.iter_child_nodes(node))
        match node:
            case ast.Import(names=names):
                modules.update({a.asname or a.name.partition(".")[0]: a.name for a in names})
            case ast.ImportFrom(names=names):
                bound.update(a.asname or a.name for a in names)
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                bound.add(name)
            case (
                ast.FunctionDef(name=name)
                | ast.ClassDef(name=name)
                | ast.AsyncFunctionDef(name=name)
            ):
                bound.add(name)
    found = []

    def note(text):
        if text:
            found.append((node.lineno, text))

    def note_escapes(names):
        for name in sorted(ESCAPES.intersection(names)):
            note(f"use of {name} (reaches into the interpreter)")

    for node in nodes:
        match node:
            case ast.Import(names=names):
                for alias in names:
                    note(import_finding(alias.name))
            case ast.ImportFrom(module=module, names=names, level=0):
                note(import_finding(module))
                for alias in names:
                    note(attribute_finding(module, alias.name))
            case ast.Attribute(value=value, attr=name, ctx=ctx):
                note_escapes([name])
                if isinstance(value, ast.Name) and value.id in modules and value.id not in bound:
                    if isinstance(ctx, ast.Load):
                        note(attribute_finding(modules[value.id], name))
                    else:
                        note(
                            f"assignment to {modules[value.id]}.{name} (replaces part of a library)"
                        )
            case ast.MatchClass(kwd_attrs=names):
                note_escapes(names)
            case ast.Name(id=name, ctx=ast.Load()) if name in ESCAPE_NAMES:
                note_escapes([name])
            case ast.Call(func=ast.Name(id="open")) if "open" not in bound:
                note("use of open (files)")
            case ast.Call(
                func=ast.Name(id="setattr" | "delattr"), args=[ast.Name(id=target), *_]
            ) if target in modules:
                note(f"change of the module {modules[target]} (replaces part of a library)")
            case ast.Call(func=ast.Name(id="__import__"), args=[ast.Constant(str(module)), *_]):
                note(import_finding(module))
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=args):
                if name in ATTRIBUTE_READERS:
                    for arg in args:
                        if isinstance(arg, ast.Constant) and isinstance(arg.value, str):
                            note_escapes(arg.value.split("."))
    return list(dict.fromkeys(f"line {line}: {text}" for line, text in sorted(found)))


# ------------------------------------------------------------ layers: what a child does to itself

SYSCALLS = {  # all that a child may call: (x86-64, arm64). Anything else fails with EPERM.
    "read": (0, 63),
    "write": (1, 64),
    "futex": (202, 98),
    "brk": (12, 214),
    "munmap": (11, 215),
    "mremap": (25, 216),
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
NUMBER, ARCHITECTURE, THIRD_ARGUMENT = (
    0,
    4,
    32,
)  # offsets in struct seccomp_data, low words (little-endian)


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
    result = getattr(libc, function)(
        *(ctypes.c_ulong(a) if isinstance(a, int) else a for a in args)
    )
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def lock_session(limits):
    os.setsid()
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != limits["server_pid"]:
        os._exit(0)


def lock_capabilities(limits):
    header = struct.pack("Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    call("capset", header, bytes(24))  # effective, permitted, inheritable: none


def lock_landlock(limits):
    """A ruleset that handles every access this kernel knows and allows none."""
    abi = call("syscall", LANDLOCK_CREATE_RULESET, None, 0, 1)
    files = (1 << (13 + (abi >= 2) + (abi >= 3) + (abi >= 5))) - 1
    attributes = struct.pack("QQQ", files, 3, 3)[
        : 8 + 8 * (abi >= 4) + 8 * (abi >= 6)
    ]  # files, TCP, scopes
    ruleset = call("syscall", LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0)
    call("syscall", LANDLOCK_RESTRICT_SELF, ruleset, 0)


def lock_rlimits(limits):
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


def lock_seccomp(limits):
    instructions = seccomp_filter(MACHINE)
    program = FilterProgram(len(instructions) // 8, instructions)
    call("prctl", PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0)


LAYERS = {  # in the order of application: Landlock needs a descriptor and no_new_privs, seccomp comes last
    "session": lock_session,
    "undumpable": lambda limits: call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0),
    "no_new_privs": lambda limits: call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
    "capabilities": lock_capabilities,
    "landlock": lock_landlock,
    "descriptors": lambda limits: os.closerange(
        1, 64
    ),  # 0 is the socket; a server holds fewer than 64
    "rlimits": lock_rlimits,
    "seccomp": lock_seccomp,
}


def probe_layers(limits: dict) -> dict[str, str]:
    """Try every layer in a throw-away child: {layer: "" where it holds, else why it does not}."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(writer, 0)
        report = {}
        for name, lock in LAYERS.items():
            try:
                lock(limits)
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


# ------------------------------------------------------------ the locked child

MAX_DEPTH = 64  # of a result
MAX_TEXT = 2000  # characters of an error
DICTS = frozenset({dict, OrderedDict, defaultdict, Counter})
SCALARS = frozenset({int, float, str, bool, type(None)})
READY = b"+"  # what a locked child says first
HEADER = struct.Struct("!II")  # reply: bytes of JSON, bytes of raw float64
LENGTH = struct.Struct("!I")  # request: bytes of marshal


class Discard(io.TextIOBase):
    """Where prints go."""

    def write(self, text):
        return len(text)


class BadResult(Exception):
    """The result is not plain data."""


def read_exactly(size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = os.read(0, min(size - len(data), 1 << 20))
        if not chunk:
            os._exit(0)
        data += chunk
    return bytes(data)


def read_request():
    return marshal.loads(read_exactly(LENGTH.unpack(read_exactly(LENGTH.size))[0]))


def frame(status: str, error: str, findings: list[str], value=None, raw: bytes = b"") -> bytes:
    """One reply. Raises ValueError for an integer too long to print; a lone surrogate becomes "?"."""
    text = dumps([status, error, findings, value], ensure_ascii=False, check_circular=False)
    data = text.encode(errors="replace")
    return HEADER.pack(len(data), len(raw)) + data + raw


def send(reply: bytes):
    data = memoryview(reply)
    while data:
        data = data[os.write(0, data) :]


def type_name(value) -> str:
    """The true name: a metaclass may have its own idea of __name__."""
    return type.__dict__["__name__"].__get__(type(value))[:80]


def check_plain(value, depth: int = MAX_DEPTH):
    """Raise BadResult unless `value` is made of exact plain types (dicts from collections count as dicts)."""
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
    """(columns, row-major float64) of a list of equally long lists of float, else None; cheaper than JSON."""
    if type(value) is not list or not value or set(map(type, value)) != {list}:
        return None
    columns = len(value[0])
    if columns == 0 or any(len(row) != columns or set(map(type, row)) != {float} for row in value):
        return None
    return columns, b"".join([array("d", row).tobytes() for row in value])


def describe(error: BaseException) -> str:
    """Type, text and line of an exception whose methods may be the completion's own."""
    try:
        line, tb = "", error.__traceback__
        while tb is not None:
            if tb.tb_frame.f_code.co_filename == "<completion>":
                line = f" (line {tb.tb_lineno})"
            tb = tb.tb_next
        return f"{type_name(error)}: {str(error)[:MAX_TEXT]}{line}"
    except BaseException:
        return f"{type_name(error)}: (no text)"


def encode_result(value) -> tuple[object, bytes]:
    """(plain value, b"") or, for a matrix of floats, (columns, float64 bytes). Raises BadResult."""
    matrix = float_matrix(value)
    if matrix:
        return matrix
    check_plain(value)
    return value, b""


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


def snapshot(arguments: list) -> bytes | None:
    """What the arguments hold, to be compared; None once they hold anything but plain data."""
    try:
        return marshal.dumps(
            arguments, 2
        )  # version 2 has no references, so equal data gives equal bytes
    except ValueError:
        return None


def run_child():
    """Serve one completion over descriptor 0: first (code, entry_point), then argument lists."""
    random.seed(0)  # a fork gets a seed of its own; equal code should get an equal grade
    findings: list[str] = []
    status, error, function = load(*read_request(), findings)
    send(frame(status, error, findings))
    while True:
        reported = len(findings)
        arguments = read_request()
        before = snapshot(arguments)
        value = None
        try:
            value = function(*arguments)
            status, error = "ok", "" if snapshot(arguments) == before else "changed its arguments"
        except MemoryError:
            status, error = "memory", "MemoryError"
        except BaseException as problem:
            status, error = "crash", describe(problem)
        try:
            reply = frame(status, error, findings[reported:], *encode_result(value))
        except MemoryError:
            reply = frame("memory", "MemoryError in the result", findings[reported:])
        except BaseException as problem:
            reply = frame("bad_result", describe(problem), findings[reported:])
        del arguments, before, value  # freed before the reply, so that the idle clock stands still
        send(reply)


# ------------------------------------------------------------ the fork server


def serve(control: socket.socket):
    """Answer `open` (one descriptor attached) with the pid of a locked child, `wait` with its exit code."""
    parent = os.getppid()
    with suppress(
        OSError
    ):  # the kernel's memory killer takes a child or its server before the trainer
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    base_bytes = 256 * 2**20
    with suppress(OSError), open("/proc/self/statm") as file:
        base_bytes = int(file.read().split()[0]) * resource.getpagesize()
    extra = {"server_pid": os.getpid(), "base_bytes": base_bytes}
    report = probe_layers({"cpu_s": 10, "memory_mb": 64, **extra})
    active = [lock for name, lock in LAYERS.items() if not report[name]]
    if lock_seccomp in active:
        seccomp_filter(MACHINE)  # into the cache that the children share
    control.send(dumps(report).encode())
    control.settimeout(1.0)
    gc.collect()
    gc.freeze()
    while (
        os.getppid() == parent
    ):  # a forked trainer process may keep the control socket open after its death
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
        try:
            pid = os.fork()
        except OSError as error:  # out of processes or memory
            pid = f"cannot fork: {error}"
        if pid == 0:
            try:
                control.detach()
                os.dup2(descriptors[0], 0)
                try:
                    for lock in active:
                        lock({**request["limits"], **extra})
                    os.write(0, READY)
                except OSError as error:  # our fault, and told before any code has been read
                    os.write(0, str(error).encode())
                else:
                    run_child()
            finally:
                os._exit(70)
        os.close(descriptors[0])
        control.send(dumps(pid).encode())


def main():
    for name in sorted(ALLOWED_MODULES):
        with suppress(ModuleNotFoundError):  # _pylong came with Python 3.12
            importlib.import_module(name)
    for name in "ascii latin-1 utf-16 utf-32 rot13 hex base64 unicode_escape".split():
        codecs.lookup(name)
    warnings.simplefilter("ignore")
    sys.path.clear()
    os.environ.clear()  # Python itself adds LC_CTYPE to an empty environment
    sys.stdin = sys.__stdin__ = None
    sys.argv = [""]
    sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = Discard()
    try:  # the working directory is empty and already deleted: nothing can be found or made in it
        folder = tempfile.mkdtemp(dir="/tmp")
        os.chdir(folder)
        os.rmdir(folder)
    except OSError:
        os.chdir("/")
    serve(socket.socket(fileno=0))


if __name__ == "__main__":
    main()
