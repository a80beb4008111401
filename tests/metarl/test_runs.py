"""Checkpoints: nothing is lost, nothing half written, nothing executed."""

import io
import json
import os
import pickle
import resource
import signal
import zipfile
from pathlib import Path

import pytest
import torch

from metarl.runs import Run, RunError, load_checkpoint, save_checkpoint, write_atomically

STATE = {"theta": {"w": torch.arange(1000.0)}, "iteration": 3, "note": "text", "list": [1, 2.5]}


@pytest.fixture
def path(tmp_path):
    save_checkpoint(tmp_path / "checkpoint.pt", STATE)
    return tmp_path / "checkpoint.pt"


def test_a_state_comes_back_as_it_was(path):
    state = load_checkpoint(path)
    assert torch.equal(state["theta"]["w"], STATE["theta"]["w"])
    assert {k: v for k, v in state.items() if k != "theta"} == {"iteration": 3, "note": "text", "list": [1, 2.5]}
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("keep", [0, 1, 100, -200, -1])
def test_a_truncated_file_is_refused(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RunError, match=r"checkpoint.pt cannot be read"):
        load_checkpoint(path)


def test_a_flipped_bit_anywhere_in_the_tensors_is_found(path):
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        data = next(info for info in archive.infolist() if "/data/" in info.filename)
    content[data.header_offset + 2000] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match="damaged"):
        load_checkpoint(path)


def test_a_foreign_file_is_refused(path):
    torch.save({"model": torch.ones(2)}, path)
    with pytest.raises(RunError, match="was not written by metarl"):
        load_checkpoint(path)
    path.write_text("hello")
    with pytest.raises(RunError, match="not a checkpoint"):
        load_checkpoint(path)


def test_a_newer_format_is_refused(path):
    torch.save({"format": "metarl-checkpoint", "version": 99, "state": {}}, path)
    with pytest.raises(RunError, match=r"format 99.* 1$"):
        load_checkpoint(path)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_a_file_that_would_execute_code_does_not(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    torch.save({"format": "metarl-checkpoint", "version": 1, "state": Evil()}, path)
    with pytest.raises(RunError, match="not plain tensors"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(RunError, match="cannot be read"):
        load_checkpoint(path)
    assert not (path.parent / "executed").exists()


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(RunError, match=f"^{tmp_path} cannot be read: Is a directory$"):
        load_checkpoint(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RunError, match=r"nothing\.pt does not exist"):
        load_checkpoint(tmp_path / "nothing.pt")


def test_a_full_disk_leaves_the_previous_checkpoint(path):
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(RunError, match=r"cannot write .*checkpoint.pt: .*intact"):
            save_checkpoint(path, {"theta": {"w": torch.zeros(5000)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint.pt"]


def test_a_kill_while_writing_leaves_the_previous_checkpoint(path, monkeypatch):
    def killed(*names):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, {"theta": {}})
    assert load_checkpoint(path)["iteration"] == 3


def test_processes_that_write_the_same_file_do_not_disturb_each_other(tmp_path, monkeypatch):
    replace, path = os.replace, tmp_path / "file"

    def late(temporary, target):
        monkeypatch.setattr(os, "replace", replace)
        write_atomically(path, b"of the other one, from start to end")
        replace(temporary, target)

    monkeypatch.setattr(os, "replace", late)
    write_atomically(path, b"own")
    assert path.read_bytes() == b"own"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_process_left_half_written_is_removed_by_the_next(tmp_path, monkeypatch):
    run = Run.create(tmp_path / "run", {"experiment": "e"})

    def killed(*names):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(SystemExit):
            run.save("checkpoint.pt", {"step": 0})
    run.release()
    assert len(list(run.directory.glob(".checkpoint.pt.*"))) == 1
    again = Run.create(tmp_path / "run", {"experiment": "e"})
    assert sorted(p.name for p in again.directory.iterdir()) == [".lock", "config.json"]


def test_the_content_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "fsync", lambda descriptor, real=os.fsync: (calls.append("sync"), real(descriptor))[1])
    monkeypatch.setattr(os, "replace", lambda a, b, real=os.replace: (calls.append("rename"), real(a, b))[1])
    write_atomically(tmp_path / "file", b"content")
    assert calls == ["sync", "rename", "sync"]


def test_a_run_needs_a_new_or_empty_directory(tmp_path):
    run = Run.create(tmp_path / "run", {"experiment": "e", "settings": {"seed": 1}})
    assert Run.open(tmp_path / "run").config == {"experiment": "e", "settings": {"seed": 1}}
    run.save("checkpoint.pt", {})
    with pytest.raises(RunError, match="already holds a run"):
        Run.create(run.directory, {})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(RunError, match="exists and is not a run"):
        Run.create(tmp_path / "other", {})
    with pytest.raises(RunError, match="exists and is not a run"):
        Run.create(tmp_path / "other" / "thesis.tex", {})
    with pytest.raises(RunError, match="holds no run"):
        Run.open(tmp_path / "other")


def test_metrics_survive_a_kill_and_a_rewind(tmp_path):
    run = Run.create(tmp_path / "run", {})
    for iteration in (1, 2, 3):
        run.append_metrics({"iteration": iteration, "kl": 0.1 * iteration})
    with open(run.metrics_path, "a") as file:
        file.write('5\n{"iteration": 4, "k')
    assert [line["iteration"] for line in run.metrics()] == [1, 2, 3]
    run.rewind(2)
    expected = [{"iteration": 1, "kl": 0.1}, {"iteration": 2, "kl": 0.2}]
    assert [json.loads(line) for line in io.StringIO(run.metrics_path.read_text())] == expected


def test_metrics_are_json_whatever_the_values(tmp_path):
    run = Run.create(tmp_path / "run", {})
    run.append_metrics({"iteration": 1, "mse": float("inf"), "kl": float("nan"), "loss": 0.5})

    def refuse(token):
        raise AssertionError(token)

    assert json.loads(run.metrics_path.read_text(), parse_constant=refuse) == {
        "iteration": 1, "mse": None, "kl": None, "loss": 0.5
    }  # fmt: skip


def test_only_one_process_writes_a_run(tmp_path):
    first = Run.create(tmp_path / "run", {"settings": 1})
    with pytest.raises(RunError, match="run is being written by another process"):
        Run.create(tmp_path / "run", {"settings": 2})
    first.save("checkpoint.pt", {})
    second = Run.open(tmp_path / "run")
    with pytest.raises(RunError, match="is being written by another process"):
        second.claim()
    assert second.config == {"settings": 1}
    first.release()
    second.claim()
    second.release()


def test_metrics_that_are_no_lines_of_ours_do_not_count(tmp_path):
    run = Run.create(tmp_path / "run", {})
    run.metrics_path.write_bytes(b'{"iteration": 1}\n{"iteration": "a"}\n{"\xff": 3}\n7\n{"iteration": 2}\n')
    assert run.metrics() == [{"iteration": 1}, {"iteration": 2}]


def test_a_damaged_config_is_named(tmp_path):
    run = Run.create(tmp_path / "run", {})
    for content in ("{", "[]"):
        (run.directory / "config.json").write_text(content)
        with pytest.raises(RunError, match=r"config.json cannot be read: not"):
            _ = run.config


def test_a_start_that_was_killed_before_its_first_checkpoint_can_be_made_again(tmp_path):
    killed = Run.create(tmp_path / "run", {"settings": 1})
    killed.release()  # as the operating system does
    run = Run.create(tmp_path / "run", {"settings": 2})
    assert run.config == {"settings": 2}
    run.save("checkpoint.pt", {"step": 0})
    with pytest.raises(RunError, match="already holds a run"):
        Run.create(tmp_path / "run", {"settings": 3})
    assert run.config == {"settings": 2}


def test_only_a_regular_file_is_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(RunError, match="regular file"):
            write_atomically(tmp_path / name, b"new")
    assert (tmp_path / "pipe").is_fifo()
    with pytest.raises(RunError, match="regular file"):
        write_atomically(Path("/dev/null"), b"new")
    assert Path("/dev/null").is_char_device()


def test_a_symbolic_link_is_followed(tmp_path):
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"


@pytest.mark.parametrize("line", ["[" * 100_000, '{"iteration": 2, "list": [NaN]}', '{"iteration": 2', "{}", "[1]"])
def test_lines_of_metrics_that_are_wrong_do_not_block_a_run(tmp_path, line):
    run = Run.create(tmp_path / "run", {"experiment": "e"})
    run.append_metrics({"iteration": 1, "values": [float("nan"), 1.0], "part": {"x": float("inf")}})
    with open(run.metrics_path, "a") as file:
        file.write(line + "\n")
    run.rewind(1)
    assert run.metrics() == [{"iteration": 1, "values": [None, 1.0], "part": {"x": None}}]


def test_a_configuration_nested_too_deep_is_refused(tmp_path):
    run = Run.create(tmp_path / "run", {"experiment": "e"})
    (run.directory / "config.json").write_text("[" * 100_000)
    with pytest.raises(RunError, match=r"config\.json"):
        _ = run.config
