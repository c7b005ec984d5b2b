"""Reading ahead changes when things are read, never what or in which order, and leaves no thread behind."""

import threading
import time

import pytest

from polarice.io.particles import read_ahead


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


def test_items_come_in_order_and_the_thread_ends():
    assert list(read_ahead(range(1000))) == list(range(1000))
    assert list(read_ahead([])) == []
    assert threads() == []


def test_it_runs_ahead_by_depth_and_no_further():
    made = []
    items = read_ahead((made.append(n) or n for n in range(100)), depth=3)
    assert next(items) == 0
    deadline = time.monotonic() + 5
    while len(made) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3, 4]  # one taken, three waiting, one in hand
    items.close()
    assert threads() == []


def test_an_exception_comes_in_its_place():
    def failing():
        yield 1
        yield 2
        raise ValueError("row 3")

    taken = []
    with pytest.raises(ValueError, match="row 3"):
        for item in read_ahead(failing()):
            taken.append(item)
    assert taken == [1, 2]
    assert threads() == []


def test_stopping_early_closes_the_source():
    closed = []

    def endless():
        try:
            while True:
                yield 0
        finally:
            closed.append(threading.current_thread().name)

    for _ in read_ahead(endless()):
        break
    items = read_ahead(endless())
    next(items)
    del items
    deadline = time.monotonic() + 5
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert closed == ["read-ahead", "read-ahead"]
    assert threads() == []
