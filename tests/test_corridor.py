"""The one-way corridor of docs/house.md, read off the import statements of the package."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sk_unlearn"
TORCH = {"torch", "skorch", "torchvision", "opacus"}

# What a room may not reach, by itself or through whatever it imports.
CLOSED = {
    "events": TORCH | {"accounting", "certificate", "ledger", "methods", "estimator", "audit"},
    "bounds": TORCH | {"accounting", "certificate", "ledger", "methods", "estimator", "audit"},
    "accounting": TORCH | {"certificate", "ledger", "methods", "estimator", "audit"},
    "certificate": TORCH | {"ledger", "methods", "estimator", "audit"},
    "ledger": TORCH | {"methods", "estimator", "audit"},
    "noise": {"accounting", "certificate", "ledger", "methods", "estimator", "audit"},
    "constraint": {"accounting", "certificate", "ledger", "methods", "estimator", "audit"},
    "objective": {"accounting", "certificate", "ledger", "methods", "estimator", "audit"},
    "curvature": {"accounting", "certificate", "ledger", "methods", "estimator", "audit"},
    "methods": {"accounting", "ledger", "estimator", "audit"},
    "estimator": {"audit"},
    "audit": {"methods", "estimator"},
}

GAUSSIAN = {
    *("randn", "randn_like", "normal", "normal_", "log_normal_", "standard_normal"),
    *("multivariate_normal", "gauss", "normalvariate", "rvs"),
}


def is_type_checking(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def executed(tree):
    """Every node of a module, except what only type checkers read."""
    todo = [tree]
    while todo:
        node = todo.pop()
        yield node
        todo += node.orelse if is_type_checking(node) else ast.iter_child_nodes(node)


def imported(source, module, is_package, modules):
    """Dotted names that the source of a module imports, relative ones resolved."""
    found = set()
    for node in executed(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: None if is_package else -1]
            base = base[: len(base) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                if alias.name == "__version__":  # a string, whoever asks for it
                    continue
                name = f"{origin}.{alias.name}"
                found.add(name if name in modules else origin)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func).split(".")[-1]
            if called in {"import_module", "__import__"}:
                found |= {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)} or {"*"}
    return found


def import_graph(package):
    """Module name -> names that it imports, for all the modules of a package folder."""
    paths = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph = {}
    for name, path in paths.items():
        found = imported(path.read_text(encoding="utf-8"), name, path.stem == "__init__", paths)
        # Importing a.b.c runs a.b too.
        parents = {target.rpartition(".")[0] for target in found if target.count(".") > 1}
        graph[name] = found | (parents & paths.keys()) - {name}
    return graph


def room_of(name, root):
    """The room of one of our modules; of a foreign one, its top-level package."""
    parts = name.split(".")
    if parts[0] != root:
        return parts[0]
    return parts[1] if len(parts) > 1 else root


def violations(graph, root, closed):
    """Chains of imports by which a room reaches what is closed to it."""
    chains = []
    for start in graph:
        forbidden = closed.get(room_of(start, root), set())
        todo, seen = [(start,)], {start}
        while forbidden and todo:
            chain = todo.pop()
            for target in sorted(graph[chain[-1]]):
                room = room_of(target, root)
                if room in forbidden or target in {root, "*"}:
                    chains.append(" -> ".join((*chain, target)))
                # The front door imports everything, on whoever's behalf: do not walk through it.
                elif target in graph and target not in seen:
                    seen.add(target)
                    todo.append((*chain, target))
    return chains


def gaussian_draws(source):
    """Lines that draw Gaussian numbers; initialising a module's weights is not meant."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            *owner, called = ast.unparse(node.func).split(".")
            if called in GAUSSIAN and "init" not in owner:
                lines.append(node.lineno)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            if any(name and name.startswith("torch.distributions") for name in names):
                lines.append(node.lineno)
            if getattr(node, "module", None) == "torch" and "distributions" in names:
                lines.append(node.lineno)
    return lines


def test_the_walk_sees_the_package():
    graph = import_graph(PACKAGE)
    rooms = {room_of(name, "sk_unlearn") for name in graph}
    assert {"accounting", "bounds", "certificate", "events", "methods", "noise"} <= rooms
    assert "sk_unlearn.events" in graph["sk_unlearn.certificate"]
    assert any("torch" in targets for targets in graph.values())


@pytest.mark.parametrize("room", CLOSED)
def test_the_corridor_is_one_way(room):
    chains = violations(import_graph(PACKAGE), "sk_unlearn", {room: CLOSED[room]})
    assert not chains, f"closed to {room}:\n" + "\n".join(chains)


def test_only_the_front_door_knows_the_inspectors():
    graph = import_graph(PACKAGE)
    front = {"sk_unlearn", "_cli", "__main__", "audit"}
    outside = {name for name in graph if room_of(name, "sk_unlearn") not in front}
    knowing = {
        name
        for name in outside
        if any(room_of(target, "sk_unlearn") == "audit" for target in graph[name])
    }
    assert outside and not knowing


def test_noise_is_drawn_in_one_place():
    drawn = {
        str(path.relative_to(PACKAGE)): lines
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "noise.py" and (lines := gaussian_draws(path.read_text("utf-8")))
    }
    assert not drawn, f"Gaussian numbers are drawn outside noise.py: {drawn}"


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("accounting/gaussian", "import torch"),
        ("accounting/gaussian", "import torch.nn.functional as F"),
        ("accounting/gaussian", "def late():\n    from torch import nn"),
        ("accounting/gaussian", "from .. import estimator"),
        ("accounting/gaussian", "import importlib\nimportlib.import_module('torch')"),
        ("accounting/gaussian", "import importlib\nimportlib.import_module(name)"),
        ("accounting/gaussian", "from ..modules import MLP"),  # which imports torch
        ("accounting/gaussian", "from house import MLP"),  # the front door
        ("accounting/gaussian", "from ..tools.sums import total"),  # whose package imports torch
        ("methods/newton", "from ..accounting.gaussian import gaussian_sigma"),
        ("methods/newton", "from ..accounting import gaussian"),
        ("methods/newton", "import house.ledger"),
        ("methods/newton", "try:\n    from ..estimator import fit\nexcept ImportError:\n    pass"),
        ("methods/newton", "from ..shelf import anything"),  # which imports the ledger
        ("audit/membership", "from ..methods.newton import Newton"),
        ("audit/membership", "from .. import methods"),
    ],
)
def test_the_checker_catches_what_is_closed(tmp_path, module, line):
    house = tmp_path / "house"
    modules = {
        "__init__": "from .estimator import fit",
        "accounting/__init__": "",
        "accounting/gaussian": "import numpy",
        "audit/__init__": "",
        "audit/membership": "from ..events import Event",
        "certificate": "from . import __version__",
        "estimator": "from . import methods",
        "events": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch",
        "ledger": "",
        "methods/__init__": "",
        "methods/newton": "import torch\nfrom ..events import Event\nfrom .base import Method",
        "methods/base": "from ..modules import MLP",
        "modules": "from torch import nn",
        "shelf": "from .ledger import Ledger",
        "tools/__init__": "import torch",
        "tools/sums": "",
    }
    for name, source in modules.items():
        path = house / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    assert violations(import_graph(house), "house", CLOSED) == []
    with (house / f"{module}.py").open("a") as file:
        file.write(f"\n{line}\n")
    chains = violations(import_graph(house), "house", CLOSED)
    assert chains and all(chain.startswith(f"house.{module.replace('/', '.')}") for chain in chains)


@pytest.mark.parametrize(
    "line",
    [
        "torch.randn(3)",
        "x = torch.randn_like(w) * sigma",
        "w.normal_(0, sigma)",
        "np.random.default_rng().normal(size=3)",
        "rng.standard_normal(3)",
        "from torch import randn\nrandn(3)",
        "scipy.stats.norm.rvs(size=3)",
        "from torch.distributions import Normal",
        "import torch.distributions as d",
        "from torch import distributions",
    ],
)
def test_the_checker_catches_gaussian_draws(line):
    assert gaussian_draws(line)
    assert not gaussian_draws("torch.nn.init.normal_(w); torch.randint(2, (3,)); x = 'randn(3)'")
