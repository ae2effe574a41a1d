import json
import os

import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import UserError
from genjax.training.log import MetricsLog, read_metrics


@pytest.fixture
def log(tmp_path):
    return MetricsLog(tmp_path / "metrics.jsonl")


def test_one_object_a_line_readable_at_once(log):
    log.append(100, {"loss": 0.25, "lr": 1e-4})
    assert log.path.read_text() == '{"step": 100, "loss": 0.25, "lr": 0.0001}\n'
    log.append(200, {"loss": 0.125})
    assert read_metrics(log.path) == [
        {"step": 100, "loss": 0.25, "lr": 1e-4},
        {"step": 200, "loss": 0.125},
    ]


def test_scalars_of_every_kind(log):
    log.append(
        np.int64(7),
        {
            "jax": jnp.float32(0.5),
            "low": jnp.bfloat16(0.5),
            "numpy": np.float64(0.1),
            "count": jnp.int32(3),
            "flag": np.bool_(True),
            "text": "heun",
            "none": None,
        },
    )
    expected = {
        "step": 7,
        "jax": 0.5,
        "low": 0.5,
        "numpy": 0.1,
        "count": 3,
        "flag": True,
        "text": "heun",
        "none": None,
    }
    assert read_metrics(log.path) == [expected]


def test_what_json_has_not_is_null(log):
    log.append(1, {"a": float("nan"), "b": jnp.float32(jnp.inf), "c": np.float32(-np.inf)})
    assert log.path.read_text() == '{"step": 1, "a": null, "b": null, "c": null}\n'


def test_an_array_is_no_metric_and_nothing_is_written(log):
    with pytest.raises(ValueError):
        log.append(1, {"loss": jnp.zeros(2)})
    assert read_metrics(log.path) == []


def test_truncate_after_drops_what_lies_beyond(log):
    for step in (100, 200, 300, 400):
        log.append(step, {"loss": 1 / step})
    before = log.path.read_bytes()
    log.truncate_after(200)
    assert before.startswith(log.path.read_bytes())
    assert [entry["step"] for entry in read_metrics(log.path)] == [100, 200]
    log.append(300, {"loss": 1 / 300})
    log.append(400, {"loss": 1 / 400})
    assert log.path.read_bytes() == before
    assert os.listdir(log.path.parent) == ["metrics.jsonl"]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_torn_last_line_is_dropped(log, cut):
    for step in (100, 200):
        log.append(step, {"loss": 0.5})
    whole = log.path.read_bytes()
    log.path.write_bytes(whole[:-cut])
    assert [entry["step"] for entry in read_metrics(log.path)] == [100]
    log.truncate_after(1000)
    log.append(200, {"loss": 0.5})
    assert log.path.read_bytes() == whole


def test_no_file_yet(log):
    log.truncate_after(0)
    assert read_metrics(log.path) == []
    assert not log.path.exists()


@pytest.mark.parametrize("line", ["{", "[1]", "3", '{"loss": 1.0}', '{"step": "a"}', "\0\0"])
def test_a_damaged_line_is_named_and_nothing_lost(log, line):
    log.append(100, {"loss": 0.5})
    with log.path.open("a") as file:
        file.write(line + "\n")
    log.append(200, {"loss": 0.5})
    before = log.path.read_bytes()
    for read in (lambda: read_metrics(log.path), lambda: log.truncate_after(100)):
        with pytest.raises(UserError, match=r"metrics.jsonl is damaged: line 2 is not") as error:
            read()
        assert "\n" not in str(error.value)
    assert log.path.read_bytes() == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_told_in_one_line():
    with pytest.raises(UserError, match="cannot write /dev/full: No space left on device"):
        MetricsLog("/dev/full").append(1, {"loss": 0.5})


def test_a_missing_directory_is_told_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*: No such file or directory"):
        MetricsLog(tmp_path / "none" / "metrics.jsonl").append(1, {"loss": 0.5})


def test_lines_are_strict_json(log):
    log.append(1, {"loss": float("nan"), "text": 'a "quoted"\nline'})

    def refuse(name):
        raise AssertionError(name)

    (line,) = log.path.read_text().splitlines()
    assert json.loads(line, parse_constant=refuse)["text"] == 'a "quoted"\nline'
