"""The text of each class."""

import pickle
from collections import defaultdict

import pytest

from torch_augcond.plan.prompts import build_prompts
from torch_augcond.sources.labels import unique


def test_template_dict_and_function():
    assert build_prompts(["cat", "a {0} b"]) == {"cat": "a photo of a cat", "a {0} b": "a photo of a a {0} b"}
    assert build_prompts(["cat"], {"cat": "my cat"}) == {"cat": "my cat"}
    assert build_prompts(["ox"], lambda name: f"no. {name}") == {"ox": "no. ox"}


def test_folders_have_underscores_where_sentences_have_spaces():
    names = ["apple_pie", "sea_lion"]
    assert build_prompts(names, "a {}", {"sea_lion": "sea_lion!"}) == {
        "apple_pie": "a apple pie",
        "sea_lion": "a sea_lion!",
    }
    assert build_prompts(["a_b"], "{}", ["a_b"]) == build_prompts(["a_b"], "{}", {"a_b": "a_b"}) == {"a_b": "a_b"}
    assert build_prompts(["a_{}"], lambda name: name) == {"a_{}": "a_{}"}
    assert build_prompts(["a_b"], lambda name: name) == build_prompts(["a_b"], {"a_b": "a_b"}) == {"a_b": "a_b"}


class Series:
    """As that of pandas: it has keys, and is no Mapping."""

    keys = staticmethod(lambda: ["y", "x"])
    __getitem__ = {"x": "cat", "y": "dog"}.__getitem__


def test_class_names_of_numbers_in_an_order_of_their_own():
    assert build_prompts(["7", "3", "12"], "{}", ["seven", "three", "twelve"])["12"] == "twelve"


def test_names_with_a_default():
    names = defaultdict(lambda: "insect", {"sp-cat": "cat"})
    assert build_prompts(["sp-ant", "sp-cat"], "{}", names) == {"sp-ant": "insect", "sp-cat": "cat"}
    assert list(names) == ["sp-cat"]
    with pytest.raises(ValueError, match="keyed by class names, but got 'dog'"):
        build_prompts(["sp-ant"], "{}", defaultdict(str, dog="dog"))


def test_classes_of_one_name_are_spoken_without_their_labels():
    names = ["dog (1)", "big_crane", "big_crane", "euro (3)", "euro (5)", "a", "a"]
    classes = list(unique(dict(enumerate(names))).values())
    assert classes[1:4] == ["big_crane (1)", "big_crane (2)", "euro (3)"]
    texts = ["dog (1)", "big crane", "big crane", "euro (3)", "euro (5)", "a", "a"]
    assert list(build_prompts(classes).values()) == [f"a photo of a {text}" for text in texts]
    assert list(build_prompts(pickle.loads(pickle.dumps(classes)), "{}").values()) == texts
    assert build_prompts(classes, class_names={"a (5)": "x"})["a (5)"] == "a photo of a x"


def test_class_names():
    assert build_prompts(["x", "y"], "{}!", Series()) == {"x": "cat!", "y": "dog!"}
    assert build_prompts(["x", "y"], "{}!", ["cat", "dog"]) == {"x": "cat!", "y": "dog!"}
    assert build_prompts(["x", "y"], "{}!", {"y": "dog"}) == {"x": "x!", "y": "dog!"}


@pytest.mark.parametrize(
    "name", ["n02085620-Chihuahua", "001.Black_footed_Albatross", "001.ak47", "class_3", "0 - zero"]
)
def test_names_that_hold_a_number_warn(name):
    with pytest.warns(UserWarning, match=f"class names such as '{name}' hold numbers"):
        build_prompts(["cat", name])


@pytest.mark.parametrize(
    "name", ["737-200", "Boeing 747", "7up", "3d_printer", "F-16", "A320", "cat2", "top 10", "4_leaf_clover"]
)
def test_numbers_that_are_names_do_not_warn(name, recwarn):
    build_prompts([name])
    assert not recwarn.list


@pytest.mark.parametrize("name", ["n01440764", "12", "7"])
def test_names_that_mean_nothing_warn(name, recwarn):
    with pytest.warns(UserWarning, match=f"class names such as '{name}' hold numbers that mean nothing in a prompt"):
        build_prompts(["cat", name])
    with pytest.warns(UserWarning, match=f"class names such as '{name}' hold numbers that mean nothing in a prompt"):
        build_prompts(["cat", name], lambda name: f"a view of {name}")
    recwarn.clear()
    build_prompts([name], class_names={name: "cat"})
    build_prompts([name], lambda name: "a cat, one of 1200" if name == "12" else "a cat")
    build_prompts([name], {name: "a cat"})
    assert not recwarn.list


@pytest.mark.parametrize(
    "args, error, match",
    [
        ((["a"], "a photo"), ValueError, "`prompt` must be a template with {} .* but got 'a photo'"),
        ((["a"], 3), TypeError, "`prompt` must be a template .* but got 3"),
        (
            (["Zebra", "ant"], "{}", ["ant", "zebra"]),
            ValueError,
            "in the order of the classes, which is Zebra, ant, but",
        ),
        (
            (["daisy", "iris", "sea_lion"], "{}", ["iris", "daisy", "sea lion"]),
            ValueError,
            "in the order of the classes, which is daisy, iris, sea_lion, but got iris, daisy, sea lion",
        ),
        ((["c_1", "c_10", "c_2"], "{}", [*"abc"]), ValueError, "of a list, 'c_10' would be 'b'"),
        (
            (["1", "10", "2"], "{}", [1, 2, 10]),
            ValueError,
            "in the order of the classes, which is 1, 10, 2, but got 1, 2, 10",
        ),
        ((["10", "9"], "{}", ["ten", "nine"]), ValueError, "of a list, '10' would be 'ten'"),
        ((["a"], "{}", [""]), TypeError, "`class_names` must be"),
        (
            (["a"], {"a": "a {}"}),
            ValueError,
            "must give whole prompts, but 'a {}' for 'a' has {} in it. Give one template",
        ),
        ((["a"], lambda name: "a {}"), ValueError, "`prompt` must give whole prompts"),
        ((["a"], {"a": "x"}, ["b"]), ValueError, "`class_names` must be None where `prompt` is a dict"),
        ((["a", "b"], {"a": "x"}), ValueError, "`prompt` must have an entry for every class, but lacks 'b'"),
        ((["a"], {"a": "x", "c": "y"}), ValueError, "`prompt` must be keyed by class names, but got 'c'"),
        ((["a"], lambda name: None), TypeError, "`prompt` must give a str for each class, but gave None"),
        ((["a"], "{}", ["x", "y"]), ValueError, "`class_names` must be a list of 1 names or a dict, but got 2"),
        (
            ([*"01", "10", *"23456789"], "{}", [*"abcdefghijk"]),
            ValueError,
            "must be a dict .* '10' would be 'c'. Give {'0'",
        ),
        ((["a"], "{}", "x"), TypeError, "`class_names` must be a list of 1 names or a dict, but got 'x'"),
        ((["a"], "{}", 3), TypeError, r"`class_names` must be a list of 1 names or a dict, but got 3 \(int\)"),
        ((["a", "b"], "{}", {"y", "x"}), TypeError, r"`class_names` must be a list of 2 names .* but got {.*} \(set\)"),
        ((["a"], "{}" + "x" * 2000), ValueError, r"`prompt` must give 2000 characters or fewer, .* more for a\."),
        ((["a"], "{}", {"b": "x"}), ValueError, "`class_names` must be keyed by class names, but got 'b'"),
        ((["a"], "{}", [3]), TypeError, "`class_names` must be str, but got 3"),
    ],
)
def test_errors(args, error, match):
    with pytest.raises(error, match=match):
        build_prompts(*args)


def test_bytes_that_are_no_text_become_question_marks():
    assert build_prompts(["c\udcffat"]) == {"c\udcffat": "a photo of a c?at"}
