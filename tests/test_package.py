"""What holds for the package as a whole: its names, its imports, its files, its distributions."""

import ast
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import torch_augcond

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "torch_augcond"
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = [*MODULES, *sorted((ROOT / "benchmarks").rglob("*.py")), ROOT / "setup.py"]
FILES = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py"))]

# Every module belongs to a room of docs/architecture.md, and imports from its own room and from these ones only. A
# folder is a room of its own name.
ROOMS = {
    "common": {"checks", "defaults", "marks", "progress", "shards"},
    "functional": {"functional", "keyed", "operands"},
    "dataset": {"dataset", "job", "request", "samples"},
    "cli": {"cli", "__main__"},
    "sampler": {"sampler", "parts"},
    "top": {"__init__"},
} | {room: {room} for room in ("plan", "sources", "fused", "transforms", "store", "generators", "generate")}
MAY_IMPORT = {
    "common": set(),
    "functional": set(),
    "plan": set(),
    "sources": set(),
    "sampler": set(),
    "fused": {"functional"},
    "transforms": {"functional", "fused"},
    "store": {"plan"},
    "generators": {"functional", "fused"},
    "generate": {"functional", "plan", "sources", "store", "transforms", "generators"},
    "dataset": {"plan", "sources", "store", "transforms"},
    "cli": set(ROOMS),
    "top": set(),
}
# What is imported only at the moment of generating, inside a function.
DEFERRED = {"dataset": {"generate", "generators"}}


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def room_of(module):
    return next((room for room, modules in ROOMS.items() if module.split(".")[0] in modules), None)


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def executed(node, deferred=False):
    """(node, whether inside a function) of all that runs, which leaves out the imports that only type checkers see."""
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child):
            continue
        yield child, deferred
        yield from executed(child, deferred or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def imported(node, parents):
    """The full names that an import statement in the package `parents` names, as modules or what is inside them."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = [*parents[: len(parents) + 1 - node.level], *filter(None, [node.module])] if node.level else [node.module]
    return [".".join([*base, alias.name]) for alias in node.names]


def imports(path):
    """(module of the package that is imported, whether inside a function) for each import of `path`."""
    parents = ["torch_augcond", *path.relative_to(PACKAGE).parts[:-1]]
    names = {name_of(path) for path in MODULES}
    for node, deferred in executed(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for full in imported(node, parents):
                inner = full.removeprefix("torch_augcond").lstrip(".")
                if inner != full:  # what isn't a module or in one is a name of the package itself
                    candidates = inner, inner.rpartition(".")[0]
                    yield next((name for name in candidates if name in names), "__init__"), deferred


def python(code, **env):
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])} | env
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout


# --- Names and cost of the import


def test_all_names_are_listed_and_lead_to_their_objects():
    transforms = {"EmbedCutMix", "EmbedMixup", "EmbedDropout", "PixelCutMix", "PixelMixup", "Compose", "VARIANTS"}
    rest = {"AugConditionedSynthetic", "MixedRealSyntheticSampler", "StableUnCLIPGenerator", "load_generator"}
    assert set(torch_augcond.__all__) == transforms | rest | {"functional"}
    assert [name for name in dir(torch_augcond) if not name.startswith("__")] == sorted(torch_augcond.__all__)
    for name in torch_augcond.__all__:
        value = getattr(torch_augcond, name)
        assert getattr(value, "__name__", name).rpartition(".")[2] == name
        assert getattr(torch_augcond, name) is value


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'torch_augcond' has no attribute 'EmbedCutmix'"):
        torch_augcond.EmbedCutmix  # noqa: B018


def test_import_is_cheap_and_no_public_name_loads_a_diffusion_library():
    code = (
        "import time, sys, torch, torchvision; start = time.process_time(); import torch_augcond as t; "
        "print(time.process_time() - start, len([getattr(t, name) for name in t.__all__]), "
        "*({'diffusers', 'transformers'} & set(sys.modules)))"
    )
    seconds, names, *loaded = python(code).split()
    assert float(seconds) < 0.3
    assert int(names) == 12
    assert loaded == []


# --- Imports point one way


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_one_way(path):
    room = room_of(name_of(path))
    assert room, f"{path.name} belongs to no room: add it to ROOMS and docs/architecture.md"
    for target, deferred in imports(path):
        allowed = {"common", room} | MAY_IMPORT[room] | (DEFERRED.get(room, set()) if deferred else set())
        assert room_of(target) in allowed, f"{name_of(path)} must not import {target}"


def test_modules_import_each_other_in_no_circle():
    graph = {name_of(path): {target for target, deferred in imports(path) if not deferred} for path in MODULES}
    assert tuple(TopologicalSorter(graph).static_order())
    assert {"checks"} <= graph["sampler"]  # that the walk sees imports at all


# --- Length


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short(path):
    lines = path.read_text("utf-8").count("\n")
    assert lines < 400


# --- Distributions


def run(*command, cwd):
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(kind, source, out):
    """Runs setuptools' build hook as pip would, in the packages of this environment; returns the file it made."""
    code = f"from setuptools.build_meta import build_{kind} as build; print(build({str(out)!r}))"
    return out / run(sys.executable, "-c", code, cwd=source).split()[-1]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The repository's files, without what earlier builds left."""
    folder = tmp_path_factory.mktemp("build") / "source"
    ignored = shutil.ignore_patterns(".git", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info", "build", "dist")
    shutil.copytree(ROOT, folder, ignore=ignored)
    return folder


@pytest.mark.slow
def test_the_wheel_built_from_the_sdist_holds_all_modules_and_the_checkpoint(copy, tmp_path):
    expected = {str(p.relative_to(ROOT)) for p in [*MODULES, *(PACKAGE / "checkpoints").rglob("*")] if p.is_file()}
    assert any(name.endswith(".safetensors") for name in expected)
    with tarfile.open(build("sdist", copy, tmp_path)) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
        sdist.extractall(tmp_path / "unpacked", filter="data")
    assert expected | {"LICENSE", "README.md", "CHANGELOG.md", "tests/test_package.py"} <= names
    (source,) = (tmp_path / "unpacked").iterdir()
    with zipfile.ZipFile(build("wheel", source, tmp_path)) as wheel:
        assert expected == {name for name in wheel.namelist() if name.startswith("torch_augcond/")}
        (entry,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
        assert "torch-augcond = torch_augcond.__main__:main" in wheel.read(entry).decode()
        assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


@pytest.mark.slow
def test_a_second_project_depends_on_it_by_path(copy, tmp_path):
    project, venv = tmp_path / "second", tmp_path / "venv"
    project.mkdir()
    (project / "second.py").write_text("from torch_augcond import MixedRealSyntheticSampler, __version__\n")
    (project / "pyproject.toml").write_text(
        '[project]\nname = "second"\nversion = "1"\n'
        f'dependencies = ["torch-augcond @ {copy.as_uri()}"]\n[tool.setuptools]\npy-modules = ["second"]\n'
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
    )
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=tmp_path)
    new = venv / "bin" / "python"
    # The new environment sees the packages of this one (pip too), so that torch isn't installed again; its own come
    # first.
    site = Path(run(new, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    (site / "outer.pth").write_text("\n".join(p for p in sys.path if p.endswith(("site-packages", "dist-packages"))))
    run(new, "-m", "pip", "install", "--no-index", "--no-build-isolation", project, cwd=tmp_path)
    code = "import second, torch_augcond as t; print(second.__version__, t.__file__, second.MixedRealSyntheticSampler)"
    version, file, _ = run(new, "-c", code, cwd=tmp_path).split(" ", 2)
    assert (version, Path(file)) == (torch_augcond.__version__, site / "torch_augcond" / "__init__.py")
    assert "usage: torch-augcond" in run(venv / "bin" / "torch-augcond", "--help", cwd=tmp_path)
