"""Constructing a synthetic dataset leaves the user's own as it was: caches, open files, transforms."""

import dataclasses
import functools
import io
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fakes import ToFloat, paint_folder
from homemade import Files, SharedDict, labels_of, made, plus10
from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from torch_augcond.sources import Sources


@pytest.fixture
def folder(tmp_path):
    return paint_folder(tmp_path / "real", {"cat": 5, "dog": 5})


class Configured(Dataset):
    """Its transforms are in an object that copies share, and each look gives another function."""

    def __init__(self, config):
        self.config, self.classes = config, [*"abcdefghijkl"]

    def __len__(self):
        return 10

    def __getitem__(self, i):
        image, label = Image.new("RGB", (8, 8), (i, 0, 0)), i % 2
        return self.transform(image) if self.transform else image, (self.target_transform or int)(label)

    def _property(name):
        def get(self):
            function = getattr(self.config, name)
            return function and (lambda value: function(value))

        return property(get, lambda self, value: setattr(self.config, name, value))

    transform, target_transform = _property("transform"), _property("target_transform")


class TestLeftAlone:
    """Constructing reads through a copy, and the user's own dataset is as it was."""

    def test_a_cache_in_memory(self, folder, tmp_path):
        class Cached(Files):
            def __getitem__(self, i):
                for cache in (self.cache, self.caches["of items"]):
                    if i not in cache:
                        cache[i] = super().__getitem__(i)
                self.row[i] = self.row[i] or self.cache[i]
                return self.row[i]

        real = Cached(folder, ToFloat(), plus10, cache={}, caches={"of items": {}}, row=[None] * 10)
        synthetic = made(real, tmp_path / "set")
        assert real.cache == real.caches["of items"] == {} and real.row == [None] * 10
        assert torch.is_tensor(real[0][0]) and labels_of(real) == labels_of(synthetic) == [10, 11]

    @pytest.mark.parametrize("cache", [dict, lambda: SharedDict(), lambda: np.empty(10, object)])
    @pytest.mark.parametrize("warm", [(), (3,), range(10)])
    def test_a_cache_that_is_shared_or_warm(self, folder, tmp_path, cache, warm):
        class Cached(Files):
            def __getitem__(self, i):
                if isinstance(self.cache, np.ndarray):
                    self.cache[i] = super().__getitem__(i) if self.cache[i] is None else self.cache[i]
                elif i not in self.cache:
                    self.cache[i] = super().__getitem__(i)
                return self.cache[i]

        real = Cached(folder, ToFloat(), cache=cache())
        for i in warm:
            real[i]
        if cache is dict and not warm:
            assert len(made(real, tmp_path / "set")) == 10
        else:
            told = "without calling its transform, from a cache perhaps|keeps what it has read where its copies find it"
            with pytest.raises((ValueError, RuntimeError), match=told):
                made(real, tmp_path / "set")
        spoilt = [i for i in range(10) if not torch.is_tensor(real[i][0])]
        assert len(spoilt) <= (cache is not dict and len(warm) < 10), "as the error says, and no more"

    def test_a_method_that_was_bound_before(self, folder, tmp_path):
        class Bound(Files):
            def __init__(self, *args):
                super().__init__(*args)
                self.load = functools.lru_cache(None)(super().__getitem__)

            def __getitem__(self, i):
                return self.load(i)

        with pytest.raises(ValueError, match="without calling its transform"):
            made(Bound(folder, ToFloat()), tmp_path / "set")

    def test_a_reader_that_knows_where_its_file_is(self, tmp_path):
        class Stream(Dataset):
            targets, classes, place = [0] * 6, ["cat"], 0

            def __init__(self):
                self.file = io.BytesIO(bytes(range(6)))

            def __len__(self):
                return 6

            def __getitem__(self, i):
                if i != self.place:
                    self.file.seek(i)
                self.place = i + 1
                return Image.new("RGB", (8, 8), (self.file.read(1)[0], 0, 0)), 0

        real = Stream()
        made(real, tmp_path / "set")
        assert [real[i][0].getpixel((0, 0))[0] for i in range(6)] == list(range(6))

    def test_what_a_dataset_closes_when_it_goes(self, folder, tmp_path):
        class Closing(Files):
            def __del__(self):
                self.opened.close()

            def __getstate__(self):
                raise TypeError("not to be copied")

        real = Closing(folder, opened=open(os.devnull))  # noqa: SIM115
        made(real, tmp_path / "set")
        assert not real.opened.closed

    def test_datasets_that_hold_each_other(self, folder, tmp_path):
        train, test = Files(folder, ToFloat()), Files(folder)
        train.test, test.train, train.me, train.all = test, train, train, {"train": train}
        train.all["all"] = train.all
        assert torch.is_tensor(made(train, tmp_path / "set")[0][0])

    def test_attributes_that_only_the_class_sets(self, folder):
        @dataclasses.dataclass(frozen=True)
        class Frozen(Dataset):
            files: ImageFolder
            transform: object

            def __len__(self):
                return len(self.files)

            def __getitem__(self, i):
                image, label = self.files[i]
                return self.transform(image), label

        assert Sources.from_dataset(Frozen(ImageFolder(folder), ToFloat())).image(0).size == (20, 20)

        class ReadOnly(Files):
            pass

        real = ReadOnly(folder)
        ReadOnly.transform = property(lambda self: ToFloat())
        with pytest.raises(ValueError, match="without calling its transform"):
            Sources.from_dataset(real)

    def test_a_transform_that_a_property_hands_on(self, folder, tmp_path):
        class Forwarding(Dataset):
            def __init__(self, inner):
                self.inner = inner
                self.classes = ["cat", "dog"]

            def __len__(self):
                return 10

            def __getitem__(self, i):
                return self.inner[i]

            transform = property(
                lambda self: self.inner.transform, lambda self, value: setattr(self.inner, "transform", value)
            )

        transform = ToFloat()
        real = Forwarding(ImageFolder(folder, transform, plus10))
        synthetic = made(real, tmp_path / "set")
        assert real.inner.transform is transform and real.inner.target_transform is plus10
        assert torch.is_tensor(synthetic[0][0]) and labels_of(synthetic) == labels_of(real) == [10, 11]
        shared = Configured(SimpleNamespace(transform=transform, target_transform=None))
        with pytest.raises(ValueError, match="without calling its transform"):
            made(shared, tmp_path / "other")
        shared.config = SimpleNamespace(transform=None, target_transform=plus10)
        with pytest.raises(ValueError, match="without calling its transform"):
            made(shared, tmp_path / "other")
        assert shared[0][1] == 10
