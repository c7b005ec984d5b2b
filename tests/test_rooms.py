"""The storeys look down only, and the rooms stay small: the table of the design, held by walking the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src/polarice"
MODULES = sorted(SOURCE.rglob("*.py"))

GROUND = {"types", "cluster"}
BELOW_STAGES = GROUND | {"fourier", "contrast_transfer", "simulation", "workers"}  # a stage reads no files
STAGES = {"motion_correction", "picking", "extraction", "align"}
MODELS = {"references", "postprocessing"}
# room: the rooms it may import, besides itself
TABLE = {
    "types": set(),
    "cluster": {"types"},
    "fourier": {"types"},
    "workers": set(),
    "io": {"types"},
    "contrast_transfer": GROUND | {"fourier", "io"},
    "simulation": GROUND | {"fourier", "io", "contrast_transfer"},
    **{stage: BELOW_STAGES for stage in STAGES},
    **{model: BELOW_STAGES | STAGES | {"io"} for model in MODELS},
    "selection": {"types"},
    "postprocessing": BELOW_STAGES | STAGES | {"io", "references"},
    "project": GROUND | {"io"},
    "report": BELOW_STAGES | STAGES | MODELS | {"io", "project", "selection"},
    "runs": BELOW_STAGES | STAGES | MODELS | {"io", "project", "report", "selection"},
    "jobs": BELOW_STAGES | STAGES | MODELS | {"io", "project", "report", "runs", "selection"},
    "api": {"jobs", "runs", "project", "types", "io", "cluster"},
    "cli": {"jobs", "project", "types", "cluster"},
    "completion": {"cli", "project", "types"},
    "web": {"jobs", "project", "types", "io", "runs", "report", "selection"},
    "bench": BELOW_STAGES | STAGES | MODELS | {"io", "project", "report", "runs", "jobs"},
    "__main__": {"cli"},
    "__init__": {"api"},
}
OWNERS = {"mpi4py": {"cluster"}, "gemmi": {"io", "simulation"}}  # who may import these packages at all
WITHOUT_TORCH = {"types", "io", "cli", "web"}
LIGHT = {"project", "report", "runs", "jobs", "api", "cli", "bench", "types", "io", "web"}
KERNELS = {"fused_kernel"}  # a card's kernel takes addresses and sizes one by one
HEAVY = {"torch", "matplotlib", "gemmi", "scipy", "finufft", "PIL"}  # before --help prints
MAX_LINES, MAX_FUNCTION_LINES, MAX_ARGUMENTS = 600, 60, 7


def cache_budget_of(module: Path) -> str:
    return module.relative_to(SOURCE).with_suffix("").parts[0]


def imports(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Dotted names of everything imported, `from polarice import api` as polarice.api."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports name the whole path"
            for alias in node.names:
                yield (f"{node.module}.{alias.name}" if node.module == "polarice" else node.module or ""), node


def tree_of(module: Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"))


def ids(module: Path) -> str:
    return str(module.relative_to(SOURCE))


@pytest.mark.parametrize("module", MODULES, ids=ids)
def test_imports_look_down_only(module):
    room = cache_budget_of(module)
    assert room in TABLE, f"{room} has no place in the table of rooms"
    for name, node in imports(tree_of(module)):
        package, _, inner = name.partition(".")
        other = inner.partition(".")[0]
        if package == "polarice" and other and not other.startswith("__") and other != room:
            assert other in TABLE[room], f"line {node.lineno}: {room} may not import {other}"
        assert room in OWNERS.get(package, {room}), f"line {node.lineno}: {room} may not import {package}"
        assert not (package == "torch" and room in WITHOUT_TORCH), f"line {node.lineno}: {room} may not import torch"


@pytest.mark.parametrize("module", [m for m in MODULES if cache_budget_of(m) in LIGHT], ids=ids)
def test_what_the_command_line_loads_is_light(module):
    """No heavy import at module level in the rooms that `polarice --help` may reach."""
    body = [node for node in tree_of(module).body if isinstance(node, ast.Import | ast.ImportFrom)]
    found = {name.partition(".")[0] for node in body for name, _ in imports(node)} & HEAVY
    assert not found, f"{found} belong inside the functions that need them"


@pytest.mark.parametrize("module", MODULES, ids=ids)
def test_nothing_outgrows_its_room(module):
    lines = module.read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_LINES, f"{lines} lines: look for the seam"
    assert not {"utils", "common", "helpers", "core"} & set(module.with_suffix("").parts[len(SOURCE.parts) :])
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            assert size <= MAX_FUNCTION_LINES, f"{node.name}: {size} lines"
            names = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
            count = len([name for name in names if name not in ("self", "cls")]) + len(node.args.kwonlyargs)
            if module.stem not in KERNELS:
                assert count <= MAX_ARGUMENTS, f"{node.name}: {count} arguments"


def dotted(module: Path) -> str:
    words = module.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(words[:-1] if words[-1] == "__init__" else words)


NAMES = set(map(dotted, MODULES))


def test_no_module_imports_itself_by_way_of_others():
    """Neither at once nor when a function is called; what only types need may look back."""
    edges = {dotted(module): set(runtime_imports(tree_of(module))) for module in MODULES}
    edges = {name: {other for other in others if other in edges} - {name} for name, others in edges.items()}
    while leaves := {name for name, others in edges.items() if not others & edges.keys()}:
        edges = {name: others - leaves for name, others in edges.items() if name not in leaves}
    assert not edges, f"circles among {sorted(edges)}"


def runtime_imports(tree: ast.AST) -> Iterator[str]:
    """Modules that are imported, wherever, but for the type checker."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in NAMES else node.module for name in inner)
        else:
            yield from runtime_imports(node)
