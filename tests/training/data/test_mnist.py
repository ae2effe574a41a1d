import gzip
import hashlib
import http.server
import os
import socket
import struct
import threading
from pathlib import Path

import numpy as np
import pytest

from genjax.errors import UserError
from genjax.training.data import mnist as mnist_module
from genjax.training.data.mnist import SHA256, fetch, mnist, read_idx

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "mnist"
NAMES = list(SHA256)


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def small_files(num_train=12, num_test=5, size=(4, 6)):
    rng = np.random.default_rng(0)

    def images(num):
        return rng.integers(0, 256, (num, *size), np.uint8)

    def labels(num):
        return np.arange(num, dtype=np.uint8) % 3

    return dict(
        zip(NAMES, map(idx, (images(num_train), labels(num_train), images(num_test), labels(num_test))), strict=True)
    )


def write(directory, files, compress=False):
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = directory / (f"{name}.gz" if compress else name)
        path.write_bytes(gzip.compress(content) if compress else content)
    return directory


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("below", ["", "MNIST/raw"])
def test_plain_and_gzipped_files_are_found_and_read(tmp_path, compress, below):
    files = small_files()
    write(tmp_path / below, files, compress)
    dataset = mnist(tmp_path)
    assert dataset.train.data.shape == (12, 4, 6, 1)
    assert dataset.test.data.shape == (5, 4, 6, 1)
    assert dataset.train.data.dtype == np.uint8
    assert dataset.train.label.dtype == np.int32
    np.testing.assert_array_equal(dataset.test.label, [0, 1, 2, 0, 1])
    assert dataset.train.data.tobytes() == files[NAMES[0]][16:]
    assert dataset.num_classes == 3
    assert dataset.scaling == (127.5, 128, 256)


def test_a_gzipped_file_is_told_by_its_content(tmp_path):
    path = tmp_path / "images"
    path.write_bytes(gzip.compress(idx(np.arange(8, dtype=np.uint8).reshape(2, 2, 2))))
    np.testing.assert_array_equal(read_idx(path, dimensions=3), np.arange(8).reshape(2, 2, 2))


def test_missing_files_are_named_with_the_two_ways_out(tmp_path):
    write(tmp_path, {name: content for name, content in small_files().items() if "labels" not in name})
    with pytest.raises(UserError) as error:
        mnist(tmp_path)
    message = one_line(error)
    assert "no train-labels-idx1-ubyte, t10k-labels-idx1-ubyte (plain or .gz)" in message
    assert "train-images" not in message
    for part in (str(tmp_path), "MNIST/raw", "--data-dir", "--download"):
        assert part in message


def test_the_user_cache_is_where_files_are_looked_for_by_default(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="--download") as error:
        mnist()
    assert str(tmp_path / "genjax" / "mnist") in one_line(error)
    write(tmp_path / "genjax" / "mnist", small_files())
    assert mnist().train.data.shape == (12, 4, 6, 1)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert mnist_module.default_directory() == tmp_path / "home" / ".cache" / "genjax" / "mnist"


IMAGES = idx(np.zeros((3, 2, 2), np.uint8))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "it starts with 0x,"),
        (IMAGES[:3], "starts with 0x000008"),
        (IMAGES[:9], "truncated: 9 bytes"),
        (IMAGES[:-1], "holds 11 bytes of data but its header announces 3x2x2 = 12"),
        (IMAGES + b"\0", "holds 13 bytes"),
        (b"\0\0\x0d\x03" + IMAGES[4:], "0x00000d03, expected 0x00000803"),
        (idx(np.zeros(12, np.uint8)), "0x00000801, expected 0x00000803"),
        (struct.pack(">BBBBIII", 0, 0, 8, 3, 0, 28, 28), "is empty"),
        (struct.pack(">BBBBIII", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1) + b"x", "holds 1 bytes"),
        (b"<html>404</html>", "no IDX file"),
        (gzip.compress(IMAGES, mtime=0)[:-4], "truncated or corrupt"),
        (gzip.compress(IMAGES, mtime=0)[:14], "truncated or corrupt"),
        (
            gzip.compress(IMAGES, mtime=0)[:12] + b"\xff\xff" + gzip.compress(IMAGES, mtime=0)[14:],
            "truncated or corrupt",
        ),
        (gzip.compress(IMAGES, mtime=0) + b"garbage", "truncated or corrupt"),
    ],
)
def test_damaged_files_are_named_and_described(tmp_path, content, complaint):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_idx(path, dimensions=3)
    message = one_line(error)
    assert complaint in message
    assert str(path) in message


def test_counts_and_sizes_must_agree(tmp_path):
    files = small_files()
    write(tmp_path, files | {NAMES[1]: idx(np.zeros(11, np.uint8))})
    with pytest.raises(UserError, match=r"holds 12 images but .* 11 labels"):
        mnist(tmp_path)
    write(tmp_path, files | {NAMES[2]: idx(np.zeros((5, 6, 4), np.uint8))})
    with pytest.raises(UserError, match="training images are 4x6, held-out images 6x4"):
        mnist(tmp_path)


class Server:
    """What a server on loopback answers: a dictionary from path to body; headers can promise more than it sends."""

    def __init__(self):
        self.bodies = {}
        self.announce = {}
        self.requests = []


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    answers = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answers.requests.append(self.path)
            body = answers.bodies.get(self.path)
            if body is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(answers.announce.get(self.path, len(body))))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    answers.url = f"http://127.0.0.1:{httpd.server_port}/mnist"
    yield answers
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture
def served(server):
    """A server that has small files, and their checksums."""
    files = small_files()
    server.files = files
    server.bodies = {f"/mnist/{name}.gz": gzip.compress(content) for name, content in files.items()}
    server.checksums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return server


def test_download_fetches_verifies_and_loads(served, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mnist_module, "SHA256", served.checksums)
    monkeypatch.setenv("GENJAX_MNIST_URL", served.url + "/")
    directory = tmp_path / "new" / "mnist"
    fetch(directory, checksums=served.checksums)
    assert sorted(os.listdir(directory)) == sorted(f"{name}.gz" for name in NAMES)
    captured = capsys.readouterr()
    assert "train-images-idx3-ubyte.gz" in captured.err
    assert captured.out == ""
    assert mnist(directory, download=True).train.data.tobytes() == served.files[NAMES[0]][16:]
    assert len(served.requests) == 4


def test_download_leaves_files_alone_that_are_there(served, tmp_path):
    write(tmp_path, {NAMES[0]: b"mine"})
    write(tmp_path / "MNIST" / "raw", {NAMES[1]: b"mine too"}, compress=True)
    fetch(tmp_path, base_url=served.url, checksums=served.checksums)
    assert served.requests == [f"/mnist/{name}.gz" for name in NAMES[2:]]
    assert (tmp_path / NAMES[0]).read_bytes() == b"mine"


def test_the_default_mirror_is_asked_for_the_four_files(monkeypatch, tmp_path):
    monkeypatch.delenv("GENJAX_MNIST_URL", raising=False)
    asked = []
    monkeypatch.setattr(mnist_module, "_fetch_file", lambda url, target, checksum: asked.append((url, checksum)))
    fetch(tmp_path)
    mirror = "https://ossci-datasets.s3.amazonaws.com/mnist/"
    assert asked == [(f"{mirror}{name}.gz", SHA256[name]) for name in NAMES]


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda server, path: server.bodies.pop(path), "404"),
        (lambda server, path: server.bodies.update({path: gzip.compress(b"other")}), "SHA-256"),
        (lambda server, path: server.bodies.update({path: b"<html>moved</html>"}), "not the expected file"),
        (lambda server, path: server.bodies.update({path: server.bodies[path][:-9]}), "not the expected file"),
        (lambda server, path: server.announce.update({path: 10**6}), "broke off"),
        (lambda server, path: server.bodies.update({path: b""}), "SHA-256"),
    ],
)
def test_a_download_that_fails_says_so_and_keeps_nothing(served, tmp_path, damage, complaint):
    damage(served, f"/mnist/{NAMES[0]}.gz")
    with pytest.raises(UserError) as error:
        fetch(tmp_path, base_url=served.url, checksums=served.checksums)
    message = one_line(error)
    assert complaint in message
    assert f"{served.url}/{NAMES[0]}.gz" in message
    assert os.listdir(tmp_path) == []


def test_a_server_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(UserError, match="refused") as error:
            fetch(tmp_path, base_url=url)
    one_line(error)
    assert os.listdir(tmp_path) == []


def test_a_server_that_does_not_answer(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(mnist_module, "TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(UserError, match="timed out") as error:
        fetch(tmp_path, base_url=f"http://127.0.0.1:{silent.getsockname()[1]}")
    one_line(error)
    assert os.listdir(tmp_path) == []


def test_a_base_url_that_is_none(tmp_path):
    with pytest.raises(UserError, match="unknown url type"):
        fetch(tmp_path, base_url="mnist.example")


def test_a_directory_that_cannot_be_made_or_written(served, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make the directory"):
        fetch(tmp_path / "file" / "mnist", base_url=served.url, checksums=served.checksums)
    in_the_way = tmp_path / f".{NAMES[0]}.gz.{os.getpid()}.part"
    in_the_way.mkdir()
    with pytest.raises(UserError, match="Is a directory") as error:
        fetch(tmp_path, base_url=served.url, checksums=served.checksums)
    one_line(error)


needs_mnist = pytest.mark.skipif(not REAL.is_dir(), reason="the MNIST files are not in ../shared/data/mnist")


@needs_mnist
def test_the_real_files_have_the_checksums():
    for name, checksum in SHA256.items():
        content = gzip.decompress((REAL / f"{name}.gz").read_bytes())
        assert hashlib.sha256(content).hexdigest() == checksum


@needs_mnist
def test_the_real_mnist():
    dataset = mnist(REAL)
    assert dataset.train.data.shape == (60_000, 28, 28, 1)
    assert dataset.test.data.shape == (10_000, 28, 28, 1)
    assert dataset.num_classes == 10
    np.testing.assert_array_equal(dataset.train.label[:5], [5, 0, 4, 1, 9])
    assert np.mean(dataset.train.data) / 255 == pytest.approx(0.1307, abs=1e-4)
    assert np.std(dataset.train.data) / 255 == pytest.approx(0.3081, abs=1e-4)


@needs_mnist
def test_the_real_mnist_served_on_loopback(server, tmp_path):
    server.bodies = {f"/mnist/{name}.gz": (REAL / f"{name}.gz").read_bytes() for name in NAMES}
    fetch(tmp_path, base_url=server.url)
    assert mnist(tmp_path).test.data.shape == (10_000, 28, 28, 1)
