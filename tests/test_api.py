"""The public API: what docs/api.md promises is there, typed, and nothing else is exported."""

import importlib
import re
from importlib.resources import files

import pytest

from support.commands import ROOT

MODULES = ("lvd.guard", "lvd.sampling", "lvd.latents.reader")


def promised() -> dict[str, set[str]]:
    """The names of each module in the table of docs/api.md."""
    names: dict[str, set[str]] = {}
    module = ""
    for line in (ROOT / "docs" / "api.md").read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"\| \*\*`([\w.]+)`\*\*", line):
            module = heading[1]
            names[module] = set()
        elif module and line.startswith("| `"):
            names[module] |= set(re.findall(r"`(\w+)", line.split(" | ")[0]))
    return names


@pytest.mark.parametrize("module", MODULES)
def test_every_promised_name_is_exported_and_no_other(module: str) -> None:
    exported = importlib.import_module(module).__all__
    assert set(exported) == promised()[module]
    assert all(getattr(importlib.import_module(module), name) is not None for name in exported)


def test_no_other_module_is_promised() -> None:
    assert set(promised()) == set(MODULES)


def test_a_name_that_is_not_there_is_said_so() -> None:
    with pytest.raises(AttributeError, match=r"module 'lvd\.sampling' has no attribute 'nothing'"):
        importlib.import_module("lvd.sampling").nothing  # noqa: B018


def test_the_package_says_that_it_is_typed() -> None:
    assert files("lvd").joinpath("py.typed").is_file()
