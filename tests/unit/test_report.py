"""A validation's files: what they say, that they are whole, harmless and self-contained, and what a browser shows."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from lambdactl.report import FORMATS, junit, markdown, prometheus, write
from lambdactl.report.html import page
from lambdactl.report.svg import Series, chart
from lambdactl.validate.record import Validation
from tests.tools import BROWSERS, PROMTOOL, tool

DATA = Path(__file__).parents[1] / "data" / "validate" / "fake-slow-node.json"
HOSTILE = '<script>alert("x")</script>|`*'


@pytest.fixture
def found() -> Validation:
    """A real validation of four nodes with the fake all_reduce_perf, one of them slow."""
    return Validation.from_json(json.loads(DATA.read_text()))


@pytest.fixture
def hostile(found: Validation) -> Validation:
    """The same with markup wherever a node, a user or a file may have a say."""
    for step in found.steps:
        step.jobs[0].notes.append(HOSTILE)
        step.jobs[0].command += HOSTILE
    doctor = [
        {"check": HOSTILE, "title": HOSTILE, "host": HOSTILE, "status": "fail", "value": HOSTILE, "remedy": "\x00"}
    ]
    return replace(found, fleet="a" + HOSTILE, sentence=HOSTILE, left_out={HOSTILE: HOSTILE}, doctor=doctor)


def test_the_record_survives_json(found: Validation) -> None:
    assert Validation.from_json(json.loads(json.dumps(found.as_json()))) == found


def test_every_format_is_written_whole_and_nothing_else(found: Validation, tmp_path: Path) -> None:
    written = write(found, tmp_path / "new")
    assert tuple(written) == FORMATS
    assert sorted(path.suffix for path in (tmp_path / "new").iterdir()) == [".html", ".json", ".md", ".prom", ".xml"]
    assert {path.stat().st_mode & 0o777 for path in written.values()} == {0o644}
    assert json.loads(written["json"].read_text())["id"] == found.id


def test_a_write_that_fails_leaves_the_old_file(
    found: Validation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(found, tmp_path, ["json"])["json"]
    before = path.read_bytes()
    monkeypatch.setattr("os.fchmod", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write(found, tmp_path, ["json"])
    assert [(each, each.read_bytes()) for each in tmp_path.iterdir()] == [(path, before)]


class Tags(HTMLParser):
    """All tags and attributes, and whether they are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data", "action")]
        if tag not in ("meta", "rect", "line", "polyline", "circle", "br"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            assert self._open.pop() == tag


@pytest.mark.parametrize("which", ["found", "hostile"])
def test_the_page_is_small_whole_and_asks_nothing_of_the_network(which: str, request: pytest.FixtureRequest) -> None:
    text = page(request.getfixturevalue(which))
    tags = Tags()
    tags.feed(text)
    assert len(text.encode()) < 1_000_000
    assert tags.links == []
    assert "script" not in tags.tags
    assert "url(" not in text
    assert "@import" not in text


def test_the_page_says_what_counts(found: Validation) -> None:
    text = page(found)
    first = text[text.index("<body>") :][:600]
    assert "To blame: node worker-2 (50% of the typical" in first
    for words in (
        "Bandwidth against the bound",
        "Latency of small messages",
        "bound 400 GB/s",
        "2.26.2",
        "CUDA_VISIBLE_DEVICES=0",
    ):
        assert words in text
    assert text.count("<circle") > 30
    assert len(re.findall(r'<rect class="h\d" x=', text)) == 12
    assert "prefers-color-scheme: dark" in text


def test_a_large_fleet_stays_below_a_megabyte(found: Validation) -> None:
    pairs = [(f"node-{a:04}", f"node-{(a + 1) % 1024:04}", [700.0 if a else 350.0]) for a in range(1024)]
    text = page(replace(found, pairs=pairs))
    assert len(text.encode()) < 1_000_000
    assert "The 40 nodes with the slowest pairs, of 1024." in text
    assert "node-0000" in text


def test_a_chart_without_values_is_left_out() -> None:
    assert chart("x", "GB/s", [Series("a", ())]) == ""
    assert chart("x", "GB/s", [Series("a", ((8, 1.0),))]).count("<circle") == 1


METRIC = re.compile(r'^(lambdactl_validation_[a-z_]+)\{((?:[a-z_]+="(?:[^"\\\n]|\\.)*",?)*)\} (-?[0-9.e+]+)$')


@pytest.mark.parametrize("which", ["found", "hostile"])
def test_the_textfile_keeps_the_rules_of_prometheus(which: str, request: pytest.FixtureRequest) -> None:
    text = prometheus.textfile(request.getfixturevalue(which))
    helped, typed, seen = set(), set(), set()
    for line in text.splitlines():
        if line.startswith("# HELP "):
            helped.add(line.split()[2])
        elif line.startswith("# TYPE "):
            assert line.split()[3] == "gauge"
            typed.add(line.split()[2])
        else:
            match = METRIC.match(line)
            assert match, line
            assert (match[1], match[2]) not in seen
            seen.add((match[1], match[2]))
    assert helped == typed == {name for name, _ in seen}
    assert text.endswith("\n")


@pytest.mark.parametrize("which", ["found", "hostile"])
def test_promtool_accepts_the_textfile(which: str, request: pytest.FixtureRequest) -> None:
    text = prometheus.textfile(request.getfixturevalue(which))
    done = subprocess.run([tool(PROMTOOL), "check", "metrics"], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_textfile_is_in_base_units(found: Validation) -> None:
    text = prometheus.textfile(found)
    assert re.search(r'busbw_bytes_per_second\{fleet="[^"]*",step="all",nodes="4"\} 2427\d+\.0', text), text
    assert 'status="FAIL"} 1.0' in text
    assert 'kind="node",node="worker-2"} 1.0' in text


@pytest.mark.parametrize("which", ["found", "hostile"])
def test_junit_has_a_case_for_every_run_pair_and_check(which: str, request: pytest.FixtureRequest) -> None:
    validation = request.getfixturevalue(which)
    root = ET.fromstring(junit.document(validation))
    cases = root.findall(".//testcase")
    runs = sum(len(step.jobs) for step in validation.steps)
    assert len(cases) == runs + len(validation.pairs) + len(validation.doctor or ()) == int(root.get("tests", "0"))
    assert len(root.findall(".//failure")) == int(root.get("failures", "0")) >= 13


def test_markdown_has_no_markup_of_others(found: Validation, hostile: Validation) -> None:
    assert "| every node alone (NVLink) | PASS | 838.4 | 846 | 99.1 % | - |" in markdown.page(found)
    lines = [line for line in markdown.page(hostile).splitlines() if not line.startswith("    ")]
    assert "<script" not in "\n".join(lines)
    assert all(len(re.findall(r"(?<!\\)\|", line)) in (3, 6, 7) for line in lines if line.startswith("|"))


def pixels(png: bytes) -> tuple[int, int, bytes]:
    """Width, height, and the first pixel of the last row (the page's background)."""
    width, height = struct.unpack(">II", png[16:24])
    data, at = b"", 8
    while at < len(png):
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        data += png[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        at += length + 12
    return width, height, zlib.decompress(data)[1:4]


LIGHT, DARK = b"\xff\xff\xff", b"\x14\x18\x1d"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("background", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_a_browser_shows_the_page(found: Validation, tmp_path: Path, width: int, background: bytes) -> None:
    file = write(found, tmp_path, ["html"])["html"]
    # The page in a frame of this width: the outer document's title tells how far it runs over, and what it has drawn.
    probe = tmp_path / "probe.html"
    probe.write_text(
        "<body style='margin:0'><script>onload=()=>{const d=document.querySelector('iframe').contentDocument;"
        "document.title=['overflow',d.documentElement.scrollWidth-d.documentElement.clientWidth,'charts',"
        "[...d.querySelectorAll('svg')].filter(s=>s.getBoundingClientRect().width>200).length,'small',"
        "[...d.querySelectorAll('svg text')].filter(t=>{const h=t.getBoundingClientRect().height;return h>0&&h<7})"
        ".length].join(' ')}</script>"
        f"<iframe src='{file.name}' style='width:{width}px;height:3000px;border:0'></iframe>"
    )
    said = browse(tmp_path, probe, max(width, 500), background, "--dump-dom")
    title = re.search(r"<title>overflow (-?\d+) charts (\d+) small (\d+)</title>", said)
    assert title, said[:500]
    overflow, charts, small = map(int, title.groups())
    assert overflow == 0, f"the page is {overflow} px wider than {width} px"
    assert charts >= 2
    assert small == 0, f"{small} words in the charts are less than 7 px high"
    image = tmp_path / "page.png"
    browse(tmp_path, file, width, background, f"--screenshot={image}")
    seen_width, _, corner = pixels(image.read_bytes())
    assert seen_width >= width
    assert corner == background


def browse(folder: Path, page: Path, width: int, background: bytes, what: str) -> str:
    """A headless browser shows a page, and prints what was asked for."""
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--allow-file-access-from-files",
        f"--user-data-dir={folder / 'profile'}", f"--blink-settings=preferredColorScheme={int(background == LIGHT)}",
        f"--window-size={width},1200",
    ]  # fmt: skip
    done = subprocess.run(
        [tool(BROWSERS), *options, what, page.as_uri()], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-1000:]
    return done.stdout
