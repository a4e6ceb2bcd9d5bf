"""What the project's own files say of each other holds."""

import re
import tomllib

import yaml

from support.commands import ROOT


def test_pre_commit_has_the_versions_of_the_constraints() -> None:
    """And needs no environment but its own."""
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    for hook in repo["hooks"]:
        assert hook["language"] == "python"
        assert set(hook["additional_dependencies"]) <= set(pinned), hook["id"]


def test_the_changelog_begins_with_what_is_not_released_and_has_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert version in headings


def test_links_between_documents_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("tests/**/README.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"
