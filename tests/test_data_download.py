"""Public data sets from small files of their true formats, fetched from a server on this machine."""

import gzip
import hashlib
import http.server
import io
import pickle
import re
import socket
import tarfile
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from stated import stated

from gen_lab.__main__ import COMMANDS
from gen_lab.commands import data as command
from gen_lab.data import cifar, idx
from gen_lab.data.cache import File, Part, Source, fetch
from gen_lab.data.idx import amat_arrays, idx_arrays
from gen_lab.data.images import CPU, bits
from rl_lab.core.errors import UserError
from rl_lab.core.launching import cli
from rl_lab.core.randomness import generator, stream

cifar10, fashion_mnist, mnist = (stated(f"data/{name}") for name in ("cifar10", "fashion_mnist", "mnist"))


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


# -- a server that can fail in several ways


class Server(http.server.ThreadingHTTPServer):
    """Answers /whole/, /short/ (half of it, then hangs up), /foreign/ (something else); /gone/ is not there."""

    def __init__(self, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.asked, self.ranges = files, [], True

    def handle_error(self, *_):
        """A client that hangs up early is among what is tested."""

    def url(self, kind: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{kind}/"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        _, kind, name = self.path.split("/")
        begun = int((self.headers["Range"] or "bytes=0-")[6:-1])
        self.server.asked.append((kind, name, begun))
        begun = begun if self.server.ranges else 0
        data = {"gone": None, "foreign": b"<html>sign in</html>"}.get(kind, self.server.files.get(name))
        if data is None:
            return self.send_error(404)
        part = data[begun:]
        self.send_response(206 if begun else 200)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part[: len(part) // 2] if kind == "short" else part)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    running = []

    def start(files: dict[str, bytes]) -> Server:
        running.append(Server(files))
        threading.Thread(target=running[-1].serve_forever, args=(0.02,), daemon=True).start()
        return running[-1]

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def described(data: dict[str, bytes]) -> tuple[File, ...]:
    return tuple(File(name, len(x), hashlib.sha256(x).hexdigest()) for name, x in data.items())


BYTES = {"a.bin": bytes(range(256)) * 2000, "b.bin": b"b" * 7}


def source(server: Server, *kinds: str) -> Source:
    return Source("some", tuple(map(server.url, kinds)), described(server.files))


# -- fetching


def test_fetched_once(serve, tmp_path):
    server = serve(BYTES)
    for _ in range(2):
        paths = fetch(source(server, "whole"), str(tmp_path))
        assert [path.read_bytes() for path in paths] == list(BYTES.values())
    assert paths[0] == tmp_path / "some/a.bin" and {p.name for p in (tmp_path / "some").iterdir()} == set(BYTES)
    assert server.asked == [("whole", "a.bin", 0), ("whole", "b.bin", 0)]


def test_mirrors_are_tried_in_turn(serve, tmp_path):
    server = serve(BYTES)
    dead = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{dead.getsockname()[1]}/"
    dead.close()
    mirrors = Source("some", (url, server.url("gone"), server.url("whole"), server.url("never")), described(BYTES))
    fetch(mirrors, str(tmp_path))
    assert [kind for kind, name, _ in server.asked] == ["gone", "whole"] * 2


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_transfer_goes_on(serve, tmp_path, ranges):
    """Where the server knows ranges, only what is missing is sent."""
    server = serve({"a.bin": BYTES["a.bin"]})
    server.ranges = ranges
    half = len(BYTES["a.bin"]) // 2
    with pytest.raises(UserError, match=rf"short/: cut short at {half:,} of {2 * half:,} bytes"):
        fetch(source(server, "short"), str(tmp_path))
    assert [p.name for p in (tmp_path / "some").iterdir()] == ["a.bin.part"]
    (path,) = fetch(source(server, "whole"), str(tmp_path))
    assert path.read_bytes() == BYTES["a.bin"] and [p.name for p in (tmp_path / "some").iterdir()] == ["a.bin"]
    assert server.asked == [("short", "a.bin", 0), ("whole", "a.bin", half)]


def test_a_foreign_file_is_not_taken(serve, tmp_path):
    """Of another size or of the same, it does not spoil what a later mirror sends."""
    server = serve({"a.bin": BYTES["a.bin"]})
    with pytest.raises(UserError, match="foreign/: cut short at 20 of 512,000 bytes"):
        fetch(source(server, "foreign"), str(tmp_path))
    (path,) = fetch(source(server, "foreign", "whole"), str(tmp_path))
    assert path.read_bytes() == BYTES["a.bin"]
    expected = (File("a.bin", 20, "0" * 64),)
    with pytest.raises(UserError, match="foreign/: not the file, its sha256 differs"):
        fetch(Source("other", (server.url("foreign"),), expected), str(tmp_path))
    assert not (tmp_path / "other").exists()


def test_a_longer_file_is_not_taken_whole(serve, tmp_path):
    server = serve({"a.bin": bytes(4_000_000)})
    with pytest.raises(UserError, match="not the file"):
        fetch(Source("some", (server.url("whole"),), (File("a.bin", 9, "0" * 64),)), str(tmp_path))


def test_damage_on_disk_is_named(serve, tmp_path):
    server = serve(BYTES)
    path = fetch(source(server, "whole"), str(tmp_path))[1]
    path.write_bytes(b"bbbbbBb")
    with pytest.raises(UserError, match=r"some/b.bin is damaged, or another file: its sha256 differs; delete it"):
        fetch(source(server, "whole"), str(tmp_path))
    path.unlink()
    fetch(source(server, "whole"), str(tmp_path))
    assert len(server.asked) == 3


def test_a_full_disk_is_named(serve, tmp_path):
    server = serve(BYTES)
    (tmp_path / "some").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"cannot write to .*some: .*some is a file.*data.root="):
        fetch(source(server, "whole"), str(tmp_path))


def test_no_network_is_one_line(monkeypatch, tmp_path, capsys):
    """Exit code 2; the line names each file that is missing and the folder to put it in."""
    dead = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{dead.getsockname()[1]}/"
    dead.close()
    monkeypatch.setattr(idx, "MNIST", idx.MNIST._replace(mirrors=(url,)))
    arguments = ["train", "data=mnist", f"data.root={tmp_path}/cache", "tracker=none", f"hydra.run.dir={tmp_path}/x"]
    assert cli.main("gen-lab", "gen", COMMANDS, arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    files = [f"{split}-{kind}-ubyte.gz" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    assert f"put {' and '.join(files)} from {url} into {tmp_path}/cache/mnist by hand" in line
    assert "Connection refused" in line and not (tmp_path / "x").exists()


# -- the formats, as small files


gzipped = partial(gzip.compress, mtime=0)  # the same bytes at any time: they name their tests


def idx_file(x: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, x.ndim]) + b"".join(n.to_bytes(4, "big") for n in x.shape)
    return gzipped(header + x.astype(np.uint8).tobytes())


RNG = np.random.default_rng(0)
GREY = {"train": RNG.integers(256, size=(20, 28, 28)), "t10k": RNG.integers(256, size=(9, 28, 28))}
LABELS = {"train": np.arange(20) % 10, "t10k": np.arange(9)[::-1]}
IDX = {f"{split}-{name}-ubyte.gz": idx_file(x[split]) for split in ("train", "t10k")
       for name, x in (("images-idx3", GREY), ("labels-idx1", LABELS))}  # fmt: skip


@pytest.fixture
def root(tmp_path, monkeypatch) -> str:
    """A cache that holds small files under the names of the true ones, with their own checksums."""
    for name, folder in ("MNIST", "mnist"), ("FASHION", "fashion_mnist"):
        put(tmp_path / folder, IDX)
        monkeypatch.setattr(idx, name, getattr(idx, name)._replace(mirrors=(), files=described(IDX)))
    return str(tmp_path)


def put(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def test_levels(root):
    data = mnist(protocol="levels", root=root)
    assert data.name == "mnist-levels" and data.spec == ((1, 28, 28), 256, 10)
    assert np.array_equal(data.train[:, 0], GREY["train"]) and np.array_equal(data.test[:, 0], GREY["t10k"])
    assert data.train_labels.tolist() == LABELS["train"].tolist() and data.test_labels.dtype == torch.int64
    assert fashion_mnist(protocol="levels", root=root).name == "fashion_mnist-levels"


def test_threshold(root):
    data = mnist(protocol="threshold", root=root)
    assert data.name == "mnist-threshold" and data.levels == 2
    assert np.array_equal(data.train[:, 0], GREY["train"] > 127) and np.array_equal(data.test[:, 0], GREY["t10k"] > 127)


def test_dynamic(root):
    """Training images are drawn at each showing; the test set once, the same for every run and no stream of theirs."""
    data = mnist(protocol="dynamic", root=root)
    assert data.name == "mnist-dynamic" and data.levels == 2 and data.resampled
    assert np.array_equal(data.train[:, 0], GREY["train"]) and data.test.max() == 1
    assert torch.equal(data.test, mnist(protocol="dynamic", root=root).test)
    assert not torch.equal(data.test, fashion_mnist(protocol="dynamic", root=root).test)
    error = (data.test[:, 0].double() - torch.from_numpy(GREY["t10k"] / 255)).mean()
    assert abs(error) < 4 * 0.5 / (9 * 784) ** 0.5
    grey = torch.from_numpy(GREY["t10k"]).to(torch.uint8).unsqueeze(1)
    for seed in range(5):
        for rng in generator(seed, CPU), generator(stream(seed, "binarisation"), CPU):
            assert not torch.equal(bits(grey, rng), data.test)


def test_static(tmp_path, monkeypatch):
    """Training and validation images together, as Burda et al. (2016) use them."""
    parts = {name: RNG.integers(2, size=(n, 784)) for name, n in (("train", 5), ("valid", 3), ("test", 2))}
    files = {f"binarized_mnist_{name}.amat": "".join(" ".join(map(str, row)) + "\n" for row in x).encode()
             for name, x in parts.items()}  # fmt: skip
    put(tmp_path / "mnist_static", files)
    monkeypatch.setattr(idx, "STATIC", idx.STATIC._replace(mirrors=(), files=described(files)))
    data = mnist(protocol="static", root=str(tmp_path))
    assert data.name == "mnist-static" and data.spec == ((1, 28, 28), 2, 0)
    assert np.array_equal(data.train.flatten(1), np.concatenate([parts["train"], parts["valid"]]))
    assert np.array_equal(data.test.flatten(1), parts["test"])


def cifar_file(lacking: str = "", label: int = 3) -> bytes:
    """Pixel c, i, j of image n in batch b is 16 b + n + c."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for b, name in enumerate(["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5",
                                  "test_batch", "batches.meta"]):  # fmt: skip
            pixels = np.add.outer(16 * b + np.arange(2), np.repeat(np.arange(3), 1024))
            records = np.concatenate([np.array([[b], [label]]), pixels], 1).astype(np.uint8).tobytes()
            if name != lacking:
                info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.{'txt' if 'meta' in name else 'bin'}")
                info.size = len(records)
                archive.addfile(info, io.BytesIO(records))
    return out.getvalue()


def test_cifar10(serve, tmp_path, monkeypatch):
    files = {"cifar-10-binary.tar.gz": cifar_file()}
    server = serve(files)
    source = cifar.CIFAR10._replace(mirrors=(server.url("whole"),), files=described(files))
    monkeypatch.setattr(cifar, "CIFAR10", source)
    data = cifar10(root=str(tmp_path))
    assert data.name == "cifar10" and data.spec == ((3, 32, 32), 256, 10)
    assert data.train[:, :, 7, 9].tolist() == [[16 * b + n + c for c in range(3)] for b in range(5) for n in range(2)]
    assert data.test[1, :, 0, 31].tolist() == [81, 82, 83]
    assert data.train_labels.tolist() == [0, 3, 1, 3, 2, 3, 3, 3, 4, 3] and data.test_labels.tolist() == [5, 3]


def read(reader, files: dict[str, bytes]) -> list[str]:
    """The faults that it finds."""
    faults: list[str] = []
    list(reader({name: lambda data=data: data for name, data in files.items()}, faults))
    return faults


def batches(data: bytes, lacking: str = "") -> dict[str, bytes]:
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    return {f"x/{name}.bin": data for name in names if name != lacking}


@pytest.mark.parametrize(
    ("reader", "files", "says"),
    [
        (idx_arrays, {"x/a-ubyte": b""}, "x/a-ubyte is not a complete IDX file"),
        (
            idx_arrays,
            {"x/a-ubyte": gzip.decompress(idx_file(np.zeros((3, 4, 4))))[:-1]},
            "63 bytes that begin 00000803",
        ),
        (idx_arrays, {"x/a-ubyte": b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0"}, "12 bytes that begin 00000d01"),
        (amat_arrays, {"x/a.amat": b"0 1 2\n"}, "x/a.amat is not lines of 784 digits"),
        (amat_arrays, {"x/a.amat": b"2 " * 784}, "is not lines of 784 digits"),
        (cifar.cifar_arrays, batches(bytes(3073), lacking="data_batch_4"), "it has no data_batch_4"),
        (cifar.cifar_arrays, batches(b"\x0a" + bytes(3072)), "it has labels above 9"),
        (cifar.cifar_arrays, batches(bytes(3072)), "3,072 bytes are not records"),
        (cifar.cifar_arrays, batches(pickle.dumps({"data": eval}, 2)), r"it asks for (__builtin__|builtins)\.eval"),
    ],
)
def test_a_file_of_another_format_is_named(reader, files, says):
    (fault,) = read(reader, files)
    assert re.search(says, fault), fault


def test_labels_of_other_images_are_refused(root, monkeypatch, tmp_path):
    mixed = IDX | {"train-labels-idx1-ubyte.gz": IDX["t10k-labels-idx1-ubyte.gz"]}
    put(tmp_path / "mnist", mixed)
    monkeypatch.setattr(idx, "MNIST", idx.MNIST._replace(mirrors=(), files=described(mixed)))
    with pytest.raises(UserError, match="the images and the labels of mnist do not fit together"):
        mnist(protocol="levels", root=root)


# -- by content


def part(name: str, x: np.ndarray) -> Part:
    return Part(name, x.shape, hashlib.sha256(x.astype(np.uint8).tobytes()).hexdigest())


SMALL = idx.MNIST._replace(
    mirrors=("http://127.0.0.1:1/",),
    parts=(part("train", GREY["train"]), part("train_labels", LABELS["train"]), part("test", GREY["t10k"]),
           part("test_labels", LABELS["t10k"])),
)  # fmt: skip
PLAIN = {name.removesuffix(".gz"): gzip.decompress(data) for name, data in IDX.items()}


def tarred(files: dict[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zipped(save, **arrays) -> bytes:
    out = io.BytesIO()
    save(out, **arrays)
    return out.getvalue()


def keras() -> bytes:
    images = {f"x_{ours}": GREY[its].astype(np.uint8) for ours, its in (("train", "train"), ("test", "t10k"))}
    return zipped(np.savez_compressed, **images, y_train=LABELS["train"], y_test=LABELS["t10k"].astype(np.uint8))


def of_ones_own() -> bytes:
    """Arrays whose content alone says what they are, beside one that is no data."""
    images = {f"{its}_pictures": GREY[its].astype(np.uint8) for its in ("train", "t10k")}
    return zipped(np.savez, **images, y1=LABELS["train"], y2=LABELS["t10k"], weights=np.array([0.5, -1]))


WRAPPINGS = {
    "an archive whose name says nothing": {"1/stuff.tar": tarred(PLAIN)},
    "names of one's own": {"backup.npz": of_ones_own()},
    "unpacked": PLAIN,
    "packed again": {f"deep/er/{name}.gz": gzip.compress(data, 1) for name, data in PLAIN.items()},
    "tar": {"my-mnist.tar": tarred(PLAIN)},
    "tar.gz of gz": {"mnist.tar.gz": tarred({f"raw/{name}": data for name, data in IDX.items()}, "w:gz")},
    "Keras": {"of another name.npz": keras()},
    "ours": {"mnist.npz": zipped(np.savez, train=GREY["train"][:, None].astype(np.uint8), train_labels=LABELS["train"],
                                 test=GREY["t10k"][..., None].astype(np.uint8), test_labels=LABELS["t10k"], levels=256)},
}  # fmt: skip


def laid(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_content_counts_and_no_wrapping(wrapping, monkeypatch, tmp_path):
    monkeypatch.setattr(idx, "MNIST", SMALL)
    other = {f"fashion/{name}": data[:-1] + bytes([data[-1] ^ 1]) for name, data in PLAIN.items()}
    laid(tmp_path, WRAPPINGS[wrapping] | other | {"mnist.zip": b"no zip", "._mnist.npz": b"no npz"})
    data = mnist(protocol="levels", root=str(tmp_path))
    assert np.array_equal(data.train[:, 0], GREY["train"]) and np.array_equal(data.test[:, 0], GREY["t10k"])
    assert data.train_labels.tolist() == LABELS["train"].tolist() and str(tmp_path) in data.remark


def test_what_is_missing_is_fetched_alone(serve, monkeypatch, tmp_path):
    server = serve(IDX)
    monkeypatch.setattr(idx, "MNIST", SMALL._replace(mirrors=(server.url("whole"),), files=described(IDX)))
    laid(tmp_path, {name: data for name, data in PLAIN.items() if "labels" not in name})
    data = mnist(protocol="levels", root=str(tmp_path))
    assert np.array_equal(data.test[:, 0], GREY["t10k"]) and data.test_labels.tolist() == LABELS["t10k"].tolist()
    assert [name for _, name, _ in server.asked] == ["train-labels-idx1-ubyte.gz", "t10k-labels-idx1-ubyte.gz"]


def test_other_content_under_the_right_name_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(idx, "MNIST", SMALL)
    images = "mnist/train-images-idx3-ubyte"
    laid(tmp_path, {f"mnist/{name}": data for name, data in PLAIN.items()} | {images: PLAIN[Path(images).name][:-1]})
    with pytest.raises(UserError, match="train-images-idx3-ubyte is not a complete IDX file"):
        mnist(protocol="levels", root=str(tmp_path))
    laid(tmp_path, {images: PLAIN[Path(images).name][:-1] + b"\x07"})
    with pytest.raises(UserError, match="train-images-idx3-ubyte is not of mnist: its content differs"):
        mnist(protocol="levels", root=str(tmp_path))


@pytest.mark.parametrize("form", ["binary", "python", "loose", "npz"])
def test_cifar10_in_each_of_its_forms(form, monkeypatch, tmp_path):
    pixels, labels = RNG.integers(256, size=(12, 3, 32, 32)).astype(np.uint8), np.arange(12) % 10
    parts = (part("train", pixels[:10]), part("train_labels", labels[:10]), part("test", pixels[10:]),
             part("test_labels", labels[10:]))  # fmt: skip
    monkeypatch.setattr(cifar, "CIFAR10", cifar.CIFAR10._replace(mirrors=(), parts=parts))
    files = {}
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        two = slice(2 * i, 2 * i + 2)
        records = np.concatenate([labels[two, None].astype(np.uint8), pixels[two].reshape(2, -1)], 1).tobytes()
        python = {b"data": pixels[two].reshape(2, -1), b"labels": labels[two].tolist(), b"batch_label": b"some"}
        files[f"cifar/{name}" + ".bin" * (form != "python")] = pickle.dumps(python, 2) if form == "python" else records
    if form == "loose":
        laid(tmp_path, files)
    elif form == "npz":
        columns = {"y_train": labels[:10, None], "y_test": labels[10:, None]}
        last = {"x_train": pixels[:10].transpose(0, 2, 3, 1), "x_test": pixels[10:].transpose(0, 2, 3, 1)}
        laid(tmp_path, {"a.npz": zipped(np.savez, **last, **columns)})
    else:
        laid(tmp_path, {"my-cifar-10.tar.gz": tarred(files, "w:gz")})
    data = cifar10(root=str(tmp_path))
    assert np.array_equal(data.train, pixels[:10]) and np.array_equal(data.test, pixels[10:])
    assert data.train_labels.tolist() == labels[:10].tolist() and data.test_labels.tolist() == [0, 1]


def test_the_command_says_what_is_there_and_what_is_missing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "PUBLISHED", [("data=mnist", SMALL, idx_arrays), *command.PUBLISHED[1:]])
    laid(tmp_path, {f"mine/{name}": data for name, data in PLAIN.items()})
    assert cli.main("gen-lab", "gen", COMMANDS, ["data", f"root={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert f"data=mnist: there, its sha256 right\n  {tmp_path}/mine/t10k-images-idx3-ubyte\n" in said
    assert "data.protocol=static: missing train, valid, test (0.11 GB)" in said and "binarized_mnist_valid.amat" in said
    laid(tmp_path, {"mnist/t10k-labels-idx1-ubyte": b"", "mine/t10k-labels-idx1-ubyte": b""})
    assert cli.main("gen-lab", "gen", COMMANDS, ["data", f"root={tmp_path}"]) == 2
    assert "t10k-labels-idx1-ubyte is not a complete IDX file" in capsys.readouterr().out
    (tmp_path / "file").write_text("x")
    for root, words in (("file", "is a file"), ("nowhere", "is not there")):
        assert cli.main("gen-lab", "gen", COMMANDS, ["data", f"root={tmp_path / root}"]) == 2
        assert f"{words}" in capsys.readouterr().err


def test_the_true_files_are_well_described():
    """Sizes that the formats demand, and a checksum of 64 digits for each."""
    sources = idx.MNIST, idx.FASHION, idx.STATIC, cifar.CIFAR10
    assert all(len(bytes.fromhex(file.sha256)) == 32 for s in sources for file in s.files)
    assert [file.size for file in idx.STATIC.files] == [2 * 784 * n for n in (50_000, 10_000, 10_000)]
    assert all(url.endswith("/") and url.startswith("http") for s in sources for url in s.mirrors)
    assert len({file.sha256 for s in sources for file in s.files}) == 12
    assert len({part.sha256 for s in sources for part in s.parts}) == 15
    assert all(len(bytes.fromhex(part.sha256)) == 32 for s in sources for part in s.parts)
