"""The page of real lines that were recorded: all there, nothing from elsewhere, and no picture of nothing."""
import html.parser
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
FIXTURE = HERE / "fixture.json"
LINES = FIXTURE.read_text().splitlines()
SECTIONS = ["shm", "caller-memory", "tcp", "idle", "digest", "kv", "kv-pipeline", "kv-table3", "weights",
            "weights-prediction", "moe", "moe-model", "peers"]
# Pictures of each section.
PICTURES = {"shm": 2, "tcp": 2, "kv": 2, "weights": 2, "weights-prediction": 2, "peers": 0}


def render(folder, lines):
    """Runs the program as a user does; its page, or what it complains of."""
    file = folder / "lines.json"
    file.write_text("\n".join(lines) + "\n")
    done = subprocess.run([sys.executable, HERE / "report", "--render-only", file, "--output", folder], timeout=120,
                          capture_output=True, text=True)
    return (folder / "report.html").read_text() if done.returncode == 0 else done.stderr


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return render(tmp_path_factory.mktemp("page"), LINES)


def section(page, name):
    return re.search(rf'<section id="{name}">.*?</section>', page, re.DOTALL).group()


def pictures(text):
    return re.findall(r"<svg\b.*?</svg>", text, re.DOTALL)


class Cells(html.parser.HTMLParser):
    """The text of all cells of tables."""

    def __init__(self):
        super().__init__()
        self.texts = []
        self.is_cell = False

    def handle_starttag(self, tag, attributes):
        if tag == "td":
            self.texts.append("")
        self.is_cell = tag == "td"

    def handle_endtag(self, tag):
        self.is_cell = False

    def handle_data(self, data):
        if self.is_cell:
            self.texts[-1] += data


def numbers(value):
    if isinstance(value, dict):
        for inner in value.values():
            yield from numbers(inner)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield round(float(value), 4)


@pytest.mark.parametrize("name", SECTIONS)
def test_each_section_is_there_with_its_pictures_and_commands(page, name):
    text = section(page, name)
    drawn = pictures(text)
    assert len(drawn) == PICTURES.get(name, 1)
    # Points and bars have a colour of their own (pauses that of lines, but filled), text and axes that of the page.
    marks = sum(len(re.findall('style="[^"]*(?:#[0-9a-f]{6}|fill: var)', picture)) for picture in drawn)
    assert not drawn or marks >= sum(json.loads(line).get("section") == name for line in LINES)
    for command in {record["command"] for record in map(json.loads, LINES) if record.get("section") == name}:
        assert command in text
    assert "not run" not in text


@pytest.mark.parametrize("name", SECTIONS)
def test_every_number_is_in_a_table(page, name):
    cells = Cells()
    cells.feed(section(page, name))
    shown = sorted(float(text) for text in cells.texts if re.fullmatch(r"-?[0-9.e+-]*[0-9]", text))
    recorded = sorted(number for record in map(json.loads, LINES) if record.get("section") == name
                      for number in numbers(record["row"]))
    assert recorded and shown == recorded


def test_it_says_what_is_measured_and_what_is_not(page):
    kinds = {name: re.search(r'class="kind ([a-z]+)"', section(page, name)).group(1) for name in SECTIONS}
    others = {name: kind for name, kind in kinds.items() if kind != "measured"}
    assert others == {"kv-table3": "simulated", "weights-prediction": "predicted", "moe-model": "simulated"}
    assert "cost model" in section(page, "weights-prediction") and "formula" in section(page, "moe-model")


def test_the_machine_is_there(page):
    for fact in json.loads(LINES[0])["machine"].values():
        assert f"<td>{fact}</td>" in section(page, "machine")


def test_nothing_comes_from_elsewhere(page):
    # The name of SVG's elements is no address.
    rest = page.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"(https?|ftp|file):|@import|<script|<iframe|<object", rest)
    targets = re.findall(r'\b(?:src|href)="([^"]*)"', rest) + re.findall(r"url\(([^)]*)\)", rest)
    assert targets and all(target.startswith("#") or target == "data:," for target in targets)


def test_pictures_are_xml_and_their_names_are_their_own(page):
    every = []
    for picture in pictures(page):
        tree = xml.fromstring(picture)
        assert tree.tag == "{http://www.w3.org/2000/svg}svg" and tree.get("aria-label") and tree.get("viewBox")
        names = [element.get("id") for element in tree.iter() if element.get("id")]
        used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', picture))
        assert used <= set(names)
        every += names
    assert len(every) == len(set(every))


def test_pictures_take_the_colours_of_the_page(page):
    assert not re.search("#010203|#040506", page)
    assert all("currentColor" in picture for picture in pictures(page))


@pytest.mark.parametrize("missing", [SECTIONS[::2], SECTIONS[1::2]])
def test_what_is_missing_is_not_run(tmp_path, missing):
    text = render(tmp_path, [line for line in LINES if json.loads(line).get("section") not in missing])
    for name in SECTIONS:
        is_missing = name in missing
        assert ("not run" in section(text, name)) == is_missing
        assert bool(pictures(section(text, name))) == (not is_missing and name != "peers")


def test_what_failed_says_why(tmp_path):
    failed = {"section": "idle", "command": "te bench idle --json", "failed": "ended with status 1: <no> memory"}
    lines = [line for line in LINES if '"section": "idle"' not in line]
    text = section(render(tmp_path, [*lines, json.dumps(failed)]), "idle")
    assert "&lt;no&gt; memory" in text and not pictures(text) and "not run" not in text


@pytest.mark.parametrize("line", [
    '{"section": "idle", "command": "te bench idle", "row": {', "5", '{"section": "other", "command": "te", "row": {}}',
    '{"section": "idle", "row": {}}', '{"section": "idle", "command": "te bench idle"}',
    '{"section": "idle", "command": "te bench idle", "row": {"provider": "shm"}}',
    LINES[1].replace('"size": 4096', '"size": "4096"'),
])
def test_a_malformed_line_is_an_error_that_names_it(tmp_path, line):
    complaint = render(tmp_path, [LINES[0], line, *LINES[1:]])
    assert "line 2" in complaint and "Traceback" not in complaint and "measure again" in complaint


def test_a_file_without_its_machine_is_an_error(tmp_path):
    assert "no line with the machine" in render(tmp_path, LINES[1:])
