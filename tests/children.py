"""Programs that tests run in processes of their own: ``python -m tests.children NAME ARGUMENTS``.

Each imports inside its function, so that it starts with the modules that it needs and no others.
"""

import sys
from collections.abc import Callable
from pathlib import Path


def program(function: Callable[..., None], *arguments: object) -> tuple[str, ...]:
    """Return the command that runs a function of this module with some arguments, which it gets as text."""
    return sys.executable, "-P", "-m", "tests.children", function.__name__, *map(str, arguments)


# --- the command line, in odd circumstances ---------------------------------------------------------------------


def run_command_line(*arguments: str) -> None:
    from blurguard.cli.app import main

    sys.argv[1:] = arguments
    main()


def run_with_small_files(most_bytes: str, *arguments: str) -> None:
    """Run the command line where no file may become larger."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (int(most_bytes), int(most_bytes)))
    run_command_line(*arguments)


def run_interrupted(number: str, *arguments: str) -> None:
    """Run the command line, with a signal at the first ``os.chmod``."""
    import os

    real = os.chmod

    def chmod(*args: object, **options: object) -> None:
        os.chmod = real
        os.kill(os.getpid(), int(number))
        real(*args, **options)  # type: ignore[arg-type]

    os.chmod = chmod
    run_command_line(*arguments)


def run_without_options(count: str, command: str, inbox: str, outbox: str, *arguments: str) -> None:
    """Run the daemon without so many of the options that come first: those would win over a settings file."""
    run_command_line(command, inbox, outbox, "--log-json", *arguments[int(count) :])


def run_daemon_with(detector: str, *arguments: str) -> None:
    """Run a daemon whose workers have a detector of ``tests.workers``, named by its factory."""
    import argparse
    import functools
    import os

    from blurguard.batch.process import configure_process
    from blurguard.batch.workers import WorkerConfig
    from blurguard.cli.console import ConsoleProgress
    from blurguard.settings import WatchSettings
    from blurguard.watch.daemon import watch
    from blurguard.watch.event_loop import RuntimeConfig
    from blurguard.watch.folders import Folders
    from tests import workers

    parser = argparse.ArgumentParser()
    for name in ("command", "inbox", "outbox"):
        parser.add_argument(name)
    for name in ("settle", "rescan", "timeout", "grace"):
        parser.add_argument("--" + name, type=float)
    for name in ("jobs", "min-free", "recycle"):
        parser.add_argument("--" + name, type=int)
    parser.add_argument("--log-json", action="store_true")
    given = vars(parser.parse_known_args(arguments)[0])
    configure_process()
    factory = getattr(workers, detector)
    if factory is workers.waiting:
        factory = functools.partial(factory, Path(os.environ["GATE"]))
    console = ConsoleProgress(quiet=False, verbose=False, as_json=True)
    chosen = {key: given[key] for key in ("settle", "rescan", "timeout", "grace", "min_free", "recycle") if given[key]}
    settings = WatchSettings().changed({"min_free": 0, "grace": 0} | chosen, "test")
    orders = RuntimeConfig(WorkerConfig(factory, given["jobs"], progress=console.frames), settings)
    folders = Folders(Path(given["inbox"]), Path(given["outbox"])).prepared(allow_shared=False)
    with console.live("watching"):
        watch(folders, orders, lambda: orders, console)


# --- the journal and the health of a daemon ---------------------------------------------------------------------


def hold_journal(folder: str) -> None:
    from blurguard.batch.journal import open_journal

    with open_journal(Path(folder)):
        print("open", flush=True)
        sys.stdin.read()


def write_and_die(folder: str) -> None:
    import os
    import signal

    from blurguard.batch.journal import FileRecord, FileState, open_journal

    with open_journal(Path(folder)) as journal:
        journal.put(Path("a.jpg"), FileRecord(FileState.PUBLISHING, output_digest="abc"))
        os.kill(os.getpid(), signal.SIGKILL)


def write_always(folder: str) -> None:
    import itertools

    from blurguard.batch.journal import FileState, open_journal

    with open_journal(Path(folder)) as journal:
        for turn in itertools.count():
            for state in (FileState.QUEUED, FileState.WORKING):
                journal.mark([Path(f"{number}.jpg") for number in range(50)], state)
            if turn == 1:
                print("writing", flush=True)


def pretend_to_be_daemon(outbox: str, state: str, now: str) -> None:
    import os

    from blurguard.batch.journal import FileState, open_journal
    from blurguard.watch.health import DaemonState, Health, HealthWriter, health_file

    out, moment = Path(outbox), float(now)
    with open_journal(out) as journal:
        journal.mark([Path("a.jpg"), Path("b.jpg")], FileState.QUEUED)
        journal.mark([Path("c.jpg")], FileState.WORKING)
        health = Health(DaemonState(state), "", 2, 1, 0, 0, 0, moment, 0.0, os.getpid(), "0.1.0")
        HealthWriter(health_file(out), now=lambda: moment).write(health)
        print("open", flush=True)
        sys.stdin.read()


def look_always(outbox: str) -> None:
    from blurguard.watch.health import is_in_use

    print("looking", flush=True)
    while True:
        is_in_use(Path(outbox))


# --- inboxes and originals --------------------------------------------------------------------------------------


def write_slowly(path: str, mode: str) -> None:
    """Open a file, and close it when told to."""
    with Path(path).open(mode):
        print("open", flush=True)
        sys.stdin.readline()
    print("closed", flush=True)
    sys.stdin.readline()


def write_at_once(path: str) -> None:
    """Open a file for writing, or fail at once where one would have to wait."""
    import os

    os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    print("open")


def look_at_inbox(inbox: str) -> None:
    from blurguard.files.stamp import stamp_at
    from blurguard.watch.inbox import is_being_written, scan_folder

    for path in sorted(Path(inbox).iterdir()):
        print(path.name, is_being_written(path), stamp_at(path, path.parent))
    print(list(scan_folder(Path(inbox))))


def watch_without_handles(inbox: str) -> None:
    import os
    import resource

    from blurguard.watch.inbox import InboxObserver

    handle = os.open("/dev/null", os.O_RDONLY)
    resource.setrlimit(resource.RLIMIT_NOFILE, (handle + 1, handle + 1))
    print(InboxObserver(Path(inbox), lambda *_: None).start())


def hold_part(folder: str) -> None:
    from blurguard.files.atomic import atomic_file

    with atomic_file(Path(folder) / "whole") as part:
        print(part.name, flush=True)
        sys.stdin.read()


def look_at_exchanged(path: str, look: str) -> None:
    """Look at a file that becomes a pipe in the moment before it is opened."""
    import os

    from blurguard.files.atomic import digest_file
    from blurguard.files.filetypes import type_of_file

    file, looks = Path(path), {"kind": type_of_file, "digest": digest_file}

    def exchange(event: str, args: tuple[object, ...]) -> None:
        if event == "open" and args[0] == path and file.is_file():
            file.unlink()
            os.mkfifo(file)

    sys.addaudithook(exchange)
    try:
        looks[look](file)
    except Exception as error:
        print(error)


# --- results ----------------------------------------------------------------------------------------------------


def hold_draft(folder: str) -> None:
    from blurguard.files.atomic import scratch_in, stage_bytes

    with scratch_in(Path(folder)) as scratch:
        print(stage_bytes(scratch, b"hidden already").path, flush=True)
        sys.stdin.read()


def publish_under_umask(folder: str, umask: str) -> None:
    import os

    from blurguard.files.atomic import publish, scratch_in, stage_bytes

    os.umask(int(umask, 8))
    out = Path(folder)
    (out / "ordinary").write_bytes(b"")
    with scratch_in(out) as scratch:
        publish(stage_bytes(scratch, b"new"), out / "ours", replace=False)
        publish(stage_bytes(scratch, b"new"), out / "ours too", replace=True)


def write_too_much(folder: str) -> None:
    import resource
    import signal

    from blurguard.errors import OutputError
    from blurguard.files.atomic import scratch_in, stage_bytes

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    with scratch_in(Path(folder)) as scratch:
        try:
            stage_bytes(scratch, bytes(100_000))
        except OutputError as error:
            print(len(list(scratch.iterdir())), error)


# --- pictures and videos ----------------------------------------------------------------------------------------


def process_bomb(source: str, target: str) -> None:
    """Print how much memory it took to refuse a picture, KiB, and why it was refused."""
    import resource

    from bench.faults.stubs import anonymizer
    from blurguard import InputError

    hider = anonymizer()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        hider.process(Path(source), Path(target))
    except InputError as error:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)


def read_watched(path: str) -> None:
    """Read a video, and note what is opened meanwhile."""
    opened: list[str] = []
    sys.addaudithook(lambda name, what: opened.append(str(what[0])) if name in ("open", "socket.connect") else None)
    from blurguard.errors import InputError
    from blurguard.video.reader import open_video

    try:
        with open_video(Path(path), max_pixels=10**7) as video:
            print(len(list(video.frames())))
    except InputError as error:
        print(error)


def rewrite_clips(folder: str, *names: str) -> None:
    from tests.clips import made
    from tests.test_remux import rewrite

    for name in names:
        rewrite(made(name, Path(folder)), Path(folder))


def rewrite_on_full_disk(folder: str, name: str, room: str) -> None:
    import resource
    import signal

    from blurguard.errors import OutputError
    from tests.clips import made
    from tests.test_remux import rewrite

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    source = made(name, Path(folder))
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(room), int(room)))
    try:
        rewrite(source, Path(folder))
    except OutputError as error:
        print(error)


# --- the library and its network --------------------------------------------------------------------------------


def print_imports(*names: str) -> None:
    """Print which of these modules are there once blurguard is imported."""
    import blurguard  # noqa: F401 - it is to be there

    print(set(names) & set(sys.modules))


def use_library_quietly() -> None:
    """Hide faces as a library does, and check that nothing of the whole process has changed."""
    import logging
    import os
    import signal

    import cv2
    import numpy as np
    import PIL.Image

    import blurguard

    def state() -> list[object]:
        handlers = [signal.getsignal(number) for number in signal.valid_signals()]
        return [handlers, dict(os.environ), logging.root.handlers, cv2.getNumThreads(), PIL.Image.MAX_IMAGE_PIXELS]

    before = state()
    blurguard.hide_faces(np.zeros((64, 64, 3), np.uint8))
    blurguard.Anonymizer().process(Path("a.png"), Path("b.png"))
    assert state() == before


def run_network() -> None:
    import numpy as np

    from blurguard.detection import model_zoo
    from blurguard.detection.interpreter import Network

    spec = model_zoo.load_manifest().networks["far"]
    network = Network(spec, model_zoo.load_weights(spec))
    network.run(np.zeros((64, 96, 3), np.uint8))
    network.run(np.zeros((96, 64, 3), np.uint8))
    print("heard", file=sys.stderr)


def look_for_runtime() -> None:
    """Look for a runtime where none is installed."""
    missing = dict.fromkeys(("ai_edge_litert.interpreter", "tflite_runtime.interpreter"))
    sys.modules.update(missing)  # type: ignore[arg-type]  # None is "cannot be imported"
    from blurguard.detection.interpreter import interpreter_class
    from blurguard.errors import ModelError

    try:
        interpreter_class()
    except ModelError as error:
        print(error)


def hide_in_threads() -> None:
    import os
    import threading

    import numpy as np

    import blurguard

    def work(side: int) -> None:
        blurguard.hide_faces(np.zeros((side, side, 3), np.uint8))

    before = os.readlink("/proc/self/fd/2")  # noqa: PTH115
    threads = [threading.Thread(target=work, args=(side,)) for side in (64, 96, 128, 200, 300, 330)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.readlink("/proc/self/fd/2") == before  # noqa: PTH115
    print("heard", file=sys.stderr)


if __name__ == "__main__":
    globals()[sys.argv.pop(1)](*sys.argv[1:])
