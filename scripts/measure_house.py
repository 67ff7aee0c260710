"""Measure how the code is laid out and how dense it is.

    python scripts/measure_house.py [--json FILE]

Run it before and after a change of structure, so that one script makes both columns. It reads
source text only: nothing is imported or run.
"""

import argparse
import ast
import io
import json
import statistics
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "dit"
METHOD_WINGS = ("models", "diffusion", "training", "sampling")
NOT_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
WIDEST = 8  # files listed by how many of ours they import


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    args = parser.parse_args()

    figures = measure()
    for name, value in figures.items():
        print(f"{name:<28} {format_value(value)}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


def measure() -> dict[str, object]:
    """Return all figures of the repository, by name."""
    files = sorted(PACKAGE.rglob("*.py"))
    imports = {module_name(file): our_imports(file, modules_of(files)) for file in files}
    method = [file for file in files if file.relative_to(PACKAGE).parts[0] in METHOD_WINGS]
    loose = [file.stem for file in PACKAGE.glob("*.py") if not file.stem.startswith("__")]
    widest = Counter({name: len(used) for name, used in imports.items()}).most_common(WIDEST)

    return {
        "lines in dit/": count_lines(files),
        "files in dit/": len(files),
        "lines by folder of dit/": lines_by_folder(files),
        "lines in tests/": count_lines((ROOT / "tests").rglob("*.py")),
        "lines in benchmarks/": count_lines((ROOT / "benchmarks").rglob("*.py")),
        "lines in docs/": count_lines((ROOT / "docs").rglob("*.md")),
        "functions": function_lengths(files),
        "tokens per code line": round(tokens_per_line(files), 2),
        "comment lines in functions": f"{comment_share(files):.1%}",
        "  in models … sampling": f"{comment_share(method):.1%}",
        "lines over 100": sum(len(line) > 100 for file in files for line in lines_of(file)),
        "loose modules": len(loose),
        "rooms at the top": len({room(name) for name in imports}),
        "floors of rooms": len(floors(imports)),
        "arrows between rooms": len(arrows(imports)),
        "longest chain of files": longest_chain(imports),
        "widest files": dict(widest),
    }


def format_value(value: object) -> str:
    """Return a figure as text: a table as `name value` pairs."""
    if isinstance(value, dict):
        return "  ".join(f"{name} {number:,}" for name, number in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


# -- text ------------------------------------------------------------------------------------------


def lines_of(file: Path) -> list[str]:
    return file.read_text().splitlines()


def count_lines(files) -> int:
    return sum(len(lines_of(file)) for file in files)


def lines_by_folder(files: list[Path]) -> dict[str, int]:
    """Return lines in each folder of the package; `.` for the files beside them."""
    lines: Counter[str] = Counter()
    for file in files:
        parts = file.relative_to(PACKAGE).parts
        lines[parts[0] if len(parts) > 1 else "."] += len(lines_of(file))
    return dict(lines.most_common())


def functions(file: Path) -> list[ast.AST]:
    nodes = ast.walk(ast.parse(file.read_text()))
    return [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def function_lengths(files: list[Path]) -> dict[str, int]:
    lengths = sorted(
        node.end_lineno - node.lineno + 1 for file in files for node in functions(file)
    )
    return {
        "count": len(lengths),
        "median": int(statistics.median(lengths)),
        "90%": lengths[int(0.9 * len(lengths))],
        "longest": lengths[-1],
    }


def docstring_lines(tree: ast.AST) -> set[int]:
    """Return the lines of strings that stand alone: docstrings and help texts."""
    found = set()
    for node in ast.walk(tree):
        alone = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if alone and isinstance(node.value.value, str):
            found |= set(range(node.lineno, node.end_lineno + 1))
    return found


def tokens_per_line(files: list[Path]) -> float:
    """Return the mean number of tokens on a line of code, docstrings and comments left out."""
    tokens, lines = 0, 0
    for file in files:
        source = file.read_text()
        skipped = docstring_lines(ast.parse(source))
        per_line: Counter[int] = Counter()
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type not in NOT_CODE and token.start[0] not in skipped:
                per_line[token.start[0]] += 1
        tokens += per_line.total()
        lines += len(per_line)
    return tokens / max(lines, 1)


def comment_share(files: list[Path]) -> float:
    """Return comment lines inside functions as a share of the lines there that are not blank."""
    comments, lines = 0, 0
    for file in files:
        text = lines_of(file)
        inside = set()
        for node in functions(file):
            inside |= set(range(node.lineno, node.end_lineno + 1))
        body = [text[number - 1].strip() for number in inside]
        comments += sum(line.startswith("#") for line in body)
        lines += sum(bool(line) for line in body)
    return comments / max(lines, 1)


# -- imports ---------------------------------------------------------------------------------------


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules_of(files: list[Path]) -> set[str]:
    return {module_name(file) for file in files}


def our_imports(file: Path, modules: set[str]) -> set[str]:
    """Return the modules of the package that a file imports anywhere, also inside functions."""
    used = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from dit.utils import pictures` names a module, `from dit.cli import main` does not
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            inner = names & modules
            used |= inner or {node.module}
    return {name for name in used if name in modules and name not in ("dit", module_name(file))}


def room(module: str) -> str:
    """Return the top-level part of the package that a module belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


def arrows(imports: dict[str, set[str]]) -> set[tuple[str, str]]:
    """Return the pairs of rooms of which the first imports the second."""
    pairs = {(room(name), room(other)) for name, used in imports.items() for other in used}
    return {(here, there) for here, there in pairs if here != there}


def floors(imports: dict[str, set[str]]) -> list[set[str]]:
    """Return the rooms, lowest floor first: each imports rooms of lower floors only.

    Raises:
        ValueError: rooms import each other in a circle.
    """
    left = {room(name) for name in imports}
    pairs = arrows(imports)
    found: list[set[str]] = []
    while left:
        above = {here for here, there in pairs if here in left and there in left}
        if above == left:
            raise ValueError(f"a circle of imports among {sorted(left)}")
        found.append(left - above)
        left = above
    return found


def longest_chain(imports: dict[str, set[str]]) -> int:
    """Return how many files the longest chain of imports passes."""
    depth: dict[str, int] = {}

    def visit(name: str, path: tuple[str, ...] = ()) -> int:
        if name not in depth:
            below = [visit(other, (*path, name)) for other in imports[name] if other not in path]
            depth[name] = 1 + max(below, default=0)
        return depth[name]

    return max(visit(name) for name in imports)


if __name__ == "__main__":
    main()
