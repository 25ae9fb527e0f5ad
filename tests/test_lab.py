"The tutorials in JupyterLab itself: run, stopped, taken up again, sliders moved; and a kernel whose memory stays where it is"
import os
import shutil

import jupyter_client
import psutil
import pytest

from conftest import ROOT
from lab import chromium_browser, jupyter_lab, Page, wait


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "JupyterLab on a copy of the tutorials; its address, its notebooks and its runs"
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT/"nbs"/"tutorials", home/"tutorials", ignore=shutil.ignore_patterns(".*"))
    with jupyter_lab(home, home/"tutorials") as address: yield address, home


@pytest.fixture(scope="module")
def browser():
    with chromium_browser() as found: yield found


def test_a_tutorial_is_stopped_and_taken_up_again(browser, lab):
    page, runs = Page(browser, lab[0], "01_ten_minutes.ipynb"), lab[1]/"runs"
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
    page = Page(browser, lab[0], "04_alpha_beta.ipynb")
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
