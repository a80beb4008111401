"""Videos of test tasks before and after adaptation, as mp4 files and in TensorBoard."""

import importlib.util
import math
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from metarl.envs import TaskBatch, Tasks
from metarl.envs.mujoco_batch import MujocoBatch
from metarl.rl.agent import Agent
from metarl.rl.evaluation import TaskEvaluation
from metarl.rl.learner_base import PolicyLearner

_FASTEST = 50  # pictures per second
_METRE = 60  # pixels of the ruler
_DARK, _LIGHT, _MARKED = (30, 30, 30), (245, 245, 245), (240, 170, 40)


def save_videos(learner: PolicyLearner, evaluation: TaskEvaluation, tasks: Sequence[int], folder: Path) -> None:
    """Film chosen test tasks at the first and at the last step: video_taskM_before.mp4 and _after.mp4.

    A machine that cannot film gets one line that says why; everything else is unaffected.
    """
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        print("no video: install the extra, pip install '.[video]'", file=sys.stderr)
        return
    try:
        with SummaryWriter(str(folder)) as writer:
            for task in tasks:
                for label, steps in (("before", 0), ("after", len(evaluation.path) - 1)):
                    values = {name: value[task : task + 1] for name, value in evaluation.tasks.items()}
                    title = f"{_describe(values)}, {steps} {evaluation.step_name}"
                    frames, fps = film(learner, learner.agent(evaluation.path[steps], task), values, title)
                    name = f"video_task{task}_{label}"
                    _write_mp4(folder / f"{name}.mp4", frames, fps)
                    _write_tensorboard(writer, name, frames, fps, learner.iteration)
                    print(f"{folder / name}.mp4: {_describe(values)}, {label} adaptation")
    except RuntimeError as error:
        print(f"no video: {error}", file=sys.stderr)


def film(learner: PolicyLearner, agent: Agent, task: Tasks, title: str) -> tuple[np.ndarray, int]:
    """Play one episode with the most likely actions; the pictures show a title and the return so far.

    The camera follows a body, so where there is one a ruler shows how far it has come from its start.

    Args:
        learner: whose environments are played in, with its seed.
        agent: that acts.
        task: a dict of arrays (1, ...).
        title: stands in every picture.

    Returns:
        frames (T, height, width, 3) uint8, and their number per second.

    Raises:
        RuntimeError: environments that draw no pictures, or a machine without a renderer.
    """
    batch = learner.task_distribution.make(1)
    try:
        if not isinstance(batch, TaskBatch):
            raise RuntimeError(f"{type(batch).__name__} draws no pictures")
        frames, stride, total = [], -(-batch.render_fps // _FASTEST), 0.0
        observations, _ = batch.reset(seed=learner.seed, options={"tasks": task})
        start = _position(batch)
        while not batch.finished[0]:
            if batch.elapsed_steps % stride == 0:
                distance = None if start is None else _position(batch) - start
                frames.append(captioned(batch.render_lane(0), f"{title}, return {total:.1f}", distance))
            observations, rewards, *_ = batch.step(agent(observations[0])[None])
            agent.observe(float(rewards[0]), bool(batch.finished[0]))
            total += float(rewards[0])
        return np.stack(frames), batch.render_fps // stride
    finally:
        batch.close()


def captioned(frame: np.ndarray, text: str, distance: float | None) -> np.ndarray:
    """A picture with a line of text at its top, and at its bottom a ruler that moves with the ground.

    Args:
        frame: (height, width, 3) uint8.
        text: the line.
        distance: metres along x from the start of the episode, None for no ruler. A bar on the ruler leads from the
            start to where the body is, the middle of the picture.
    """
    image = Image.fromarray(frame)
    height, width, _ = frame.shape
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    draw.rectangle((0, 0, width, 24), fill=_DARK)
    draw.text((8, 3), text, fill=_LIGHT, font=font)
    if distance is not None:
        middle, top = width // 2, height - 30
        draw.rectangle((0, top, width, height), fill=_DARK)
        left, right = sorted((middle - distance * _METRE, middle))
        draw.rectangle((left, top, right, top + 6), fill=_MARKED)
        reach = width / 2 / _METRE
        for metre in range(math.ceil(distance - reach), math.floor(distance + reach) + 1):
            x = middle + (metre - distance) * _METRE
            draw.line((x, top, x, top + 9), fill=_LIGHT)
            draw.text((x, top + 10), f"{metre} m", fill=_LIGHT, font=font, anchor="ma")
    return np.asarray(image)


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


def _position(batch: TaskBatch) -> Any:
    """Where a body is along x, in metres; None of a batch without bodies."""
    return float(batch.body.position(batch.state)[0, 0]) if isinstance(batch, MujocoBatch) else None


def _describe(task: Tasks) -> str:
    """The parameters of a task, in words for those that have more than three numbers."""
    return ", ".join(
        f"{name} {np.round(value[0], 3)}" if value[0].size <= 3 else f"{name} ({value[0].size} numbers)"
        for name, value in task.items()
    )
