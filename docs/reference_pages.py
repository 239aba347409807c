"""Write the API reference from the public modules that exist, and link "(T4)" to the theory."""

from __future__ import annotations

import re
from importlib import import_module
from inspect import isclass, isfunction, isroutine
from pathlib import Path
from pkgutil import iter_modules

import sk_unlearn

# The public rooms, in the order in which a reader meets them. What is not named here is internal.
ROOMS = (
    "methods objective constraint curvature noise accounting bounds events assumptions certificate "
    "ledger audit features modules preprocessing pipeline model_selection datasets exceptions"
).split()
STATEMENT = re.compile(r"\(T(\d{1,2})\)")


def public_modules():
    """Return the package and those of its public rooms that exist."""
    found = {module.name for module in iter_modules(sk_unlearn.__path__)}
    rooms = [import_module(f"sk_unlearn.{name}") for name in ROOMS if name in found]
    return [sk_unlearn, *rooms]


def home(value):
    """Return the module under which the reference lists a class or function."""
    room = value.__module__.split(".")[1:2]
    return ".".join(["sk_unlearn", *(name for name in room if name in ROOMS)])


def public_names(module):
    """Return the public classes and functions that are at home in a module, each listed once."""
    declared = getattr(module, "__all__", None)
    names = declared or [name for name in vars(module) if not name.startswith("_")]
    return [
        name
        for name in names
        if (isclass(value := getattr(module, name)) or isfunction(value))
        and value.__module__.startswith("sk_unlearn.")
        and home(value) == module.__name__
    ]


def section(module):
    """Return one module's part of the reference, as reStructuredText."""
    names = public_names(module)
    if not names:
        return ""
    title = f"``{module.__name__}``"
    about = (module.__doc__ or "").strip().split("\n\n")[0]
    listing = "\n".join(f"   {name}" for name in names)
    return (
        f"{title}\n{'-' * len(title)}\n\n{about}\n\n.. currentmodule:: {module.__name__}\n\n"
        f".. autosummary::\n   :toctree: generated\n   :nosignatures:\n\n{listing}\n\n"
    )


def write_reference(app, config):
    """Write ``api/index.rst``, unless it already says the same."""
    sections = "".join(section(module) for module in public_modules())
    page = f"API reference\n=============\n\n{sections}"
    path = Path(app.srcdir, "api", "index.rst")
    path.parent.mkdir(exist_ok=True)
    if not path.is_file() or path.read_text(encoding="utf-8") != page:
        path.write_text(page, encoding="utf-8")


def link_statements(app, what, name, obj, options, lines):
    """Turn "(T4)" in a docstring into a link, outside of its code."""
    in_code = False
    for i, line in enumerate(lines):
        in_code = line.lstrip().startswith(">>>") or (in_code and bool(line.strip()))
        if not in_code:
            lines[i] = STATEMENT.sub(r":ref:`(T\1) <t\1>`", line)


def skip_foreign(app, what, name, obj, skip, options):
    """Leave out members that a class inherits from another library."""
    plain = getattr(obj, "fget", None) or getattr(obj, "__func__", None) or obj
    module = getattr(plain, "__module__", None)
    if module is None:
        return True if isroutine(plain) else None
    return None if module.startswith("sk_unlearn") else True


def setup(app):
    """Register the hooks with Sphinx; the page must exist before it looks for pages."""
    app.connect("config-inited", write_reference)
    app.connect("autodoc-skip-member", skip_foreign)
    app.connect("autodoc-process-docstring", link_statements, priority=900)
    return {"parallel_read_safe": True}
