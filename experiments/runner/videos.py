"""Videos of test tasks before and after adaptation, as mp4 files and in TensorBoard."""

import importlib.util
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from metarl.envs import TaskBatch, Tasks
from metarl.rl.agent import Agent
from metarl.rl.evaluation import ReturnEvaluation
from metarl.rl.learner import Learner

_FASTEST = 50  # pictures per second


def save_videos(learner: Learner, evaluation: ReturnEvaluation, tasks: Sequence[int], folder: Path) -> None:
    """Film chosen test tasks with theta and after the last gradient step: video_taskM_before.mp4 and _after.mp4.

    A machine that cannot film gets one line that says why; everything else is unaffected.
    """
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        print("no video: install the extra, pip install '.[video]'", file=sys.stderr)
        return
    try:
        with SummaryWriter(str(folder)) as writer:
            for task in tasks:
                for label, adapted in (("before", evaluation.path[0]), ("after", evaluation.path[-1])):
                    values = {name: value[task : task + 1] for name, value in evaluation.tasks.items()}
                    frames, fps = film(learner, learner.agent(adapted, task), values)
                    name = f"video_task{task}_{label}"
                    _write_mp4(folder / f"{name}.mp4", frames, fps)
                    _write_tensorboard(writer, name, frames, fps, learner.iteration)
                    print(f"{folder / name}.mp4: {_describe(values)}, {label} adaptation")
    except RuntimeError as error:
        print(f"no video: {error}", file=sys.stderr)


def film(learner: Learner, agent: Agent, task: Tasks) -> tuple[np.ndarray, int]:
    """Play one episode with the most likely actions.

    Args:
        learner: whose environments are played in, with its seed.
        agent: that acts.
        task: a dict of arrays (1, ...).

    Returns:
        frames (T, height, width, 3) uint8, and their number per second.

    Raises:
        RuntimeError: environments that draw no pictures, or a machine without a renderer.
    """
    batch = learner.task_distribution.make(1)
    try:
        if not isinstance(batch, TaskBatch):
            raise RuntimeError(f"{type(batch).__name__} draws no pictures")
        frames, stride = [], -(-batch.render_fps // _FASTEST)
        observations, _ = batch.reset(seed=learner.seed, options={"tasks": task})
        while not batch.finished[0]:
            if batch.elapsed_steps % stride == 0:
                frames.append(batch.render_lane(0))
            observations, *_ = batch.step(agent(observations[0])[None])
        return np.stack(frames), batch.render_fps // stride
    finally:
        batch.close()


def _write_mp4(path: Path, frames: np.ndarray, fps: int) -> None:
    from imageio.v2 import mimsave  # an optional extra

    mimsave(path, list(frames), fps=fps, macro_block_size=8)


def _write_tensorboard(writer: SummaryWriter, name: str, frames: np.ndarray, fps: int, iteration: int) -> None:
    """As an animated picture at half size; the writer's own add_video needs another library."""
    from imageio.v2 import mimsave

    small, content = frames[:, ::2, ::2], BytesIO()
    mimsave(content, list(small), format="gif", duration=1000 / fps, loop=0)
    _, height, width, _ = small.shape
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content.getvalue())
    summary = Summary(value=[Summary.Value(tag=name, image=image)])
    writer._get_file_writer().add_summary(summary, iteration)


def _describe(task: Tasks) -> str:
    return ", ".join(f"{name} {np.round(value[0], 3)}" for name, value in task.items())
