"""Prepared files: used while the files they were made of are the same, and never trusted."""

import os

import pytest
import torch

from metarl.few_shot.images import image_cache
from metarl.few_shot.images.image_cache import default_cache, files_below, prepared
from metarl.runs import RunError, save_checkpoint


class Reader:
    """Counts how often it reads."""

    def __init__(self):
        self.reads = 0

    def __call__(self):
        self.reads += 1
        return {"images": torch.full((2,), self.reads)}


def check(content):
    if not isinstance(content, dict) or not isinstance(content.get("images"), torch.Tensor):
        raise RunError("it holds no images")


@pytest.fixture
def files(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "data" / name).write_text(name)
    return files_below(tmp_path / "data")


def test_files_are_read_once_until_they_change(files, tmp_path, capsys):
    read = Reader()
    for _ in range(2):
        assert prepared(tmp_path / "cache", "some_set", files, read, check)["images"].tolist() == [1, 1]
    assert capsys.readouterr().err.count("preparing some set for later starts") == 1
    os.utime(files[0], ns=(0, 5))
    prepared(tmp_path / "cache", "some_set", files, read, check)
    files[1].write_text("other content")
    prepared(tmp_path / "cache", "some_set", files, read, check)
    prepared(tmp_path / "cache", "some_set", files[:1], read, check)
    prepared(tmp_path / "cache", "some_set", files[:1], read, check, "another form")
    assert read.reads == 5


def test_what_an_older_reader_prepared_is_not_used(files, tmp_path, monkeypatch):
    read = Reader()
    prepared(tmp_path / "cache", "some_set", files, read, check)
    monkeypatch.setattr(image_cache, "READERS_VERSION", image_cache.READERS_VERSION + 1)
    prepared(tmp_path / "cache", "some_set", files, read, check)
    assert read.reads == 2


@pytest.mark.parametrize("content", [{"images": "a text"}, {}, "a text", None])
def test_a_prepared_file_with_something_else_is_named_and_made_again(files, tmp_path, capsys, content):
    read = Reader()
    prepared(tmp_path / "cache", "some_set", files, read, check)
    [path] = (tmp_path / "cache").glob("*.pt")
    path.write_bytes(b"damaged") if content is None else save_checkpoint(path, content)
    capsys.readouterr()
    assert prepared(tmp_path / "cache", "some_set", files, read, check)["images"].tolist() == [2, 2]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0].startswith(f"{path} is not used: ")
    assert prepared(tmp_path / "cache", "some_set", files, read, check)["images"].tolist() == [2, 2]


def test_nothing_is_kept_when_reading_fails(files, tmp_path):
    def read():
        raise RunError("broken")

    with pytest.raises(RunError, match="broken"):
        prepared(tmp_path / "cache", "some_set", files, read, check)
    assert not (tmp_path / "cache").exists()


def test_links_that_lead_nowhere_do_not_stop_it(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ".#lock").symlink_to("nowhere")
    read = Reader()
    prepared(tmp_path / "cache", "some_set", files_below(tmp_path / "data"), read, check)
    assert read.reads == 1


def test_the_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "metarl"


def test_files_behind_links_to_folders_are_seen_once(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "around").symlink_to(tmp_path / "data")
    found = [path for path in files_below(tmp_path / "data") if path.parent.name == "train"]
    assert [path.name for path in found] == ["a.png"]
