"""The trainer of the model of photographs, in small: every stage, cut short and resumed, written and loaded."""

import io
import itertools
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from torch_augcond import load_generator

pytest.importorskip("tqdm")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import judges
import photographs
import stages
import train_natural_unclip as natural
import unclip_parts as parts
from curves import curves

SIZES = natural.SIZES | {
    "vision": 32, "vision_layers": 2, "embed": 32, "text": 32, "text_layers": 1, "vae": (8, 8, 8, 16),
    "unet": (16, 32), "time": 32,
}  # fmt: skip
CLASSES, WNIDS = ["koala", "tabby", "pay-phone", "a_thing"], ["n01882714", "n02123045", "n03902125", "n00000000"]


def painted(count=8, seed=0):
    """Encoded images of one hue each, and labels that go with the hues."""
    rng, labels = np.random.default_rng(seed), np.arange(count) % len(CLASSES)
    for label in labels:
        pixels = rng.integers(0, 60, (64, 64, 3)) + (np.arange(3) == label) * 180
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "png")
        yield file.getvalue(), label


def pack(path, files, labels):
    offsets = np.cumsum([0, *map(len, files)])
    tensors = {"bytes": np.frombuffer(b"".join(files), np.uint8), "offsets": offsets}
    metadata = {"classes": json.dumps(CLASSES), "wnids": json.dumps(WNIDS)}
    save_file(tensors | {"labels": np.asarray(labels, np.int16)}, path, metadata)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    paths = [pack(folder / f"{seed}.safetensors", *zip(*painted(seed=seed))) for seed in (0, 1)]
    return photographs.packed(paths)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """All five stages, three steps each, and what they wrote."""
    work = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda module: module)
        patch.setattr(judges, "JUDGES", {name: small(config) for name, config in judges.JUDGES.items()})
        training = tiny(data, work)
        training.run()
        training.write(work / "out", work / "judges")
    return work


def small(config):
    return config | {"widths": (8, 8, 8, 16), "depths": (1, 1, 1, 1)}


def tiny(data, work, **stage):
    batches = dict.fromkeys(natural.STAGES, 4)
    return natural.Training(data, work, sizes=SIZES, batches=batches, views=2, **{"steps": 3} | stage)


def test_packed_photographs_are_decoded_in_order_and_named_with_their_synonyms(data):
    files, labels = zip(*painted(seed=1))
    expected = [np.asarray(Image.open(io.BytesIO(file))) for file in files]
    np.testing.assert_array_equal(data.pixels[8:].permute(0, 2, 3, 1).numpy(), expected)
    assert data.labels[8:].tolist() == list(labels)
    assert data.texts[0][:2] == ["koala", "koala bear"]
    assert data.texts[1] == ["tabby", "tabby cat"] and data.texts[3] == ["a thing"]


def test_names_and_others_are_those_of_the_label(data):
    index, rng = torch.arange(16).repeat(40), torch.Generator().manual_seed(0)
    names = data.named(data.labels[index], rng)
    assert all(data.names[name] in data.texts[data.labels[i]] for i, name in zip(index, names))
    assert {data.names[i] for i in names} == set(data.names)
    others = data.another(index, rng)
    assert (data.labels[others] == data.labels[index]).all() and set(others.tolist()) == set(range(16))


def test_views_are_random_crops_and_mirror_images():
    ramp = torch.arange(64).mul(4).expand(1, 3, 64, 64).to(torch.uint8)
    data = photographs.Photographs(ramp, torch.zeros(1, dtype=torch.long), [["ramp"]], (0.25, 1.0), 0.0)
    views = data.views(torch.zeros(200, dtype=torch.long), torch.Generator().manual_seed(0))
    spans = (views[:, 0, 32, -1] - views[:, 0, 32, 0]) / 2  # the width that is seen, negative in a mirror
    assert 60 < (spans > 0).sum() < 140
    assert spans.abs().max() <= 1 and spans.abs().min() > 0.4 and spans.abs().std() > 0.05
    assert (views - views[:, :, :1]).abs().max() < 1e-5  # no slant: all rows alike


def test_views_are_as_exact_where_the_networks_compute_in_bfloat16(data):
    index = torch.arange(16)
    plain = data.views(index, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        halved = data.views(index, torch.Generator().manual_seed(0))
    torch.testing.assert_close(halved, plain, rtol=0, atol=0)


def test_light_changes_as_named():
    pixels = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.2
    one, two, none = torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 1.2), torch.zeros(1, 1, 1, 1)
    torch.testing.assert_close(photographs.relit(pixels, one, one, one), pixels)
    torch.testing.assert_close(photographs.relit(pixels, two, one, one), pixels * 1.2)
    gray = photographs.relit(pixels, one, one, none)
    torch.testing.assert_close(gray[:, 0], gray[:, 2])
    flat = photographs.relit(pixels, one, none, one)
    torch.testing.assert_close(flat, flat.mean().expand_as(flat))


def line_stage(folder, monkeypatch, until=float("inf"), bf16=None):
    """A stage of six steps that fits a line to random points; the clock advances a second a look."""
    clock = itertools.count()
    monkeypatch.setattr(stages.time, "monotonic", lambda: next(clock))
    torch.manual_seed(0)
    modules = {"line": torch.nn.Linear(3, 1)}
    folder.mkdir(exist_ok=True)
    stage = stages.Stage("line", modules, folder, lr=0.1, minutes=1, steps=6, until=until, ema=0.9, bf16=bf16)

    def loss_of(step):
        x = torch.randn(8, 3, generator=stage.rng)
        return {"error": (stage.modules["line"](x).squeeze(1) - x.sum(1)).pow(2).mean()}

    return stage, lambda: stage.run(loss_of, 8)


def test_a_stage_in_three_calls_ends_as_one_in_one_call(tmp_path, monkeypatch):
    whole, run = line_stage(tmp_path / "whole", monkeypatch)
    run()
    for steps in (2, 4):
        part, run = line_stage(tmp_path / "parts", monkeypatch, until=2)
        with pytest.raises(stages.OutOfTime, match=f"line stopped at {steps / 6:.0%}, after {steps} steps"):
            run()
    part, run = line_stage(tmp_path / "parts", monkeypatch)
    run()
    assert (part.step, part.samples) == (whole.step, whole.samples) == (6, 48)
    torch.testing.assert_close(part.modules.state_dict(), whole.modules.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(part.ema.state_dict(), whole.ema.state_dict(), rtol=0, atol=0)


def test_a_stage_computes_in_bfloat16_if_told_and_learns_in_float32(tmp_path, monkeypatch):
    plain, run = line_stage(tmp_path / "plain", monkeypatch)
    run()
    halved, run = line_stage(tmp_path / "halved", monkeypatch, bf16=True)
    run()
    weights = [stage.modules["line"].weight for stage in (plain, halved)]
    assert weights[1].dtype == torch.float32 and not torch.equal(*weights)
    torch.testing.assert_close(*weights, rtol=0.05, atol=0.02)


def test_a_stage_saved_without_its_generator_goes_on(tmp_path, monkeypatch):
    stage, _ = line_stage(tmp_path, monkeypatch)
    stage.step = 4
    stage.save()
    state = torch.load(stage.file, weights_only=True)
    state.pop("rng")
    torch.save(state, stage.file)
    again, run = line_stage(tmp_path, monkeypatch)
    assert again.rng.initial_seed() == 4
    run()
    assert again.step == 6


def test_a_tokenizer_is_learned_once(tmp_path):
    names = ["koala bear", "tabby cat", "bear cat"]
    first = parts.make_tokenizer(names, tmp_path, 560, 12)
    again = parts.make_tokenizer(["other names altogether"], tmp_path, 560, 12)
    assert first.get_vocab() == again.get_vocab()
    assert torch.equal(parts.tokens(first, names), parts.tokens(again, names))


def test_all_stages_log_resume_and_stop_in_time(data, trained, monkeypatch):
    assert {path.stem for path in trained.glob("*.pt")} == set(natural.STAGES)
    monkeypatch.setattr(judges, "JUDGES", {name: small(config) for name, config in judges.JUDGES.items()})
    before = {path.name: path.stat().st_mtime_ns for path in trained.glob("*.pt")}
    training = tiny(data, trained, steps=4, until=time.monotonic() - 1)
    with pytest.raises(stages.OutOfTime, match="classifier stopped at 75%, after 3 steps"):
        training.run()
    changed = {path.name for path in trained.glob("*.pt") if path.stat().st_mtime_ns != before[path.name]}
    assert changed == {"classifier.pt"} and not training.finished


def test_the_program_stops_in_time_goes_on_and_writes(tmp_path, monkeypatch, capsys):
    files = [pack(tmp_path / f"{seed}.safetensors", *zip(*painted(seed=seed))) for seed in (0, 1)]
    monkeypatch.setattr(torch, "compile", lambda module: module)
    monkeypatch.setattr(natural, "SIZES", SIZES)
    monkeypatch.setattr(judges, "JUDGES", {name: small(config) for name, config in judges.JUDGES.items()})
    arguments = f"--data {files[0]} {files[1]} --work {tmp_path / 'work'} --out {tmp_path / 'out'} --batch 4 --limit 4"
    arguments += f" --judges {tmp_path / 'judges'} --device cpu --minutes 0.002 0.002 0.002 0.002 0.002"
    monkeypatch.setattr(sys, "argv", ["train", *arguments.split(), "--budget-minutes", "0"])
    natural.main()
    assert "classifier stopped at 0%, after 0 steps. Run the same command again" in capsys.readouterr().out
    assert not (tmp_path / "out").exists() and not (tmp_path / "judges").exists()
    monkeypatch.setattr(sys, "argv", ["train", *arguments.split()])
    natural.main()
    assert {path.name for path in (tmp_path / "judges").iterdir()} == {"classifier.safetensors", "measure.safetensors"}
    assert load_generator(tmp_path / "out").image_size == 64


def test_a_stage_needs_those_whose_parts_it_uses():
    assert natural.needed(["classifier"]) == {"classifier"} and natural.needed(["vae"]) == {"clip", "vae"}
    assert natural.needed(["unet", "measure"]) == {"clip", "vae", "unet", "measure"}


def test_the_folder_that_was_written_makes_images(data, trained):
    generator = load_generator(trained / "out")
    assert (generator.image_size, generator.embed_dim) == (64, 32)
    embeds = generator.encode_images(list(data.pixels[:2]))
    prompts = generator.encode_prompts(["a photo of a koala", ""])
    images = generator.generate(embeds, prompts, torch.arange(2), guidance_scale=2.0, num_inference_steps=2)
    assert images.shape == (2, 3, 64, 64)
    std = generator.pipe.image_normalizer.std
    assert ((std > 0) & (std != 1)).all()


def test_judges_are_read_as_they_were_written(trained):
    for name in judges.JUDGES:
        judge, classes = judges.load_judge(trained / "judges" / f"{name}.safetensors")
        assert classes == ["koala", "tabby", "pay-phone", "a thing"]
        pixels = torch.randint(256, (5, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        assert judges.looked_at(judge.forward, pixels, batch=2).shape == (5, 4)
        assert [m.shape[1:] for m in judge.maps(torch.zeros(1, 3, 64, 64))] == [
            (8, 32, 32), (8, 16, 16), (8, 8, 8), (16, 4, 4),
        ]  # fmt: skip


def test_curves_are_drawn_of_what_is_logged(tmp_path):
    pytest.importorskip("matplotlib")
    assert not curves(tmp_path, tmp_path / "none.png") and not (tmp_path / "none.png").exists()
    (tmp_path / "unet.csv").write_text("step,samples,seconds,v\n100,800,1,0.9\n200,1600,2,0.5\n")
    assert curves(tmp_path, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size[0] > 100


def test_the_full_sizes_keep_within_what_ships(tmp_path):
    names = [name for line in photographs.SYNONYMS.read_text().splitlines() for name in line.split("\t")[1].split(", ")]
    tokenizer = parts.make_tokenizer(names, tmp_path, natural.VOCABULARY, natural.LENGTH)
    with torch.device("meta"):
        models = [parts.image_encoder(natural.SIZES), parts.text_encoder(natural.SIZES, tokenizer)]
        models += [parts.autoencoder(natural.SIZES), parts.unet(natural.SIZES)]
        looking = {name: judges.Judge(**config, classes=160) for name, config in judges.JUDGES.items()}
    sizes = [2 * sum(p.numel() for p in model.parameters()) for model in models]  # bytes, in half precision
    assert sum(sizes) <= 23_700_000 and max(sizes) <= 15_000_000, sizes  # 24 MB with the tokenizer and the card
    assert 2 * sum(p.numel() for p in looking["classifier"].parameters()) <= 9_900_000
    assert 2 * sum(p.numel() for p in looking["measure"].parameters()) <= 5_900_000
