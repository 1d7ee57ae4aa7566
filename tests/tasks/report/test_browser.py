"""The report in a real browser: nothing to complain of, no sideways scrolling, and all of it works by the keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.report import write_report
from tasks.store.artifacts import Store
from tests.tasks.fake_runs import Filled
from tests.tasks.report.browser import Page, browse, find_browser
from tests.tasks.report.fake_reports import run_comparison, run_hostile, run_watched

PAGES = ("run", "text", "grid", "methods", "hostile", "watched")
PHONE, DESKTOP = 360, 1280


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    path = find_browser()
    if path is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    with browse(path, tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def pages(filled: Filled, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of each kind."""
    directory = tmp_path_factory.mktemp("it's a [quoted] place")
    found = {"run": write_report(filled.store, filled.first, directory / "run.html")}
    store = Store(directory / "store")
    runs = {"grid": run_comparison(store, "dad-dagger"), "methods": run_comparison(store, "llmr")}
    runs |= {"hostile": run_hostile(store), "watched": run_watched(store)}
    found |= {name: write_report(store, run, directory / f"{name}.html") for name, run in runs.items()}
    return found | {"text": write_report(filled.store, filled.text, directory / "text.html")}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("name", PAGES)
def test_no_complaints_and_no_sideways_scrolling(
    browser: Page, pages: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    browser.complaints.clear()
    browser.requests.clear()
    browser.open(pages[name], width=width, dark=dark)
    browser.value("document.querySelectorAll('details').forEach(each => { each.open = true })")
    assert browser.value("document.documentElement.scrollWidth") == browser.value("innerWidth") == width
    assert browser.complaints == []
    assert browser.requests == [pages[name].as_uri()]
    background = browser.value("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 23, 26)" if dark else "rgb(252, 252, 250)")


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_the_smallest_text_of_a_plot_can_be_read(browser: Page, pages: dict[str, Path], width: int) -> None:
    browser.open(pages["grid"], width=width)
    scale = "Math.min(...[...document.querySelectorAll('svg.panel')].map(e => e.getBoundingClientRect().width / 320))"
    assert 11 * browser.value(scale) > 9  # pixels


def test_hostile_texts_do_nothing(browser: Page, pages: dict[str, Path]) -> None:
    browser.open(pages["hostile"], width=DESKTOP)
    assert browser.value("document.title") == "hostile: report"
    assert browser.value("document.images.length") == 0
    browser.value("document.querySelector('#rollout-list .t').focus()")
    assert "<script>" in browser.value("document.querySelector('#token-details').textContent")
    assert browser.value("document.title") == "hostile: report"


def test_samples_are_paged_searched_and_filtered(browser: Page, pages: dict[str, Path]) -> None:
    browser.open(pages["hostile"], width=DESKTOP)
    status = "document.querySelector('#sample-status').textContent"
    count = "document.querySelectorAll('#sample-list article').length"
    assert (browser.value(status), browser.value(count)) == ("1–6 of 8", 6)
    browser.value("document.querySelector('#sample-list').focus()")
    browser.press("ArrowRight")
    assert (browser.value(status), browser.value(count)) == ("7–8 of 8", 2)
    browser.press("ArrowRight")  # there is no page after the last
    assert browser.value(status) == "7–8 of 8"
    browser.press("ArrowLeft")
    assert browser.value(status) == "1–6 of 8"
    browser.value(_chosen("sample-filter", "cut"))
    assert browser.value(status) == "1–1 of 1"
    browser.value(_chosen("sample-filter", "all"))
    browser.value(_chosen("sample-search", "DROP table"))
    assert browser.value(status) == "1–1 of 1"
    browser.value(_chosen("sample-search", "nowhere"))
    assert (browser.value(status), browser.value(count)) == ("0–0 of 0", 0)


def test_samples_are_sorted_by_what_the_student_gained(browser: Page, pages: dict[str, Path]) -> None:
    browser.open(pages["run"], width=DESKTOP)
    gains = "[...document.querySelectorAll('#sample-list article')].map(each => Number(each.dataset.gain))"
    assert browser.value(gains) == [
        3,
        -1,
        5.5,
        3.5,
        0.5,
        -1.5,
    ]  # LLMR's reward minus the start's, as in fake_runs.WRITTEN
    browser.value(_chosen("sample-sort", "up"))
    assert browser.value(gains) == [5.5, 3.5, 3, 0.5, -1, -1.5]
    browser.value(_chosen("sample-sort", "down"))
    assert browser.value(gains) == [-1.5, -1, 0.5, 3, 3.5, 5.5]


def test_rollouts_are_explored_by_the_keyboard(browser: Page, pages: dict[str, Path]) -> None:
    browser.open(pages["run"], width=PHONE)
    told = "document.querySelector('#token-details').textContent"
    browser.value("document.querySelector('#rollout-list .t').focus()")
    # fake_runs.ROLLOUT: q = 4 of a value of 5, the next state's value 3.5, so R = 0.5 and G = 2.5
    first = browser.value(told)
    assert "␣hello (1 of 3): q-value 4.00, 1.00 below the best (value 5.00)" in first
    assert "Reward = q-value 4.00 − the next state's value 3.50 = 0.50. Gain 2.50" in first
    browser.press("ArrowRight")
    assert "Reward = q-value 2.00 − the next state's value 3.00 = −1.00" in browser.value(told)
    browser.press("End")
    assert "Reward = q-value 3.00 − what was counted after it 0.00 = 3.00" in browser.value(told)
    assert browser.value("document.querySelectorAll('#rollout-list [tabindex=\"0\"]').length") == 1
    browser.press("Escape")
    assert browser.value("document.querySelector('#token-details').hidden")


def test_rollouts_are_coloured_by_the_chosen_quantity(browser: Page, pages: dict[str, Path]) -> None:
    browser.open(pages["run"], width=DESKTOP)
    drawn = (
        "[...document.querySelectorAll('#rollout-list .t')].map(e => [e.className, e.querySelector('i').textContent])"
    )
    before = [each[0] for each in browser.value(drawn)]
    assert [each[1] for each in browser.value(drawn)] == ["0.5", "−1.0", "3.0"]
    browser.value(_chosen("rollout-quantity", "q_value"))
    assert [each[1] for each in browser.value(drawn)] == ["4.0", "2.0", "3.0"]
    assert browser.value("document.querySelector('#scale-meaning').textContent").startswith(
        "q-value: the teacher's logit"
    )
    browser.value(_chosen("rollout-quantity", "reward"))
    assert [each[0] for each in browser.value(drawn)] == before  # the script colours as the page was made


def test_the_theme_is_chosen_by_a_button(browser: Page, pages: dict[str, Path]) -> None:
    browser.open(pages["run"], width=DESKTOP, dark=True)
    background = "getComputedStyle(document.body).backgroundColor"
    label = "document.querySelector('#theme').textContent"
    assert browser.value(label) == "Theme: as the system"
    browser.value("document.querySelector('#theme').click()")
    assert (browser.value(label), browser.value(background)) == ("Theme: light", "rgb(252, 252, 250)")
    browser.value("document.querySelector('#theme').click()")
    assert (browser.value(label), browser.value(background)) == ("Theme: dark", "rgb(20, 23, 26)")
    browser.value("document.querySelector('#theme').click()")
    assert browser.value(label) == "Theme: as the system"


def test_without_the_script_everything_is_there(browser: Page, pages: dict[str, Path]) -> None:
    browser.open(pages["hostile"], width=PHONE, script=False)
    assert browser.value("document.querySelectorAll('#sample-list article').length") == 8
    assert browser.value("document.querySelector('#sample-controls').hidden")
    assert browser.value("document.querySelector('#theme').hidden")
    assert browser.value("document.querySelectorAll('.t i').length") == 8


def _chosen(name: str, value: str) -> str:
    """What a person does who chooses a value in a field."""
    field = f"document.querySelector('#{name}')"
    return f"{field}.value = {value!r}; {field}.dispatchEvent(new Event('input', {{bubbles: true}}))"
