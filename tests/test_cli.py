"""The command line as a user meets it: exit codes, settings, what is told and to whom."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

from bench.faults.commands import blurguard, environment, put
from blurguard import __version__
from blurguard.cli.app import app
from blurguard.detection.model_zoo import load_manifest
from blurguard.settings import Settings
from tests.breakages import VARIABLE
from tests.children import hold_journal
from tests.commands import blank, encoded, face, lines, names, pixels, shows_face, small_disk, snapshot
from tests.conftest import ROOT, Starter

COMMANDS = ("dir", "file", "detect", "watch", "status", "models", "doctor")
TOLD = {
    "source", "target", "status", "kind", "width", "height", "frames", "faces", "seconds", "model", "settings",
    "error", "reason", "exit_code",
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that no test changes."""
    home = tmp_path_factory.mktemp("home")
    put(home / "photos" / "a.jpg", face())
    put(home / "photos" / "b.png", blank(".png"))
    put(home / "more" / "a.jpg", face())
    put(home / "bad" / "text.jpg", b"This is no picture, whatever its name says.")
    put(home / "bad" / "short.jpg", face()[:-1000])
    put(home / "bad" / "empty.png", b"")
    put(home / "bad" / "film.mp4", b"\0\0\0\x18ftypisom\0\0\0\0isommp42")
    put(home / "nested" / "photos" / "a.jpg", face())
    put(home / "years" / "a.jpg", face())
    put(home / "years" / "2024" / "a.jpg", face())
    put(home / "unknown.toml", b"margin = 0.1\nmargins = 0.1\n")
    put(home / "range.toml", b"min_score = 5.0\n")
    put(home / "type.toml", b'boxes = "yes"\n')
    put(home / "broken.toml", b"margin = ")
    (home / "nothing").mkdir()
    return home


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a copy of blurguard that tests may damage; they repair it afterwards."""
    folder = tmp_path_factory.mktemp("package")
    for part in ("blurguard", "models"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


USAGE = """
dir photos --min-score 5
dir photos --min-score 0
dir photos --min-score nan
dir photos --min-score high
dir photos --margin -1
dir photos --margin inf
file photos/a.jpg --jobs 0
file photos/a.jpg --jobs 1.5
detect photos --max-pixels 0
dir photos --style mosaic
dir photos --shape circle
dir photos --mode slow
dir photos --box-color green
dir photos --frobnicate
dir photos --in-place --out elsewhere
dir
file
detect
paint photos
doctor --style blur
"""
SETTINGS = """
dir photos --config unknown.toml
dir photos --config range.toml
dir photos --config type.toml
dir photos --config broken.toml
dir photos --config absent.toml
dir photos --config photos
dir photos --out photos
dir photos --out photos/../photos
dir photos --out unknown.toml
dir nested/photos --out nested
dir years --out years/2024
dir years --out years/2024 --overwrite
dir /
file photos/a.jpg --out photos/a.jpg --overwrite
file photos/a.jpg --out result.png
file photos/a.jpg more/a.jpg --out results
file photos/a.jpg photos/b.png --out unknown.toml
"""
MODEL = """
dir photos --model absent
file photos/a.jpg --model absent
detect photos/a.jpg --model absent
"""
INPUT = """
file absent.jpg
file bad/text.jpg
file bad/short.jpg
file bad/empty.png
file bad/film.mp4
file photos
file photos/a.jpg --max-pixels 9000
detect absent.jpg
detect bad/text.jpg
dir absent
dir photos/a.jpg
"""
OUTPUT = """
file photos/a.jpg --out more/a.jpg
file photos/a.jpg --out more
file photos/a.jpg --out /proc/absent/a.jpg
dir photos --out /proc/absent
dir photos --dry-run --report photos/a.jpg
dir photos --dry-run --report photos
dir photos --dry-run --report /dev/full
dir photos --dry-run --report absent/report.jsonl
detect photos --json photos/a.jpg
detect photos --json /dev/full
doctor absent
"""
BATCH = """
dir bad --dry-run
file photos/a.jpg absent.jpg --dry-run
detect photos bad
detect absent.jpg absent.png
"""
FINE = """
dir nothing
dir photos --dry-run
file photos/a.jpg --dry-run
detect nothing
detect photos/a.jpg
"""
TABLE = {2: USAGE, 3: SETTINGS, 4: MODEL, 5: INPUT, 6: OUTPUT, 7: BATCH, 0: FINE}


@pytest.mark.parametrize(
    ("command", "code"), [(line, code) for code, text in TABLE.items() for line in text.strip().splitlines()]
)
def test_each_exit_code_says_why_and_leaves_everything_as_it_was(home: Path, command: str, code: int) -> None:
    before = snapshot(home)
    done = blurguard(*shlex.split(command), code=code, cwd=home, env={"BLURGUARD_JOBS": "1"})
    assert bool(done.stderr.strip()) == bool(code) or command.startswith(("detect", "doctor"))
    assert snapshot(home) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [("BLURGUARD_MARGINS", "0.1"), ("BLURGUARD_MARGIN", "wide"), ("BLURGUARD_MIN_SCORE", "5"), ("BLURGUARD_BOXES", "")],
)
def test_a_variable_that_cannot_be_is_an_error(home: Path, name: str, value: str) -> None:
    done = blurguard("dir", "photos", code=3, cwd=home, env={name: value})
    assert name.removeprefix("BLURGUARD_").lower() in done.stderr


def test_an_empty_folder_says_so(home: Path) -> None:
    assert "no pictures or videos in nothing" in blurguard("dir", "nothing", cwd=home).stdout


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("blazeface_far.tflite", "changed"),
        ("centerface.tflite", "changed"),
        ("blazeface_far.tflite", "missing"),
        ("manifest.toml", "missing"),
    ],
)
def test_a_damaged_model_is_an_error_of_the_whole_run(package: Path, tmp_path: Path, file: str, damage: str) -> None:
    victim = package / "models" / file
    whole = victim.read_bytes()
    photo = put(tmp_path / "photos" / "a.jpg", face())
    commands = [("file", photo), ("dir", photo.parent), ("detect", photo), ("doctor", tmp_path)]
    try:
        victim.unlink()
        if damage == "changed":
            victim.write_bytes(whole[:-1] + b"?")
        for command in commands if damage == "changed" else commands[:1]:
            assert "reinstall" in "".join(_told(blurguard(*command, code=4, env={"PYTHONPATH": str(package)})))
    finally:
        victim.write_bytes(whole)
    assert names(tmp_path) == ["photos/a.jpg"]


def _told(done: "subprocess.CompletedProcess[str]") -> tuple[str, str]:
    return done.stdout, done.stderr


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_nobody_foresaw_is_1_and_leaves_no_result(jobs: int, tmp_path: Path) -> None:
    """A broken build, in its workers too: the seam to hiding raises what no code expects."""
    photo = put(tmp_path / "photos" / "a.jpg", face())
    put(tmp_path / "photos" / "b.jpg", face(turn=1))
    broken = {VARIABLE: "hiding fails"}
    assert "unforeseen" in blurguard("file", photo, code=1, env=broken, program="tests.broken").stderr
    blurguard("dir", photo.parent, "--jobs", jobs, code=7, env=broken, program="tests.broken")
    assert names(tmp_path) == ["photos/a.jpg", "photos/b.jpg"]


def test_a_result_that_exists_is_replaced_only_on_request(tmp_path: Path) -> None:
    photo, result = put(tmp_path / "a.jpg", face()), put(tmp_path / "a_blurred.jpg", b"somebody's")
    assert "--overwrite" in blurguard("file", photo, code=6).stderr
    assert result.read_bytes() == b"somebody's"
    blurguard("file", photo, "--overwrite")
    assert not shows_face(result) and shows_face(photo)


def test_results_never_replace_another_source(tmp_path: Path) -> None:
    photo, other = put(tmp_path / "a.jpg", face()), put(tmp_path / "a_blurred.jpg", face())
    blurguard("file", photo, other, "--overwrite", code=3)
    assert photo.read_bytes() == other.read_bytes() == face()


def test_a_file_that_may_not_grow_is_an_output_error(home: Path, tmp_path: Path) -> None:
    limited = ["sh", "-c", 'ulimit -f 2 && exec "$@"', "sh", sys.executable, "-m", "blurguard"]
    command = [*limited, "file", str(home / "photos" / "a.jpg"), "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, names(tmp_path)) == (6, [])
    assert "cannot write" in done.stderr and list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_output_error(home: Path, tmp_path: Path) -> None:
    photo = put(tmp_path / "a.png", face(".png"))
    with small_disk(tmp_path / "disk", "size=16k") as disk:
        assert "the disk is full" in blurguard("file", photo, "--out", disk, code=6).stderr
        assert list(disk.iterdir()) == []
        blurguard("dir", home / "photos", "--out", disk, code=6)
        assert names(disk) == []


def test_a_disk_that_fills_up_costs_only_what_no_longer_fits(tmp_path: Path) -> None:
    for index in range(8):
        put(tmp_path / "photos" / f"{index}.png", face(".png", side=200, turn=index))
    with small_disk(tmp_path / "disk", "size=256k") as disk:
        blurguard("dir", tmp_path / "photos", "--out", disk, "--jobs", 1, code=7)
        assert 0 < len(names(disk)) < 8
        assert not any(shows_face(disk / name) for name in names(disk))
        assert not (disk / ".blurguard" / "scratch").exists()


def test_a_read_only_folder_is_an_output_error(home: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=1m,ro") as disk:
        assert "read-only" in blurguard("dir", home / "photos", "--out", disk, code=6).stderr
        assert "read-only" in blurguard("doctor", disk, code=6).stdout


def test_a_second_run_on_the_same_folder_is_refused(home: Path, tmp_path: Path, start_python: Starter) -> None:
    process = start_python(hold_journal, tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "open\n"
    done = blurguard("dir", home / "photos", "--out", tmp_path, code=6)
    assert "another blurguard" in done.stderr
    assert names(tmp_path) == []


def test_several_files_with_a_failure_are_7_and_the_others_are_done(home: Path, tmp_path: Path) -> None:
    photos = [home / "photos" / "a.jpg", home / "bad" / "text.jpg", home / "photos" / "b.png"]
    done = blurguard("file", *photos, "--out", tmp_path / "out", "--jobs", 2, code=7)
    assert "text.jpg" in done.stderr
    assert names(tmp_path / "out") == ["a.jpg", "b.png"]
    assert not shows_face(tmp_path / "out" / "a.jpg")


def test_the_result_is_named_after_the_photo_or_as_asked_for(tmp_path: Path) -> None:
    photo = put(tmp_path / "a.jpg", face())
    blurguard("file", "a.jpg", cwd=tmp_path)
    blurguard("file", "a.jpg", "a.jpg", "--out", "new/b.jpeg", cwd=tmp_path)
    blurguard("file", photo, "--out", "folder", cwd=tmp_path)
    assert names(tmp_path) == ["a.jpg", "a_blurred.jpg", "folder/a.jpg", "new/b.jpeg"]
    assert [shows_face(tmp_path / name) for name in names(tmp_path)] == [True, False, False, False]
    assert photo.read_bytes() == face()
    assert sorted(path.name for path in tmp_path.rglob(".*")) == []


def test_settings_come_from_file_environment_and_options_the_last_one_winning(home: Path, tmp_path: Path) -> None:
    config = put(tmp_path / "blurguard.toml", b'style = "solid"\nmargin = 0.1\nmode = "fast"\nmax_pixels = 20000\n')
    variables = {"BLURGUARD_CONFIG": str(config), "BLURGUARD_MARGIN": "0.3", "BLURGUARD_SHAPE": "box"}
    report = tmp_path / "report.jsonl"
    options = ("--shape", "ellipse", "--dry-run", "--report", report)
    blurguard("file", home / "photos" / "a.jpg", *options, env=variables)
    (line,) = lines(report)
    told = {key: line["settings"][key] for key in ("style", "margin", "mode", "max_pixels", "shape")}
    assert told == {"style": "solid", "margin": 0.3, "mode": "fast", "max_pixels": 20000, "shape": "ellipse"}
    assert line["settings"].keys() == Settings().as_json().keys()
    blurguard(
        "file", home / "photos" / "a.jpg", "--dry-run", "--config", config, code=5, env={"BLURGUARD_MAX_PIXELS": "9000"}
    )


def test_the_report_tells_all_there_is_to_tell(home: Path, tmp_path: Path) -> None:
    photos = (home / "photos" / "a.jpg", home / "photos" / "b.png", home / "bad" / "text.jpg")
    report = put(tmp_path / "report.jsonl", b'{"source": "of an older report"}\n')
    blurguard("file", *photos, "--out", tmp_path / "out", "--report", report, "--min-score", "0.5", code=7)
    with_face, without, failed = lines(report)
    assert with_face.keys() == without.keys() == failed.keys() == TOLD
    assert [line["source"] for line in (with_face, without, failed)] == [str(path) for path in photos]
    assert with_face["target"] == str(tmp_path / "out" / "a.jpg")
    assert (with_face["kind"], with_face["width"], with_face["height"], with_face["frames"]) == ("JPEG", 128, 128, 1)
    (found,) = with_face["faces"]
    assert found.keys() == {"box", "score", "region"}
    (x0, y0, x1, y1), region = found["box"], found["region"]
    assert region[0] < x0 < 64 < x1 < region[2] and region[1] < y0 < 64 < y1 < region[3]
    assert all(isinstance(value, int) for value in region) and 0.5 <= found["score"] <= 1
    assert re.fullmatch(r"far@[0-9a-f]{64}", with_face["model"]) and with_face["seconds"] > 0
    assert with_face["settings"]["min_score"] == 0.5
    assert [line["status"] for line in (with_face, without, failed)] == ["done", "done", "failed"]
    assert (failed["error"], failed["exit_code"], failed["faces"]) == ("InputError", 5, [])
    assert "text.jpg" in failed["reason"]


def test_quiet_says_nothing_but_failures(home: Path, tmp_path: Path) -> None:
    done = blurguard("dir", home / "photos", "--out", tmp_path / "out", "--quiet", "--jobs", 1)
    assert _told(done) == ("", "")
    assert _told(blurguard("dir", home / "nothing", "--quiet")) == ("", "")
    done = blurguard("dir", home / "bad", "--out", tmp_path / "bad", "-q", "--jobs", 1, code=7)
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 4 and "text.jpg" in done.stderr


def test_the_closing_table_counts(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "photos", tmp_path / "photos")
    put(tmp_path / "photos" / "text.jpg", b"no picture")
    done = blurguard("dir", tmp_path / "photos", "--jobs", 1, "--min-score", 0.5, code=7)
    head, row = (line for line in done.stdout.splitlines() if line.startswith(("┃", "│")))
    assert re.findall(r"\w+", head) == ["done", "skipped", "failed", "faces", "seconds"]
    assert re.findall(r"[\d.]+", row)[:4] == ["2", "0", "1", "1"]
    assert "results in" in done.stdout and "photos_blurred" in done.stdout


def test_json_logs_are_json_and_say_the_same(home: Path, tmp_path: Path) -> None:
    done = blurguard(
        "file",
        home / "photos" / "a.jpg",
        home / "bad" / "text.jpg",
        "--out",
        tmp_path,
        "--log-json",
        "--min-score",
        0.5,
        code=7,
    )
    assert done.stdout == ""
    note, first, second, end = lines(done.stderr)
    assert note["event"] == "note" and "min-score 0.5 is a probability" in note["text"]
    assert [first["event"], first["status"], first["faces"]] == ["file", "done", 1]
    assert [second["event"], second["status"]] == ["file", "failed"] and "text.jpg" in second["reason"]
    assert [end["event"], end["done"], end["failed"], end["faces"]] == ["end", 1, 1, 1]
    (line,) = lines(blurguard("file", "absent.jpg", "--config", "absent.toml", "--log-json", code=3).stderr)
    assert line["event"] == "error" and "absent.toml" in line["text"]


@pytest.mark.parametrize(
    "name", ["[red]x[/].jpg", ":heart:.jpg", "\x1b[31mred\x07.jpg", "two\nlines.jpg", "\u202egpj.a"]
)
def test_names_are_printed_as_they_are_or_escaped(tmp_path: Path, name: str) -> None:
    put(tmp_path / "photos" / name, blank())
    done = blurguard("dir", tmp_path / "photos", "--out", tmp_path / name, "--log-json")
    assert lines(done.stderr)[0]["source"] == str(tmp_path / "photos" / name)
    shown = name.replace("\x1b", r"\x1b").replace("\x07", r"\x07").replace("\n", r"\n").replace("\u202e", r"\u202e")
    done = blurguard("dir", tmp_path / "photos", "--out", tmp_path / name, "--overwrite", "--jobs", 1)
    assert done.stdout.count(shown) == 2  # the picture, and the folder of the results
    assert not {"\x1b", "\x07", "\u202e"} & set(done.stdout)
    put(tmp_path / "bad" / name, b"no picture")
    assert shown in blurguard("file", tmp_path / "bad" / name, code=5).stderr


def test_names_that_are_no_text_are_handled_and_told(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    put(tmp_path / "photos" / name, face())
    report, folder = tmp_path / "report.jsonl", tmp_path / os.fsdecode(b"r\xe9sultats")
    done = blurguard("dir", tmp_path / "photos", "--out", folder, "--report", report, "--jobs", 1)
    assert r"caf\xe9.jpg" in done.stdout and r"r\xe9sultats" in done.stdout
    assert not shows_face(folder / name)
    assert os.fsencode(lines(report)[0]["target"]) == os.fsencode(folder / name)


def test_a_terminal_that_cannot_show_a_name_stops_nothing(tmp_path: Path) -> None:
    put(tmp_path / "photos" / "日本.jpg", blank())
    done = blurguard("dir", tmp_path / "photos", "--jobs", 1, env={"PYTHONIOENCODING": "ascii"})
    assert r"\u65e5\u672c.jpg" in done.stdout
    assert names(tmp_path / "photos_blurred") == ["日本.jpg"]


def test_detect_tells_one_line_a_file_and_one_entry_a_face(home: Path, tmp_path: Path) -> None:
    told = tmp_path / "faces.jsonl"
    before = snapshot(home)
    done = blurguard(
        "detect", home / "photos", home / "more" / "a.jpg", "--json", told, "--jobs", 1, "--min-score", 0.5
    )
    assert "faces" in done.stderr and done.stdout == ""
    with_face, without, again = lines(told)
    assert [line["source"] for line in (with_face, without, again)] == [
        str(home / name) for name in ("photos/a.jpg", "photos/b.png", "more/a.jpg")
    ]
    assert with_face.keys() == {"source", "width", "height", "faces"}
    assert (with_face["width"], with_face["height"], without["faces"]) == (128, 128, [])
    assert with_face["faces"] == again["faces"] and len(again["faces"]) == 1
    assert again["faces"][0].keys() == {"box", "score", "region"}
    piped = blurguard("detect", home / "photos", home / "more" / "a.jpg", "--quiet", "--jobs", 2, "--min-score", 0.5)
    assert piped.stdout == told.read_text("utf-8") and piped.stderr == ""
    assert snapshot(home) == before


def test_detect_has_a_line_for_what_cannot_be_read_and_goes_as_low_as_asked(home: Path) -> None:
    done = blurguard("detect", home / "photos" / "a.jpg", home / "bad" / "text.jpg", "--min-score", "0.01", code=7)
    found, failed = lines(done.stdout)
    assert min(entry["score"] for entry in found["faces"]) < 0.2
    assert found["faces"] == sorted(found["faces"], key=lambda entry: -entry["score"])
    assert failed["faces"] == [] and "text.jpg" in failed["error"]


def test_boxes_are_drawn_only_on_request_and_in_the_color_asked_for(tmp_path: Path) -> None:
    photo, counts = put(tmp_path / "a.png", face(".png")), []
    for options in ((), ("--boxes",), ("--boxes", "--box-color", "#ff0000")):
        blurguard("file", photo, "--overwrite", *options)
        result = pixels(tmp_path / "a_blurred.png")
        counts.append([int((result == color).all(axis=2).sum()) for color in ([0, 255, 0], [255, 0, 0])])
    assert counts[0] == [0, 0] and counts[1][0] > 100 and counts[2][1] > 100
    assert counts[1][1] == counts[2][0] == 0


def test_metadata_is_kept_only_on_request(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0110] = "Camera of the test"  # Model
    exif.get_ifd(0x8825)[1] = "N"  # GPSLatitudeRef
    photo = put(tmp_path / "a.jpg", encoded(Image.new("RGB", (64, 64)), ".jpg", exif=exif))
    blurguard("file", photo)
    assert b"Camera of the test" not in (tmp_path / "a_blurred.jpg").read_bytes()
    blurguard("file", photo, "--overwrite", "--keep-metadata")
    with Image.open(tmp_path / "a_blurred.jpg") as result:
        assert result.getexif()[0x0110] == "Camera of the test"
        assert not result.getexif().get_ifd(0x8825)


@pytest.mark.parametrize("style", ["blur", "pixelate", "solid"])
def test_styles_and_shapes_do_what_they_are_called(tmp_path: Path, style: str) -> None:
    photo, report = put(tmp_path / "a.png", face(".png")), tmp_path / "report.jsonl"
    blurguard(
        "file", photo, "--style", style, "--shape", "box", "--margin", 0.3, "--min-score", 0.5, "--report", report
    )
    result = pixels(tmp_path / "a_blurred.png")
    x0, y0, x1, y1 = lines(report)[0]["faces"][0]["region"]
    assert bool((result[y0:y1, x0:x1] == 0).all()) == (style == "solid")
    assert not np.array_equal(result, pixels(photo)) and np.array_equal(result[:2, :2], pixels(photo)[:2, :2])
    assert not shows_face(tmp_path / "a_blurred.png")


def test_models_lists_the_networks_of_each_mode_and_their_training_data() -> None:
    listed = blurguard("models").stdout
    manifest = load_manifest()
    for model in manifest.models:
        assert f"\n{model.name}" in f"\n{listed}"
        for mode, plan in model.plans.items():
            assert f"{mode}: {' and '.join(plan.networks)}, hides from a probability of {plan.threshold:g}" in listed
    for network in manifest.networks.values():
        assert f"network {network.name}\n  license: {network.license}\n" in listed
        assert f"trained on: {network.training_data}\n" in listed


@pytest.mark.parametrize("given", [(), ("--min-score", 0.5)])
def test_a_chosen_score_is_called_a_probability(home: Path, tmp_path: Path, given: tuple[object, ...]) -> None:
    printed = blurguard("file", home / "photos" / "a.jpg", "--out", tmp_path, *given).stdout
    assert ("min-score 0.5 is a probability" in printed) == bool(given)


def test_models_and_doctor_and_version(tmp_path: Path) -> None:
    assert "stock" in blurguard("models").stdout
    told = blurguard("doctor", tmp_path, tmp_path / "absent", code=6).stdout
    assert len(re.findall(r"^ok ", told, re.MULTILINE)) >= 12 and told.count("FAIL") == 1
    assert list(tmp_path.iterdir()) == []
    fine = blurguard("doctor", cwd=tmp_path).stdout
    assert "FAIL" not in fine and re.search(r"^ok +video: reads and writes h264, hevc", fine, re.MULTILINE)
    assert blurguard("--version").stdout == f"blurguard {__version__}\n"


def _command(name: str) -> Any:
    """Return what the parser knows of a command; of the whole for ``""``."""
    group: Any = typer.main.get_command(app)
    return group.commands[name] if name else group


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_names_every_option_and_says_what_it_does(name: str) -> None:
    told = blurguard(*([name] if name else []), "--help", env={"COLUMNS": "200"}).stdout
    for parameter in _command(name).params:
        assert parameter.help, parameter.name
        if isinstance(parameter.opts[0], str) and parameter.opts[0].startswith("-"):
            assert all(option in told for option in (*parameter.opts, *parameter.secondary_opts)), parameter.name
    assert tuple(_command("").commands) == COMMANDS


def test_help_tells_the_defaults() -> None:
    told = blurguard("dir", "--help", env={"COLUMNS": "200"}).stdout
    defaults = Settings()
    for default in ("accurate", "blur", "ellipse", "#00ff00", "PHOTOS_blurred", defaults.margin, defaults.max_pixels):
        assert re.search(rf"\[default: \(?{default}\)?\]", told), default


def test_no_command_shows_the_help() -> None:
    assert "Commands" in "".join(_told(blurguard(code=2)))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_get_their_completion(shell: str) -> None:
    script = Path(sys.executable).with_name("blurguard")
    done = subprocess.run(
        [script], env=environment(_BLURGUARD_COMPLETE=f"source_{shell}"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "_BLURGUARD_COMPLETE" in done.stdout


def documented(text: str) -> list[list[str]]:
    """Return the blurguard commands in the code blocks of a Markdown text."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    found = [line.removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in found if line.startswith("blurguard ")]


def options_of(name: str) -> set[str]:
    own = {option for parameter in _command(name).params for option in (*parameter.opts, *parameter.secondary_opts)}
    return own | {"--help", "-h"}


def check_documented(text: str) -> None:
    for command in documented(text):
        words = [word for word in command[1:] if not word.startswith("-")]
        name = words[0] if words else ""
        assert not name or name in COMMANDS, command
        assert {word.partition("=")[0] for word in command[1:] if word.startswith("-")} - {"-"} <= options_of(name)
    known = set().union(*map(options_of, ("", *COMMANDS)))
    assert set(re.findall(r"`(--[a-z][a-z-]*)", text)) <= known


def test_what_the_readme_says_exists() -> None:
    check_documented((ROOT / "README.md").read_text("utf-8"))


@pytest.mark.parametrize(
    "text", ["```sh\nblurguard paint x\n```", "```\n$ blurguard dir x --hard\n```", "Say `--hard`."]
)
def test_what_does_not_exist_would_be_seen_in_the_readme(text: str) -> None:
    check_documented(
        "```sh\n$ blurguard dir photos --out x  # comment\nblurguard detect a.jpg --json -\n```\n`--quiet`"
    )
    with pytest.raises(AssertionError):
        check_documented(text)
