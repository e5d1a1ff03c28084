"""How long until ``blurguard --help`` has said what it has to say."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.measure import Section, Target, command_cost, median, ms, python_command

HELP_SECONDS_BELOW = 0.3
RUNS = 10


def help_time() -> Section:
    """Measure whole commands, medians of ten, in turns with a Python that does nothing."""
    script = Path(sys.executable).with_name("blurguard")
    commands = {
        "`blurguard --help`": [str(script), "--help"] if script.exists() else python_command("blurguard", "--help"),
        "`python -c pass`": [sys.executable, "-c", "pass"],
        "`python -c 'import typer, rich'`": [sys.executable, "-c", "import typer, rich.console"],
    }
    costs = {name: [command_cost(command)] for name, command in commands.items()}  # the first one warms the disk cache
    for _ in range(RUNS):
        for name, command in commands.items():
            costs[name].append(command_cost(command))
    medians = {name: median(many[1:]) for name, many in costs.items()}
    ours = next(iter(medians.values()))
    return Section(
        "Start-up",
        f"Whole commands, medians of {RUNS}, in turns.",
        ("", "wall, ms", "CPU, ms"),
        [(name, ms(cost.wall), ms(cost.cpu)) for name, cost in medians.items()],
        [
            Target(
                "`blurguard --help`",
                f"< {HELP_SECONDS_BELOW:g} s",
                f"{ours.wall:.2f} s ({ours.cpu:.2f} s CPU)",
                ours.wall < HELP_SECONDS_BELOW,
            )
        ],
    )
