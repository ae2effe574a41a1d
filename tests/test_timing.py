"""The instruments of the benchmarks: workers run what they are told and say what they lack, ratios cancel drift."""

import numpy as np
import pytest

from benchmarks import timing

MODULE = """
import os, time
import numpy as np

def timed(seconds):
    counted = [0]

    def count():
        counted[0] += 1
        time.sleep(seconds)
        return counted

    return {"count": count}

def build(value):
    counted = [0]

    def count():
        counted[0] += 1
        return {"b": np.full(2, value), "a": [counted[0]]}

    return {"count": count, "fail": lambda: 1 / 0, "process": lambda: [os.getpid()]}

def lacking():
    import no_such_package
"""


@pytest.fixture
def built_by(tmp_path, monkeypatch):
    (tmp_path / "calls_of_a_test.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return lambda name, **arguments: (f"calls_of_a_test:{name}", arguments)


def test_workers_run_and_time_and_hand_over_what_calls_return(built_by):
    with timing.workers(one=built_by("build", value=1.5), other=built_by("build", value=2.5)) as made:
        first, second = made["one"], made["other"]
        assert first.names == ["count", "fail", "process"]
        seconds = timing.alternate_workers([(first, "count"), (second, "count")], rounds=3)
        assert np.all(np.array(seconds) > 0)
        assert first.first["count"] > 0
        (counted, values), (_, others) = first.output("count"), second.output("count")
        assert counted > 3  # leaves in the order of their names
        np.testing.assert_array_equal([values, others], [[1.5, 1.5], [2.5, 2.5]])
        assert 1 < first.peak_mebibytes() < 10_000
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            first.seconds("fail")


@pytest.mark.parametrize(("seconds", "runs"), [(0.1, 2 + 2 * 2 + 1), (2.1, 2 + 2 + 1)])
def test_a_measurement_of_a_short_run_follows_one_that_is_not_measured(built_by, seconds, runs):
    with timing.workers(one=built_by("timed", seconds=seconds)) as made:
        measured = [made["one"].seconds("count") for _ in range(2)]
        assert np.all(np.array(measured) >= seconds)
        np.testing.assert_array_equal(made["one"].output("count"), [runs])


def test_each_set_of_processes_is_new_and_their_rounds_are_in_one_array(built_by):
    seen = []

    def measure(made):
        worker = made["ours"]
        seconds = timing.alternate_workers([(worker, "count"), (worker, "count")], rounds=2)
        seen.append(float(worker.output("process")[0]))
        return [*seconds, np.array([len(seen)])]

    one, other, sets = timing.in_processes(3, measure, ours=built_by("build", value=0.0))
    assert one.shape == other.shape == (6,)
    assert np.all(one > 0)
    np.testing.assert_array_equal(sets, [1, 2, 3])
    assert len(set(seen)) == 3
    assert timing.in_processes(2, lambda made: [], ours=built_by("lacking")) == []


def test_a_package_that_is_not_there_is_left_out_and_said(built_by, capfd):
    with timing.workers(peer=built_by("lacking"), ours=built_by("build", value=1.0)) as made:
        assert made["peer"] is None
        assert made["ours"] is not None
    assert "peer is left out: No module named 'no_such_package'" in capfd.readouterr().err


def test_two_computations_that_differ_are_not_timed():
    same, other = [np.array([1.0, 100.0])], [np.array([1.0, 100.01])]
    assert timing.check_equal(same, same, "x") == 0
    assert timing.check_equal(same, other, "x", tolerance=1e-3) == pytest.approx(1e-4)
    with pytest.raises(RuntimeError, match=r"x: outputs differ by 1.0e-04, more than 1e-05; nothing was timed"):
        timing.check_equal(same, other, "x")
    with pytest.raises(RuntimeError, match="differ by nan"):
        timing.check_equal(same, [np.array([1.0, np.nan])], "x")


def test_the_drift_of_the_machine_cancels_in_ratios():
    drift = np.array([1.0, 2.0, 5.0, 3.0])
    assert timing.ratio(3 * drift, 2 * drift) == (1.5, 1.5, 1.5)
    assert f"{timing.summary(np.arange(5.0)):.1f}" == "2.0 (1.0 to 3.0)"
