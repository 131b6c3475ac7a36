"""Datasets of the kinds that people write for themselves."""

from fakes import FakeGenerator
from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from torch_augcond import AugConditionedSynthetic


def plus10(label):
    return label + 10


def times2(label):
    return label * 2


def made(dataset, root, **options):
    return AugConditionedSynthetic(dataset, "real", generator=FakeGenerator(), root=root, **options)


def labels_of(dataset):
    return sorted({int(dataset[i][1]) for i in range(len(dataset))})


class Files(Dataset):
    """The usual dataset of one's own."""

    def __init__(self, folder, transform=None, target_transform=None, **attributes):
        self.classes = ["cat", "dog"]
        self.files = ImageFolder(folder).samples
        self.transform, self.target_transform = transform, target_transform
        self.__dict__.update(attributes)

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        path, label = self.files[i]
        image = Image.open(path).convert("RGB")
        return self.transform(image) if self.transform else image, (self.target_transform or int)(label)


class Duck:
    """The same, without torch."""

    __init__, __len__, __getitem__ = Files.__init__, Files.__len__, Files.__getitem__


class Holding(Dataset):
    """A wrapper of one's own."""

    def __init__(self, inner):
        self.inner, self.classes = inner, inner.classes

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, i):
        return self.inner[i]


class SharedDict(dict):
    """A cache of a kind that is not copied."""


class Parts(Dataset):
    """The usual concatenation of one's own, of parts in a list or dict."""

    def __init__(self, parts):
        self.parts, self.classes = parts, ["cat", "dog"]

    def __len__(self):
        return sum(len(part) for part in self._each())

    def _each(self):
        return list(self.parts.values() if isinstance(self.parts, dict) else self.parts)

    def __getitem__(self, i):
        first, *others = self._each()
        return first[i] if i < len(first) or not others else others[0][i - len(first)]
