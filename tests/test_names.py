"""Every class gets a folder of its own, and every folder is inside the root."""

import unicodedata

import pytest
from fakes import FakeGenerator, paint
from faults import problems
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torchvision.datasets import ImageFolder

from torch_augcond.job import Job
from torch_augcond.progress import silent
from torch_augcond.request import Request
from torch_augcond.store.imagefile import read_provenance
from torch_augcond.store.names import escape_class, unescape_class

AWKWARD = [
    "", ".", "..", "...", "../..", "/etc/passwd", "a/b", "a\\b", "a\0b", "\n", "CON", "con.txt", "aux ", "COM1",
    "lpt\xb9.png", "nul.tar.gz", "CONIN$", "CONSOLE", ".hidden", ".augcond.json", "a.", "a. .", "a ", " a", "%", "%2E",
    "%~", "%41", "~", "a%2Fb", "a:b", "a?", "a*", '"', "<>", "|", "x" * 300, "x" * 299 + "y", "\xe9" * 150, "🌸" * 80,
    "😀", "cat😀", "שלום", "\u202eabc", "\xe9", "e\u0301", "\xc5", "\u212b", "\ud55c", "\u1112\u1161\u11ab", "\xad",
    "\udc80", "\ud83d\ude00", "\u200b", "\ufeff", "日本語", "हिन्दी", "%\u0301", "\U0001f338\u0301", "Cat", "cat",
    "Annual Crop", "n01440764", "0", "Abbott's_babbler",
]  # fmt: skip

SPLIT = "\ud83d\ude00"  # one letter, as two halves


def assert_safe(name: str) -> None:
    folder = escape_class(name)
    assert 0 < len(folder.encode()) <= 255
    assert not set(folder) & set('<>:"/\\|?*\0') and folder.isprintable()
    assert not folder.startswith(".") and not folder.endswith((".", " "))
    assert folder.split(".")[0].rstrip().upper() not in {"CON", "PRN", "AUX", "NUL", "COM1", "LPT1", "LPT¹", "CONIN$"}
    assert unicodedata.is_normalized("NFC", folder)
    if "%~" not in folder:
        assert unescape_class(folder) == name


@pytest.mark.parametrize("name", AWKWARD, ids=ascii)
def test_awkward_names_are_safe(name):
    assert_safe(name)


def test_awkward_names_do_not_collide():
    assert len({escape_class(name) for name in AWKWARD}) == len(AWKWARD) == len(set(AWKWARD))


any_text = st.text(st.characters(exclude_categories=()), max_size=90) | st.text("./%~CONcon 2Ee\u0301é", max_size=12)


def assert_apart(one: str, other: str) -> None:
    assert_safe(one)
    assert (escape_class(one) == escape_class(other)) == (one == other)


@settings(max_examples=300)
@given(any_text, any_text)
@example("a/b", "a%2Fb")
@example("CON", "%43ON")
@example("", "%")
def test_any_names_are_safe_and_do_not_collide(one, other):
    assert_apart(one, other)


@pytest.mark.slow
@settings(max_examples=2000)
@given(any_text, any_text)
def test_two_thousand_pairs_of_names_are_safe_and_do_not_collide(one, other):
    assert_apart(one, other)


def job_of_classes(real, names, root):
    folder = ImageFolder(real)
    folder.classes, folder.class_to_idx = names, {name: label for label, name in enumerate(names)}
    return Job(Request(dataset=folder, generator=FakeGenerator(), root=root), write=True, load=None, progress=silent)


def test_a_name_that_json_would_change_is_refused(tmp_path):
    paint(tmp_path / "real" / "0" / "0.png", "0")
    with pytest.raises(ValueError, match=r"must not split letters into surrogates, but got '\\ud83d\\ude00'"):
        job_of_classes(tmp_path / "real", [SPLIT], tmp_path / "set")


def test_awkward_classes_on_a_real_disk(tmp_path):
    """Each gets a folder of its own inside the root, which gives its name back."""
    names = [name for name in AWKWARD if name != SPLIT and name.strip()]  # a dataset's must say something
    for turn in range(len(names)):
        paint(tmp_path / "real" / f"{turn:03}" / "0.png", str(turn))
    root = tmp_path / "set"
    job = job_of_classes(tmp_path / "real", names, root)
    assert job.make().made == len(names) and not problems(root)
    files = [path for path in root.glob("*/*") if path.is_file()]
    assert len(files) == len({file.parent for file in files}) == len(names)
    assert {file.parent.parent.resolve() for file in files} == {root.resolve()}
    assert {read_provenance(file)["class_name"] for file in files} == set(names)
    assert not {entry.name for entry in tmp_path.iterdir()} - {"real", "set"}


@settings(max_examples=100)
@given(st.text(st.characters(exclude_categories=()), min_size=1, max_size=9), any_text)
def test_long_names_keep_their_end_apart(start, end):
    start *= 260
    assert_safe(start + end)
    assert escape_class(start + end) != escape_class(start + end + "x")


@pytest.mark.parametrize("name", ["cat", "Annual Crop", "n01440764", "Abbott's", "日本語", "हिन्दी", "a (2)", "é"])
def test_ordinary_names_stay_as_they_are(name):
    assert escape_class(name) == name


@pytest.mark.parametrize("folder", ["a/b", ".x", "%41", "%zz", "CON", "a ", escape_class("x" * 300)])
def test_what_is_no_folder_of_a_class_is_refused(folder):
    with pytest.raises(ValueError, match="`folder` must be an escaped class name"):
        unescape_class(folder)
