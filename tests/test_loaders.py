"""Loaders of one's own: which of them make other images, and what that costs."""

import re
import shutil
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from fakes import FakeGenerator, paint_folder
from PIL import Image
from torchvision.datasets import ImageFolder

from torch_augcond import AugConditionedSynthetic
from torch_augcond.sources import Sources, UnreadableImage, images
from torch_augcond.sources.loaders import what_loads


@pytest.fixture
def folder(tmp_path):
    return paint_folder(tmp_path / "real", {"cat": 5, "dog": 5})


def made(dataset, root):
    return AugConditionedSynthetic(dataset, "real", generator=FakeGenerator(), root=root)


def load(path, invert=False):
    image = Image.open(path).convert("RGB")
    return Image.eval(image, lambda x: 255 - x) if invert else image


def load_with(options, path):
    return load(path, **options)


def load_well(path):
    return load(path)


def noisy(most, path):
    return Image.fromarray(np.random.default_rng().integers(0, most, (8, 8, 3), np.uint8))


def random_shade(path):
    return noisy(255, path)


def box_of(path):
    return load(path).crop((0, 0, 9, 9) if Path(path).parent.name == "cat" else (9, 9, 20, 20))


class Loader:
    def __init__(self, invert):
        self.invert, self.opened, self.cache = invert, None, {}

    def __call__(self, path):
        self.opened = self.cache[path] = object()
        return load(path, self.invert)

    def method(self, path):
        return self(path)


def closure(invert):
    def load_so(path):
        return load(path, invert)

    return load_so


def with_default(invert):
    def load_as_said(path, invert=invert):
        return load(path, invert)

    return load_as_said


LOADERS = [
    lambda invert: partial(load_with, {"invert": np.bool_(invert)}),
    with_default,
    lambda invert: partial(load, invert=invert),
    lambda invert: partial(load_with, {"invert": invert}),
    lambda invert: (lambda path: load(path, True)) if invert else (lambda path: load(path, False)),
    lambda invert: lambda path: load(path, invert),
    closure,
    Loader,
    lambda invert: Loader(invert).method,
]


class TestLoaders:
    @pytest.mark.parametrize("loader", LOADERS)
    def test_without_a_name_of_their_own_are_told_apart(self, folder, tmp_path, loader, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "cache"))
        roots = [made(ImageFolder(folder, loader=loader(invert)), None).root for invert in (False, True)]
        assert len(set(roots)) == 2
        digests = [Sources.from_dataset(ImageFolder(folder, loader=loader(k))).digests() for k in (False, True, True)]
        assert not set(digests[0]) & set(digests[1]) and digests[1] == digests[2]
        used = ImageFolder(folder, loader=loader(True))
        used[0]
        assert Sources.from_dataset(used).digests() == digests[1]

    def test_images_of_a_function_with_a_name_are_decoded_once(self, folder, monkeypatch):
        monkeypatch.setattr(images, "_SETTLED_NS", -1)
        cache, sources = {}, Sources.from_dataset(ImageFolder(folder, loader=load_well))
        digests = sources.digests(cache=cache)
        assert len(set(digests)) == len(cache) == 10
        plain, lazy = (
            Sources.from_dataset(ImageFolder(folder, **given)) for given in ({}, {"loader": lambda path: None})
        )
        assert not {*plain.digests(cache=cache)} & {*digests}
        monkeypatch.setattr(Sources, "image", None)
        assert sources.digests(cache=cache) == digests
        with pytest.raises(TypeError):
            lazy.digests(cache=cache)

    def test_one_that_looks_at_the_path_is_believed(self, folder, tmp_path):
        shutil.copy(folder / "cat" / "0.png", folder / "dog" / "0.png")
        sources = Sources.from_dataset(ImageFolder(folder, loader=box_of))
        assert sources.digest(0) != sources.digest(5)
        for i, box in (0, (0, 0, 9, 9)), (5, (9, 9, 20, 20)):
            crop = Image.open(folder / "cat" / "0.png").crop(box)
            assert sources.image(i, sources.digest(i)).tobytes() == crop.tobytes()

    @pytest.mark.parametrize("loader", [partial(noisy, 255), random_shade])
    def test_one_that_draws_at_random_is_noticed(self, folder, loader):
        sources = Sources.from_dataset(ImageFolder(folder, loader=loader))
        with pytest.raises(UnreadableImage, match="another image than when this run began. If it wasn't edited: draw"):
            sources.image(0, sources.digest(0))


class TestDefaultRoots:
    def test_what_chose_the_files_of_a_folder_counts(self, folder):
        def identity(change=lambda dataset: None, **options):
            dataset = ImageFolder(folder, **options)
            change(dataset)
            return Sources.from_dataset(dataset).identity

        def few(dataset):
            dataset.samples = dataset.samples[:4]

        def fewer(dataset):
            del dataset.samples[2:]

        texts = [identity(), identity(few), identity(fewer), identity(loader=load)]
        texts += [identity(is_valid_file=partial(re.search, f"{k}[.]png")) for k in range(2)]
        assert len(set(texts)) == 6
        assert texts[0] == f"ImageFolder:{folder}"


LOADER = """
from PIL import Image
SIZE = {size}
def half(image):
    return image.resize(({half}, SIZE))
def read(path):
    return half(Image.open(path).convert("RGB"))
"""


def module(**numbers):
    made = ModuleType("user_loader")
    exec(LOADER.format(**{"size": 8, "half": 4} | numbers), vars(made))
    return made


def test_a_named_loader_whose_code_has_changed(folder, monkeypatch):
    monkeypatch.setattr(images, "_SETTLED_NS", -1)
    cache = {}
    first = digests(folder, module().read, cache)
    assert len(cache) == 10 and digests(folder, module().read, dict(cache)) == first
    for other in (module(size=9), module(half=5)):
        changed = digests(folder, other.read, dict(cache))
        assert changed == digests(folder, other.read, {}) and not {*changed} & {*first}


def digests(folder, loader, cache):
    return Sources.from_dataset(ImageFolder(folder, loader=loader)).digests(cache=cache)


UNCERTAIN = {
    "a default of a helper": "def size(n={n}):\n    return n\n",
    "a decorated helper": "def deco(f):\n    return lambda: f()\n@deco\ndef size():\n    return {n}\n",
    "a class": "class Config:\n    n = {n}\ndef size():\n    return Config.n\n",
    "an object": "class Config:\n    n = {n}\nconfig = Config()\ndef size():\n    return config.n\n",
    "an array": "import numpy\na = numpy.full(5000, 3)\na[2500] = {n}\ndef size():\n    return int(a[2500])\n",
    "an attribute of a function": "def size():\n    return size.n\nsize.n = {n}\n",
}

BANDS = {
    "a step of another module": """
from helpers import crop
def read(path):
    return crop(Image.open(path))
""",
    "channels": """
def read(path):
    bands = [Image.open(path.replace("red", band)) for band in ("red", "blue")]
    return Image.blend(*bands, 0.5)
""",
    "a mode's name": """
def read(path):
    return Image.open(path.replace("L", "RGB"))
""",
    "the next frame": """
def read(path):
    file = Path(path)
    return Image.open(file.with_name(f"{int(file.stem) + 1}{file.suffix}"))
""",
    "a list of files": """
def read(path):
    return Image.open(sorted(Path(path).parent.iterdir())[0])
""",
}


@pytest.mark.parametrize("text", BANDS.values(), ids=BANDS)
def test_one_that_may_name_other_files_is_not_believed(text, monkeypatch):
    module, helpers = ModuleType("user_loader"), ModuleType("helpers")
    exec("def crop(image):\n    return image.crop((0, 0, 9, 9))", vars(helpers))
    monkeypatch.setitem(sys.modules, "helpers", helpers)
    exec(f"from pathlib import Path\nfrom PIL import Image\n{text}", vars(module))
    assert what_loads(module.read) is None and what_loads(load_well) is not None


MASKED = """
from PIL import Image
SUFFIX = "{suffix}"
def read(path):
    '''Under its mask.'''
    size = tuple(map(int, open({mask}).read().split()))
    return Image.open(path).convert("RGB").resize(size=size, resample=Image.Resampling.BICUBIC)
"""


@pytest.mark.parametrize("mask", ["path + '.txt'", "path.replace('png', 'txt')", "path + SUFFIX", "f'{path}.txt'"])
def test_one_that_reads_another_file_is_asked_each_time(folder, monkeypatch, mask):
    monkeypatch.setattr(images, "_SETTLED_NS", -1)
    module, cache = ModuleType("user_loader"), {}
    exec(MASKED.format(mask=mask, suffix=".txt"), vars(module))
    found = []
    for size in ("4 5", "5 4"):
        for path in list(folder.glob("*/*.png")):
            for mask in (f"{path}.txt", str(path).replace("png", "txt")):
                Path(mask).write_text(size)
        found.append(digests(folder, module.read, cache))
    assert not {*found[0]} & {*found[1]} and not cache


READ = "\nfrom PIL import Image\ndef read(path):\n    return Image.open(path).convert('RGB').resize((size(), 4))\n"


@pytest.mark.parametrize("text", UNCERTAIN.values(), ids=UNCERTAIN)
def test_what_a_named_loader_uses_is_known_or_it_is_asked_each_time(folder, monkeypatch, text):
    monkeypatch.setattr(images, "_SETTLED_NS", -1)
    loaders, cache = [], {}
    for n in (4, 5):
        module = ModuleType("user_loader")
        exec(text.format(n=n) + READ, vars(module))
        loaders.append(module.read)
    first, second = (digests(folder, loader, cache) for loader in loaders)
    assert not {*first} & {*second}
