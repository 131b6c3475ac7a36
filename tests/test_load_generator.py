"""Where checkpoints come from, what they are called, and what is said when they can't be had."""

import functools
import shutil
import socket
import subprocess
import sys
import warnings

import pytest
import torch
from hub import FakeHub, http, hub  # noqa: F401, a fixture
from pipelines import edit_json, save_pipeline
from safetensors.torch import load_file, save_file

from torch_augcond import generators, load_generator
from torch_augcond.generators.checkpoints import MIRRORS, TINY, find_checkpoint

H, SMALL = MIRRORS["sd21-unclip"], MIRRORS["sd21-unclip-small"]
WEIGHTS = "unet/diffusion_pytorch_model"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("the network is forbidden in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("pipelines") / "saved")


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "folder")


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_importing_loads_neither_diffusers_nor_transformers():
    code = (
        "import sys, torch_augcond.generators; print({'diffusers', 'transformers', 'huggingface_hub'} & {*sys.modules})"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_a_folder_is_loaded_offline_and_quietly(folder, capfd):
    generator = load_generator(str(folder), device="cpu")
    assert (generator.image_size, generator.embed_dim, generator.dtype) == (32, 32, torch.float32)
    prompts = generator.encode_prompts(["a photo of a cat"])
    images = generator.generate(
        torch.randn(1, 32), prompts, torch.tensor([1]), guidance_scale=2.0, num_inference_steps=2
    )
    assert images.shape == (1, 3, 32, 32)
    assert capfd.readouterr().err == ""
    assert load_generator(folder, device="cpu", dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_folder_is_known_by_its_content(folder, tmp_path):
    fingerprint = find_checkpoint(folder).fingerprint
    assert fingerprint.startswith("local@") and len(fingerprint) == len("local@") + 32
    moved = folder.rename(tmp_path / "elsewhere")
    (moved / "README.md").write_text("A model card.")
    assert find_checkpoint(moved).fingerprint == fingerprint
    for file in (f"{WEIGHTS}.safetensors", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json"):
        data = (moved / file).read_bytes()
        (moved / file).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert find_checkpoint(moved).fingerprint != fingerprint
        (moved / file).write_bytes(data)
    assert find_checkpoint(moved).fingerprint == fingerprint


def test_variant_and_its_errors(folder):
    plain = find_checkpoint(folder)
    weights = folder / f"{WEIGHTS}.safetensors"
    shutil.copy(weights, folder / f"{WEIGHTS}.fp16.safetensors")
    assert find_checkpoint(folder) == plain
    assert f"{WEIGHTS}.fp16.safetensors" in find_checkpoint(folder, variant="fp16").files
    assert f"{WEIGHTS}.safetensors" not in find_checkpoint(folder, variant="fp16").files
    assert load_generator(folder, variant="fp16", device="cpu").embed_dim == 32
    with pytest.raises(ValueError, match=r"`variant` must be None or 'fp16' for .* but got 'bf16'") as error:
        load_generator(folder, variant="bf16")
    one_line(error)
    weights.unlink()
    with pytest.raises(ValueError, match=r"has none for unet\. It has variant='fp16'\. Convert"):
        load_generator(folder)


def test_pickled_weights_are_never_read(folder):
    for part in ("unet", "vae"):
        (folder / part / "diffusion_pytorch_model.safetensors").rename(folder / part / "diffusion_pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"must hold safetensors weights, but .* has none for unet, vae\. Conv"
    ) as error:
        load_generator(folder)
    one_line(error)


def test_code_from_a_checkpoint_is_never_run(folder, tmp_path):
    canary = tmp_path / "canary"
    (folder / "unet" / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass UNet: pass\n")
    edit_json(folder / "model_index.json", unet=["evil", "UNet"])
    with pytest.raises(ValueError, match=r"classes of diffusers and transformers only.*unet from evil\. Code") as error:
        load_generator(folder)
    one_line(error)
    assert not canary.exists()


def test_a_folder_that_is_no_unclip_pipeline(folder, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"must be a folder that holds a StableUnCLIP.*no model_index.json\. Wri"
    ):
        load_generator(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no folder '.*no-such-folder'"):
        load_generator(tmp_path / "no-such-folder")
    with pytest.raises(FileNotFoundError, match=r"sd21-unclip-small, tiny, but there is no folder 'sd21'"):
        load_generator("sd21")
    edit_json(folder / "model_index.json", _class_name="StableDiffusionPipeline")
    with pytest.raises(ValueError, match=r"but '.*folder' holds a StableDiffusionPipeline\. Only") as error:
        load_generator(folder)
    one_line(error)
    (folder / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match=r"model_index.json must be JSON, but .*\. Fetch the checkpoint again"):
        load_generator(folder)


@pytest.mark.parametrize("part", ["image_encoder", "image_normalizer", "text_encoder", "unet", "vae"])
def test_weights_that_are_missing_are_not_drawn_at_random(folder, part):
    (file,) = (folder / part).glob("*.safetensors")
    tensors = load_file(file)
    _, tensor = tensors.popitem()
    save_file(tensors, file, {"format": "pt"})
    lacks = (
        rf"must hold all weights, but '.*folder' lacks {tensor.numel():,} of its {part}\. Fetch the checkpoint again"
    )
    with pytest.raises(ValueError, match=lacks) as error:
        load_generator(folder)
    one_line(error)


@pytest.mark.parametrize("part", ["image_encoder", "image_normalizer", "text_encoder", "unet"])
def test_weights_under_other_names_are_missing(folder, part):
    (file,) = (folder / part).glob("*.safetensors")
    save_file({f"_orig_mod.{name}": tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"must hold all weights, but '.*folder' lacks [\d,]+ of its {part}\."):
        load_generator(folder)


def test_a_folder_that_lost_files(folder):
    (folder / "scheduler" / "scheduler_config.json").unlink()
    for name in ("tokenizer.json", "vocab.json"):
        (folder / "tokenizer" / name).unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"but '.*folder' has no file of scheduler, tokenizer\. Fetch"):
        load_generator(folder)


def test_a_tokenizer_of_which_a_file_is_still_to_come(folder):
    (folder / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    for name in ("vocab.json", "merges.txt"):
        (folder / "tokenizer" / name).write_text("{}")
    (folder / "tokenizer" / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"but '.*folder' has no file of tokenizer\. Fetch"):
        load_generator(folder)


def test_a_folder_with_damaged_files(folder):
    (file,) = (folder / "vae").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(
        ValueError, match=r"vae/.*\.safetensors is damaged \(.*\)\. Fetch the checkpoint again"
    ) as error:
        load_generator(folder)
    one_line(error)
    for text, match in (("[]", "must be a JSON object"), ('{"_class_name": 3}', "holds a 3")):
        (folder / "model_index.json").write_text(text)
        with pytest.raises(ValueError, match=match):
            load_generator(folder)
    edit_json(folder / "model_index.json", _class_name="StableUnCLIPImg2ImgPipeline", unet=5)
    with pytest.raises(ValueError, match="unet from None"):
        load_generator(folder)


def test_an_encoder_that_does_not_fit(tmp_path):
    save_pipeline(tmp_path, unet_dim=48)
    with pytest.raises(
        ValueError, match=r"twice as wide as the image encoder's \(must be 64, but got 96\).*ViT-H"
    ) as error:
        load_generator(tmp_path)
    one_line(error)


def test_too_little_memory_is_said_before_loading(saved, monkeypatch):
    parameters = find_checkpoint(saved).num_parameters()
    assert parameters == sum(p.numel() for p in _parameters(saved))
    monkeypatch.setattr(generators, "free_memory", lambda device: 4 * parameters - 1)
    monkeypatch.setattr(generators, "_load_pipeline", lambda *args: pytest.fail("must not start to load"))
    with pytest.raises(
        MemoryError, match=r"weights need 0\.0 GiB in float32, but cpu has .* free\. Use dtype="
    ) as error:
        load_generator(saved, device="cpu")
    one_line(error)
    monkeypatch.undo()
    monkeypatch.setattr(generators, "free_memory", lambda device: 4 * parameters)
    assert load_generator(saved, device="cpu").embed_dim == 32


def _parameters(folder):
    pipe = load_generator(folder, device="cpu").pipe
    for model in (pipe.image_encoder, pipe.text_encoder, pipe.unet, pipe.vae, pipe.image_normalizer):
        yield from model.parameters()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"), MemoryError()])
def test_too_little_memory_while_loading(saved, monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(generators, "_load_pipeline", fail)
    monkeypatch.setattr(generators, "free_memory", lambda device: None)
    with pytest.raises(MemoryError, match=r'cpu has too little free\. Use dtype=.*generator="tiny"') as caught:
        load_generator(saved, device="cpu")
    one_line(caught)


def test_a_large_model_on_a_cpu_points_to_the_tiny_one(tmp_path, saved):
    save_pipeline(tmp_path, size=256)
    with pytest.warns(UserWarning, match=r'256×256 images.*estimate_seconds.*generator="tiny" is the one to try'):
        assert load_generator(tmp_path, device="cpu").image_size == 256
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load_generator(saved, device="cpu")


def test_dtype_must_be_a_floating_dtype(saved):
    rule = "`dtype` must be a floating torch.dtype of 16 bits or more, such as torch.bfloat16, but got "
    for dtype in ("fp16", torch.int32, torch.float8_e4m3fn):
        with pytest.raises(TypeError, match=f"{rule}{dtype!r}"):
            load_generator(saved, dtype=dtype)


@pytest.mark.skipif(not TINY.is_dir(), reason="the bundled checkpoint has not been trained yet")
def test_the_bundled_model():
    generator = load_generator("tiny", device="cpu")
    assert generator.image_size == 32
    assert generator.fingerprint.startswith("local@")
    assert sum(file.stat().st_size for file in TINY.rglob("*")) <= 8e6
    embeds = generator.encode_images([torch.arange(32 * 32 * 3).view(3, 32, 32).to(torch.uint8)])
    prompts = generator.encode_prompts(["a photo of a cat"])
    images = generator.generate(embeds, prompts, torch.tensor([3]), guidance_scale=2.0, num_inference_steps=4)
    assert images.shape == (1, 3, 32, 32)


def test_the_commit_is_resolved_and_only_safetensors_come(hub: FakeHub, folder):  # noqa: F811
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "unet" / "code.py").write_text("raise SystemExit")
    (folder / "sample.png").write_bytes(b"an image")
    hub.repos[H[0]] = folder
    generator = load_generator("sd21-unclip", cache_dir=hub.cache, device="cpu")
    assert generator.fingerprint == f"{H[0]}@{hub.commit}"
    assert sorted({name.rpartition(".")[2] for name in hub.sent}) == ["json", "safetensors"]
    hub.online = False  # what is cached is used without a network, asked for or not
    for flag in (True, False):
        again = load_generator("sd21-unclip", cache_dir=hub.cache, device="cpu", local_files_only=flag)
        assert again.fingerprint == generator.fingerprint


def test_mirrors_are_tried_in_order(hub: FakeHub, folder):  # noqa: F811
    hub.status = {H[0]: 401, H[1]: 404}
    hub.repos = {H[2]: folder, H[3]: folder}
    assert find_checkpoint("sd21-unclip", cache_dir=hub.cache).fingerprint == f"{H[2]}@{hub.commit}"
    assert not any(H[3] in path for path in hub.asked)


def test_one_repository_and_revision_and_variant(hub: FakeHub, folder):  # noqa: F811
    shutil.copy(folder / f"{WEIGHTS}.safetensors", folder / f"{WEIGHTS}.fp16.safetensors")
    hub.repos["me/mine"] = folder
    found = find_checkpoint("me/mine", revision="v1", variant="fp16", cache_dir=hub.cache)
    assert found.fingerprint == f"me/mine@{hub.commit}#fp16"
    assert f"{WEIGHTS}.safetensors" not in hub.sent
    assert any("/resolve/v1/" in path for path in hub.asked)


@pytest.mark.parametrize("name, mirrors", MIRRORS.items())
def test_gone_from_all_mirrors(hub: FakeHub, name, mirrors):  # noqa: F811
    hub.status = dict(zip(mirrors, (404, 401, 403, 401)))
    with pytest.raises(
        FileNotFoundError, match=f"{name!r} is gone from the Hugging Face Hub, or closed to you"
    ) as error:
        load_generator(name, cache_dir=hub.cache)
    tried = ", ".join(f"{repo} ({status})" for repo, status in hub.status.items())
    assert (
        f'tried {tried}. Pass a folder that holds it, `token` if it is private, or use generator="tiny".'
        in one_line(error)
    )


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_a_proxy_that_refuses(hub: FakeHub, status):  # noqa: F811
    hub.status, hub.codes = dict.fromkeys(H, status), {}
    with pytest.raises(
        ConnectionError, match=r"is not cached and the Hugging Face Hub can't be reached; tried"
    ) as error:
        load_generator("sd21-unclip", cache_dir=hub.cache)
    assert all(f"{repo} ({status})" in one_line(error) for repo in H)
    assert "which needs no network" in one_line(error)


def test_no_network_is_found_at_once_and_in_silence(hub: FakeHub, folder, capfd):  # noqa: F811
    hub.online = False
    with pytest.raises(ConnectionError, match=rf"can't be reached; tried {H[0]} \(ConnectError\)\. Check the network"):
        load_generator("sd21-unclip", cache_dir=hub.cache)
    assert len(hub.asked) == 1 and capfd.readouterr().err == ""
    hub.online, hub.repos[H[2]] = True, folder
    find_checkpoint("sd21-unclip", cache_dir=hub.cache)
    hub.online, hub.asked = False, []  # another mirror than the first is cached
    assert find_checkpoint("sd21-unclip", cache_dir=hub.cache).fingerprint == f"{H[2]}@{hub.commit}"
    assert len(hub.asked) == 1
    next(hub.cache.glob("*/snapshots/*/unet/*.safetensors")).unlink()
    with pytest.raises(ConnectionError, match=rf"can't be reached; tried {H[0]} \(ConnectError\)\. Check the network"):
        find_checkpoint("sd21-unclip", cache_dir=hub.cache)


def test_a_slow_hub_is_given_the_clients_patience(hub: FakeHub, folder):  # noqa: F811
    hub.repos["me/mine"] = folder
    handle, late = hub.handle, [True, True]

    def delay(request):
        if late:
            late.pop()
            raise http.ReadTimeout("too slow", request=request)
        return handle(request)

    hub.handle = delay
    assert find_checkpoint("me/mine", cache_dir=hub.cache).fingerprint == f"me/mine@{hub.commit}"


def test_no_network_below_http(tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(
        ConnectionError, match="can't be reached; tried sd2-community.* Check the network, pass a folder"
    ):
        load_generator("sd21-unclip-small", cache_dir=tmp_path)


def test_network_lost_after_the_index(hub: FakeHub, folder):  # noqa: F811
    hub.repos["me/mine"] = folder
    handle, cut, lost = hub.handle, [True], []

    def lose(request):
        if cut and (lost or "safetensors" in request.url.path):
            lost.append(request)
            raise http.ConnectError("no route to host", request=request)
        return handle(request)

    hub.handle = lose
    load = functools.partial(find_checkpoint, "me/mine", cache_dir=hub.cache)
    with pytest.raises(ConnectionError, match=r"can't be reached; tried me/mine"):
        load()
    with pytest.raises(ValueError, match="must hold all parts of a pipeline, but 'me/mine' has no file of"):
        load(local_files_only=True)
    cut.clear()
    assert load().fingerprint == f"me/mine@{hub.commit}"


def test_nothing_cached(hub: FakeHub):  # noqa: F811
    with pytest.raises(FileNotFoundError, match=r"`local_files_only` is set, but 'sd21-unclip' is not cached") as error:
        load_generator("sd21-unclip", cache_dir=hub.cache, local_files_only=True)
    assert all(repo in one_line(error) for repo in H)
    assert not hub.asked


def test_a_repository_that_is_no_unclip_pipeline(hub: FakeHub, folder, tmp_path):  # noqa: F811
    edit_json(folder / "model_index.json", _class_name="StableDiffusionPipeline")
    hub.repos = {"me/mine": folder, "me/empty": tmp_path / "empty"}
    with pytest.raises(ValueError, match="'me/mine' holds a StableDiffusionPipeline"):
        load_generator("me/mine", cache_dir=hub.cache)
    assert hub.sent == ["model_index.json"]  # refused before gigabytes were downloaded
