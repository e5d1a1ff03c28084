"""Everything runs on this computer: no network is needed, none is tried, and nothing is written elsewhere."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.faults.commands import environment, put
from tests.commands import blank, face, names, shows_face
from tests.films import write_face_film

BLURGUARD = (sys.executable, "-P", "-m", "blurguard")
GUARD = """
import socket

def refuse(*_):
    raise RuntimeError("the network was tried")

socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = refuse
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    put(tmp_path / "photos" / "a.jpg", face())
    put(tmp_path / "photos" / "b.png", blank(".png"))
    put(tmp_path / "photos" / "c.webp", face(".webp"))
    write_face_film(tmp_path / "photos" / "d.mp4")
    return tmp_path / "photos"


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """Return an empty folder that is everything that a program might think of as its own place."""
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def run(command: tuple[str, ...], home: Path, **more: str) -> str:
    """Run a command with ``home`` as home, place for temporary files and current folder; returns its output."""
    places = dict.fromkeys(("HOME", "TMPDIR", "TEMP", "TMP", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), str(home))
    variables = environment(PYTHONDONTWRITEBYTECODE="1", **places, **more)
    done = subprocess.run(command, cwd=home, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def without_network() -> tuple[str, ...]:
    """Return what starts a command without network interfaces, or () where that is not allowed."""
    for unshare in (("unshare", "-n"), ("unshare", "-r", "-n")):
        probe = (*unshare, "true")
        if shutil.which("unshare") and not subprocess.run(probe, capture_output=True, check=False).returncode:
            return unshare
    return ()


def check_results(photos: Path) -> None:
    out = photos.with_name("photos_blurred")
    assert names(out) == names(photos)
    pictures = [name for name in names(photos) if not name.endswith(".mp4")]
    assert [shows_face(photos / name) for name in pictures] == [True, False, True]
    assert not any(shows_face(out / name) for name in pictures)


def test_everything_works_without_a_network(photos: Path, empty: Path) -> None:
    unshare = without_network()
    if not unshare:
        pytest.skip("unshare -n is not allowed here; the guard of the sockets is tested instead")
    probe = "import socket; socket.create_connection(('192.0.2.1', 9), 1)"
    assert subprocess.run((*unshare, sys.executable, "-c", probe), capture_output=True, check=False).returncode
    run((*unshare, *BLURGUARD, "dir", str(photos), "--jobs", "2"), empty)
    assert "FAIL" not in run((*unshare, *BLURGUARD, "doctor", str(photos)), empty)
    check_results(photos)


def test_no_network_is_tried_and_nothing_is_written_elsewhere(photos: Path, empty: Path, tmp_path: Path) -> None:
    guard = put(tmp_path / "guard" / "sitecustomize.py", GUARD.encode())
    guarded = {"PYTHONPATH": os.pathsep.join((str(guard.parent), environment()["PYTHONPATH"]))}
    probe = "import socket; socket.create_connection(('127.0.0.1', 9))"
    tried = subprocess.run(
        (sys.executable, "-c", probe), env=environment(**guarded), capture_output=True, text=True, check=False
    )
    assert "the network was tried" in tried.stderr
    originals = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in photos.iterdir()}
    run((*BLURGUARD, "dir", str(photos), "--jobs", "2"), empty, **guarded)
    told = run((*BLURGUARD, "detect", str(photos / "a.jpg"), "-q", "--min-score", "0.5"), empty, **guarded)
    assert len(json.loads(told)["faces"]) == 1
    run((*BLURGUARD, "file", str(photos / "a.jpg"), "--out", str(tmp_path / "single.jpg")), empty, **guarded)
    check_results(photos)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in photos.iterdir()} == originals
    assert list(empty.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "guard",
        "home",
        "photos",
        "photos_blurred",
        "single.jpg",
    ]


def test_no_process_makes_an_internet_socket_or_writes_elsewhere(photos: Path, empty: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    strace = (
        "strace",
        "-f",
        "-y",
        "-o",
        str(trace),
        "-e",
        "trace=socket,openat,creat,mkdir,mkdirat,rename,unlink,link",
    )
    if not shutil.which("strace") or subprocess.run((*strace, "true"), capture_output=True, check=False).returncode:
        pytest.skip("strace is not installed, or not permitted")
    run((*strace, *BLURGUARD, "dir", str(photos), "--jobs", "2", "--mode", "fast"), empty)
    calls = trace.read_text("utf-8", "replace")
    assert "execve" not in calls and str(photos / "a.jpg") in calls
    assert re.findall(r"socket\((?!AF_UNIX).*", calls) == []
    written = re.findall(
        r'(?:openat\([^"]*|creat\(|mkdir\(|mkdirat\([^"]*)"([^"]+)"(?:.*O_(?:WRONLY|RDWR|CREAT)|, 0).*', calls
    )
    elsewhere = {path for path in written if path.startswith("/") and not path.startswith(str(tmp_path))}
    assert {path for path in elsewhere if not path.startswith(("/dev/", "/proc/self/"))} == set()
