"""Chunks side by side: results in order, mathematics of one thread, a module for each thread."""

import multiprocessing
import os
import threading
import warnings

import pytest
import torch
from torch import nn

from metarl.core.parallel import own_copy, parallel_map, task_chunks

pytestmark = pytest.mark.usefixtures("two_threads")


@pytest.mark.parametrize(
    ("tasks", "size", "threads", "lengths"),
    [
        (20, 8, 1, [6, 7, 7]),
        (20, 8, 2, [5, 5, 5, 5]),
        (20, 100, 2, [10, 10]),
        (5, 1, 2, [1] * 5),
        (1, 4, 2, [1]),
        (3, 2, 4, [1, 2]),
        (5, 9, 4, [2, 3]),
        (3, 9, 2, [3]),
    ],
)
def test_task_chunks_are_alike_and_as_many_as_threads_can_share(tasks, size, threads, lengths):
    chunks = task_chunks(tasks, size, threads)
    assert [part.stop - part.start for part in chunks] == lengths
    assert [task for part in chunks for task in range(tasks)[part]] == list(range(tasks))


def test_results_keep_the_order_of_the_items():
    assert parallel_map(lambda x: x * x, range(7)) == [x * x for x in range(7)]


def test_two_items_run_at_the_same_time_on_one_thread_each():
    barrier = threading.Barrier(2, timeout=30)

    def count(item):
        barrier.wait()
        return torch.get_num_threads()

    assert parallel_map(count, [0, 1]) == [1, 1]
    assert torch.get_num_threads() == 2


def test_a_single_item_has_one_thread_as_well():
    assert parallel_map(lambda _: torch.get_num_threads(), [0]) == [1]
    assert torch.get_num_threads() == 2


def test_a_gpu_takes_one_item_after_the_other():
    """So that its memory holds one chunk at a time."""
    main = threading.get_ident()
    assert parallel_map(lambda _: threading.get_ident(), [0, 1, 2], "cuda") == [main] * 3


def test_each_thread_has_a_module_of_its_own():
    module, barrier = nn.Linear(2, 2), threading.Barrier(2, timeout=30)

    def mine(item):
        barrier.wait()
        return own_copy(module), own_copy(module)

    (a, again), (b, _) = parallel_map(mine, [0, 1])
    assert a is again
    assert len({id(found) for found in (a, b, module)}) == 3
    assert torch.equal(a.weight, module.weight)
    assert own_copy(module) is module


def test_a_module_that_cannot_be_copied_is_named():
    module = nn.Linear(2, 2)
    module.lock = threading.Lock()
    with pytest.raises(TypeError, match=r"^Linear has no copy"):
        parallel_map(lambda _: own_copy(module), [0, 1])


def test_errors_come_through_and_leave_the_threads_as_they_were():
    with pytest.raises(ZeroDivisionError):
        parallel_map(lambda x: 1 / x, [1, 0])
    assert torch.get_num_threads() == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_computes_on_one_thread_and_does_not_wait_for_ever(two_threads):
    large = torch.randn(400, 400, dtype=torch.float64)
    expected = float((large @ large).sum())  # on threads that no child has
    queue = multiprocessing.get_context("fork").SimpleQueue()

    def work():
        found = parallel_map(lambda of: float((of @ of).sum()), [large, large])
        queue.put((torch.get_num_threads(), found))

    child = multiprocessing.get_context("fork").Process(target=work)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, about forks in processes with threads
        child.start()
    child.join(60)
    assert child.exitcode == 0
    threads, found = queue.get()
    assert threads == 1
    assert found == pytest.approx([expected, expected])
