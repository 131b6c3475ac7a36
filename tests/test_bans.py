"""What the code of the package never does: run code or text that comes as data."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "torch_augcond").rglob("*.py"))
SOURCES = [*MODULES, *sorted((ROOT / "benchmarks").rglob("*.py")), ROOT / "setup.py"]

IMPORTS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "runpy", "code"}
NAMES = {"eval", "exec", "__import__"}  # whatever they are used for, called or passed on
METHODS = {"compile", "torch.load", "os.system", "os.popen", "torch.hub.load", "importlib.import_module"}
ENDINGS = {"load": {"yaml", "pickle", "marshal"}, "loads": {"pickle", "marshal"}, "load_all": {"yaml"}}
KEYWORDS = {"shell", "trust_remote_code", "allow_pickle"}
SAFE_LOADERS = {"SafeLoader", "CSafeLoader", "BaseLoader"}


def keywords(call):
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


def call_problem(node):
    """What is wrong with a call, by the name that is called."""
    name, given = ast.unparse(node.func), keywords(node)
    head, _, last = name.rpartition(".")
    if name in METHODS or head in ENDINGS.get(last, ()) or last in ("unsafe_load", "full_load"):
        return name
    if last in ("extractall", "extract", "unpack_archive") and given.get("filter") not in ("'data'", "'tar'"):
        return f"{last} without filter"
    if name.endswith("Image.open") and "formats" not in given:
        return "Image.open without formats"  # Pillow hands EPS to Ghostscript
    return next((key for key in KEYWORDS & given.keys() if given[key] != "False"), None)


def problems(node):
    """Everything banned that a node of the syntax tree does."""
    if isinstance(node, ast.Assert):
        yield "assert"
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name.split(".")[0] in IMPORTS)
    if isinstance(node, ast.ImportFrom) and not node.level:
        names = {f"{node.module}.{alias.name}" for alias in node.names}
        yield from (names & METHODS) | ({node.module} if node.module.split(".")[0] in IMPORTS else set())
    if isinstance(node, ast.Name) and node.id in NAMES:
        yield node.id
    if isinstance(node, ast.Call) and (problem := call_problem(node)):
        yield problem


def found(code, in_package=True):
    return [
        problem
        for node in ast.walk(ast.parse(code))
        for problem in problems(node)
        if in_package or not is_allowed_outside(node, problem)
    ]


def is_allowed_outside(node, problem):
    """A benchmark may read its own images, and resume from its own checkpoint: torch unpickles no code then."""
    if problem == "Image.open without formats":
        return True
    return problem == "torch.load" and keywords(node).get("weights_only") == "True"


# The package loads its own modules by name, when a public name is first used: the names are in its source.
ALLOWED = {"torch_augcond/__init__.py": ["importlib.import_module"]}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_does_nothing_banned(path):
    allowed = ALLOWED.get(path.relative_to(ROOT).as_posix(), [])
    assert [p for p in found(path.read_text("utf-8"), path in MODULES) if p not in allowed] == []


@pytest.mark.parametrize(
    "code",
    [
        "assert x",
        "import pickle",
        "import numpy, pickle as p",
        "from pickle import loads",
        "from marshal import load",
        "torch.load(f)",
        "torch.load(f, weights_only=True)",
        "from torch import load",
        "eval(x)",
        "exec(x)",
        "run = exec",
        "map(eval, texts)",
        "compile(x, '', 'exec')",
        "yaml.load(f)",
        "yaml.load(f, Loader=yaml.Loader)",
        "yaml.full_load(f)",
        "yaml.load_all(f)",
        "subprocess.run(x, shell=True)",
        "subprocess.run(x, shell=flag)",
        "os.system(x)",
        "tar.extractall(path)",
        "tarfile.open(f).extractall(path, members)",
        "tar.extract(member)",
        "tar.extractall(path, filter='fully_trusted')",
        "zip.extractall(path)",
        "shutil.unpack_archive(f, path)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "load(trust_remote_code=given)",
        "np.load(f, allow_pickle=True)",
        "Image.open(path)",
        "PIL.Image.open(io.BytesIO(data))",
        "importlib.import_module(name)",
        "from importlib import import_module",
        "def f():\n    if x:\n        return [eval(y) for y in z]",
    ],
)
def test_the_walk_finds_what_is_banned(code):
    assert found(code)


@pytest.mark.parametrize(
    "code",
    [
        "json.load(f)",
        "model.eval()",
        "torch.compile(f)",
        "re.compile(x)",
        "tar.extractall(path, filter='data')",
        "Image.open(path, formats=FORMATS)",
        "subprocess.run(x, shell=False)",
        "from_pretrained(name, trust_remote_code=False)",
        "from .evaluate import pickle_free",
        "'import pickle; eval(x)'",
    ],
)
def test_the_walk_leaves_the_rest_alone(code):
    assert not found(code)
