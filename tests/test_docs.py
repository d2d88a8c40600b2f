"""The manual: links lead somewhere, commands are understood, the site asks no other host."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from reid_fast.command_line import parse, read
from reid_fast.commands.data.verify import VerifyConfig
from reid_fast.commands.embed import EmbedConfig
from reid_fast.commands.report import ReportConfig
from reid_fast.commands.search import SearchConfig
from reid_fast.evaluate import EvaluateConfig
from reid_fast.export.command import ExportConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
SETTINGS = {
    "evaluate": EvaluateConfig,
    "embed": EmbedConfig,
    "search": SearchConfig,
    "report": ReportConfig,
    "export": ExportConfig,
    "data verify": VerifyConfig,
}


def named(path):
    return str(path.relative_to(ROOT))


def without_code(text):
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def anchors(page):
    """What GitHub and MkDocs make of the headings of a page."""
    titles = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE), re.M
    )
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{named(page)}: {target}"
        if anchor:
            assert anchor in anchors(found), f"{named(page)}: {target}"
        if page.is_relative_to(ROOT / "docs"):  # what the site holds
            assert found.is_relative_to(ROOT / "docs"), f"{named(page)}: {target}"


def code_blocks(page):
    """(language, text) of a page's code blocks."""
    language, lines = None, []
    for line in page.read_text().splitlines():
        if not line.startswith("```"):
            lines.append(line)
        elif language is None:
            language, lines = line.removeprefix("```"), []
        else:
            yield language, "\n".join(lines)
            language = None
    assert language is None, f"{named(page)}: a code block has no end"


def commands(page):
    """The lines of a page's command blocks, without their comments, continued lines joined."""
    for language, block in code_blocks(page):
        if language in ("", "bash"):
            yield from (line.partition("  #")[0].strip() for line in block.replace("\\\n", " ").splitlines())


def test_commands_are_understood():
    seen = 0
    for page in PAGES:
        for line in commands(page):
            found = re.search(
                r"(?:-m reid_fast\.|^reid-fast |-m reid_fast )(train|" + "|".join(SETTINGS) + r")\b(.*)$", line
            )
            if found is None or re.search("…|--help|--config| NAME", line):  # no line to run as it stands
                continue
            try:
                argv = shlex.split(found[2])
                parse(argv) if found[1] == "train" else read(SETTINGS[found[1]], argv)
            except (Exception, SystemExit) as error:
                raise AssertionError(f"{named(page)}: {line}") from error
            seen += 1
    assert seen > 30


class Resources(HTMLParser):
    """What a browser loads by itself when it shows a page."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag in ("script", "img", "iframe", "source", "video", "audio", "embed"):
            self.found.append(given.get("src") or "")
        if tag == "link" and "canonical" not in (given.get("rel") or ""):
            self.found.append(given.get("href") or "")


def test_the_site_is_whole_and_asks_no_other_host(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(list((ROOT / "docs").rglob("*.md"))) - 1
    for page in pages:
        resources = Resources()
        resources.feed(page.read_text())
        assert resources.found
        assert not [url for url in resources.found if re.match(r"(https?:)?//", url)], page
    api = (tmp_path / "site/api/index.html").read_text()
    assert "jaccard_graph" in api
    assert "cluster_nce" in api
