"""Reading a set, and making one with the bundled model, never touch the network."""

import subprocess
import sys

import pytest
from fakes import FakeGenerator
from torchvision.datasets import ImageFolder

from torch_augcond import AugConditionedSynthetic

# No socket can be made, which urllib3 tries as it is imported (to see whether there is IPv6) and takes as an answer.
# Whoever asks for an address or a connection ends the process, so no error handling can hide it.
_FORBIDDEN = """
import socket, sys
ASKED = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request")
def forbid(event, args):
    if event == "socket.__new__":
        raise OSError("sockets are forbidden")
    if event in ASKED:
        raise SystemExit(f"the network was asked for: {event} {args}")
def refuse(*args, **options):
    raise SystemExit(f"the network was asked for: {args}")
sys.addaudithook(forbid)
socket.create_connection = socket.getaddrinfo = refuse
"""


def offline(code, *argv):
    done = subprocess.run([sys.executable, "-c", _FORBIDDEN + code, *map(str, argv)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "code, message",
    [
        ("socket.socket()", "sockets are forbidden"),
        ("import _socket; _socket.socket()", "sockets are forbidden"),
        ("socket.getaddrinfo('localhost', 80)", "the network was asked for"),
        ("import _socket; _socket.getaddrinfo('localhost', 80)", "the network was asked for"),
        ("import urllib.request; urllib.request.urlopen('http://localhost')", "the network was asked for"),
    ],
)
def test_the_ban_is_real(code, message):
    done = subprocess.run([sys.executable, "-c", _FORBIDDEN + code], capture_output=True, text=True)
    assert done.returncode == 1 and message in done.stderr


def test_reading_a_set(data, tmp_path):
    real = ImageFolder(data)
    made = AugConditionedSynthetic(real, root=tmp_path / "set", generator=FakeGenerator(), num_per_image=2)
    code = """
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2 import PILToTensor
from torch_augcond import AugConditionedSynthetic, MixedRealSyntheticSampler
import torch_augcond.job
torch_augcond.job._made_by = lambda fingerprint, name: True
real = ImageFolder(sys.argv[1], transform=PILToTensor())
synthetic = AugConditionedSynthetic(real, root=sys.argv[2], num_per_image=2, generate=False)
images = [synthetic.provenance(i) and synthetic[i] for i in range(len(synthetic))]
list(MixedRealSyntheticSampler(real + synthetic))
print(len(images), *sorted({"diffusers", "transformers"} & set(sys.modules)))
"""
    assert offline(code, data, tmp_path / "set") == f"{len(made)}\n"


def test_the_bundled_generator(data, tmp_path):
    code = """
from torch_augcond.cli import main
argv = ["generate", sys.argv[1], "--root", sys.argv[2], "--generator", "tiny", "--num-inference-steps", "2"]
main(argv) and sys.exit("it failed")
main(["status", sys.argv[1], "--root", sys.argv[2], "--generator", "tiny", "--num-inference-steps", "2"])
"""
    out = offline(code, data, tmp_path / "set")
    assert "5 images made" in out and "5 wanted, 5 complete" in out
