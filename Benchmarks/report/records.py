"""The file between measuring and drawing: one JSON object a line.

    {"machine": {...}}                                          first, and once
    {"section": "shm", "command": "te bench ...", "row": {...}}   a line of a benchmark, as it was printed
    {"section": "shm", "command": "te bench ...", "failed": "..."}
"""
import json
import math
import numbers


class Malformed(Exception):
    """What is wrong with a line of the file, and what to do."""


class Row(dict):
    """A result. A field that is missing, or no number, is an error that names the line."""

    def __init__(self, fields, line, command):
        super().__init__(fields)
        self.line = line
        self.command = command

    def __missing__(self, key):
        raise Malformed(f"line {self.line}: a row of '{self.command}' has no field '{key}'; measure again")

    def number(self, key):
        """A number, or None where nothing was measured."""
        value = self[key]
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
        if value is None or is_number:
            return value
        raise Malformed(f"line {self.line}: '{key}' is {value!r} and should be a number; measure again")


class Section:
    """All that was recorded for one section of the page."""

    def __init__(self):
        self.commands = []
        self.rows = []
        self.failures = []


def read(path, names):
    """The machine, and the sections by name."""
    machine, sections = None, {name: Section() for name in names}
    with open(path, encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            try:
                record = json.loads(text)
                if "machine" in record:
                    machine = Row(record["machine"], number, "machine")
                    continue
                section, command = sections[record["section"]], record["command"]
                if command not in section.commands:
                    section.commands.append(command)
                if "failed" in record:
                    section.failures.append((command, record["failed"]))
                else:
                    section.rows.append(Row(record["row"], number, command))
            except (ValueError, TypeError, KeyError) as error:
                raise Malformed(f"{path}, line {number}: {type(error).__name__}: {error}; remove the line, or "
                                "measure again with Benchmarks/report/report") from None
    if machine is None:
        raise Malformed(f"{path} has no line with the machine; measure again with Benchmarks/report/report")
    return machine, sections
