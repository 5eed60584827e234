"""Reads Markdown pages: code blocks with what they print, shell commands, links and anchors.

A block fenced as `python` runs, all blocks of a page in one namespace. A `text` block directly after it is its output.
`<!-- setup` opens a comment whose code runs too. A `py` block is only compiled. It needs `<!-- not run: REASON -->`
before it. The functions return problems as texts that begin with the line.
"""

import contextlib
import importlib.util
import io
import itertools
import json
import re
import shlex
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

FENCE = re.compile(r" {0,3}(```+)([^`]*)")
NOT_RUN = re.compile(r"<!-- not run: *(.*?) *-->")
# Shown, not run. "" is a drawing; "{...}" is a directive of the site.
SHOWN = re.compile(r"|bash|bibtex|cpp|yaml|toml|\{.*")
FRACTION = re.compile(r"-?\d+\.\d+")
LINK = re.compile(r"""\]\(([^)\s]+)(?:\s+"[^"]*")?\)""")
FOLDERS = re.compile(r"(\./)?(\.ci|\.github|benchmarks|csrc|dgcl_ops|docs|examples|tests)/")
END = frozenset("&|;#")  # of a command
PLACEHOLDER = re.compile(r"[<{$…]|\.\.\.|NAME|FILE|DIR")


class Part(NamedTuple):
    kind: str  # a fence's language, "setup", "not run", "indented" or "prose"
    text: str
    line: int


def parts(page: str) -> Iterator[Part]:
    """The parts of a page in order. Prose without text is left out."""
    lines, at, prose = page.splitlines(), 0, []

    def until(end: str) -> int:
        found = [n for n in range(at + 1, len(lines)) if lines[n].strip() == end]
        if not found:
            raise ValueError(f"{at + 1}: no {end} closes what begins here")
        return found[0]

    def collected() -> Iterator[Part]:
        if any(line.strip() for line in prose):
            yield Part("prose", "\n".join(prose), at - len(prose) + 1)
        prose.clear()

    while at < len(lines):
        line, part, after = lines[at], None, at + 1
        fence, not_run = FENCE.fullmatch(line), NOT_RUN.fullmatch(line)
        if fence or line == "<!-- setup":
            end = until(fence[1] if fence else "-->")
            body = "\n".join(lines[at + 1 : end]) + "\n"
            part, after = Part(fence[2].strip() if fence else "setup", body, at + 2), end + 1
        elif not_run:
            part = Part("not run", not_run[1], at + 1)
        elif line.startswith("    ") and not (prose and prose[-1].strip()):
            while after < len(lines) and lines[after].startswith("    "):
                after += 1
            part = Part("indented", "\n".join(lines[at:after]), at + 1)
        if part is None:
            prose.append(line)
        else:
            yield from collected()
            yield part
        at = after
    yield from collected()


# ---- code -------------------------------------------------------------------------------------------


def code_problems(page: str, names: dict[str, Any]) -> list[str]:
    """Runs the page's code in `names`."""
    problems, found = [], list(parts(page))
    neighbours = zip([None, *found], found, [*found[1:], None], strict=False)
    for before, (kind, text, line), after in neighbours:
        if kind in ("python", "setup"):
            expected = after.text if after and after.kind == "text" else ""
            problems += _run(text, line, expected, names)
        elif kind == "text":
            if not (before and before.kind == "python"):
                problems.append(f"{line}: a text block must directly follow its python block")
        elif kind == "py":
            if not (before and before.kind == "not run" and before.text):
                problems.append(f"{line}: a py block needs <!-- not run: REASON --> before it")
            try:
                compile(text, "page", "exec")
            except SyntaxError as error:
                problems.append(f"{line}: {error}")
        elif kind == "not run":
            if not (after and after.kind == "py"):
                problems.append(f"{line}: 'not run' must stand before a py block")
        elif kind in ("prose", "indented"):
            if re.search(r"~~~|```|<!--(?! not run:)", text):
                problems.append(f"{line}: a fence or comment that no rule knows")
        elif not SHOWN.fullmatch(kind):
            problems.append(f"{line}: unknown fence {kind!r}")
    return problems


def _run(code: str, line: int, expected: str, names: dict[str, Any]) -> list[str]:
    """A block that raises prints the last line of its traceback, as a page shows it."""
    out, trace = io.StringIO(), ""
    with contextlib.redirect_stdout(out):
        try:
            exec(compile("\n" * (line - 1) + code, "page", "exec"), names)
        except Exception as error:
            print(f"{type(error).__name__}: {error}")
            trace = traceback.format_exc()
    got = out.getvalue()
    if agree(got, expected):
        return []
    return [f"{line}: the block prints\n{got}\nand the page says\n{expected}\n{trace}"]


def agree(got: str, expected: str, tolerance: float = 0.02) -> bool:
    """Another processor rounds differently: fractions may differ by the tolerance, all else may not."""
    if FRACTION.sub("#", got) != FRACTION.sub("#", expected):
        return False
    pairs = zip(FRACTION.findall(got), FRACTION.findall(expected), strict=True)
    return all(abs(float(a) - float(b)) <= tolerance * abs(float(b)) for a, b in pairs)


# ---- commands ---------------------------------------------------------------------------------------


def command_problems(page: str, root: Path) -> list[str]:
    """Files, modules and make targets in shell commands that do not exist."""
    problems = []
    for kind, text, line in parts(page):
        if kind == "prose":
            spans = re.findall(r"`([^`\n]+)`", text)
            problems += [f"{line}: {each}" for span in spans for each in _missing(span, root)]
        elif kind in ("bash", "indented"):
            for number, command in enumerate(text.replace("\\\n", " ").splitlines(), line):
                problems += [f"{number}: {each}" for each in _missing(command, root)]
    return problems


def _missing(command: str, root: Path) -> Iterator[str]:
    try:
        words = shlex.split(command, comments=True)
    except ValueError:  # not a command
        return
    for before, word in zip(["", *words], words, strict=False):
        value = word.rpartition("=")[2]
        if PLACEHOLDER.search(value):
            continue
        if FOLDERS.match(value) and in_tree(root, value) and not list(root.glob(value)):
            yield f"no file {value}"
        elif (
            before == "-m" and value.startswith("dgcl_ops") and not importlib.util.find_spec(value)
        ):
            yield f"no module {value}"
    if "make" in words:
        targets = re.findall(r"^(\w[\w-]*):", (root / "Makefile").read_text(), re.MULTILINE)
        yield from (
            f"no target {word}"
            for word in itertools.takewhile(END.isdisjoint, words[words.index("make") + 1 :])
            if "=" not in word and word not in targets and not word.startswith("-")
        )


def in_tree(root: Path, path: str) -> bool:
    """Whether the file can be looked up. A copy that tests an installed package lacks some top-level entries."""
    copy = not (root / "dgcl_ops").exists()
    return not copy or (root / Path(path).parts[0]).exists()


# ---- links ------------------------------------------------------------------------------------------


def prose(page: str) -> str:
    """The page without code."""
    text = "\n".join(part.text for part in parts(page) if part.kind == "prose")
    return re.sub(r"`[^`\n]+`", "`code`", text)


def anchors(page: str) -> set[str]:
    """The headings' anchors, as GitHub and the site make them: down to the third level."""
    found: set[str] = set()
    text = "\n".join(part.text for part in parts(page) if part.kind == "prose")
    for heading in re.findall(r"^#{1,3} (.+)$", text, re.MULTILINE):
        heading = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = number = re.sub(r"[^\w -]", "", heading).replace(" ", "-")
        repeated = 0
        while number in found:
            repeated += 1
            number = f"{slug}-{repeated}"
        found.add(number)
    return found


def markdown(path: Path) -> str:
    """A page's text, or the Markdown cells of a notebook."""
    if path.suffix != ".ipynb":
        return path.read_text()
    cells = json.loads(path.read_text())["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def link_problems(path: Path, root: Path) -> list[str]:
    """The broken relative links of the page, including their anchors."""
    problems, text = [], markdown(path)
    for link in LINK.findall(prose(text)):
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.is_relative_to(root):
            problems.append(f"{link} leads out of the tree")
        elif not target.exists():
            if in_tree(root, str(target.relative_to(root))):
                problems.append(f"{link}: no such file")
        elif anchor and target.suffix == ".md" and anchor not in anchors(target.read_text()):
            problems.append(f"{link}: no such heading")
    return problems
