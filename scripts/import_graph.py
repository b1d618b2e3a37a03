"""The rooms of attnlab and what they import:

    python scripts/import_graph.py
    python scripts/import_graph.py <folder of another version>/src/attnlab

A room is a module or a package directly in src/attnlab. ORDER below is the one place that says
which room may import which. The exit code is 1 if there is an upward import or a circle.
"""

import argparse
import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src" / "attnlab"
# From top to bottom: a room imports only rooms that stand below it.
ORDER = [
    *("__main__", "commands", "cli", "run", "export", "report", "sweeps", "benchmarks"),
    *("inspection", "integrations", "training", "data", "models", "runs", "kernels"),
    *("functional", "runtime", "config", "errors"),
]
Graph = dict[str, set[str]]  # a module, and the modules that it imports


def imports(source: Path = SOURCE) -> Graph:
    """The modules of a source tree; an import inside a function counts like any other.

    What is imported by a name in a string, as mechanisms are, is not seen. attnlab/__init__.py is
    left out: it imports a room only when one of its public names is asked for, and any room may
    read the version there.
    """
    files = {_name(file, source): file for file in sorted(source.rglob("*.py"))}
    del files["attnlab"]
    return {
        name: {module for found in _imported(file) if (module := _module(found, files)) != name}
        - {None}
        for name, file in files.items()
    }


def _name(file: Path, source: Path) -> str:
    parts = file.relative_to(source.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _module(imported: str, modules) -> str | None:
    """The module that an imported name is, or is in; None outside of attnlab."""
    return next((m for m in (imported, imported.rpartition(".")[0]) if m in modules), None)


def room(module: str) -> str:
    """The room of a module."""
    return module.split(".")[1]


def rooms(graph: Graph) -> Graph:
    """The same between rooms."""
    found: Graph = {room(module): set() for module in graph}
    for module, others in graph.items():
        found[room(module)] |= {room(other) for other in others} - {room(module)}
    return found


def upward(graph: Graph) -> list[tuple[str, str]]:
    """Every import of a room by one that stands below it, as modules."""
    level = {name: number for number, name in enumerate(ORDER)}
    return [
        (module, other)
        for module, others in graph.items()
        for other in sorted(others)
        if level.get(room(module), -1) > level.get(room(other), len(ORDER))
    ]


def circles(graph: Graph) -> list[list[str]]:
    """Groups of modules, or rooms, each of which imports all others, by way of others or not."""
    reached = {name: _reachable(name, graph) for name in graph}
    groups = {
        frozenset(other for other in reached[name] if name in reached[other])
        for name in graph
        if name in reached[name]
    }
    return sorted(map(sorted, groups))


def _reachable(start: str, graph: Graph) -> set[str]:
    found: set[str] = set()
    ahead = [start]
    while ahead:
        new = graph[ahead.pop()] - found
        found |= new
        ahead.extend(new)
    return found


def main(source: Path) -> int:
    """Print the graph; the exit code."""
    graph = imports(source)
    between, sizes = rooms(graph), defaultdict(int)
    for module in graph:
        sizes[room(module)] += 1
    known = [name for name in ORDER if name in between]
    for name in [*known, *sorted(between.keys() - set(ORDER))]:
        place = "" if name in ORDER else " (no place in ORDER)"
        print(f"{name}{place}, {sizes[name]} modules -> {' '.join(sorted(between[name])) or '-'}")
    found = {
        "upward imports": [f"{module} imports {other}" for module, other in upward(graph)],
        "circles of rooms": [" ".join(group) for group in circles(between)],
        "circles of modules": [" ".join(group) for group in circles(graph)],
    }
    for what, lines in found.items():
        print(f"\n{what}: {len(lines)}", *(f"  {line}" for line in lines), sep="\n")
    return int(any(found.values()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", nargs="?", type=Path, default=SOURCE)
    given = parser.parse_args().source
    if not (given / "__init__.py").is_file():
        parser.error(f"{given}: no package there")
    sys.exit(main(given.resolve()))
