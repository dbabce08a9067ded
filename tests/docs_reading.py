"""The documentation as data: its links, its commands, its tables, its names, and what they mean.

Reads Markdown and Python as text; imports no model library.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "dylora_moe"
PAGES = tuple(
    sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")], key=lambda page: page.name)
)

_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)


@dataclass(frozen=True)
class Fence:
    """A fenced block: the language after the backticks, and what is in it."""

    language: str
    body: str


def fences(page: Path, *languages: str) -> list[Fence]:
    """The fenced blocks of a page in these languages."""
    found = [Fence(*match.groups()) for match in _FENCE.finditer(page.read_text("utf-8"))]
    return [fence for fence in found if fence.language in languages]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", page.read_text("utf-8"))


def spans(page: Path) -> list[str]:
    """What stands between single backticks."""
    return _SPAN.findall(prose(page))


def links(page: Path) -> list[str]:
    """Where the page's links and pictures point."""
    return _LINK.findall(prose(page))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the page's headings."""
    bare = [re.sub(r"[`*]", "", heading).lower() for heading in _HEADING.findall(prose(page))]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in bare}


def shell_lines(page: Path) -> list[list[str]]:
    """The words of every command in the page's shell blocks, without comments, prompts and
    variables in front."""
    found = []
    for fence in fences(page, "bash", "sh", "console"):
        for line in fence.body.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):
                words.pop(0)
            if words:
                found.append(words)
    return found


def tables(page: Path) -> list[list[list[str]]]:
    """The page's tables, each as rows of cells, the header first and the rule left out."""
    found: list[list[list[str]]] = []
    inside = False
    for line in prose(page).splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not inside:
            found.append([])
            inside = True
        if not all(set(cell) <= set("-: ") for cell in cells):
            found[-1].append(cells)
    return found


def allowed(schema: dict[str, Any]) -> str:
    """What a setting may be, in words, from its JSON schema."""
    if "anyOf" in schema:
        return " or ".join(allowed(option) for option in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type")
    if schema.get("additionalProperties", {}).get("format") == "path":
        return "names with a path each"
    if kind == "array":
        if "prefixItems" in schema:
            inner = allowed(schema["prefixItems"][0]).replace("number", "numbers")
            return f"list of {len(schema['prefixItems'])} {inner}"
        inner = allowed(schema["items"])
        return f"list of {inner}" if "`" in inner else f"list of {inner}s"
    if kind in ("integer", "number"):
        signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
        bounds = [f"{sign} {schema[key]:.10g}" for key, sign in signs.items() if key in schema]
        return " ".join([kind, ", ".join(bounds)]).strip()
    return {"null": "`null`", "boolean": "`true`, `false`", "string": "text"}[str(kind)]


def module_file(parts: list[str]) -> tuple[Path, list[str]] | None:
    """The file of a dotted name, and the names inside it that are left; None if there is none."""
    here = PACKAGE
    for index, part in enumerate(parts):
        if (here / f"{part}.py").is_file():
            return here / f"{part}.py", parts[index + 1 :]
        here = here / part
        if not here.is_dir():
            return None
    return here / "__init__.py", []


def defines(file: Path, names: list[str]) -> bool:
    """Whether a module defines a name (`Class.member` as two): functions, classes, values."""
    if len(names) == 2:
        return names[1] in members(file, names[0])
    tree = ast.parse(file.read_text("utf-8"))
    return not names or any(names == [name] for node in tree.body for name in _names_of(node))


def members(file: Path, name: str) -> dict[str, ast.stmt]:
    """What a class of a module has, what it inherits from classes of this package too."""
    tree = ast.parse(file.read_text("utf-8"))
    here = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if name in here:
        found: dict[str, ast.stmt] = {}
        for base in (each.id for each in here[name].bases if isinstance(each, ast.Name)):
            found |= members(file, base)
        return found | {own: node for node in here[name].body for own in _names_of(node)}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and name in (each.name for each in node.names):
            parts = (node.module or "").split(".")
            source = module_file(parts[1:]) if parts[0] == PACKAGE.name else None
            return members(source[0], name) if source is not None else {}
    return {}


def _names_of(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.AnnAssign):
        return [node.target.id] if isinstance(node.target, ast.Name) else []
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []


@cache
def texts_in_code() -> tuple[str, ...]:
    """Every piece of text in the package's code, cut where values are put in."""
    return tuple(
        node.value
        for file in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


@cache
def messages_in_code() -> tuple[str, ...]:
    """The same, whole: with an X for each value put in, and without what only readers of the code
    see."""
    found: list[str] = []
    for file in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(file.read_text("utf-8"))
        inner = {
            id(each)
            for node in ast.walk(tree)
            if isinstance(node, ast.JoinedStr | ast.Expr)
            for each in (node.values if isinstance(node, ast.JoinedStr) else [node.value])
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "X" for v in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found += [node.value] if id(node) not in inner else []
    return tuple(found)


def python_calls(page: Path, variable: str) -> Iterator[tuple[str, list[str]]]:
    """Calls and attributes of a variable in the page's Python blocks, with keyword names."""
    for fence in fences(page, "python"):
        for node in ast.walk(ast.parse(fence.body)):
            called = node.func if isinstance(node, ast.Call) else node
            if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
                keywords = node.keywords if isinstance(node, ast.Call) else []
                if called.value.id == variable:
                    yield called.attr, [k.arg for k in keywords if k.arg is not None]
