"""The page's files: in the package, named by nobody else, and held to a strict policy."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
from starlette.testclient import TestClient

from dylora_moe.serving.http.page import page_files, page_paths


def test_every_file_that_is_named_is_there_and_every_file_is_named() -> None:
    found = page_files()
    assert set(found) == {
        one.name for one in (files("dylora_moe.serving") / "page").iterdir() if one.is_file()
    }
    text = {name: body.decode() for name, body in found.items()}
    named = set(re.findall(r'"/page/([\w.]+)"', text["index.html"]))
    for name, body in text.items():
        if name.endswith(".js"):
            named |= set(re.findall(r'from "\./([\w.]+)"', body))
    assert named == set(found) - {"index.html"}


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    for name, body in page_files().items():
        text = body.decode()
        if name == "index.html":
            assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text)
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), name
        assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(", text), name


@pytest.mark.parametrize("path", sorted(page_paths()))
def test_a_file_is_served_with_its_type_and_the_policy(client: TestClient, path: str) -> None:
    found = client.get(path)
    assert found.status_code == 200
    assert found.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'self'" in found.headers["content-security-policy"]
    assert "unsafe" not in found.headers["content-security-policy"]
    kinds = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    kind = kinds.get(path.rpartition(".")[2], "text/html")
    assert found.headers["content-type"].startswith(kind)
    tag = found.headers["etag"]
    again = client.get(path, headers={"if-none-match": tag})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path", ["/page/", "/page/index.html", "/page/../served.py", "/page/%2e%2e/served.py"]
)
def test_a_path_names_a_file_of_the_page_or_nothing(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404
