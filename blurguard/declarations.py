"""Declaration of settings: each one once, as a field of a dataclass, by ``setting``.

Checks, command-line options, variables and the tables in docs/operations.md follow from ``declared``.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Self, get_args, get_type_hints

from blurguard.errors import ConfigError

_SWITCH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting as declared in a table.

    Attributes:
        name: of the field.
        kind: type of the value.
        default: value if no source sets it. If it is None, None is accepted.
        help: one or two sentences for --help and docs.
        panel: section of --help, None for the general one.
        limits: lowest and highest accepted number, empty if there is no limit.
        pattern: regular expression that a text must match.
        unset: meaning of a default that is None or ``""``.
        metavar: placeholder of a file or folder name in --help.
        flags: names of the option if not ``--name``, for a switch ``--name/--no-name``.
        variable: environment variable of an option that is not in ``Settings`` or ``WatchSettings``.
        one_shot: only the command line may set it. A file would repeat it at each start.
        fixed: a running daemon keeps its value until the next start.
    """

    name: str
    kind: type[Any]
    default: Any
    help: str
    panel: str | None = None
    limits: tuple[float, ...] = ()
    pattern: str | None = None
    unset: str = ""
    metavar: str | None = None
    flags: str = ""
    variable: str | None = None
    one_shot: bool = False
    fixed: bool = False

    @property
    def option(self) -> str:
        """Names of the option, separated by blanks. A slash comes before the name that turns a switch off."""
        name = self.name.replace("_", "-")
        return self.flags or (f"--{name}/--no-{name}" if self.kind is bool else f"--{name}")

    @property
    def default_text(self) -> str:
        """Default as the user would write it, ``""`` for none."""
        if self.kind is bool:
            return self.option.partition("/--")[2]
        return self.unset if self.default in (None, "") else _number(self.default)

    @property
    def range_text(self) -> str:
        """Accepted numbers, ``""`` if there is no limit."""
        return " to ".join(map(_number, self.limits))

    def parse(self, text: str) -> Any:
        """Return the value of a variable as TOML would give it. A text that does not fit is left to ``check``."""
        if self.kind is bool:
            return _SWITCH.get(text.lower(), text)
        try:
            return self.kind(text) if self.kind in (int, float) else text
        except ValueError:
            return text

    def check(self, value: Any) -> Any:
        """Return the value in the type of the setting.

        Raises:
            ConfigError: wrong type, unknown choice, or out of range.
        """
        if value is None and self.default is None:
            return None
        if issubclass(self.kind, StrEnum):
            if value not in tuple(self.kind):
                raise ConfigError(f"{self.name} must be one of {', '.join(self.kind)}, not {value!r}")
            return self.kind(value)
        accepted = (float, int) if self.kind is float else self.kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and self.kind is not bool):
            raise ConfigError(f"{self.name} must be of type {self.kind.__name__}, not {value!r}")
        if self.limits and not self.limits[0] <= value <= self.limits[1]:  # also refuses NaN
            raise ConfigError(f"{self.name} must lie between {' and '.join(map(_number, self.limits))}, not {value!r}")
        if self.pattern and not re.fullmatch(self.pattern, str(value)):
            raise ConfigError(f"{self.name} must look like {self.default}, not {value!r}")
        if isinstance(value, str) and "\0" in value:  # no file name can contain it
            raise ConfigError(f"{self.name} must not contain NUL characters, as {value!r} does")
        return self.kind(value)


def setting(default: Any, help: str, panel: str | None = None, **details: Any) -> Any:
    """Declare a field of a table of settings. ``details`` are attributes of ``Setting``."""
    return field(default=default, metadata={"help": help, "panel": panel, **details})


def declared(table: type[Any]) -> tuple[Setting, ...]:
    """Return the declarations of a table, in the order of its fields."""
    # The type of a value that may be None comes first: ``float | None``.
    kinds = {name: (get_args(hint) or (hint,))[0] for name, hint in get_type_hints(table).items()}
    return tuple(Setting(each.name, kinds[each.name], each.default, **each.metadata) for each in fields(table))


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsTable:
    """Checks and updates that all tables of settings share."""

    def __post_init__(self) -> None:
        """Convert the values to their types.

        Raises:
            ConfigError: naming the setting, the value and the accepted values.
        """
        for each in declared(type(self)):
            object.__setattr__(self, each.name, each.check(getattr(self, each.name)))

    def as_json(self) -> dict[str, Any]:
        """Return the settings as JSON types."""
        return asdict(self)

    def changed(self, values: Mapping[str, Any], origin: str) -> Self:
        """Return a copy with some values replaced.

        Raises:
            ConfigError: unknown name or bad value. The message starts with ``origin``.
        """
        known = {each.name for each in declared(type(self))}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"{origin}: unknown setting {', '.join(unknown)}; choose from {', '.join(sorted(known))}")
        try:
            return replace(self, **dict(values))
        except ConfigError as error:
            raise ConfigError(f"{origin}: {error}") from error
