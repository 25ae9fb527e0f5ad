"JupyterLab on a loopback port, Debian's Chromium without a window, and a notebook in it"
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import pytest

from conftest import ROOT

SETTINGS = {"apputils-extension/notification": dict(fetchNews="false", checkForUpdates=False),
            "notebook-extension/tracker": dict(windowingMode="none")}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def served(home, command, place, env, ready):
    "A server in a process of its own; its address, once a page of it answers"
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with open(home/"log.txt", "w") as log:
        server = subprocess.Popen([sys.executable, "-m", *(word.format(port=port) for word in command)], cwd=place, env=env, stdout=log, stderr=log,
                                  start_new_session=True)
    try:
        wait(lambda: answers(address + ready), 60, lambda: (home/"log.txt").read_text()[-3000:])
        yield address
    finally:
        server.terminate()
        try: server.wait(20)
        except subprocess.TimeoutExpired: server.kill()


def jupyter_lab(home, place):
    "JupyterLab in a folder, with everything that it writes in another"
    pytest.importorskip("jupyterlab", reason="needs JupyterLab: pip install 'dho_nb[lab]'")
    for name, values in SETTINGS.items():
        file = home/"settings"/"@jupyterlab"/f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    env = dict(os.environ, DHO_RUNS=str(home/"runs"), DHO_PROGRESS="auto", DHO_DEVICE="cpu",
               JUPYTERLAB_SETTINGS_DIR=str(home/"settings"), PYTHONPATH=str(ROOT),
               JUPYTERLAB_WORKSPACES_DIR=str(home/"workspaces"), JUPYTER_RUNTIME_DIR=str(home/"runtime"),
               IPYTHONDIR=str(home/"ipython"))
    return served(home, ["jupyterlab", "--no-browser", "--allow-root", "--port={port}", "--IdentityProvider.token=", "--ServerApp.port_retries=0"],
                  place, env, "/api/status")


def answers(address):
    try: return urllib.request.urlopen(address, timeout=5).status == 200
    except OSError: return False


def wait(for_what, seconds, why=lambda: ""):
    "What `for_what` returns, once that is something"
    until = time.time() + seconds
    while time.time() < until:
        if found := for_what(): return found
        time.sleep(.25)
    raise AssertionError(f"not within {seconds} s: {why()}")


@contextmanager
def chromium_browser():
    "Debian's Chromium without a window"
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs Selenium: pip install selenium")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver): pytest.skip("needs Debian's chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000"):
        options.add_argument(flag)
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try: yield found
    finally: found.quit()


class Page:
    "A notebook in the browser"
    def __init__(self, browser, address, name):
        self.browser, self.shots = browser, os.environ.get("DHO_SCREENSHOTS")
        browser.get(f"{address}/lab/tree/{name}?reset")
        wait(lambda: self.count(".jp-Notebook .jp-CodeCell")
             and "| Idle" in self.script("return document.body.innerText"), 90, self.text)

    def script(self, code, *args): return self.browser.execute_script(code, *args)
    def count(self, css): return len(self.browser.find_elements("css selector", css))
    def text(self): return self.script("return document.querySelector('.jp-Notebook')?.innerText ?? "
                                       "document.body.innerText")
    def errors(self): return self.script("return [...document.querySelectorAll('.jp-OutputArea-output[data-mime-type=\"application/vnd.jupyter.stderr\"], .jp-RenderedText[data-mime-type*=error]')].map(e => e.innerText)")

    def menu(self, *labels):
        "Choose from the menu bar"
        for depth, label in enumerate(labels):
            css = ".lm-MenuBar-itemLabel" if not depth else ".lm-Menu-itemLabel"
            item = wait(lambda: next((e for e in self.browser.find_elements("css selector", css)
                                      if e.text == label and e.is_displayed()), None), 20)
            item.click()
            time.sleep(.3)

    def run_all(self):
        self.menu("Run", "Run All Cells")
        wait(lambda: "[*]:" in self.text(), 30, self.text)

    def finished(self, seconds=420):
        "All cells have run"
        wait(lambda: "[*]:" not in self.text(), seconds, lambda: self.text()[-2000:])

    def outputs(self, directive):
        "The pictures below the cell whose source has some text"
        return self.script("""const cell = [...document.querySelectorAll('.jp-CodeCell')].find(c => c.querySelector('.jp-InputArea').innerText.includes(arguments[0]));
            return [...cell.querySelectorAll('.jp-OutputArea img')].filter(i => i.naturalWidth > 100).map(i => i.src)""", directive)

    def shoot(self, name, css=None):
        "A screenshot, where somebody wants them"
        if css: self.script("document.querySelector(arguments[0])?.scrollIntoView({block: 'center'})", css)
        if self.shots: time.sleep(.5); self.browser.save_screenshot(f"{self.shots}/{name}.png")
