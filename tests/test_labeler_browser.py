"The labeler in a browser: what a click, a key and an undo leave in the file"
import os
import re
import signal
import subprocess
import sys
import urllib.request

import nbformat
import pytest

from conftest import picture, ROOT
from lab import answers, chromium_browser, jupyter_lab, Page, wait

pytest.importorskip("ipywidgets", reason="needs ipywidgets: pip install 'dho_nb[lab]'")

CELL = """from dho_nb import Labeler
labeler = Labeler("photos", "labels.csv", ["cat", "dog"], count=4)
labeler"""
KERNEL = dict(kernelspec=dict(name="python3", display_name="Python 3", language="python"))


@pytest.fixture(scope="module")
def browser():
    with chromium_browser() as found: yield found


@pytest.fixture
def place(tmp_path):
    for i in range(9): picture(tmp_path/"work"/"photos"/f"{i}.png", seed=i, size=(200, 150))
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)], metadata=KERNEL), tmp_path/"work"/"label.ipynb")
    return tmp_path


class Clicks:
    "A labeler on a page, and its file"
    def __init__(self, browser, place):
        self.browser, self.file = browser, place/"work"/"labels.csv"
        self.button("cat (1)")

    def button(self, text):
        "The button with a text, once it is there"
        find = lambda: next((b for b in self.browser.find_elements("css selector", "button.widget-button") if b.text == text), None)
        return wait(find, 30, lambda: self.browser.execute_script("return document.body.innerText"))

    def click(self, text, *lines):
        "Click a button; the file then has these lines below its header"
        self.button(text).click()
        self.holds(*lines)

    def type(self, hint, keys, *lines):
        "Type into the field with a hint"
        self.browser.find_element("css selector", f"input[placeholder='{hint}']").send_keys(keys)
        self.holds(*lines)

    def holds(self, *lines):
        read = lambda: self.file.read_text().splitlines()[1:] if self.file.exists() else []
        wait(lambda: read() == [*lines], 10, lambda: f"{read()} in place of {[*lines]}")

    def current(self, name):
        "Wait until the marked picture is this one"
        wait(lambda: self.marked() == [name], 10, lambda: f"{self.marked()} is marked, not {name}")

    def marked(self):
        found = self.browser.execute_script("return [...document.querySelectorAll('img.widget-image')].map(i => [i.parentElement.querySelector('button').title, i.naturalWidth, getComputedStyle(i).borderTopColor])")
        assert all(width > 50 for _, width, _ in found), "every thumbnail is a picture"
        return [name for name, _, color in found if color == "rgb(0, 114, 178)"]


def test_clicks_in_jupyterlab_are_in_the_file(browser, place):
    with jupyter_lab(place, place/"work") as address:
        page = Page(browser, address, "label.ipynb")
        page.menu("Run", "Run All Cells")
        labeler = Clicks(browser, place)
        labeler.current("0.png")
        page.shoot("labeler")
        labeler.click("dog (2)", "0.png,dog")
        labeler.current("1.png")
        labeler.click("undo (u)")
        labeler.current("0.png")
        labeler.click("cat (1)", "0.png,cat")
        labeler.click("skip (s)", "0.png,cat")
        labeler.current("2.png")
        labeler.click("none of these (n)", "0.png,cat", "2.png,none of these")
        labeler.type("new class", "cow\n", "0.png,cat", "2.png,none of these")
        labeler.click("cow (3)", "0.png,cat", "2.png,none of these", "3.png,cow")
        labeler.current("4.png")  # the next batch
        labeler.type("keys", "123", "0.png,cat", "2.png,none of these", "3.png,cow", "4.png,cat", "5.png,dog", "6.png,cow")
        labeler.current("7.png")
        labeler.type("keys", "u", "0.png,cat", "2.png,none of these", "3.png,cow", "4.png,cat", "5.png,dog")
        page.shoot("labeled")
        assert not page.errors()


def test_dho_label_opens_the_labeler_in_a_browser(browser, place):
    pytest.importorskip("voila", reason="needs Voilà: pip install 'dho_nb[label]'")
    command = [sys.executable, "-m", "dho_nb.cli.main", "label", "photos", "--classes", "cat", "dog", "--count", "4", "--no-browser"]
    env = dict(os.environ, PYTHONPATH=str(ROOT), IPYTHONDIR=str(place/"ipython"), JUPYTER_RUNTIME_DIR=str(place/"runtime"), DHO_DEVICE="cpu")
    with open(place/"log.txt", "w") as log: server = subprocess.Popen(command, cwd=place/"work", env=env, stdout=log, stderr=log, start_new_session=True)
    said = lambda: (place/"log.txt").read_text()
    try:
        address = wait(lambda: re.search(r"http://127\.0\.0\.1:\d+/\?token=\S+", said()), 60, said)[0]
        wait(lambda: answers(address), 60, said)
        assert "/login" in urllib.request.urlopen(address.partition("?")[0], timeout=30).url, "nobody else on this machine, without the token"
        browser.get(address)
        labeler = Clicks(browser, place)
        labeler.current("0.png")
        assert "import numpy" not in browser.page_source, "no code is shown"
        labeler.click("dog (2)", "0.png,dog")
        labeler.type("keys", "1s", "0.png,dog", "1.png,cat")
        labeler.current("3.png")
        labeler.click("undo (u)", "0.png,dog", "1.png,cat")
        labeler.click("none of these (n)", "0.png,dog", "1.png,cat", "2.png,none of these")
    finally:
        server.send_signal(signal.SIGTERM)
        try: server.wait(60)
        except subprocess.TimeoutExpired: server.kill()
    assert server.returncode == 0 and said().endswith("3 of 9 pictures labeled, in labels.csv\n") and "WARNING" not in said(), said()


def test_dho_label_says_what_is_wrong_before_a_browser_opens(dho, place):
    pytest.importorskip("voila", reason="needs Voilà: pip install 'dho_nb[label]'")
    (place/"work"/"labels.csv").write_text("path,label\nnowhere.png,cat\n")
    code, out, err = dho("label", "photos", "--no-browser", cwd=place/"work")
    assert code == 2 and "no such picture" in err and "http" not in out
    (place/"work"/"labels.csv").unlink()
    code, _, err = dho("label", "photos", "--teacher", "digits", "--no-browser", cwd=place/"work")
    assert code == 2 and "--classes" in err
