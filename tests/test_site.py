"""The documentation site: commands exist, links lead somewhere."""

import re
from pathlib import Path

import pytest
import typer.main

from xpbayes.cli import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda p: p.name)
def test_commands_and_options_exist(page):
    """Every `xpbayes VERB --option` of a page is known to the command line."""
    commands = typer.main.get_command(app).commands
    for block in re.findall(r"```(?:sh|bash)\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = line.split("#")[0].split()
            if words[:1] != ["xpbayes"]:
                continue
            command = commands[words[1]]
            for word in words[2:]:
                command = getattr(command, "commands", {}).get(word, command)
            known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
            options = {w.split("=")[0] for w in words[2:] if w.startswith("--")}
            assert options <= known | {"--help"}, f"{page.name}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_pages_of_the_site(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith("http"):
            assert (page.parent / link.split("#")[0]).is_file(), f"{page.name}: {link}"


def test_every_page_is_in_the_contents():
    contents = "\n".join(re.findall(r"```\{toctree\}(.*?)```", (ROOT / "docs" / "index.md").read_text(), re.DOTALL))
    assert {p.stem for p in PAGES} - {"index"} <= set(contents.split())
