"""The pages as a reader uses them, in Chromium at the widths of a desktop and of a phone."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from data.files import write_text
from evaluation.web_page import page_of, table_html
from tests.browser import CHROMIUM, DRIVER, open_browser

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="Chromium is not installed"),
]


@pytest.fixture(params=[1280, 390], ids=["desktop", "phone"])
def browser(request):
    browser = open_browser(request.param, 900)
    yield browser
    browser.quit()


def fits(browser) -> bool:
    """Whether the page is no wider than its window."""
    return browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def shown(browser) -> list[str]:
    """The first cells of the lines that are shown."""
    return [
        row.find_element(By.TAG_NAME, "td").text
        for row in browser.find_elements(By.CSS_SELECTOR, "tbody tr:not([hidden])")
    ]


def test_a_table_is_sorted_by_its_numbers_and_filtered_by_words(browser, tmp_path):
    table = pd.DataFrame(
        {"name": ["b <i>", "a", "c"], "difference": ["+0.02 (a)", "-0.5", ""], "p": ["0.02", "< 1e-16", "1"]}
    )
    write_text(tmp_path / "page.html", page_of("A <b>", [table_html(table)]))
    browser.get((tmp_path / "page.html").as_uri())
    by_name, by_difference, by_p = browser.find_elements(By.CSS_SELECTOR, "th button")
    assert shown(browser) == ["b <i>", "a", "c"]
    for button, orders in (
        (by_difference, ["a", "b <i>", "c"]),
        (by_p, ["a", "b <i>", "c"]),
        (by_name, ["a", "b <i>", "c"]),
    ):
        button.click()
        assert shown(browser) == orders
    by_difference.click()
    by_difference.click()
    assert shown(browser) == ["b <i>", "a", "c"]  # the empty cell stays last
    browser.find_element(By.CSS_SELECTOR, ".filter input").send_keys("0.02 B")
    assert shown(browser) == ["b <i>"] and browser.find_element(By.CSS_SELECTOR, "[role=status]").text == "1 of 3 lines"
    assert fits(browser)


def test_a_photograph_is_uploaded_and_explained_and_a_mistake_is_said(browser, server, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (50, 70), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    (tmp_path / "text.png").write_text("no image")
    browser.get(server)
    status, answer = browser.find_element(By.ID, "status"), browser.find_element(By.ID, "answer")
    wait = WebDriverWait(browser, 30)
    browser.find_element(By.ID, "file").send_keys(str(tmp_path / "photo.png"))
    wait.until(lambda _: status.text.startswith("Answered"))
    first, _, second, *_ = browser.find_element(By.ID, "classes").text.split("\n")
    assert browser.find_element(By.ID, "map_title").text == first and answer.is_displayed() and fits(browser)
    width = "return document.getElementById('map').naturalWidth"
    assert browser.execute_script(width) == 32
    Select(browser.find_element(By.ID, "why_not")).select_by_visible_text(second)
    wait.until(lambda _: browser.find_element(By.ID, "map_title").text == f"{first} over {second}")
    browser.find_element(By.ID, "file").send_keys(str(tmp_path / "text.png"))
    wait.until(lambda _: "cannot be read" in status.text)
    assert not answer.is_displayed()
    assert not browser.get_log("browser") or all("400" in each["message"] for each in browser.get_log("browser"))
