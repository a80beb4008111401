"""The run directory: what a run writes, so that nothing is lost and nothing is executed when it is read.

Its directory holds:

    config.json       the settings, and which experiment they belong to
    metrics.jsonl     one line per meta-iteration; null where a metric is not finite
    checkpoint.pt     the last state: written to a temporary file, synced and renamed
    best.pt           the state with the highest return after adaptation in training
"""

import io
import json
import math
import os
import secrets
import zipfile
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

FORMAT, VERSION = "metarl-checkpoint", 1
_LOCK, _UNFINISHED = ".lock", ".writing"


class RunError(RuntimeError):
    """A run directory or a file in it that cannot be used; the message is one line."""


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file by new content, or leave it as it was; no reader ever sees half of it.

    Processes that write the same file at the same time do not disturb each other: the last one's content stays.
    A symbolic link is followed: what it points to is replaced, and the link stays.

    Raises:
        RunError: the disk is full, the place cannot be written, or something else than a regular file is there.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise RunError(f"cannot write {path}: it is not a regular file")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}{_UNFINISHED}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_directory(target.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f"cannot write {path}: {error.strerror}; what was there before is intact") from error


def _sync_directory(directory: Path) -> None:
    """Make a rename in a directory durable, where the operating system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a state of tensors, numbers, texts, lists and dicts."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "version": VERSION, "state": state}, buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a state, executing nothing that the file holds.

    Raises:
        RunError: no file, a truncated, damaged or foreign one, one that would execute code, or a newer format.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise RunError(f"{path} is damaged: {damaged} does not match its checksum")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RunError(f"{path} does not exist") from None
    except (RunError, MemoryError):
        raise
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        reason = "truncated or not a checkpoint" if isinstance(error, zipfile.BadZipFile) else "not plain tensors"
        raise RunError(f"{path} cannot be read: {reason}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or not {"version", "state"} <= content.keys():
        raise RunError(f"{path} was not written by metarl")
    if content["version"] > VERSION:
        raise RunError(f"{path} has format {content['version']}; this version of metarl reads up to {VERSION}")
    return content["state"]


def _of_no_run(path: Path) -> bool:
    """Whether a file may lie where a run begins, as a start that was killed before its first checkpoint leaves it."""
    return path.name in {"config.json", _LOCK} or path.name.endswith(_UNFINISHED)


class Run:
    """A run directory that is being written."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.metrics_path = directory / "metrics.jsonl"
        self._lock = FileLock(directory / _LOCK, blocking=False)

    @classmethod
    def create(cls, directory: Path, config: dict[str, Any]) -> "Run":
        """Start a run in a new or empty directory; RunError if something is there.

        A configuration alone is left from a start that was killed, and counts as nothing.
        """
        if (directory / "checkpoint.pt").exists():
            raise RunError(f"{directory} already holds a run; continue it with --resume {directory}")
        if directory.exists() and not (directory.is_dir() and all(map(_of_no_run, directory.iterdir()))):
            raise RunError(f"{directory} exists and is not a run; choose a new or empty directory")
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot make {directory}: {error.strerror}") from error
        run = cls(directory)
        run.claim()
        run.write_config(config)
        return run

    def claim(self) -> None:
        """Be the only one to write the run, until `release` or the end of the process; RunError if another one does.

        Files that a killed process left half written are removed. The lock is the operating system's; on file systems
        that have none it lets all pass.
        """
        try:
            self._lock.acquire()
        except Timeout:
            raise RunError(
                f"{self.directory} is being written by another process; choose another one, or wait"
            ) from None
        except (NotImplementedError, OSError):
            return
        for path in self.directory.glob(f".*{_UNFINISHED}"):
            path.unlink(missing_ok=True)

    def release(self) -> None:
        """Give up the lock, so that another process may write the run."""
        self._lock.release()

    @classmethod
    def open(cls, directory: Path) -> "Run":
        """Open a run that exists; RunError if there is none."""
        if not (directory / "config.json").is_file():
            raise RunError(f"{directory} holds no run: there is no config.json in it")
        return cls(directory)

    @property
    def config(self) -> dict[str, Any]:
        """The content of config.json; RunError if it cannot be read."""
        path = self.directory / "config.json"
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"{path} cannot be read: not JSON") from error
        if not isinstance(content, dict):
            raise RunError(f"{path} cannot be read: not a JSON object")
        return content

    def write_config(self, config: dict[str, Any]) -> None:
        """Write the settings, which a resumed run may have changed."""
        write_atomically(self.directory / "config.json", (json.dumps(config, indent=2) + "\n").encode())

    def append_metrics(self, metrics: dict[str, Any]) -> None:
        """Add the line of an iteration; RunError if it cannot be written."""
        try:
            with open(self.metrics_path, "a") as file:
                file.write(_line(metrics))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f"cannot write {self.metrics_path}: {error.strerror}") from error

    def metrics(self, up_to: int | None = None) -> list[dict[str, Any]]:
        """The metrics of all iterations, up to a number; a line that a kill left unfinished does not count."""
        lines = self.metrics_path.read_text(errors="replace").splitlines() if self.metrics_path.exists() else []
        parsed = [metrics for metrics in map(_parse_line, lines) if metrics is not None]
        return [line for line in parsed if up_to is None or line["iteration"] <= up_to]

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Write a checkpoint under a file name, with the configuration."""
        save_checkpoint(self.directory / name, {**state, "config": self.config})

    def load(self, name: str) -> dict[str, Any]:
        """Read a checkpoint by file name."""
        return load_checkpoint(self.directory / name)

    def rewind(self, iteration: int) -> None:
        """Drop the metrics of the iterations after a checkpoint's."""
        write_atomically(self.metrics_path, "".join(map(_line, self.metrics(iteration))).encode())


def _line(metrics: dict[str, Any]) -> str:
    """Metrics as a line of JSON, which knows neither NaN nor Infinity: null stands for them."""
    return json.dumps(_finite(metrics), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parse_line(line: str) -> dict[str, Any] | None:
    try:
        metrics = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return metrics if isinstance(metrics, dict) and isinstance(metrics.get("iteration"), int) else None
