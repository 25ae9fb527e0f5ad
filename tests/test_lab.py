"The tutorials in JupyterLab itself: run, stopped, taken up again, sliders moved; and a kernel whose memory stays where it is"
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import jupyter_client
import psutil
import pytest

from conftest import ROOT

SETTINGS = {"apputils-extension/notification": dict(fetchNews="false", checkForUpdates=False),
            "notebook-extension/tracker": dict(windowingMode="none")}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "JupyterLab on a copy of the tutorials; its address, its notebooks and its runs"
    pytest.importorskip("jupyterlab", reason="needs JupyterLab: pip install 'dho_nb[lab]'")
    home, port = tmp_path_factory.mktemp("lab"), free_port()
    shutil.copytree(ROOT/"nbs"/"tutorials", home/"tutorials", ignore=shutil.ignore_patterns(".*"))
    for name, values in SETTINGS.items():
        file = home/"settings"/"@jupyterlab"/f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    env = dict(os.environ, DHO_RUNS=str(home/"runs"), DHO_PROGRESS="auto", DHO_DEVICE="cpu",
               JUPYTERLAB_SETTINGS_DIR=str(home/"settings"), PYTHONPATH=str(ROOT),
               JUPYTERLAB_WORKSPACES_DIR=str(home/"workspaces"), JUPYTER_RUNTIME_DIR=str(home/"runtime"),
               IPYTHONDIR=str(home/"ipython"))
    with open(home/"log.txt", "w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
                                   "--IdentityProvider.token=", "--ServerApp.port_retries=0"], cwd=home/"tutorials",
                                   env=env, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        wait(lambda: answers(f"{address}/api/status"), 60, lambda: (home/"log.txt").read_text()[-3000:])
        yield address, home
    finally:
        server.terminate()
        try: server.wait(20)
        except subprocess.TimeoutExpired: server.kill()


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


@pytest.fixture(scope="module")
def browser():
    "Debian's Chromium without a window"
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs Selenium: pip install selenium")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver): pytest.skip("needs Debian's chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000"):
        options.add_argument(flag)
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


class Page:
    "A notebook in the browser"
    def __init__(self, browser, lab, name):
        self.browser, self.shots = browser, os.environ.get("DHO_SCREENSHOTS")
        browser.get(f"{lab[0]}/lab/tree/{name}?reset")
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


def test_a_tutorial_is_stopped_and_taken_up_again(browser, lab):
    page, runs = Page(browser, lab, "01_ten_minutes.ipynb"), lab[1]/"runs"
    page.run_all()
    curves = ".jp-CodeCell .jp-OutputArea progress"
    wait(lambda: page.count(curves) and page.outputs("run.train()"), 420, page.text)
    page.shoot("training", curves)
    browser.find_element("css selector", "[data-command='notebook:interrupt-kernel'], jp-button[title*='Interrupt'], "
                                         "button[title*='Interrupt']").click()
    page.finished(60)
    said = [e for e in page.errors() if "topped" in e]
    assert len(said) == 1 and "the same call goes on from there" in said[0] and "Traceback" not in said[0]
    assert len(said[0].splitlines()) <= 2
    page.shoot("stopped", ".jp-RenderedText[data-mime-type*=error]")
    assert list(runs.glob("*/checkpoint.safetensors")) and not list(runs.glob("*/result.json"))
    page.run_all()
    page.finished()
    assert not page.errors() and len(list(runs.glob("*/result.json"))) == 2
    for source in ("run.show_views()", "run.train()", "plot_training_history(", "plot_agreement(", "plot_alpha_beta_grid("):
        assert page.outputs(source), source
    page.shoot("finished", ".jp-CodeCell:last-of-type")


def test_the_slider_changes_the_picture(browser, lab):
    page = Page(browser, lab, "04_alpha_beta.ipynb")
    page.run_all()
    page.finished()
    assert not page.errors()
    handle = browser.find_elements("css selector", ".widget-slider .noUi-handle")[0]
    before = page.outputs("explorer = Explorer(")
    alpha = float(browser.find_element("css selector", ".widget-readout").text)
    page.shoot("sliders", ".widget-slider")
    for _ in range(5): handle.send_keys("\ue012" if alpha > .5 else "\ue014")
    wait(lambda: (now := page.outputs("explorer = Explorer(")) and now != before, 30)
    moved = wait(lambda: (a := float(browser.find_element("css selector", ".widget-readout").text)) != alpha and a, 10)
    page.shoot("moved", ".widget-slider")
    assert abs(abs(moved - alpha) - .05) < .011


RUN = """
import gc
from dho_nb.runs.config import preset
from dho_nb.runs.run import Run
run = Run(preset("digits", epochs=1, seed={seed}), "{seed}")
run.train()
run.finish()
del run
gc.collect()
"""


def test_memory_of_a_kernel_does_not_grow_from_run_to_run(tmp_path):
    env = dict(os.environ, DHO_CACHE=str(tmp_path/"cache"), DHO_PROGRESS="auto", DHO_DEVICE="cpu", PYTHONPATH=str(ROOT),
               IPYTHONDIR=str(tmp_path/"ipython"))
    manager, client = jupyter_client.manager.start_new_kernel(kernel_name="python3", cwd=str(tmp_path), env=env)
    try:
        curves, seen = 0, []
        for seed in range(8):
            said = []
            reply = client.execute_interactive(RUN.format(seed=seed), timeout=300, output_hook=said.append)
            assert reply["content"]["status"] == "ok", reply["content"]
            curves += sum("image/png" in m["content"].get("data", {}) for m in said if m["msg_type"] == "display_data")
            seen.append(psutil.Process(manager.provisioner.pid).memory_info().rss/2**20)
        figures = client.execute_interactive("from matplotlib import pyplot; assert not pyplot.get_fignums(), "
                                             "pyplot.get_fignums()", timeout=60)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert curves == 8 and figures["content"]["status"] == "ok"
    assert seen[-1] - seen[3] < 15, f"megabytes after each run: {[round(s) for s in seen]}"
