"""Plans: exact counts, stable keys, and what growing changes. Contents are ints here, hashed to digests."""

import hashlib
import itertools
import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from torch_augcond.plan import Recipe, Settings, build_prompts, canonical, counts_per_class, make_plan

SETTINGS = Settings(
    augmentation=[{"name": "EmbedCutMix", "alpha": 1.0, "span": "leading"}],
    num_sources=2,
    checkpoint="tiny@1",
    image_size=32,
    guidance_scale=2.0,
    num_inference_steps=30,
    noise_level=0,
    seed=0,
    scheme="per-class",
    prompt="a photo of a {}",
)
PER_IMAGE = replace(SETTINGS, scheme="per-image")

# The contents of each class: repeats are equal images, equal numbers in two classes are one image under two labels.
CLASSES = st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=7), min_size=1, max_size=4)
COUNTS = st.sampled_from(["num_per_image", "num_per_class", "fill_to"])


def digest(content):
    return hashlib.blake2b(str(content).encode(), digest_size=16).hexdigest()


def plan_of(classes, settings=SETTINGS, order=None, **count):
    """Labels are 3, 10, 17, ...: not contiguous."""
    rows = [(7 * k + 3, digest(content)) for k, contents in enumerate(classes) for content in contents]
    rows = [rows[i] for i in order] if order is not None else rows
    class_of = {7 * k + 3: f"class {k}" for k in range(len(classes))}
    prompts = build_prompts(list(class_of.values()))
    settings = replace(settings, scheme="per-image" if "num_per_image" in count else "per-class")
    return make_plan(settings, [row[0] for row in rows], [row[1] for row in rows], class_of, prompts, **count)


def keys(plan):
    return {recipe.key for recipe in plan}


pytestmark = pytest.mark.filterwarnings("ignore:classes with one real image only")


class TestProperties:
    @given(CLASSES, COUNTS, st.integers(1, 9), st.integers(0, 9), st.integers(0, 2))
    def test_growing_only_adds(self, classes, kind, few, more, num_sources):
        settings = replace(SETTINGS, num_sources=num_sources)
        small = plan_of(classes, settings, **{kind: few})
        assert keys(small) <= keys(plan_of(classes, settings, **{kind: few + more}))

    @given(CLASSES, st.sampled_from(["num_per_image", "num_per_class"]), st.integers(0, 40))
    def test_a_new_real_image_changes_only_the_recipes_that_now_use_it(self, classes, kind, content):
        before, after = plan_of(classes, **{kind: 5}), plan_of([[*classes[0], content], *classes[1:]], **{kind: 5})
        old, new = keys(before), keys(after)
        assert all(digest(content) in r.digests for r in after if r.key not in old)
        assert {r.class_name for r in before if r.key not in new} <= {"class 0"}
        if content in classes[0]:
            assert old <= new

    @given(CLASSES, COUNTS, st.randoms(use_true_random=False))
    def test_order_changes_nothing(self, classes, kind, random):
        order = list(range(sum(map(len, classes))))
        plan = plan_of(classes, **{kind: 6})
        random.shuffle(order)
        shuffled = plan_of(classes, order=order, **{kind: 6})
        assert np.array_equal(plan.keys, shuffled.keys)
        for old, new in zip(plan, shuffled, strict=True):
            assert replace(old, sources=()) == replace(new, sources=())

    @given(CLASSES, COUNTS, st.integers(0, 2))
    def test_keys_are_unique(self, classes, kind, num_sources):
        plan = plan_of(classes, replace(SETTINGS, num_sources=num_sources), **{kind: 9})
        assert len(keys(plan)) == len(plan)

    @given(CLASSES, COUNTS)
    def test_sources_are_two_contents_of_the_same_class(self, classes, kind):
        labels = [7 * k + 3 for k, contents in enumerate(classes) for _ in contents]
        contents = [content for contents in classes for content in contents]
        for recipe in plan_of(classes, **{kind: 9}):
            own = classes[(recipe.label - 3) // 7]
            assert len(recipe.sources) == len(set(recipe.digests)) == min(2, len(set(own)))
            assert all(labels[i] == recipe.label for i in recipe.sources)
            assert recipe.digests == tuple(digest(contents[i]) for i in recipe.sources)

    @given(CLASSES, st.integers(0, 9))
    def test_counts_are_exact(self, classes, n):
        def counted(**count):
            found = Counter(recipe.class_name for recipe in plan_of(classes, **count))
            return [found[f"class {k}"] for k in range(len(classes))]

        assert counted(num_per_class=n) == [n] * len(classes)
        assert counted(num_per_image=n) == [n * len(contents) for contents in classes]
        assert counted(fill_to=n + 1) == [max(0, n + 1 - len(contents)) for contents in classes]
        assert counted(num_per_class={"class 0": n}) == [n] + [0] * (len(classes) - 1)

    @given(CLASSES, COUNTS, st.integers(1, 12))
    def test_extended_finds_every_image_of_a_larger_plan(self, classes, kind, n):
        large = plan_of(classes, **{kind: n})
        found = {}
        for recipe in large:
            found[recipe.class_name] = max(recipe.ordinal, found.get(recipe.class_name, -1))
        small = plan_of(classes, **{kind: 1})
        extended, own = small.extended({**found, "no such class": 3}), keys(small)
        assert keys(large) | own <= keys(extended)
        assert all(r.ordinal <= found.get(r.class_name, -1) for r in extended if r.key not in own)


def slow_twin(contents, ordinal, first=None, seed=0, name="class 0"):
    """Source and partner of one recipe, in Python's own integers."""

    def mix(x):
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    def number(content):
        raw = bytes.fromhex(digest(content))
        return mix(int.from_bytes(raw[:8], "little")) ^ int.from_bytes(raw[8:], "little")

    start = hashlib.blake2b(json.dumps([seed, name], separators=(",", ":")).encode(), digest_size=8).digest()
    start = int.from_bytes(start, "little")
    start = start if first is None else mix(start ^ number(first))
    row = mix((start + (ordinal + 1) * 0x9E3779B97F4A7C15) % 2**64)
    ranked = sorted(set(contents), key=lambda content: mix(row ^ number(content)), reverse=True)
    first = ranked[0] if first is None else first
    return first, next(content for content in ranked if content != first)


@given(st.lists(st.integers(0, 50), min_size=2, max_size=9, unique=True), st.integers(-(2**70), 2**70))
def test_agrees_with_the_slow_twin(contents, seed):
    settings = replace(SETTINGS, seed=seed)
    for recipe in plan_of([contents], settings, num_per_class=7):
        assert recipe.digests == tuple(map(digest, slow_twin(contents, recipe.ordinal, seed=seed)))
    by_digest = {digest(content): content for content in contents}
    for recipe in plan_of([contents], settings, num_per_image=2):
        first = by_digest[recipe.digests[0]]
        assert recipe.digests == tuple(map(digest, slow_twin(contents, recipe.ordinal, first, seed)))


def test_sources_and_pairs_are_uniform():
    plan = plan_of([range(12)], num_per_class=40_000)
    assert chisquare(np.bincount(plan.sources[:, 0], minlength=12)).pvalue > 0.001
    pairs = Counter(map(tuple, plan.sources.tolist()))
    assert chisquare([pairs[p] for p in itertools.permutations(range(12), 2)]).pvalue > 0.001
    partners = plan_of([range(12)], num_per_image=4_000).sources.tolist()
    counted = Counter(map(tuple, partners))
    assert chisquare([counted[p] for p in itertools.permutations(range(12), 2)]).pvalue > 0.001


def test_a_new_image_remakes_only_its_share():
    before, after = (plan_of([range(n)], num_per_class=2000) for n in (20, 21))
    share = len(keys(after) - keys(before)) / 2000
    assert share == pytest.approx(2 / 21, abs=0.02)


@pytest.mark.parametrize(
    "change",
    [
        {"augmentation": []},
        {"num_sources": 1},
        {"checkpoint": "tiny@2"},
        {"image_size": 64},
        {"guidance_scale": 10},
        {"num_inference_steps": 20},
        {"noise_level": 1},
        {"seed": 1},
    ],
)
def test_every_setting_is_part_of_the_key(change):
    plan, other = (plan_of([range(5)], s, num_per_class=8) for s in (SETTINGS, replace(SETTINGS, **change)))
    assert not keys(plan) & keys(other)
    same_noise = [a.seed == b.seed for a, b in zip(plan, other, strict=True)]
    assert not any(same_noise) if "seed" in change else all(same_noise)


def test_a_key_is_the_hash_of_its_canonical_encoding_and_holds_the_finished_prompt():
    for r in plan_of([range(4), [1]], num_per_class=3):
        encoded = canonical(SETTINGS, r.class_name, r.prompt, r.digests, r.ordinal)
        assert r.key == hashlib.blake2b(encoded, digest_size=16).hexdigest()
    other_template = replace(SETTINGS, prompt="the same prompt, given as a dict")
    assert keys(plan_of([range(4)], num_per_class=3)) == keys(plan_of([range(4)], other_template, num_per_class=3))


def test_keys_stay_what_they_are():
    """Sets made by an earlier version must stay readable: if this fails, raise the recipe version and say so."""
    recipe = plan_of([range(4)], num_per_class=1)[0]
    assert (recipe.key, recipe.seed) == ("9c304453edaf43279d45a724208cfd61", 7801920986692849101)


def test_a_plan_is_a_sequence_of_frozen_recipes_in_columns():
    plan = plan_of([range(4), range(3)], num_per_class=5)
    assert (plan.keys.shape, plan.keys.dtype, plan.labels.dtype) == ((10, 16), np.uint8, np.int64)
    assert plan.labels.tolist() == [3] * 5 + [10] * 5
    assert [r.key for r in plan] == [row.tobytes().hex() for row in plan.keys]
    assert (plan[-1], plan[2:4]) == (plan[9], [plan[2], plan[3]])
    assert isinstance(plan[0], Recipe)
    assert pickle.loads(pickle.dumps(plan))[3] == plan[3]
    assert repr(plan) == "Plan(10 images of 2 classes)"
    with pytest.raises(IndexError):
        plan[10]
    with pytest.raises(FrozenInstanceError):
        plan[0].key = ""


def test_equal_contents_count_as_one_source_and_its_ordinals_go_on():
    plan = plan_of([[1, 1, 2]], num_per_image=2)
    found = sorted((r.digests, r.ordinal) for r in plan)
    one, two = digest(1), digest(2)
    assert found == sorted([((one, two), k) for k in range(4)] + [((two, one), k) for k in range(2)])


def test_text_only_has_no_sources_and_one_source_no_partner():
    assert {r.sources for r in plan_of([range(3)], replace(SETTINGS, num_sources=0), num_per_image=2)} == {()}
    assert {len(r.sources) for r in plan_of([range(3)], replace(SETTINGS, num_sources=1), num_per_class=4)} == {1}
    two, one = (plan_of([range(3)], replace(SETTINGS, num_sources=n), num_per_class=9) for n in (2, 1))
    assert np.array_equal(two.sources[:, 0], one.sources[:, 0])


def test_a_class_of_one_image_warns_once_and_goes_without_a_partner():
    with pytest.warns(
        UserWarning, match="one real image only have nothing to mix it with: 'class 1', 'class 2'"
    ) as seen:
        plan = plan_of([range(3), [5], [6, 6]], num_per_class=4)
    assert len([one for one in seen if "to mix it with" in str(one.message)]) == 1
    assert [len(r.sources) for r in plan] == [2] * 4 + [1] * 8


def test_unreadable_images_are_no_sources():
    digests = [digest(0), "", digest(2), ""]
    prompts = {"a": "a", "b": "b"}
    plan = make_plan(SETTINGS, [0, 0, 0, 1], digests, {0: "a", 1: "b"}, prompts, num_per_class=6)
    assert {i for r in plan for i in r.sources} == {0, 2}
    assert plan.labels.tolist() == [0] * 6
    assert len(plan.extended({"b": 5})) == 6
    plan = make_plan(PER_IMAGE, [0, 0, 0, 1], digests, {0: "a", 1: "b"}, prompts, num_per_image=3)
    assert len(plan) == 6
    text_only = replace(SETTINGS, num_sources=0)
    assert len(make_plan(text_only, [0, 0, 0, 1], digests, {0: "a", 1: "b"}, prompts, num_per_class=6)) == 12


def test_nothing_to_plan_is_an_empty_plan():
    assert len(make_plan(SETTINGS, [], [], {}, {}, fill_to=10)) == 0
    plan = plan_of([range(4)], fill_to=4)
    assert (len(plan), list(plan), plan.keys.shape) == (0, [], (0, 16))
    assert len(plan.extended({"class 0": 1})) == 2


class TestCounts:
    def test_classes_without_a_real_image_get_none(self):
        assert counts_per_class(np.array([4, 4]), {2: "b", 4: "a"}, num_per_class=3) == {"a": 3}

    @pytest.mark.parametrize(
        "count, error, match",
        [
            ({}, ValueError, "exactly one of .* must be given, but got none"),
            ({"fill_to": 1, "num_per_image": 1}, ValueError, "but got `num_per_image` and `fill_to`"),
            ({"fill_to": -1}, ValueError, "`fill_to` must be an int of 1 or more, but got -1"),
            ({"num_per_image": 1.0}, TypeError, "`num_per_image` must be an int, but got 1.0"),
            ({"num_per_class": True}, TypeError, "`num_per_class` must be an int, but got True"),
            ({"num_per_class": {"a": -2}}, ValueError, r"`num_per_class\['a'\]` must be an int of 0 or more"),
            ({"num_per_class": {"z": 2}}, ValueError, "`num_per_class` must be keyed by class names, but got 'z'"),
            ({"num_per_class": {"b": 2}}, ValueError, "but got 'b'. Known: 'a'"),
        ],
    )
    def test_errors(self, count, error, match):
        with pytest.raises(error, match=match):
            counts_per_class(np.array([0]), {0: "a", 1: "b"}, **count)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"digests": ["ab"]}, "`digests` must be 32 hex characters each, or '', but got 'ab'"),
        ({"labels": [0, 0]}, "`labels` and `digests` must be equally long, but got 2 and 1"),
        ({"labels": [1]}, "`class_of` must name every label, but lacks 1"),
        ({"class_of": {0: "a", 1: "a"}}, "`class_of` must be one-to-one"),
        ({"prompts": {}}, "`prompts` must have an entry for every class, but lacks 'a'"),
        ({"settings": PER_IMAGE}, "`settings.scheme` must fit the count, but got 'per-image'"),
    ],
)
def test_make_plan_errors(change, match):
    good = {"settings": SETTINGS, "labels": [0], "digests": [digest(0)], "class_of": {0: "a"}, "prompts": {"a": "a"}}
    with pytest.raises(ValueError, match=match):
        make_plan(**(good | change), num_per_class=1)


LONG_TAIL = """
import json, re, sys, time
import numpy as np
from torch_augcond.plan import Settings, make_plan
classes, top = map(int, sys.argv[2:])
real = np.maximum(5, np.round(top * np.arange(1, classes + 1) ** -0.477)).astype(int)
labels = np.repeat(np.arange(classes), real)
raw = np.random.default_rng(0).bytes(16 * len(labels)).hex()
digests = [raw[i : i + 32] for i in range(0, len(raw), 32)]
names = {k: f"class {k}" for k in range(classes)}
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) / 1024
before, start = peak(), time.process_time()
prompts = {name: name for name in names.values()}
plan = make_plan(Settings(**json.loads(sys.argv[1])), labels, digests, names, prompts, fill_to=top)
seconds, mib = time.process_time() - start, peak() - before
assert len(plan) == (top - real).sum() and len(np.unique(plan.keys.view("S16"))) == len(plan)
columns = [plan.keys, plan.labels, plan.ordinals, plan.sources]
print(json.dumps([len(plan), seconds, mib, sum(c.nbytes for c in columns) / len(plan)]))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads the peak of memory from /proc")
@pytest.mark.parametrize(
    "classes, top, images",
    [(50, 64, 1_000), pytest.param(1000, 1280, 1_160_000, marks=pytest.mark.slow)],
)
def test_a_long_tail_is_planned_quickly_in_little_memory(classes, top, images, record_property):
    command = [sys.executable, "-c", LONG_TAIL, json.dumps(SETTINGS.as_dict()), str(classes), str(top)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    made, seconds, mib, bytes_each = json.loads(out)
    record_property("measured", f"{made} recipes, {seconds:.1f} s, {mib:.0f} MiB, {bytes_each:.0f} bytes each")
    assert made >= images
    assert seconds <= 60
    assert mib <= 200
    assert bytes_each <= 64
