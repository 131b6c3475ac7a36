"""What the command line says to those who ask for help, mistype or interrupt it."""

import os
import signal
import subprocess
import sys

import pytest
from commands import python, run

from torch_augcond import VARIANTS
from torch_augcond.cli.preview import _lines
from torch_augcond.defaults import SCHEDULER_NAMES, VARIANT_NAMES
from torch_augcond.generators.options import SCHEDULERS


def test_the_help_names_the_variants_there_are():
    assert tuple(VARIANTS) == VARIANT_NAMES
    assert tuple(SCHEDULERS) == SCHEDULER_NAMES


@pytest.mark.parametrize("command", ["generate", "status", "verify", "preview", "export"])
def test_help_loads_no_torch_and_has_one_wording_of_defaults(command):
    code = f"import sys\nfrom torch_augcond import cli\ntry: cli.main(['{command}', '--help'])\n"
    code += "except SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *text, loaded = done.stdout.splitlines()
    assert loaded == "False" and "['" not in done.stdout
    assert " ".join(text).count("default") == " ".join(text).count("(default: ")


@pytest.mark.parametrize("command", ["status", "generate"])
def test_a_folder_that_is_not_there(capsys, command):
    code, _, err = run(capsys, command, "nofolder")
    assert code == 1 and "must be a folder of real images, but there is no folder 'nofolder'" in err
    assert err.count("\n") == 1 and "Errno" not in err


@pytest.mark.skipif(os.name == "nt", reason="there, signals are others")
def test_an_interrupt_while_the_program_is_imported_is_one_line(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, os, signal\n"
        "class Late:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'torch_augcond.cli.signals': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Late())\n"
    )
    path = os.pathsep.join([str(tmp_path), os.getcwd(), *filter(None, sys.path)])
    process = python("-m", "torch_augcond", "status", "x", PYTHONPATH=path)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT and err == "torch-augcond: stopped\n"


@pytest.mark.parametrize(
    "label, lines",
    [
        ("night_blooming_cereus", ["night_", "blooming_", "cereus"]),
        ("embed-cutmix-dropout", ["embed-", "cutmix-", "dropout"]),
        ("tabby cat", ["tabby cat"]),
        ("_", ["_"]),
        ("extraordinarily", ["extraordin", "arily"]),
        ("", []),
    ],
)
def test_labels_are_broken_where_words_end(label, lines):
    assert _lines(label, 10) == lines
