"""Recipes × generator → store: the right images, each once, whatever goes wrong with some of them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fakes import FakeGenerator, paint_folder
from PIL import Image
from torchvision.datasets import ImageFolder

from torch_augcond.generate import Report, default_batch_size, generate, synthesise
from torch_augcond.job import Job
from torch_augcond.progress import silent
from torch_augcond.request import Request
from torch_augcond.store.imagefile import read_image, read_provenance


@pytest.fixture
def real(tmp_path):
    return ImageFolder(paint_folder(tmp_path / "real", {"cat": 4, "dog": 3}))


def job_of(real, root, generator=None, **options):
    options = {"num_per_class": 5, **options}
    request = Request(dataset=real, generator=generator or FakeGenerator(), root=root, **options)
    return Job(request, write=True, load=None, progress=silent)


def pixels(job):
    """{file name: pixels} of everything in the store."""
    files = sorted(job.store.root.glob("*/*.png"))
    return {f"{file.parent.name}/{file.name}": np.asarray(read_image(file, file.stem)).tobytes() for file in files}


def test_makes_what_is_missing_and_no_more(real, tmp_path):
    job = job_of(real, tmp_path / "set")
    assert job.make() == Report(made=10, present=0, failed=0)
    first = pixels(job)
    assert len(first) == 10 and len(set(first.values())) == 10
    assert {name.split("/")[0] for name in first} == {"cat", "dog"}
    assert job.make() == Report(made=0, present=10, failed=0)
    assert pixels(job) == first
    assert sum(job.generator.batches) >= 10 and len(job.generator.batches) == 1


@pytest.mark.parametrize("augmentation", ["text-only", "real", "dropout", "cutmix-dropout", "mixup", "embed-mixup"])
def test_an_image_depends_on_its_recipe_alone(real, tmp_path, augmentation):
    """Batch size, shards and interruptions change nothing."""
    whole = job_of(real, tmp_path / "whole", augmentation=augmentation)
    whole.make(batch_size=64)
    parts = job_of(real, tmp_path / "parts", augmentation=augmentation)
    reports = [parts.make(shard=(i, 3), batch_size=1 + i) for i in (2, 0, 1)]
    assert sum(report.made for report in reports) == 10
    assert pixels(parts) == pixels(whole)


def test_all_batches_have_one_shape(real, tmp_path):
    job = job_of(real, tmp_path / "set", num_per_class=11)
    job.make(batch_size=4)
    assert set(job.generator.batches) == {4} and len(job.generator.batches) == 6


def test_contents_and_prompts_are_encoded_once(real, tmp_path):
    generator = FakeGenerator()
    job_of(real, tmp_path / "set", generator).make(batch_size=2)
    assert generator.encoded <= len(real) and generator.prompted == 2
    used = generator.encoded
    job_of(real, tmp_path / "set", generator, num_per_class=40).make(batch_size=2)
    assert used <= generator.encoded <= len(real) and generator.prompted == 2


def test_mixed_pixels_are_those_of_the_pixel_stage(real, tmp_path):
    """The generator gets the embedding of the mixed crops, and the embedding stage's operations on top."""
    job = job_of(real, tmp_path / "set", augmentation="cutmix", num_per_class=1)
    seen = []
    encode = job.generator.encode_images
    job.generator.encode_images = lambda images: seen.extend(images) or encode(images)
    job.make()
    assert len(seen) == 2
    for image, recipe in zip(seen, job.plan, strict=True):
        crops = [np.array(job.sources.image(i).resize((16, 16), Image.Resampling.BICUBIC)) for i in recipe.sources]
        first, second = (torch.from_numpy(crop).permute(2, 0, 1)[None] for crop in crops)
        keys = torch.tensor([recipe.seed])
        assert torch.equal(image, job.augmentation.pixel(first, partners=second, keys=keys)[0])


def test_provenance_tells_what_made_an_image(real, tmp_path):
    job = job_of(real, tmp_path / "set", augmentation="embed-cutmix-dropout", num_per_class=1)
    job.make()
    for recipe in job.plan:
        record = read_provenance(job.store.path(recipe.class_name, recipe.key))
        assert record["key"] == recipe.key and record["seed"] == recipe.seed
        assert record["digests"] == list(recipe.digests)
        assert record["sources"] == [job.sources.place(i) for i in recipe.sources]
        assert record["prompt"] == f"a photo of a {recipe.class_name}" and record["label"] == recipe.label
        settings = record["settings"]
        assert (settings["guidance_scale"], settings["num_inference_steps"]) == (10.0, 30)
        assert settings["checkpoint"] == job.generator.fingerprint
        assert [step["name"] for step in settings["augmentation"]] == ["EmbedCutMix", "EmbedDropout"]
        drawn, dim = record["drawn"], job.generator.embed_dim
        assert drawn["span"] == [0, round((1 - drawn["lam"]) * dim)] and drawn["dropout_key"] == recipe.seed
        json.dumps(record)


def test_recorded_lambda_is_the_one_that_was_used(real, tmp_path):
    job = job_of(real, tmp_path / "set", augmentation="embed-mixup", num_per_class=3)
    job.make()
    for recipe in job.plan:
        record = read_provenance(job.store.path(recipe.class_name, recipe.key))
        first, second = job.generator.encode_images([job.sources.image(i) for i in recipe.sources])
        lam = record["drawn"]["lam"]
        mixed = job.augmentation.embed(first[None], partners=second[None], keys=torch.tensor([recipe.seed]))[0]
        assert torch.allclose(mixed, lam * first + (1 - lam) * second, atol=1e-5)


def test_out_of_memory_halves_the_batch(real, tmp_path):
    generator = FakeGenerator(limit=3)
    job = job_of(real, tmp_path / "set", generator, num_per_class=9)
    assert job.make(batch_size=16).made == 18
    assert generator.refused == 3 and max(generator.batches) == 2
    assert sorted(set(generator.keys)) == sorted(recipe.seed for recipe in job.plan)


def test_not_even_one_fits(real, tmp_path):
    job = job_of(real, tmp_path / "set", FakeGenerator(limit=0), num_per_class=1)
    assert job.make(batch_size=4) == Report(made=0, present=0, failed=2)
    assert "not enough memory" in job.failure_text()


def test_spoilt_rows_fail_alone(real, tmp_path):
    good = job_of(real, tmp_path / "good")
    good.make()
    bad = [good.plan[3].seed, good.plan[7].seed]
    generator = FakeGenerator(bad=bad)
    job = job_of(real, tmp_path / "set", generator)
    assert job.make(batch_size=4) == Report(made=8, present=0, failed=2)
    assert pixels(job).items() < pixels(good).items()
    assert set(job.store.failures()) == {job.plan[3].key, job.plan[7].key}
    assert "one plain colour" in job.failure_text()
    assert job.given_up().nonzero()[0].tolist() == [3, 7]


def test_failures_are_tried_again_unless_told_otherwise(real, tmp_path):
    generator = FakeGenerator()
    job = job_of(real, tmp_path / "set", generator)
    generator.bad = frozenset([job.plan[0].seed])
    assert job.make() == Report(9, 0, 1)
    generator.bad = frozenset()
    made = len(generator.batches)
    assert job.make(retry=False) == Report(0, 9, 1) and len(generator.batches) == made
    assert job.make() == Report(1, 9, 0)
    assert not job.store.failures()


@pytest.mark.parametrize("spoil", [lambda data: data[: len(data) // 2], lambda data: b"<html>not found</html>"])
@pytest.mark.parametrize("augmentation", ["embed-cutmix", "cutmix"])
def test_unreadable_sources_become_records(tmp_path, spoil, augmentation):
    folder = paint_folder(tmp_path / "real", {"cat": 3, "dog": 3})
    victim = folder / "cat" / "1.png"
    victim.write_bytes(spoil(victim.read_bytes()))
    job = job_of(ImageFolder(folder), tmp_path / "set", augmentation=augmentation, num_per_class=12)
    report = job.make(batch_size=4)
    hit = {recipe.key for recipe in job.plan if 1 in recipe.sources}
    assert hit and set(job.store.failures()) == hit
    assert (report.made, report.failed) == (24 - len(hit), len(hit))
    assert str(victim) in job.failure_text()
    assert all(str(victim) in record["reason"] for record in job.store.failures().values())


def test_embeddings_that_are_not_finite_fail_alone(real, tmp_path):
    job = job_of(real, tmp_path / "set", augmentation="real", num_per_class=None, num_per_image=1)
    encode = job.generator.encode_images
    victim = np.asarray(job.sources.image(2)).tobytes()

    def spoilt(images):
        embeds = encode(images)
        for row, image in enumerate(images):
            embeds[row] *= float("nan") if np.asarray(image).tobytes() == victim else 1
        return embeds

    job.generator.encode_images = spoilt
    assert job.make() == Report(6, 0, 1)
    assert "its embedding is not finite" in job.failure_text()


def test_a_class_of_one_image_mixes_it_with_itself(tmp_path):
    folder = ImageFolder(paint_folder(tmp_path / "real", {"cat": 1}))
    with pytest.warns(UserWarning, match="one real image only have nothing to mix it with: 'cat'") as caught:
        mixed = job_of(folder, tmp_path / "mixed", augmentation="embed-mixup", num_per_class=2)
    assert len(caught) == 1
    generator, calls = mixed.generator, []
    inner = generator.generate
    generator.generate = lambda *a, **k: calls.append((a[0], k["partner_embeds"])) or inner(*a, **k)
    assert mixed.make().made == 2
    (embeds, partners) = calls[0]
    assert torch.equal(embeds, partners)
    assert torch.equal(embeds[0], generator.encode_images([mixed.sources.image(0)])[0])


def test_a_mistake_in_the_dataset_stops_the_run(tmp_path):
    job = job_of([(Image.new("RGB", (20, 20), (i, 0, 0)), 0) for i in range(3)], tmp_path / "set")
    job.sources.image = lambda i, digest=None: (_ for _ in ()).throw(
        TypeError("the image of dataset[0] must be a PIL image")
    )
    with pytest.raises(TypeError, match="must be a PIL image"):
        job.make()


def test_an_interrupted_run_goes_on_where_it_stopped(real, tmp_path):
    class Interrupted(FakeGenerator):
        def generate(self, *args, **options):
            if len(self.batches) == 2:
                raise KeyboardInterrupt
            return super().generate(*args, **options)

    job = job_of(real, tmp_path / "set", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        job.make(batch_size=2)
    assert int(job.present().sum()) == 4
    assert not [path for path in job.store.root.iterdir() if ".augcond-tmp" in path.name]
    again = job_of(real, tmp_path / "set")
    assert again.make(batch_size=2) == Report(6, 4, 0)
    whole = job_of(real, tmp_path / "whole")
    whole.make(batch_size=2)
    assert pixels(again) == pixels(whole)


def test_synthesise_yields_and_stores_nothing(real, tmp_path):
    job = job_of(real, tmp_path / "set")
    outcomes = [
        outcome
        for batch in synthesise(job.plan, job.sources, job.generator, job.augmentation, job.settings, batch_size=3)
        for outcome in batch
    ]
    assert [outcome.recipe.key for outcome in outcomes] == [recipe.key for recipe in job.plan]
    assert all(o.image.shape == (3, 16, 16) and o.image.dtype == torch.uint8 for o in outcomes)
    assert not job.present().any()


def test_nothing_to_do_loads_nothing(real, tmp_path):
    job = job_of(real, tmp_path / "set", num_per_class=0)
    assert job.make() == Report(0, 0, 0) and not job.generator.batches


@pytest.mark.parametrize("size", [0, -1, 2.0, True])
def test_batch_size_is_checked(real, tmp_path, size):
    with pytest.raises(ValueError, match="`batch_size` must be a positive int, but got"):
        job_of(real, tmp_path / "set").make(batch_size=size)


def test_default_batch_size():
    sizes = {size: default_batch_size(SimpleNamespace(image_size=size)) for size in (32, 512, 768, 4096)}
    assert sizes == {32: 64, 512: 36, 768: 16, 4096: 1}
    assert default_batch_size(SimpleNamespace(image_size=32, batch_size=5)) == 5


def test_progress_counts_every_image(real, tmp_path):
    shown = []

    class Bar:
        def __init__(self, total, desc, *, initial=0, unit="image"):
            shown.append([total, initial])

        def __enter__(self):
            return self

        def __exit__(self, *error): ...

        def update(self, n):
            shown[-1][1] += n

    job = job_of(real, tmp_path / "set")
    generator = FakeGenerator(bad=[job.plan[0].seed])
    parts = (job.plan, job.sources, generator, job.store, job.augmentation, job.settings)
    generate(*parts, batch_size=3, progress=Bar)
    generate(*parts, batch_size=3, progress=Bar)
    assert shown == [[10, 10], [10, 10]]


@pytest.mark.parametrize("failed, budget, over", [(0, 0.0, False), (1, 0.01, False), (2, 0.01, True), (1, 0.0, True)])
def test_failure_budget(failed, budget, over):
    assert Report(made=50, present=50 - failed, failed=failed).over(budget) is over
