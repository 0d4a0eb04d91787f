"""The pages in a real browser: filter, links, print, phone, light and dark, and whatever a story holds.

Headless Chromium runs a page with a few lines that assert in it, and prints the document that is left; nothing is
fetched. `with-tox` installs Chromium where it can. Without it these tests are skipped.
"""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from forge_conformance.judging.verdicts import Finding, Report, judge
from forge_conformance.matrix.mutants import Mutant
from forge_conformance.matrix.outcome import Base, Matrix, Outcome
from forge_conformance.matrix.trial import Trial
from forge_conformance.report import matrix as render_matrix
from forge_conformance.report import run as render
from forge_conformance.report.manager import html_page
from forge_conformance.report.stored import Stored
from forge_conformance.report.table import Comparison, html
from forge_spec import CLAUSES
from forge_spec.clauses import Level

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)
ODD = "</script><script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\"> ' \" & \x1b[31m"
SYNC, WAIT = "commit.sync", "commit.wait-idempotent"


def failing(slug: str, case: str) -> Finding:
    failure = {"clause": slug, "expected": ODD, "seen": "a <b>fresh</b> start", "story": [ODD], "detail": ODD}
    return Finding(case, (slug,), {}, "failed", 0.1, failure)


def stored() -> Stored:
    """A manager that passes all clauses that it claims but two."""
    held = [Finding("commit/holds", (clause.slug,), {clause.slug: 1}, "done", 0.1) for clause in CLAUSES]
    found = (*held, failing(SYNC, "commit/fails[sync]"), failing(WAIT, "commit/x[async]"))
    judged, _ = judge(found, Level.STRICT, frozenset({"sync"}))
    environment = {"python": "3.11", "torch": "2.13.0", "versions": {"made-up": "1.2"}}
    implementation = {"name": "made.up", "capabilities": ["sync"], "traits": {}, "environment": environment}
    report = Report(implementation, Level.STRICT, judged, (), (), found, 1.0)
    return Stored("made", json.loads(json.dumps(render.as_json(report))), {})


def matrix(mutants: int) -> Matrix:
    """A matrix with so many mutants of `SYNC`, one after the other killed, by another clause, alive, and an error."""
    held = Finding("commit/holds", (SYNC, WAIT), {SYNC: 1, WAIT: 1}, "done", 0.1)
    ends = (failing(SYNC, "commit/x"), failing(WAIT, "commit/y"), held, Finding("z", (SYNC,), {}, "error", 0.1))
    base = Base("folder/of/a/base.py", verdicts={clause.slug: "pass" for clause in CLAUSES})
    paths = [Path(f"a_mistake_with_a_long_name_{number}.py") for number in range(mutants)]
    trials = [Trial(Mutant(path, ODD, (SYNC,)), (held, ends[at % len(ends)])) for at, path in enumerate(paths)]
    return Matrix(base, tuple(Outcome(trial, base) for trial in trials))


def asked(shown: str, questions: str, folder: Path, *options: str, anchor: str = "") -> Any:
    """What some lines return that run in the loaded page; they are added to what its policy allows."""
    answered = f"document.body.dataset.answer = JSON.stringify((() => {{ {questions} }})())"
    hook = f"addEventListener('load', () => {{ {answered} }})"
    allowed = base64.b64encode(hashlib.sha256(hook.encode()).digest()).decode()
    policy = shown.replace("script-src ", f"script-src 'sha256-{allowed}' ")
    hooked = policy.replace("</body>", f"<script>{hook}</script></body>")
    path = folder / "page.html"
    path.write_text(hooked, encoding="utf-8")
    assert CHROMIUM is not None
    command = [CHROMIUM, *OPTIONS, *options, f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    done = subprocess.run([*command, f"{path.as_uri()}{anchor}"], capture_output=True, text=True, timeout=120)
    found = re.search(r'data-answer="([^"]*)"', done.stdout)
    assert found is not None, done.stderr[-2000:]
    return json.loads(unescape(found[1]))


SHOWN = "[...document.querySelectorAll('article')].filter((one) => one.checkVisibility()).map((one) => one.id)"


def test_a_page_filters_by_words_and_marks_and_is_used_by_keyboard(tmp_path: Path) -> None:
    """A clause that is filtered out is gone with its chapter; Escape brings all of them back."""
    questions = f"""
        const shown = () => {SHOWN};
        const key = (target, name) => target.dispatchEvent(new KeyboardEvent('keydown', {{key: name, bubbles: true}}));
        const before = shown().length;
        key(document.body, '/');
        const search = document.activeElement;
        search.value = 'FRESH</b> start';
        search.dispatchEvent(new Event('input', {{bubbles: true}}));
        const words = shown(), said = document.querySelector('output').textContent;
        key(search, 'Escape');
        const after = shown().length;
        document.querySelector('input[value=fail]').click();
        const failing = shown();
        document.querySelector('input[value=fail]').click();
        document.querySelector('input[value=unclaimed]').click();
        const unclaimed = shown().length;
        return {{before, words, said, after, failing, unclaimed, type: search.type}};
    """
    answer = asked(html_page(stored()), questions, tmp_path)
    claimed = sum(clause.level <= Level.STRICT and clause.capabilities <= {"sync"} for clause in CLAUSES)
    assert (answer["type"], answer["before"], answer["after"]) == ("search", claimed, claimed)
    strict = sum(clause.level <= Level.STRICT for clause in CLAUSES)
    assert (answer["words"], answer["said"]) == ([SYNC, WAIT], f"2 of {strict}")
    assert (answer["failing"], answer["unclaimed"]) == ([SYNC, WAIT], strict - claimed)


def test_a_link_to_a_failure_opens_it_and_every_link_leads_somewhere(tmp_path: Path) -> None:
    failure = f"{SYNC}--commit-fails-sync"
    questions = f"""
        const ids = [...document.querySelectorAll('[id]')].map((one) => one.id);
        const links = [...document.querySelectorAll('a[href^="#"]')].map((one) => one.getAttribute('href').slice(1));
        const target = document.getElementById('{failure}');
        const open = target.open, isSeen = target.querySelector('.story').checkVisibility();
        const isInView = target.getBoundingClientRect().top < innerHeight;
        location.hash = 'trust.every-pickle';
        dispatchEvent(new Event('hashchange'));
        return {{open, isSeen, isInView, unclaimed: document.getElementById('trust.every-pickle').checkVisibility(),
            twice: ids.filter((id, at) => ids.indexOf(id) !== at), lost: links.filter((id) => !ids.includes(id)),
            loaded: performance.getEntriesByType('resource').length}};
    """
    expected = {"open": True, "isSeen": True, "isInView": True, "unclaimed": True, "twice": [], "lost": [], "loaded": 0}
    assert asked(html_page(stored()), questions, tmp_path, anchor=f"#{failure}") == expected


def test_whatever_a_story_holds_is_shown_and_does_nothing(tmp_path: Path) -> None:
    questions = """
        const text = (selector) => document.querySelector(selector).textContent;
        return {title: document.title, images: document.images.length, scripts: document.scripts.length,
            story: text('.story li'), seen: text('dl:has(+ .story) dd:last-child')};
    """
    answer = asked(html_page(stored()), questions, tmp_path)
    assert answer == {
        "title": "made: made-up 1.2",
        "images": 0,
        "scripts": 2,
        "story": ODD.replace("\x1b", r"\x1b"),
        "seen": "a <b>fresh</b> start",
    }


def test_everything_is_open_in_print_and_closed_afterwards(tmp_path: Path) -> None:
    questions = """
        const closed = () => document.querySelectorAll('details:not([open])').length;
        const before = closed();
        dispatchEvent(new Event('beforeprint'));
        const printed = closed();
        dispatchEvent(new Event('afterprint'));
        return {before, printed, after: closed()};
    """
    answer = asked(html_page(stored()), questions, tmp_path)
    assert answer["before"] == answer["after"] > 100 and answer["printed"] == 0


def test_a_link_that_is_no_address_is_no_error(tmp_path: Path) -> None:
    questions = """
        const errors = [];
        addEventListener('error', (event) => errors.push(event.message));
        dispatchEvent(new Event('hashchange'));
        return errors;
    """
    assert asked(html_page(stored()), questions, tmp_path, anchor="#%") == []


def test_nothing_of_many_managers_is_cut_or_covered_in_print(tmp_path: Path) -> None:
    """The rules of print apply to a window that is as wide as what a page of paper leaves."""
    names = ["torch-checkpointing-older", "made", "a-manager_of_long_names_without_a_hyphen"]
    many = Comparison(tuple(replace(stored(), name=f"{names[number % 3]}-{number}") for number in range(30)))
    shown = html(many)
    printed = shown.replace("@media print", "@media screen")
    assert "@page { size: A4 landscape; margin: 1cm; }" in shown and printed != shown
    questions = """
        const cut = (one) => one.getBoundingClientRect().right > innerWidth + 1;
        const wrong = [...document.querySelectorAll('main *')].filter(cut).map((one) => one.outerHTML.slice(0, 80));
        const above = document.querySelector('.matrix').getBoundingClientRect().bottom;
        const below = document.getElementById('both-allowed').getBoundingClientRect().top;
        return below < above ? [...wrong, `${below} is above ${above}`] : wrong;
    """
    width = round(27.7 / 2.54 * 96)
    assert asked(printed, questions, tmp_path, f"--window-size={width},800", "--hide-scrollbars") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_fits_a_phone_and_every_text_has_contrast(tmp_path: Path, scheme: str) -> None:
    """The contrast is that of WCAG, between each text and the nearest background behind it."""
    questions = """
        const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
        const light = (colour) => parse(colour).slice(0, 3).map((part) => part / 255)
            .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
            .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
        const behind = (node) => {
            const colour = getComputedStyle(node).backgroundColor;
            return parse(colour)[3] === 0 ? behind(node.parentElement) : colour;
        };
        const contrast = (node) => {
            const [low, high] = [light(getComputedStyle(node).color), light(behind(node))].sort((a, b) => a - b);
            return (high + 0.05) / (low + 0.05);
        };
        const names = 'p, a, b, small, span, dt, dd, li, td, th, code, summary, h1, h2, h4';
        const texts = [...document.querySelectorAll(names)].filter((node) => node.textContent.trim());
        const faint = texts.filter((node) => contrast(node) < 4.5).map((node) => node.outerHTML.slice(0, 80));
        return {faint: [...new Set(faint)], texts: texts.length, isDark: light(behind(document.body)) < 0.1,
            width: innerWidth, overflow: document.documentElement.scrollWidth - innerWidth};
    """
    options = (f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}", "--window-size=500,800")
    made = stored()
    for shown in (html_page(made), html(Comparison((made,))), render_matrix.html_page(matrix(60))):
        answer = asked(shown, questions, tmp_path, *options)
        assert (answer["faint"], answer["isDark"], answer["width"]) == ([], scheme == "dark", 500)
        assert answer["texts"] > 200 and answer["overflow"] <= 0


def test_each_cell_of_a_table_leads_to_a_clause_of_the_managers_page(tmp_path: Path) -> None:
    made = stored()
    answer = asked(
        html(Comparison((made,))), "return [...document.querySelectorAll('td a')].map((one) => one.hash)", tmp_path
    )
    own = html_page(made)
    assert len(answer) > 100 and [link for link in answer if f'id="{link[1:]}"' not in own] == []


def test_each_mutant_of_the_matrix_leads_to_its_line_and_names_stay_in_view(tmp_path: Path) -> None:
    """Above and beside the squares stand the mutants and the clauses, however far they are scrolled."""
    questions = """
        const grid = document.querySelector('.grid');
        const place = (node) => [node.getBoundingClientRect().left, node.getBoundingClientRect().top];
        const names = () => [grid.querySelector('th.head.side'), grid.querySelectorAll('th.head')[1],
            grid.querySelectorAll('th.side')[1]].map(place);
        grid.scrollIntoView();
        const [corner, head, side] = names();
        grid.scrollTo(200, 300);
        const [cornerLater, headLater, sideLater] = names();
        const links = [...grid.querySelectorAll('th.head a')].map((one) => one.hash.slice(1));
        const middle = grid.getBoundingClientRect();
        return {
            stays: corner[0] === cornerLater[0] && corner[1] === cornerLater[1] && head[1] === headLater[1]
                && side[0] === sideLater[0],
            moves: head[0] - headLater[0] === 200 && side[1] - sideLater[1] === 300,
            onTop: document.elementFromPoint(middle.left + 3, middle.top + 3).className,
            missing: links.filter((name) => !document.getElementById(name)), links: links.length,
        };
    """
    answer = asked(render_matrix.html_page(matrix(100)), questions, tmp_path, "--window-size=1000,900")
    expected = {"stays": True, "moves": True, "onTop": "head side", "missing": [], "links": 100}
    assert answer == expected
    width = "return document.querySelector('.grid').offsetWidth / document.querySelector('main').offsetWidth"
    assert asked(render_matrix.html_page(matrix(3)), width, tmp_path) < 0.5


def test_on_a_phone_each_mutant_is_a_paragraph_and_one_that_is_filtered_out_is_gone(tmp_path: Path) -> None:
    questions = """
        const shown = () => [...document.querySelectorAll('.mutants tbody tr')].filter((one) => one.checkVisibility());
        const before = shown().length, around = document.querySelector('.wide:has(.mutants)');
        document.querySelector('.find input[value=killed]').click();
        return {before, after: shown().length, beyond: around.scrollWidth - around.clientWidth};
    """
    answer = asked(render_matrix.html_page(matrix(8)), questions, tmp_path, "--window-size=500,800")
    assert answer == {"before": 8, "after": 2, "beyond": 0}
