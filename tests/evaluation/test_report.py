"""The report: complete, the same in every form, the same every time, and safe to open."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dylora_moe.errors import PoolError
from dylora_moe.evaluation.report import Report, write_report
from dylora_moe.records import Event
from tests.evaluation.pools import PoolWriter, empty_pool, small_pool

ISSUE_FIGURES = {
    "accuracy matrix after each arrival": "accuracy_matrix",
    "loss curves per phase": "loss_curves",
    "similarity and verdict of each arrival": "arrival_verdicts",
    "routing map": "routing_map",
    "usage": "expert_usage",
    "entropy": "routing_entropy",
    "balance loss": "balance_loss",
    "gradient norms": "gradient_norms",
    "padding fraction": "padding_fraction",
    "packed lengths": "packed_lengths",
    "tokens per second": "tokens_per_second",
    "FLOPs": "flops",
    "peak memory": "peak_memory",
    "trainable share": "trainable_share",
    "bytes per expert": "expert_bytes",
}
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Collects what the tests ask of a page: ids, links out, tags left open, cells of tables."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.open: list[str] = []
        self.cells: dict[str, list[str]] = {}
        self.tags: list[str] = []
        self.table = ""
        self.in_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.ids.extend(value for key, value in attrs if key == "id" and value)
        self.references.extend(
            value for key, value in attrs if key in ("src", "href", "xlink:href") and value
        )
        if tag not in VOID:
            self.open.append(tag)
        self.table = found.get("data-table") or self.table
        if tag == "td":
            self.in_cell = True
            self.cells.setdefault(self.table, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "td":
            self.in_cell = False

    def handle_data(self, data: str) -> None:
        if self.in_cell:
            self.cells[self.table][-1] += data


def report_of(pool: PoolWriter, folder: Path | None = None) -> Report:
    return write_report(pool.root, pool.registry, pool.artifacts, folder)


def page_of(report: Report) -> Page:
    page = Page()
    page.feed(report.html.read_text("utf-8"))
    page.close()
    return page


def told_pool(root: Path) -> PoolWriter:
    """A pool with something to say in every table."""
    pool = small_pool(root)
    pool.registry.record(
        Event("warning", {"what": "the loss rose for 40 steps"}),
        Event("strategy", {"dense_share_before": 1.0, "dense_share_after": 0.08}),
    )
    return pool


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return report_of(told_pool(tmp_path_factory.mktemp("pools") / "pool"))


def test_every_figure_of_the_issue_is_in_the_report_with_a_drawing(report: Report) -> None:
    data = json.loads(report.data.read_text("utf-8"))
    html = report.html.read_text("utf-8")
    markdown = report.markdown.read_text("utf-8")
    assert len(ISSUE_FIGURES) == 15
    assert set(data["figures"]) == set(ISSUE_FIGURES.values())
    shown = re.findall(r'<figure[^>]* data-figure="(\w+)"', html)
    assert sorted(shown) == sorted(ISSUE_FIGURES.values())
    for figure in data["figures"].values():
        assert figure["files"]
        for name in figure["files"]:
            assert f"({name})" in markdown
            ET.parse(report.data.parent / name)
    n_files = sum(len(figure["files"]) for figure in data["figures"].values())
    assert html.count("<svg ") == n_files
    assert len(list((report.data.parent / "figures").iterdir())) == n_files


def test_markdown_html_and_json_show_the_same_cells(report: Report) -> None:
    tables = json.loads(report.data.read_text("utf-8"))["tables"]
    cells = page_of(report).cells
    markdown = report.markdown.read_text("utf-8")
    lines = {tuple(c.strip() for c in line.strip("|").split(" | ")) for line in markdown.split("\n")
             if line.startswith("| ")}  # fmt: skip
    filled = {name: rows for name, rows in tables.items() if rows}
    assert len(filled) == 14
    assert set(cells) == set(filled)
    for name, rows in filled.items():
        assert cells[name] == [cell for row in rows for cell in row.values()]
        for row in rows:
            assert tuple(cell.replace("<", "\\<") for cell in row.values()) in lines


def test_known_numbers_reach_every_form(report: Report) -> None:
    headline = "nothing forgotten: worst change of an older skill -2.0 points (sums)"
    assert headline in report.markdown.read_text("utf-8")
    assert headline in report.html.read_text("utf-8")
    data = json.loads(report.data.read_text("utf-8"))
    assert headline in data["summary"]["headline"]
    assert data["matrices"]["accuracy"] == [[0.9, None], [0.88, 0.7], [0.88, 0.7]]
    assert data["summary"]["average_accuracy"] == pytest.approx(0.79)
    drawing = (report.data.parent / "figures" / "accuracy-matrix.svg").read_text("utf-8")
    assert [f">{number}<" in drawing for number in ("90.0", "88.0", "70.0")] == [True] * 3


def test_the_same_history_gives_the_same_bytes(report: Report, tmp_path: Path) -> None:
    again = report_of(told_pool(tmp_path / "pool"))
    bodies = [
        {path.name: path.read_bytes() for path in one.data.parent.rglob("*.*")}
        for one in (report, again)
    ]
    assert len(bodies[0]) > 10
    assert bodies[0] == bodies[1]


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    evil, pipe = "<script>alert(1)</script>", 'a|b $x$ id="y" &amp; 漢字'
    report = report_of(small_pool(tmp_path / "pool", evil, pipe))
    page = page_of(report)
    assert "script" not in page.tags
    assert evil in page.cells["skills"]
    assert pipe in page.cells["skills"]
    markdown = report.markdown.read_text("utf-8")
    assert "<script>" not in markdown
    assert "a\\|b" in markdown
    for drawing in (report.data.parent / "figures").iterdir():
        ET.parse(drawing)


def test_the_page_is_whole_and_needs_nothing_from_outside(report: Report) -> None:
    page = page_of(report)
    html = report.html.read_text("utf-8")
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert all(reference.startswith("#") for reference in page.references)
    assert {reference[1:] for reference in page.references} <= set(page.ids)
    assert "@import" not in html
    assert set(re.findall(r"url\(([^)]*)\)", html)) <= {f"#{name}" for name in page.ids}
    assert html.count("<h1>") == 1
    assert html.count("<caption>") == html.count("<table>")
    assert html.count('<svg role="img" aria-label="') == html.count("<svg ")


def test_drawings_follow_the_readers_light_or_dark_preference(report: Report) -> None:
    html = report.html.read_text("utf-8")
    drawings = "".join(re.findall(r"<svg .*?</svg>", html, flags=re.S))
    assert "prefers-color-scheme: dark" in html
    assert re.findall(r"(?:fill|stroke): #[0-9a-f]{6}", drawings) == []
    used = set(re.findall(r"var\((--[\w-]+)\)", drawings))
    assert used
    for name in used:
        assert html.count(f"{name}: #") == 2


def test_an_empty_pool_gets_sentences_and_no_figure(tmp_path: Path) -> None:
    report = report_of(empty_pool(tmp_path / "pool"))
    html = report.html.read_text("utf-8")
    assert "<svg" not in html
    assert "Nothing has arrived yet" in html
    assert html.count("data-figure=") == len(ISSUE_FIGURES)
    assert not (report.data.parent / "figures").exists()


def test_a_second_report_removes_its_own_old_drawings_and_no_others(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    pool = empty_pool(tmp_path / "full")
    pool.arrive("a", "novel", "created", "sums", {"sums": 0.9}, train=False)
    report_of(pool, folder)
    mine = folder / "figures" / "mine.svg"
    mine.write_text("<svg/>")
    assert len(list((folder / "figures").iterdir())) > 3
    report_of(empty_pool(tmp_path / "empty"), folder)
    assert list((folder / "figures").iterdir()) == [mine]


def test_a_folder_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    pool = empty_pool(tmp_path / "pool")
    (tmp_path / "file").write_text("")
    with pytest.raises(PoolError, match="cannot be written"):
        report_of(pool, tmp_path / "file" / "report")
