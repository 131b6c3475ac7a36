"""AugConditionedSynthetic: how many images, of what configuration, and what happens when some can't be made."""

import re
import warnings
from collections import Counter

import pytest
from fakes import FakeGenerator, paint, paint_folder
from PIL import Image
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder

from torch_augcond import AugConditionedSynthetic, EmbedDropout, EmbedMixup, job, load_generator
from torch_augcond.request import Request
from torch_augcond.sources import Sources, UnreadableImage
from torch_augcond.store.imagefile import Corrupt


@pytest.fixture
def folder(tmp_path):
    return paint_folder(tmp_path / "real", {"cat": 4, "dog": 2, "eel": 3})


@pytest.fixture
def real(folder):
    return ImageFolder(folder)


@pytest.fixture(autouse=True)
def assets(tmp_path, monkeypatch):
    """Default roots lie where they can't outlive the test."""
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "assets"


def make(dataset, root=None, **options):
    return AugConditionedSynthetic(dataset, root=root, **{"generator": FakeGenerator(), **options})


def counts(dataset):
    return dict(Counter(dataset.classes[label] for label in dataset.targets))


# --- how many ---------------------------------------------------------------------------------------------------------


def test_how_many(real, tmp_path):
    assert counts(make(real, tmp_path / "a")) == {"cat": 4, "dog": 2, "eel": 3}
    assert counts(make(real, tmp_path / "b", num_per_image=2)) == {"cat": 8, "dog": 4, "eel": 6}
    assert counts(make(real, tmp_path / "c", num_per_class=5)) == {"cat": 5, "dog": 5, "eel": 5}
    assert counts(make(real, tmp_path / "d", num_per_class={"eel": 2, "cat": 1})) == {"cat": 1, "eel": 2}
    with pytest.warns(UserWarning, match="`fill_to=1` asks for no images"):
        assert len(make(real, tmp_path / "none", fill_to=1)) == 0
    filled = make(real, tmp_path / "e", fill_to=3)
    assert counts(filled) == {"dog": 1} and filled.classes == real.classes
    empty = make(real, tmp_path / "f", num_per_class=0)
    assert len(empty) == 0 and list(empty) == [] and empty.targets == []


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"num_per_image": 1, "fill_to": 3}, ValueError, "exactly one of `num_per_image`.*got `num_per_image` and"),
        ({"num_per_image": -1}, ValueError, "`num_per_image` must be an int of 0 or more, but got -1"),
        ({"num_per_class": 1.5}, TypeError, "`num_per_class` must be an int, but got 1.5"),
        ({"num_per_class": {"cow": 1}}, ValueError, "`num_per_class` must be keyed by class names.*'cow'"),
        ({"fill_to": True}, TypeError, "`fill_to` must be an int"),
        ({"augmentation": "cutmixx"}, ValueError, "`augmentation` must be one of .*embed-cutmix"),
        ({"augmentation": 3}, TypeError, "`augmentation` must be"),
        ({"generator": 3}, TypeError, "`generator` must be None, a name or path.*got int without fingerprint"),
        ({"generator": "no such folder"}, FileNotFoundError, "no such folder"),
        ({"prompt": "a photo"}, ValueError, "`prompt` must be a template"),
        ({"prompt": {"cat": "x"}}, ValueError, "`prompt` must have an entry for every class.*'dog'"),
        ({"prompt": lambda name: 1}, TypeError, "`prompt` must give a str"),
        ({"class_names": ["one"]}, ValueError, "`class_names` must be a list of 3 names"),
        ({"guidance_scale": -1}, ValueError, r"`guidance_scale` must be 1 \(no guidance\) or more, but got -1"),
        ({"num_inference_steps": 0}, ValueError, "`num_inference_steps` must be an int of 1 or more, but got 0"),
        ({"noise_level": -1}, ValueError, "`noise_level` must be an int of 0 or more, but got -1"),
        ({"seed": "x"}, TypeError, "`seed` must be an int, but got 'x'"),
        ({"root": 3}, TypeError, "`root` must be None or a path, but got int"),
        ({"transform": 3}, TypeError, "`transform` must be None or callable, but got int"),
        ({"target_transform": 3}, TypeError, "`target_transform` must be None or callable, but got int"),
        ({"generate": 1}, TypeError, "`generate` must be True or False, but got 1"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be an int of 1 or more, but got 0"),
    ],
)
def test_arguments_are_checked(real, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        make(real, **{"root": tmp_path / "set", **options})


def test_growing_adds_and_shrinking_hides(real, tmp_path):
    small = make(real, tmp_path / "set", num_per_class=2)
    generator = FakeGenerator()
    large = make(real, tmp_path / "set", num_per_class=5, generator=generator)
    assert {p for p, _ in small.samples} < {p for p, _ in large.samples}
    assert len(set(generator.keys)) == 9
    again = make(real, tmp_path / "set", num_per_class=2, generate=False)
    assert list(again.samples) == list(small.samples)
    assert len(ImageFolder(tmp_path / "set")) == 15


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_class, guidance", [(16, 10.0), (17, 2.0)])
def test_guidance_follows_the_regime(tmp_path, per_class, guidance):
    images = [(Image.new("RGB", (4, 4), (i, label, 0)), label) for label in (0, 1) for i in range(per_class)]
    synthetic = make(images, tmp_path / "set", num_per_class=1, class_names=["a", "b"])
    assert synthetic.provenance(0)["settings"]["guidance_scale"] == guidance
    assert make(images, tmp_path / "x", num_per_class=1, guidance_scale=3, prompt="{}s").settings.guidance_scale == 3
    assert make(images, tmp_path / "x", num_per_class=1, prompt="{}s").settings.guidance_scale == 3


def test_a_set_keeps_its_guidance_when_it_outgrows_the_regime(folder, tmp_path):
    make(ImageFolder(folder), tmp_path / "set")
    for i in range(60):
        paint(folder / "cat" / f"more{i}.png", f"more {i}")
    grown = make(ImageFolder(folder), tmp_path / "set")
    assert len(grown) == 69 and grown.settings.guidance_scale == 10


def test_prompts(real, tmp_path):
    def prompts(**options):
        synthetic = make(real, tmp_path / str(len(list(tmp_path.iterdir()))), num_per_class=1, **options)
        return [synthetic.provenance(i)["prompt"] for i in range(3)]

    assert prompts() == ["a photo of a cat", "a photo of a dog", "a photo of a eel"]
    assert prompts(prompt="{}!") == ["cat!", "dog!", "eel!"]
    assert prompts(prompt={"cat": "x", "dog": "y", "eel": "z"}) == ["x", "y", "z"]
    assert prompts(prompt=str.upper) == ["CAT", "DOG", "EEL"]
    assert prompts(class_names={"eel": "moray"}, prompt="the {}") == ["the cat", "the dog", "the moray"]


def test_names_that_say_nothing_draw_a_warning(tmp_path):
    folder = paint_folder(tmp_path / "real", {"n01440764": 1, "12": 2})
    with pytest.warns(UserWarning, match="hold numbers that mean nothing in a prompt"):
        make(ImageFolder(folder), tmp_path / "set", augmentation="real")


def test_augmentations(real, tmp_path):
    for i, augmentation in enumerate(
        ["mixup", EmbedMixup(alpha=0.5), [EmbedMixup(), EmbedDropout(p=0.1)], "text-only"]
    ):
        synthetic = make(real, tmp_path / str(i), augmentation=augmentation)
        assert len(synthetic) == 9
    assert synthetic.provenance(0)["sources"] == []


def test_another_configuration_in_the_same_root_is_refused(real, tmp_path):
    make(real, tmp_path / "set")
    for options, difference in [
        ({"seed": 1}, "`seed` is 0 there, but 1 here"),
        ({"augmentation": "real"}, "`augmentation`"),
        ({"generator": FakeGenerator(32)}, "`checkpoint` is 'fake-16-12' there, but 'fake-32-12' here"),
        ({"generator": "tiny"}, "`checkpoint` is 'fake-16-12' there, but 'tiny' here"),
        ({"num_per_class": 1}, "`scheme`"),
        ({"guidance_scale": 4}, "`guidance_scale` is 10.0 there, but 4.0 here"),
    ]:
        with pytest.raises(ValueError, match=difference):
            make(real, tmp_path / "set", **options)


def test_default_roots(real, folder, assets):
    plain = make(real)
    root = plain.root
    assert root.startswith(str(assets / "torch_augcond"))
    assert make(real, num_per_image=3).root == root and make(ImageFolder(folder)).root == root
    others = [
        make(real, seed=1),
        make(real, augmentation="real"),
        make(Subset(real, range(5))),
        make(real, prompt="{}"),
    ]
    others += [make(real, generator=FakeGenerator(32)), make(real, guidance_scale=3), make(real, num_per_class=1)]
    assert len({root, *(other.root for other in others)}) == 8


def test_a_generator_and_its_name_have_one_default_root(real, monkeypatch):
    def root(generator, fingerprint=None):
        if fingerprint:
            generator = FakeGenerator()
            generator.fingerprint = fingerprint
        return Request(dataset=real, generator=generator).folder()

    tiny = root("tiny")
    assert root(load_generator("tiny")) == tiny
    monkeypatch.setattr("socket.socket", None)  # nothing is asked of the network
    stable = root("sd21-unclip")
    assert root(None) == root("sd2-community/stable-diffusion-2-1-unclip") == stable
    assert root(None, "sd2-community/stable-diffusion-2-1-unclip@0123abc") == stable
    assert root("own/model") == root(None, "own/model@0123abc")
    rest = [root(None, f"own/model@0123abc{suffix}") for suffix in ("#fp16", "+DDIM-01", "#fp16+DDIM-01")]
    assert len({tiny, stable, root("sd21-unclip-small"), root(None, "local@0123"), root("own/model"), *rest}) == 8


def test_a_list_that_grows_keeps_its_default_root_and_images(assets):
    images = [(Image.new("RGB", (4, 4), (i, 0, 0)), i % 2) for i in range(6)]
    first = make(images[:4], class_names=["a", "b"])
    generator = FakeGenerator()
    grown = make(images, class_names=["a", "b"], generator=generator, augmentation="embed-cutmix-dropout")
    assert grown.root == first.root and len(grown) == 6 and len(generator.batches) == 1


# --- generate=False ---------------------------------------------------------------------------------------------------


def test_reading_needs_no_generator(real, tmp_path, monkeypatch):
    made = make(real, tmp_path / "set", num_per_class=2)
    monkeypatch.setattr(job.Job, "generator", property(lambda self: pytest.fail("a generator was loaded")))
    monkeypatch.setattr(job, "_made_by", lambda fingerprint, name: True)
    for generate in (False, True):
        read = AugConditionedSynthetic(real, root=tmp_path / "set", num_per_class=2, generate=generate)
        assert list(read.samples) == list(made.samples)


def test_missing_images_are_counted_and_the_command_is_named(real, folder, tmp_path):
    root = tmp_path / "the set"
    command = f"torch-augcond generate {folder} --num-per-class 4 --seed 3 --root '{root}'"
    with pytest.raises(FileNotFoundError, match="12 of 12 synthetic images are missing") as error:
        AugConditionedSynthetic(real, num_per_class=4, seed=3, root=root, generate=False)
    assert command in str(error.value) and "\n" not in str(error.value) and not root.exists()
    make(real, root, num_per_class=2, seed=3)
    with pytest.raises(
        FileNotFoundError, match="6 of 12 synthetic images are missing.*with the same call and generate=T"
    ):
        make(real, root, num_per_class=4, seed=3, generate=False)


def test_where_no_command_will_do(real, tmp_path):
    for options in ({"dataset": Subset(real, [0])}, {"augmentation": EmbedMixup()}, {"prompt": str.upper}):
        with pytest.raises(FileNotFoundError, match="Make them with the same call and generate=True"):
            AugConditionedSynthetic(**{"dataset": real, "root": tmp_path / "set", "generate": False, **options})


def test_nothing_is_made_when_items_are_read(real, tmp_path):
    generator = FakeGenerator()
    synthetic = make(real, tmp_path / "set", generator=generator)
    before = len(generator.batches)
    (tmp_path / "set" / "cat").rename(tmp_path / "gone")
    with pytest.raises(FileNotFoundError):
        synthetic[0]
    assert len(generator.batches) == before


# --- failures ---------------------------------------------------------------------------------------------------------


def broken(folder):
    (folder / "dog" / "1.png").write_bytes(b"no image")
    return ImageFolder(folder)


def test_too_many_failures_are_an_error(folder, tmp_path):
    real = broken(folder)
    for _ in range(2):
        generator = FakeGenerator()
        with pytest.raises(
            RuntimeError, match=r"1 of 9 synthetic images could not be made: .*dog/1.png could not be read"
        ):
            make(real, tmp_path / "set", augmentation="real", generator=generator)


def test_too_many_failures_that_have_passed_are_made(folder, tmp_path, monkeypatch):
    def hiccup(sources, i, digest=None):
        raise UnreadableImage(sources.name(i), "OSError: the disk is away for a moment")

    real = ImageFolder(folder)
    with monkeypatch.context() as patch:
        patch.setattr(Sources, "image", hiccup)
        with pytest.raises(RuntimeError, match="9 of 9 .*tries them again"):
            make(real, tmp_path / "set", augmentation="real")
    assert len(make(real, tmp_path / "set", augmentation="real")) == 9


def test_few_failures_are_left_out_with_one_warning(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("torch_augcond.dataset.FAILURE_BUDGET", 0.2)
    real = broken(folder)
    for generate in (True, False):
        with pytest.warns(
            UserWarning, match="1 of 9 synthetic images could not be made: .*They are left out"
        ) as caught:
            synthetic = make(real, tmp_path / "set", augmentation="real", generate=generate)
        assert len(caught) == 1 and counts(synthetic) == {"cat": 4, "dog": 1, "eel": 3}
        assert len(list(synthetic)) == 8


def test_a_mended_source_is_used(folder, tmp_path):
    with pytest.raises(RuntimeError, match="could not be made"):
        make(broken(folder), tmp_path / "set", augmentation="real")
    paint(folder / "dog" / "1.png", "mended")
    assert len(make(ImageFolder(folder), tmp_path / "set", augmentation="real")) == 9


def test_changed_content_is_made_again_and_renamed_files_are_not(folder, tmp_path):
    first = make(ImageFolder(folder), tmp_path / "set", augmentation="real")
    (folder / "cat" / "0.png").rename(folder / "cat" / "renamed.png")
    generator = FakeGenerator()
    renamed = make(ImageFolder(folder), tmp_path / "set", augmentation="real", generator=generator)
    assert not generator.batches and list(renamed.samples) == list(first.samples)
    paint(folder / "cat" / "1.png", "edited")
    edited = make(ImageFolder(folder), tmp_path / "set", augmentation="real", generator=generator)
    assert len(set(generator.keys)) == 1 and len({*edited.samples} & {*first.samples}) == 8
    assert len(ImageFolder(tmp_path / "set")) == 9


def test_a_damaged_image_is_never_handed_out(real, tmp_path):
    synthetic = make(real, tmp_path / "set")
    path, _ = synthetic.samples[0]
    with open(path, "r+b") as file:
        file.seek(-20, 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(Corrupt, match="is damaged"):
        synthetic[0]
    with pytest.raises(Corrupt, match="is damaged"):
        synthetic.provenance(0)


def test_an_unwritable_root_is_one_clear_error(real, tmp_path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "set"):
        with pytest.raises(OSError, match="`root` must be a folder"):
            make(real, root)


def test_a_set_is_recognised_by_its_generators_name(tmp_path, monkeypatch):
    """Without loading anything: what the name can't mean is refused, what can't be looked up is believed."""
    hub = "sd2-community/stable-diffusion-2-1-unclip@0123"
    assert job._made_by(hub, "sd21-unclip") and job._made_by(hub, "sd2-community/stable-diffusion-2-1-unclip")
    assert not job._made_by(hub, "sd21-unclip-small") and not job._made_by(hub, "some/other")
    assert not job._made_by("local@0123", "sd21-unclip")
    assert job._made_by("local@0123", "/a/folder/that/was/deleted")
    checkpoint = type("Checkpoint", (), {"fingerprint": "local@0123"})
    monkeypatch.setattr("torch_augcond.generators.checkpoints.find_checkpoint", lambda name: checkpoint)
    assert job._made_by("local@0123", str(tmp_path)) and not job._made_by("local@4567", str(tmp_path))


def test_a_generator_that_may_be_another_one_is_said(real, tmp_path):
    generator, names = FakeGenerator(), {"local@0123": "is no folder here", "some/other@0+UniPC": "'UniPC' are some"}
    for fingerprint, reason in names.items():
        generator.fingerprint = fingerprint
        make(real, tmp_path / fingerprint, generator=generator)
        with pytest.warns(UserWarning, match=f"'some/other' .*{reason}.* were made by {re.escape(fingerprint)}"):
            make(real, tmp_path / fingerprint, generator="some/other")


@pytest.mark.parametrize("generate", [True, False])
@pytest.mark.filterwarnings("ignore:1 of .* real images can't be read")
def test_sources_that_cannot_be_read_cost_no_images_in_silence(folder, real, tmp_path, generate):
    """Their images are in no plan, so neither failed nor missing."""
    make(real, tmp_path / "set")
    (folder / "cat" / "gone.png").symlink_to(tmp_path / "not mounted")
    lost = (
        "1 of 10 synthetic images can't be had, since real images can't be read: .*gone.png could not .* leave them out"
    )
    with pytest.raises(RuntimeError, match=lost):
        make(ImageFolder(folder), tmp_path / "set", generate=generate)
    for path in (folder / "eel").iterdir():
        path.unlink()
        path.symlink_to(tmp_path / "not mounted")
    with pytest.raises(RuntimeError, match="none of the real images of class 'eel' can be read: .* could not be read"):
        make(ImageFolder(folder), tmp_path / "set", generate=generate)


def test_a_finished_set_of_another_commit_than_the_one_that_is_cached(real, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    generator, root = FakeGenerator(), tmp_path / "set"
    generator.fingerprint = f"owner/name@{'a' * 40}"
    make(real, root, generator=generator)
    with warnings.catch_warnings(action="error"):
        make(real, root, generator="owner/name")
        cache(tmp_path / "hub", "a" * 40)
        make(real, root, generator="owner/name")
    cache(tmp_path / "hub", "b" * 40)
    with pytest.warns(
        UserWarning, match=f"'owner/name' is commit {'b' * 40} here. The images in .* were made by owner/n"
    ):
        make(real, root, generator="owner/name")


def cache(folder, commit):
    """As the Hub's client leaves a checkpoint."""
    for name, text in (("refs/main", commit), (f"snapshots/{commit}/model_index.json", "{}")):
        path = folder / "models--owner--name" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
