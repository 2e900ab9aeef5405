"""Files of options: YAML that ``--print-config`` writes and ``--config`` reads."""

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from genimg_fast._close_names import did_you_mean, invalid_choice
from genimg_fast._signatures import Option

_NULL, _BOOL = "tag:yaml.org,2002:null", "tag:yaml.org,2002:bool"


class OptionFile:
    """A file of options: a mapping from names, such as ``z_dim``, to values.

    Args:
        path: The file; ``-`` is the standard input.

    Raises:
        ValueError: If it cannot be read, or is no such mapping; the message names file and line.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        if not path or (path == "-" and sys.stdin is None):
            raise ValueError(f"must be a file, or - for the standard input, if that is open, got {path!r}")
        read = b""
        try:
            read = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
            root = yaml.compose(read.decode(), Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise ValueError(f"{path}:{line}: {error.problem}") from error
        except OSError as error:
            raise ValueError(str(error)) from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}:{_line(read[: error.start])}: is not in UTF-8") from error
        except yaml.reader.ReaderError as error:
            line = _line(read.decode()[: error.position].encode())
            raise ValueError(f"{path}:{line}: the character {chr(error.character)!r} is not allowed") from error
        except (yaml.YAMLError, RecursionError) as error:
            raise ValueError(f"{path} is no YAML: {error}") from error
        if not isinstance(root, yaml.MappingNode | None):
            raise ValueError(f"{path}:{root.start_mark.line + 1}: must be a mapping, such as 'lr: 0.001'")
        self._values: dict[str, tuple[int, yaml.Node]] = {}
        for key, value in root.value if root else []:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"{path}:{line}: must be the name of an option")
            if key.value in self._values:
                raise ValueError(f"{path}:{line}: {key.value}: is in line {self._values[key.value][0]} already")
            self._values[key.value] = line, value

    def model(self) -> tuple[str, str] | None:
        """Get where it says what it is for, such as ``a.yaml:1: model``, and what; None if it does not.

        A Python file is found beside the file of options.

        Raises:
            ValueError: If that is no name.
        """
        if "model" not in self._values:
            return None
        line, node = self._values["model"]
        where = f"{self.path}:{line}: model"
        if not isinstance(node, yaml.ScalarNode) or node.tag == _NULL or not node.value:
            raise ValueError(f"{where}: must be the name of a model, got {_shown(node)}")
        beside = ".py" in node.value and self.path != "-"
        return where, str(Path(self.path).parent / node.value) if beside else node.value

    def values(self, options: Mapping[str, Option]) -> dict[str, Any]:
        """Get the values, by name; of those of options.

        Raises:
            ValueError: If a key is no option's name, or a value is none of the option; the message names file,
                line and key.
        """
        values = {}
        for key, (line, node) in self._values.items():
            if key == "model":
                continue
            if key not in options:
                hint = did_you_mean(key, options)
                raise ValueError(f"{self.path}:{line}: {key}: there is no such option{hint}")
            try:
                values[key] = _value(options[key], node)
            except ValueError as error:
                raise ValueError(f"{self.path}:{line}: {key}: {error}") from error
        return values


def _line(before: bytes) -> int:
    return before.count(b"\n") + 1


def _value(option: Option, node: yaml.Node) -> Any:
    if node.tag == _NULL:
        if option.optional:
            return None
        raise ValueError("must have a value, got null")
    if option.type is bool:
        known = yaml.SafeLoader.bool_values
        if node.tag != _BOOL or not isinstance(node, yaml.ScalarNode) or node.value.lower() not in known:
            raise ValueError(f"must be true or false, got {_shown(node)}")
        return known[node.value.lower()]
    reader, choices, number = option.takes()
    if number is None:
        values = [node]
    elif not isinstance(node, yaml.SequenceNode):
        raise ValueError(f"must be a list, such as [1, 2], got {_shown(node)}")
    else:
        values = node.value
        if not values or (number != "+" and len(values) != number):
            raise ValueError(f"must have {'one value or more' if number == '+' else number}, got {len(values)}")
    read = []
    for each in values:
        if not isinstance(each, yaml.ScalarNode) or each.tag == _NULL:
            raise ValueError(f"must be a single value, got {_shown(each)}")
        # The text, not what YAML makes of it, to which 5e-4 is no number.
        read.append(reader.read(each.value))
        if choices is not None and read[-1] not in choices:
            raise ValueError(invalid_choice(each.value, choices))
    return read[0] if number is None else read


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return "null" if node.tag == _NULL else repr(node.value)
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"


def write_options(model: str, groups: Mapping[str, Mapping[str, Any]]) -> str:
    """Write options as a file that :class:`OptionFile` reads.

    Args:
        model: What they are for.
        groups: Their values by name, by title of a group.
    """
    parts = [yaml.safe_dump({"model": model})]
    for title, values in groups.items():
        lines = [f"{name}: {_dumped(value)}\n" for name, value in values.items()]
        parts.append("".join(["\n", f"# {title}\n", *lines]))
    return "".join(parts)


def _dumped(value: Any) -> str:
    text = yaml.safe_dump(_plain(value), default_flow_style=True, width=math.inf)
    return text.removesuffix("...\n").strip()


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value
