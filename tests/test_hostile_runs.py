"""What somebody tried on runs under way: other folders, machines, containers and ranks."""

import shutil
import time

import pytest
from fakes import FakeGenerator
from faults import job_of, paint_sources, problems


@pytest.fixture
def real(tmp_path):
    paint_sources(tmp_path / "real")
    return tmp_path / "real"


def images(root):
    return list(root.glob("*/*.png"))


def at_third_batch(folder, act):
    """A generator that does something before its third batch of two, once the first two are in the folder."""
    generator = FakeGenerator()

    def generate(*inputs, **options):
        if len(generator.batches) == 2:
            deadline = time.monotonic() + 60
            while len(images(folder)) < 4 and time.monotonic() < deadline:
                time.sleep(0.01)
            act()
        return FakeGenerator.generate(generator, *inputs, **options)

    generator.generate = generate
    return generator


# --- A root that becomes another folder


def test_a_root_that_comes_to_lead_to_another_set_is_left_alone(real, tmp_path):
    job_of(real, tmp_path / "two", seed=5, num_per_class=2).make()
    before, root = set(images(tmp_path / "two")), tmp_path / "now"
    (tmp_path / "one").mkdir()
    root.symlink_to(tmp_path / "one")

    def turn():
        root.unlink()
        root.symlink_to(tmp_path / "two")

    job = job_of(real, root, at_third_batch(tmp_path / "one", turn))
    with pytest.raises(RuntimeError, match="another one now: `root` must hold one set, but .* `seed` is 5 there"):
        job.make(batch_size=2)
    assert set(images(tmp_path / "two")) == before and not problems(tmp_path / "two")
    assert len(images(tmp_path / "one")) == 4


def test_a_root_that_is_put_elsewhere_ends_the_run(real, tmp_path):
    def move():
        (tmp_path / "set").rename(tmp_path / "kept")
        (tmp_path / "set").mkdir()

    job = job_of(real, tmp_path / "set", at_third_batch(tmp_path / "set", move))
    with pytest.raises(RuntimeError, match="another one now: .* holds no set of images"):
        job.make(batch_size=2)
    assert not images(tmp_path / "set") and len(images(tmp_path / "kept")) == 4


def test_a_root_that_is_replaced_by_its_copy_is_filled(real, tmp_path):
    """Some network file systems number their folders anew."""

    def copy():
        (tmp_path / "set").rename(tmp_path / "kept")
        shutil.copytree(tmp_path / "kept", tmp_path / "set")

    job = job_of(real, tmp_path / "set", at_third_batch(tmp_path / "set", copy))
    assert job.make(batch_size=2).made == 12 and len(images(tmp_path / "set")) == 12
