"Files that mean harm, or are only broken: how they are made (Hypothesis), and a watch on what a reader does with them"
import copy
import gzip
import io
import json
import os
import pickle
import resource
import signal
import sys
import tarfile
import traceback
import warnings
import zipfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from hypothesis import strategies as st

from dho_nb.core.errors import DhoError

# ---- the watch ----

SECONDS = 5, 120  # of computing, and on the clock: nothing that a reader does may take longer
ROOM = 6 << 30    # bytes that a reader may ask for beyond what the process has already
STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "os.startfile",
          "os.kill", "pty.spawn", "webbrowser.open", "socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo",
          "socket.gethostbyname", "urllib.Request", "pickle.find_class", "http.client.connect"}
CHANGES = {"os.mkdir": (0,), "os.rmdir": (0,), "os.remove": (0,), "os.rename": (0, 1), "os.link": (1,), "os.symlink": (1,),
           "os.chmod": (0,), "os.chown": (0,), "os.truncate": (0,), "os.utime": (0,), "os.setxattr": (0,)}
MAKERS = ("/dataclasses.py", "/collections/__init__.py", "/typing.py", "/enum.py", "/pandas/core/computation/",
          "/torch/", "/sympy/", "/sklearn/", "/onnxscript/", "/ast.py")  # they compile classes and functions of their own
NEVER = {"antigravity", "this", "idlelib", "turtle", "turtledemo", "canary", "webbrowser", "pip", "pytest", "pydoc"}
DEPENDENCIES = set("dho_nb torch torchvision timm open_clip huggingface_hub accelerate safetensors pandas numpy PIL sklearn scipy "
                   "matplotlib fastprogress fastcore filelock fsspec psutil onnx onnxruntime pyarrow joblib yaml "
                   "mpl_toolkits ftfy regex wcwidth google mpmath sympy threadpoolctl kiwisolver contourpy cycler substrait "
                   "dateutil pyparsing packaging ml_dtypes onnxscript onnx_ir".split())


class Hang(BaseException):
    "It took too long"


class Watch:
    "Notes what happens while it is on: starts of programs, connections, imports, compiled code, writes outside of a folder"
    now = None  # the watch that is on; an audit hook cannot be taken away again

    def __init__(self, folder): self.folder, self.seen = os.path.realpath(folder), []

    def __enter__(self):
        Watch.now, self.seen = self, []
        return self

    def __exit__(self, *how): Watch.now = None

    def inside(self, path, fd=-1):
        if isinstance(path, int): return True  # an open file, judged when it was opened
        if isinstance(fd, int) and fd >= 0: path = os.path.join(os.readlink(f"/proc/self/fd/{fd}"), os.fsdecode(path))
        path = os.path.realpath(os.path.dirname(os.path.abspath(os.fsdecode(path))))
        return path == self.folder or path.startswith(self.folder + os.sep)

    def note(self, event, args):
        if event == "os.kill" and args[1] == 0: return  # is there such a process?
        if event in STARTS: self.seen.append(f"{event} {args[:2]!r}"[:160])
        elif event in CHANGES:
            fd = args[-1] if event not in ("os.truncate", "os.setxattr") else -1
            self.seen += [f"{event} {args[i]!r}" for i in CHANGES[event] if not self.inside(args[i], fd) and not _importing()]
        elif event == "open" and _writes(*args[1:3]) and args[0] != os.devnull and not self.inside(args[0]):
            if not _importing(): self.seen.append(f"write {args[0]!r}")
        elif event == "import":
            root = args[0].partition(".")[0]
            known = root in sys.stdlib_module_names or root in DEPENDENCIES or root in sys.modules
            if root in NEVER or not known: self.seen.append(f"import {args[0]!r}")
        elif event in ("exec", "compile", "code.__new__") and not _importing():
            caller = sys._getframe(2).f_code.co_filename
            if not any(m in caller for m in MAKERS): self.seen.append(f"{event} by {caller}")


def _writes(mode, flags):
    return bool(mode and set("wax+") & set(mode)) or bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))


def _importing():
    frame = sys._getframe(2)
    while frame:
        if frame.f_code.co_filename.startswith("<frozen importlib"): return True
        frame = frame.f_back
    return False


def _hook(event, args):
    if (watch := Watch.now) is not None:
        Watch.now = None  # what the watch itself does
        try: watch.note(event, args)
        finally: Watch.now = watch


sys.addaudithook(_hook)


@contextmanager
def limited():
    "No more than some seconds and some memory"
    def late(number, frame): raise Hang(f"more than {SECONDS[number == signal.SIGALRM]} s")
    before = {s: signal.signal(s, late) for s in (signal.SIGPROF, signal.SIGALRM)}
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0])*resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, hard))
    signal.setitimer(signal.ITIMER_PROF, SECONDS[0]); signal.setitimer(signal.ITIMER_REAL, SECONDS[1])
    try: yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0); signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        for number, handler in before.items(): signal.signal(number, handler)


class Place:
    "A folder for one reader's files, and beside it places that nothing may touch"
    def __init__(self, base):
        self.base, self.folder = Path(base), Path(base)/"in"
        for name in ("in", "in/tmp", "in/work", "cwd", "home"): (self.base/name).mkdir(parents=True)
        (self.base/"home"/"kept").write_text("kept")

    def file(self, name, data):
        "Put a file there"
        path = self.folder/name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))
        return path

    @property
    def around(self):
        "What lies beside the folder"
        return sorted((str(p.relative_to(self.base)), p.stat().st_mtime_ns if p.is_file() else 0)
                      for d in (self.base, self.base/"cwd", self.base/"home") for p in d.iterdir())

    def verdict(self, read, given):
        "What a reader did with an input that it should not have done; empty if it read it, or refused it with a DhoError"
        before, kinds = self.around, []
        with Watch(self.folder) as watch, warnings.catch_warnings(), limited():
            warnings.simplefilter("ignore")
            try: read(self, given)
            except DhoError: pass
            except KeyboardInterrupt: raise
            except BaseException as e: kinds.append(_where(e))
        kinds += watch.seen + ([f"left outside: {sorted({*self.around} ^ {*before})}"] if self.around != before else [])
        return kinds


def _where(error):
    "Kind of an error, and the last line of the library that it came through"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/dho_nb/" in f.filename]
    at = f"{Path(frames[-1].filename).stem}.{frames[-1].name}: {frames[-1].line}" if frames else "outside of the library"
    said = (str(error).splitlines() or [""])[0][:100].encode("ascii", "replace").decode()
    return f"{type(error).__name__} in {at[:110]} ({said})"


def each(*calls):
    "Several readers of one input: a refusal of one does not spare the others"
    for call in calls:
        try: call(); OUTCOMES["read"] += 1
        except DhoError: OUTCOMES["refused"] += 1


OUTCOMES = Counter()  # how many readers read, and how many refused


# ---- what is put into files ----

SPECS = ("os:system", "subprocess:getoutput", "subprocess:Popen", "builtins:eval", "builtins:exec", "canary:call", "timeit:timeit",
         "dho_nb.deploy.checkpoints:clip_vit", "dho_nb.core.files:write_json", "shutil:rmtree", "tests.canary:call", "antigravity:x", "a.b.c:d",
         ":x", "x:", "torch.hub:load", "timm:hf-hub:o/n", "timm:local-dir:/etc", "hf-hub:o/n", "timm:", "timm:no", "torchvision:no",
         "local-dir:/etc", "open_clip:hf-hub:o/n", "open_clip:local-dir:..", "open_clip:no", "tiny", "no-such")
TEXTS = (*SPECS, "", " ", "\0", "a\0b", "..", "../../x", "../cwd/x", "/etc/passwd", "/dev/null", "/nowhere/x", "~", "~/x", "~nobody/x",
         "C:\\x", "\\\\host\\share", "con", "-rf", "{}", "{", "{0.__class__}", "{0.__class__.__mro__}", "%s", "%(x)s", "%n",
         "$(touch x)", "`touch x`", ";touch x", "|touch x", "<script>alert(1)</script>", "\"><script>alert(1)</script>", "\\input{x}",
         "$x$", "=1+1", "\ud800", "\udcff", "\u202e", "\u0085", "\u2028", "\ufeff", "é", "e\u0301", "\x1b[31m", "\r\n", "a,b", "a\"b",
         "x"*5000, "é"*300, "NaN", "inf", "1e999", "-1", "0x10", "True", "null", "file:///etc/passwd", "http://127.0.0.1:9/x",
         "s3://b/x", "memory://x", "digits", "digits/random", "cat", "dho", "ce", "sho", "kd", "dho-plus", "few", "full", "train", "val",
         "test")
DEEP, LONG, DATE = "@deep@", "@long@", "@date@"  # what json.dumps cannot write by itself
NUMBERS = (0, 1, -1, 2, 3, 7, 255, 10**6, 2**31, 2**63, 2**64, 10**40, 10**400, .5, -.5, 1e-320, 1e308, float("nan"), float("inf"),
           float("-inf"), True, False)
NESTS = (None, [], {}, [[]], [None], [1, "a", None], {"": None}, {"a": {"b": []}}, {"name": "x"}, ["a", "a"], [0, 0], {"cmd": "touch x"},
         {"command": "touch x"}, {"checkpoint_path": "../../x"}, {"checkpoint_path": "/etc/passwd"}, {"pretrained": True},
         {"pretrained": "/etc/passwd"}, {"pretrained_cfg": {"file": "/etc/passwd"}}, {"cache_dir": "/nowhere"}, {"source": "1"},
         {"path": "x"}, {"name": "os"}, {"features_only": True}, {"widths": [10**9]}, {"widths": []}, {"widths": ["a"]}, {"scriptable": True})
values = st.one_of(st.sampled_from(TEXTS), st.sampled_from(NUMBERS), st.sampled_from(NESTS).map(copy.deepcopy),
                   st.sampled_from((DEEP, LONG, DATE)), st.text(max_size=8))


def spots(data):
    "Every holder and key of nested plain data; those of the first levels more often"
    found, here = [], [data]
    for level in range(6):
        pairs = [(h, k) for h in here for k in (h if isinstance(h, dict) else range(len(h)))]
        found += pairs*max(1, 3 - level)
        here = [h[k] for h, k in pairs if isinstance(h[k], (dict, list)) and h[k]]
    return found


@st.composite
def documents(draw, *seeds):
    "One of some valid documents with none to three things wrong"
    data = copy.deepcopy(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 2, 3, 0)))):
        if not (isinstance(data, (dict, list)) and data): break
        holder, key = draw(st.sampled_from(spots(data)))
        match draw(st.sampled_from(("value", "value", "value", "drop", "other", "wrap", "add", "all"))):
            case "value": holder[key] = draw(values)
            case "drop": del holder[key]
            case "other": holder[key] = {str: 1, int: "1", float: "0.5", bool: 0, list: {}, dict: []}.get(type(holder[key]), "x")
            case "wrap": holder[key] = draw(st.sampled_from(([holder[key]], {"a": holder[key]}, str(holder[key]))))
            case "add" if isinstance(holder, dict): holder[draw(st.sampled_from(TEXTS))] = draw(values)
            case "add": holder.append(draw(values))
            case "all": data = draw(values)
    return data


def json_text(data, ascii=True):
    "JSON with what json.dumps cannot write: depth, digits"
    text = json.dumps(data, ensure_ascii=ascii)
    return (text.replace(f'"{DEEP}"', "["*20000 + "]"*20000).replace(f'"{LONG}"', "9"*5000)
            .replace(f'"{DATE}"', '"1979-05-27"'))


@st.composite
def damaged(draw, data):
    "Bytes as other programs, broken disks and wrong encodings leave them; mostly as they are"
    way = draw(st.sampled_from(("as is",)*8 + ("bom", "utf-16", "latin-1", "crlf", "insert", "cut", "twice", "empty", "flip", "any")))
    last = max(len(data) - 1, 0)  # the list of a zip file is in its last bytes
    at = draw(st.integers(0, last) | st.integers(max(last - 600, 0), last)) if way in ("insert", "cut", "flip") else 0
    match way:
        case "bom": return b"\xef\xbb\xbf" + data
        case "utf-16": return data.decode("utf-8", "replace").encode("utf-16")
        case "latin-1": return data.decode("utf-8", "replace").encode("latin-1", "replace") + b"\xe9"
        case "crlf": return data.replace(b"\n", b"\r\n")
        case "insert": return data[:at] + draw(st.sampled_from((b"\0", b"\xff", b"\xc3", b"\x1a", b"\r", b'"', b"{", b",", b"\n"))) + data[at:]
        case "cut": return data[:at]
        case "twice": return data + data
        case "empty": return b""
        case "flip": return data[:at] + bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1:] if data else data
        case "any": return draw(st.binary(max_size=60))
    return data


@st.composite
def json_files(draw, *seeds):
    "A JSON file, now and then with a key twice"
    data = draw(documents(*seeds))
    text = json_text(data, draw(st.booleans()))
    if isinstance(data, dict) and data and draw(st.integers(0, 9)) == 0:
        key = draw(st.sampled_from([k for k in data]))
        text = "{" + f"{json.dumps(key)}: {json_text(draw(values))}, " + text[1:]
    return draw(damaged(text.encode("utf-8", "surrogatepass")))


def toml_value(value):
    if isinstance(value, dict): return "{" + ", ".join(f"{json.dumps(k)} = {toml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list): return "[" + ", ".join(map(toml_value, value)) + "]"
    if value == DEEP: return "["*2000 + "]"*2000
    if value == LONG: return "9"*5000
    if value == DATE: return "1979-05-27"
    if isinstance(value, float) and value in (float("inf"), float("-inf")): return "inf" if value > 0 else "-inf"
    return "nan" if value != value else json.dumps(value)


@st.composite
def toml_files(draw, *seeds):
    "A TOML file: the same values as in JSON, and dates"
    data = draw(documents(*seeds))
    text = ("".join(f"{k if k.isidentifier() and k.isascii() else json.dumps(k)} = {toml_value(v)}\n" for k, v in data.items())
            if isinstance(data, dict) else toml_value(data))
    return draw(damaged(text.encode("utf-8", "surrogatepass")))


@st.composite
def csv_files(draw, *seeds):
    "A CSV whose cells, lines or separators are wrong"
    rows = copy.deepcopy(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 3))):
        if not rows: break
        row = rows[draw(st.integers(0, len(rows) - 1))]
        at = draw(st.integers(0, max(len(row) - 1, 0)))
        match draw(st.sampled_from(("value", "value", "value", "number", "drop", "more", "row", "twice"))):
            case "value" if row: row[at] = draw(st.sampled_from(TEXTS) | st.text(max_size=6))
            case "number" if row: row[at] = str(draw(st.sampled_from(NUMBERS)))
            case "drop" if row: del row[at]
            case "more": row.append("x")
            case "row": rows.remove(row)
            case "twice": rows.append(list(row))
    mark, quoted = draw(st.sampled_from((",",)*6 + (";", "\t", "|", " "))), draw(st.sampled_from((False, False, True)))
    quote = lambda c: '"' + c.replace('"', '""') + '"' if quoted or set(c) & {'"', "\n"} and draw(st.booleans()) else c
    text = "\n".join(mark.join(map(quote, row)) for row in rows) + "\n"
    return draw(damaged(text.encode("utf-8", "surrogatepass")))


# ---- files of weights, archives, arrays ----

def safetensors_bytes(header, body=b""):
    "A .safetensors file with any header whatever"
    head = header if isinstance(header, bytes) else json_text(header).encode()
    return len(head).to_bytes(8, "little") + head + body


def broken_zips(name):
    "Zip files of one file, each with a list of its files that cannot be read, or says what is not so"
    def made(name, change):
        held = io.BytesIO()
        with zipfile.ZipFile(held, "w") as archive: archive.writestr(zipfile.ZipInfo(name), b"x")
        return change(held.getvalue())
    def byte(at, value): return lambda data: data[:(k := data.index(b"PK\1\2") + at)] + bytes([value]) + data[k + 1:]
    return [*(made(name, byte(at, 225)) for at in (0, 6, 8, 10, 30)),  # no list; version, flags, method, length of the extras
            made("é" + name, byte(46, 225)), made(name, lambda data: data.replace(b"PK\5\6", b"PK\6\7" + bytes(12) + b"\2\0\0\0PK\5\6")),
            b"PK\5\6" + bytes(18)]


class Calls:
    "What a pickle calls when it is opened"
    def __init__(self, what, *args): self.what, self.args = what, args

    def __reduce__(self): return self.what, self.args


BOMBS = tuple(pickle.dumps(Calls(*c)) for c in ((os.system, "touch x"), (eval, "1"), (open, "x", "w"), (os.mkdir, "x")))
NAMES = ("a.png", "imagenet-r/n01443537/a.png", "../x", "../../cwd/x", "/nowhere/x", "/tmp/hostile-x", "a/../../../cwd/x", "..\\x", "C:\\x", "~/x", "",
         ".", "..", "a\0b", "\ud800", "x"*300, "/".join(["d"]*300), "con", "link", "link/x", "link/../x", "a/link/x", "-rf", "$(touch x)")


@st.composite
def archives(draw):
    "A .tar or .zip with members that lead elsewhere"
    members = draw(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from("ffffdlhcpsz"), st.sampled_from(NAMES)), max_size=6))
    kind = draw(st.sampled_from(("tar", "tar", "tar.gz", "zip")))
    held = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(held, "w") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, type_, target in members:
                info = zipfile.ZipInfo(name.encode("utf-8", "replace").decode())
                info.external_attr = {"l": 0o120777, "d": 0o040755}.get(type_, 0o104755) << 16
                archive.writestr(info, target.encode("utf-8", "replace") if type_ == "l" else b"x")
    else:
        with tarfile.open(fileobj=held, mode="w", errors="surrogateescape") as archive:
            for name, type_, target in members:
                info = tarfile.TarInfo(name.replace("\ud800", "\udcff"))
                info.type = {"f": tarfile.REGTYPE, "d": tarfile.DIRTYPE, "l": tarfile.SYMTYPE, "h": tarfile.LNKTYPE, "c": tarfile.CHRTYPE,
                             "p": tarfile.FIFOTYPE, "s": tarfile.GNUTYPE_SPARSE, "z": b"z"}[type_]
                info.linkname, info.mode, info.size = target.replace("\ud800", "\udcff"), 0o4777, 4 if type_ == "f" else 0
                archive.addfile(info, io.BytesIO(b"data"))
    data = held.getvalue()
    return draw(damaged(gzip.compress(data, mtime=0) if kind == "tar.gz" else data))  # gzip writes the time otherwise
