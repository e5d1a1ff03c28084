"""The unit, the container and the settings in examples/watch are what blurguard understands."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from bench.settings_doc import with_tables
from blurguard.cli.app import app
from blurguard.settings import Settings, WatchSettings, read_settings
from blurguard.watch.health import DaemonState, Health, prometheus_text
from tests.conftest import ROOT

WATCH = ROOT / "examples" / "watch"
UNIT, SETTINGS = WATCH / "blurguard-watch.service", WATCH / "blurguard.toml"
DOCKERFILE, COMPOSE = WATCH / "Dockerfile", WATCH / "compose.yaml"
OPERATIONS = ROOT / "docs" / "operations.md"
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


def options_of(command: str) -> set[str]:
    """Return the options that a command of ours takes."""
    found = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    return {name for parameter in found.params for name in (*parameter.opts, *parameter.secondary_opts)}


def check_command(words: list[str]) -> None:
    """Check a command line of ours: the command, its options, and as many folders as it wants."""
    program, command, *rest = words
    assert Path(program).name == "blurguard"
    known, folders = options_of(command), 0
    for word, before in zip(rest, ["", *rest], strict=False):
        if word.startswith("-"):
            assert word in known
        elif before != "--config":
            folders += 1
    assert folders == {"watch": 2, "status": 1}[command]


def unit() -> dict[str, dict[str, list[str]]]:
    """Return the unit: section -> key -> values; keys may come more than once."""
    sections: dict[str, dict[str, list[str]]] = {}
    for line in UNIT.read_text("utf-8").splitlines():
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals, line
            section.setdefault(key, []).append(value)
    return sections


def dockerfile() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile, lines joined."""
    text = DOCKERFILE.read_text("utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def instruction(name: str) -> str:
    """Return the one instruction of that name."""
    (found,) = [rest for word, rest in dockerfile() if word == name]
    return found


def compose() -> dict[str, Any]:
    """Return the one service: maps, lists and texts, as much of YAML as the file may hold.

    There is no parser of YAML among what the tests need, and this file shall not need one: two blanks for each level,
    JSON lists or `- item` lines, `[WORD]` for bare words.
    """
    root: dict[str, Any] = {}
    stack: list[Any] = [root]
    for line in COMPOSE.read_text("utf-8").splitlines():
        text, depth = line.strip(), (len(line) - len(line.lstrip())) // 2
        assert "\t" not in line and len(line) - len(line.lstrip()) == 2 * depth
        if text.startswith("- "):
            stack[depth].setdefault("", []).append(text[2:])
            continue
        key, colon, value = text.partition(":")
        assert colon and key not in stack[depth], line
        del stack[depth + 1 :]
        stack[depth][key] = {} if not value else scalar(value.strip())
        stack.append(stack[depth][key])
    (service,) = root["services"].values()
    return {key: value.get("", value) if isinstance(value, dict) else value for key, value in service.items()}


def scalar(text: str) -> Any:
    if text.startswith("["):
        return json.loads(re.sub(r"(?<=[\[,])\s*(\w+)\s*(?=[,\]])", r'"\1"', text))
    return json.loads(text) if text.startswith('"') or text in ("true", "false") else text


def seconds(text: str) -> float:
    """Return a duration of systemd's or Docker's that is in seconds."""
    return float(text.removesuffix("s"))


def grace() -> float:
    return read_settings(SETTINGS, {})[1].grace


def test_the_settings_are_accepted_and_complete() -> None:
    settings, watching = read_settings(SETTINGS, {})
    assert watching.complete().failed
    # What is only suggested must be right as well.
    text = re.sub(r"^# (\w+ = )", r"\1", SETTINGS.read_text("utf-8"), flags=re.M).replace('"keep" ', '"move" ')
    suggested = tomllib.loads(text)
    table = suggested.pop("watch")
    settings.changed(suggested, "test")
    assert watching.changed(table, "test").complete().metrics


def test_the_manual_tells_every_setting_and_its_default() -> None:
    text = OPERATIONS.read_text("utf-8")
    assert text == with_tables(text), "run python -m bench.settings_doc"
    told = re.findall(r"^\| `(\w+)` \| `--", text, re.M)
    assert told == [field.name for field in (*dataclasses.fields(Settings), *dataclasses.fields(WatchSettings))]


def test_the_settings_that_the_manual_gives_as_an_example_are_accepted(tmp_path: Path) -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", OPERATIONS.read_text("utf-8"), re.S)
    (tmp_path / "s.toml").write_text(block, "utf-8")
    settings, watch = read_settings(tmp_path / "s.toml", {})
    assert settings != Settings() and watch.complete() != WatchSettings()


def test_the_manual_names_the_metrics_that_there_are() -> None:
    section = OPERATIONS.read_text("utf-8").split("\n## Drop folder\n")[1].split("\n## ")[0]
    told: set[str] = set()
    for cell in re.findall(r"^\| (`(?:blurguard_watch)?_.*?) \|", section, re.M):
        names = re.findall(r"`(?:blurguard_watch)?(_[a-z_]+)", cell)
        told |= {f"blurguard_watch{name}" for name in names}
    health = Health(DaemonState.RUNNING, "", 0, 0, 0, 0, 0, 1.0, 1.0, 1, "0")
    assert told == set(re.findall(r"^# TYPE (\w+)", prometheus_text(health, 1.0), re.M))
    assert set(re.findall(r"blurguard_watch_[a-z_]+", section)) <= told


def test_options_in_what_is_told_of_the_drop_folder_exist() -> None:
    section = OPERATIONS.read_text("utf-8").split("\n## Drop folder\n")[1].split("\n## ")[0]
    told = set(OPTION.findall(section))
    assert "--settle" in told
    assert told <= options_of("watch") | options_of("status") | {"--out"}  # of `dir`


def test_the_unit_runs_a_command_of_ours() -> None:
    service = unit()["Service"]
    check_command(shlex.split(service["ExecStart"][0]))
    assert service["ExecReload"] == ["/bin/kill -HUP $MAINPID"]


def test_the_unit_grants_what_the_daemon_needs_and_no_more() -> None:
    service = {key: values[-1] for key, values in unit()["Service"].items()}
    hardened = {
        "PrivateNetwork": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "NoNewPrivileges": "yes",
        "PrivateTmp": "yes", "PrivateDevices": "yes", "RestrictAddressFamilies": "none", "KillMode": "mixed",
        "SystemCallFilter": "@system-service", "Restart": "on-failure", "CapabilityBoundingSet": "CAP_LEASE",
    }  # fmt: skip
    assert hardened.items() <= service.items()
    assert service["User"] not in ("", "root")
    assert "WatchdogSec" not in service  # nobody tells systemd that it lives
    assert seconds(service["TimeoutStopSec"]) > grace()
    folders = [word for word in shlex.split(service["ExecStart"]) if word.startswith("/srv")]
    folders.append(read_settings(SETTINGS, {})[1].failed)
    assert all(Path(folder).is_relative_to(service["ReadWritePaths"]) for folder in folders)


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    if (analyze := shutil.which("systemd-analyze")) is None:
        pytest.skip("there is no systemd-analyze")
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text("utf-8").replace("/opt/blurguard/bin/blurguard", "/bin/true"), "utf-8")
    done = subprocess.run([analyze, "verify", "--man=no", copy], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_container_runs_commands_of_ours() -> None:
    entry = json.loads(instruction("ENTRYPOINT"))
    check_command([*entry, *json.loads(instruction("CMD"))])
    check_command([*entry, *compose()["command"]])
    health = instruction("HEALTHCHECK")
    words = json.loads(health[health.index("[") :])
    check_command(words)
    assert "--check" in words
    assert words[2] == entry[-1]


def test_the_image_holds_all_that_the_package_is_built_from() -> None:
    copied = {name for word, rest in dockerfile() if word == "COPY" for name in rest.split()[:-1]}
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = [
        project["project"]["readme"],
        *project["project"]["license-files"],
        *wheel["packages"],
        *wheel["force-include"],
    ]
    assert {Path(name).parts[0] for name in needed} | {"pyproject.toml"} == copied


def test_the_container_has_no_network_no_root_and_nothing_to_write_to_but_its_folders() -> None:
    service = compose()
    wanted = {
        "network_mode": "none", "read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"],
        "user": instruction("USER"), "mem_limit": service["memswap_limit"],
    }  # fmt: skip
    assert wanted.items() <= service.items()
    assert not service["user"].startswith(("0", "root"))
    assert seconds(service["stop_grace_period"]) > grace()
    build = service["build"]
    assert (WATCH / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).samefile(DOCKERFILE)


def test_the_container_mounts_what_the_daemon_uses() -> None:
    volumes = [volume.split(":") for volume in compose()["volumes"]]
    mounts = {place: "".join(mode) or "rw" for _, place, *mode in volumes}
    inbox, outbox = json.loads(instruction("ENTRYPOINT"))[-2:]
    config = compose()["command"][1]
    failed = read_settings(SETTINGS, {})[1].failed
    assert mounts == {config: "ro", inbox: "rw", outbox: "rw", failed: "rw"}
    assert all((WATCH / source).exists() for source, _, *mode in volumes if mode)


def commands_in(text: str) -> Iterator[str]:
    for block in re.findall(r"```sh\n(.*?)```", text, re.S):
        yield from block.splitlines()


def test_the_read_me_names_files_that_are_there() -> None:
    text = (WATCH / "README.md").read_text("utf-8")
    listed = {name for row in re.findall(r"^\| (`.*?) \|", text, re.M) for name in re.findall(r"`(.*?)`", row)}
    assert listed == {path.name for path in WATCH.iterdir()} - {"README.md"}
    paths = [word for command in commands_in(text) for word in command.split() if word.startswith("examples/")]
    assert paths
    assert all(os.path.lexists(ROOT / path) for path in paths)
