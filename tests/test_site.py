"The documentation site: built from a copy, checked page by page, and looked at in headless Chromium on a desk and on a phone"
import ast
import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading

import pytest

from conftest import ROOT, project_copy

sys.path.insert(0, str(ROOT/"docs"))
pytest.importorskip("myst_nb", reason="needs the extra docs: pip install \"dho_nb[docs]\"")
from api import Module  # noqa: E402
from build import ROOMS, output, picture_width, table_html  # noqa: E402
from check import Page, external, problems  # noqa: E402
from verbs import page_name, verbs  # noqa: E402


def build(project):
    return subprocess.run([sys.executable, project/"docs"/"build.py"], cwd=project, capture_output=True,
                          text=True, timeout=600, env={**os.environ, "PYTHONPATH": str(project)})


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "The project, with its site"
    made = project_copy(tmp_path_factory.mktemp("site")/"project")
    done = build(made)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return made

@pytest.fixture(scope="module")
def site(project): return project/"_site"


def test_every_notebook_is_a_page(project, site):
    notebooks = [p for p in (project/"nbs").rglob("*") if p.suffix in (".ipynb", ".md")]
    pages = [p for p in site.rglob("*.html") if p.name not in ("genindex.html", "search.html", "changelog.html")
             and (p.name != "index.html" or p.parent == site)]
    assert len([p for p in pages if p.parent.name != "commands"]) == len(notebooks) > 50
    assert {p.name for p in site.iterdir()} >= {"index.html", "search.html", "howto", "explain", "reference",
                                                "paper", "llms.txt"}


def test_every_verb_has_a_page_with_its_options_and_examples(site):
    found = dict(verbs())
    assert {page_name(name) for name in found} == {p.stem for p in (site/"commands").glob("*.html")} - {"index"}
    for name, parser in found.items():
        page = "".join(Page((site/"commands"/f"{page_name(name)}.html").read_text()).text)
        options = [flag for a in parser._actions for flag in a.option_strings if flag not in ("-h", "--help")]
        assert [o for o in options if o not in page] == [] and parser.description in page
        helps = [a.help.replace("%%", "%") for a in parser._actions if a.help and "-h" not in a.option_strings]
        examples = re.findall(r"^ +(dho .*)$", parser.epilog or "", re.M)
        plain = re.sub(r"\s+", " ", page)  # quotes and hyphens as they are typed
        assert [text for text in [*helps, *examples] if re.sub(r"\s+", " ", text).strip() not in plain] == [], name
    listed = re.findall(r'href="([a-z-]+)\.html"', (site/"commands"/"index.html").read_text().split("<article")[1].split("</article")[0])
    assert listed.index("check") < listed.index("suggest") < listed.index("distill") < listed.index("predict") < listed.index("sweep")


def test_outputs_on_the_pages_of_commands_are_of_commands_that_the_parser_knows(site):
    found, printed = dict(verbs()), json.loads((ROOT/"docs"/"outputs.json").read_text())
    assert {"check", "distill", "estimate", "suggest", "predict", "export", "sweep", "status", "table"} <= {*printed} <= {*found}
    for name, shown in printed.items():
        page = re.sub(r"\s+", " ", "".join(Page((site/"commands"/f"{page_name(name)}.html").read_text()).text))
        known = {flag for a in found[name]._actions for flag in a.option_strings}
        assert shown["command"].startswith(f"dho {name}") and {w for w in shown["command"].split() if w.startswith("--")} <= known
        assert re.sub(r"\s+", " ", shown["output"]).strip() in page, name


def test_messages_in_the_troubleshooting_table_are_the_librarys():
    table = (ROOT/"nbs"/"howto"/"faq.md").read_text().split("## Troubleshooting")[1].split("##")[0]
    quoted = re.findall(r"^\| `([^`]+)`", table, re.M)
    code = "".join(p.read_text() for p in (ROOT/"dho_nb").rglob("*.py"))
    assert len(quoted) >= 4 and [q for q in quoted if q not in code] == []


def test_the_finder_is_a_table_with_a_command_in_every_row(site):
    page = (site/"paper"/"finder.html").read_text()
    rows = re.findall(r"<tr[^>]*>.*?</tr>", page, re.S)
    assert sum("dho run paper/" in re.sub("<[^>]+>", "", row) for row in rows) > 60
    assert "dho run paper/table13/fewshot-resnet18/dho --dataset flowers102 --shots 4" in re.sub(r"\s+", " ", re.sub("<[^>]+>", "", page))


def test_a_page_names_the_version_and_offers_its_notebook(site):
    import dho_nb
    for page in (site/"howto"/"own_images.html", site/"reference"/"runs"/"run.html", site/"index.html"):
        text = page.read_text()
        link = re.search(r'class="reference download internal"[^>]* href="([^"]+[.]ipynb)"', text)[1]
        assert f"dho_nb {dho_nb.__version__}" in text and json.loads((page.parent/link).read_text())["cells"]


def test_nothing_is_wrong_on_any_page(site):
    assert problems(site) == []


def test_nothing_is_fetched_from_elsewhere(site):
    seen = {p.name: fetched(p.read_text()) for p in site.rglob("*.html")}
    assert sum(map(len, seen.values())) > 500
    assert {name: away for name, all_ in seen.items() if (away := [a for a in all_ if re.match("(https?:)?//", a)])} == {}


def fetched(text):
    "What a browser asks for to show a page"
    tags = re.findall(r"<(script|img|iframe|source|video|audio|embed|link)\b([^>]*)>", text)
    return [a for name, told in tags if name != "link" or re.search(r'rel="[^"]*(stylesheet|icon|preload)', told)
            for a in re.findall(r'\b(?:src|href|srcset)="([^"]+)"', told)]


@pytest.mark.parametrize("tag", ['<script async src="https://a.b/x.js">', '<img alt="x" src="//a.b/x.png"/>',
                                 '<link href="https://a.b/x.css" rel="stylesheet">',
                                 '<link rel="preload" as="font" href="https://a.b/x.woff">'])
def test_what_is_fetched_is_seen_in_every_form(tag):
    assert len(fetched(f'<p>{tag}</p><a href="https://a.b">x</a><link rel="canonical" href="https://a.b/">')) == 1


def test_links_that_leave_the_site_are_listed_with_a_page(tmp_path):
    (tmp_path/"a.html").write_text('<a href="https://b.c/d">x</a><a href="b.html">y</a><a href="mailto:a@b.c">z</a>')
    assert external(tmp_path) == ["https://b.c/d  a.html"]


def test_every_public_function_is_in_the_reference(site):
    looked = 0
    notebooks = sorted(p for room in ROOMS for p in (ROOT/"nbs"/room).glob("[0-9]*.ipynb"))
    assert len(notebooks) > 50
    for notebook in notebooks:
        module = Module(re.search(r"#\| default_exp ([\w.]+)", notebook.read_text())[1])
        page = Page((site/"reference"/f"{module.name.replace('.', '/')}.html").read_text())
        hidden = {name for cell in json.loads(notebook.read_text())["cells"]
                  if cell["source"] and re.match(r"#\| *exporti|#\| *hide", "".join(cell["source"]))
                  for name in re.findall(r"def (\w+)", "".join(cell["source"]))}
        for name, node in module.nodes.items():
            patched = isinstance(node, ast.FunctionDef) and any("patch" in ast.unparse(d) for d in node.decorator_list)
            if "." in name and not patched or re.search(r"(^|\.)_", name) or name.split(".")[-1] in hidden: continue
            label = module.label(name).lower().replace(".", "-").replace("_", "-")
            assert label in page.anchors, f"{module.name}.{name}"
            looked += 1
    assert looked > 600


def test_backticked_names_lead_to_the_reference(site):
    links = Page((site/"benchmarks"/"surface.html").read_text()).links
    assert "../reference/evaluation/interpolation.html#dho-nb-evaluation-interpolation-alpha-beta-grid" in links
    assert "#dho-nb-evaluation-diagnostics-diagnose-gradient-conflict" in Page((site/"reference"/"evaluation"/"diagnostics.html").read_text()).links


@pytest.mark.parametrize("text, fault", [
    ('<a href="gone.html">x</a>', "dead link gone.html"),
    ('<a href="b.html#nowhere">x</a>', "dead anchor b.html#nowhere"),
    ('<img src="p.png">', "without an alternative text"),
    ('<img src="p.png" alt="p.png">', "without an alternative text"),
    ('<svg role="img"></svg>', "without an alternative text"),
    ('<div class="cell_input"><pre>#| hide\nx</pre></div>', "raw directive: #| hide"),
    ('<div class="cell_input"><pre># jupytext_version: 1.19</pre></div>', "the header of a text notebook"),
    ("<p>at /home/ann/photos</p>", "a path of somebody's machine"),
    *((f"<p>'/{home}/x'</p>", "a path of somebody's machine") for home in ("root", "Users", "tmp", "work")),
    ('<div class="cell_input"><img src="p.png" alt="a dog"/><pre>#| hide\nx</pre></div>', "raw directive: #| hide"),
    ('<div class="cell_input"></p><pre>#| hide\nx</pre></div>', "raw directive: #| hide"),
    ('<img src="q.png" alt="a dog">', "dead link q.png")])
def test_faults_are_found(tmp_path, text, fault):
    (tmp_path/"a.html").write_text(f"<html><body>{text}</body></html>")
    (tmp_path/"b.html").write_text("<html><body id='here'><a href='#here'>fine</a><p>nbs/home/x, "
                                   "https://a.b/home/c</p></body></html>")
    (tmp_path/"p.png").touch()
    assert len(problems(tmp_path)) == 1 and fault in problems(tmp_path)[0]


def test_a_site_without_a_page_is_a_fault(tmp_path):
    assert problems(tmp_path) == [f"{tmp_path.resolve()}: there is no page"]


def test_a_fault_stops_the_build(project, tmp_path):
    broken = shutil.copytree(project, tmp_path/"broken")
    instead = """import build, types
build.sources = build.proc_nbs = lambda **given: None
build.shutil.rmtree = lambda *given, **more: None
build.subprocess.run = lambda *given, **more: types.SimpleNamespace(returncode=0)"""
    page = broken/"_site"/"reference"/"data"/"transforms.html"
    page.write_text(re.sub(r'alt="[^"]*"', 'alt=""', page.read_text()))
    done = subprocess.run([sys.executable, "-c", instead + "; build.main()"], cwd=broken/"docs", capture_output=True,
                          text=True, timeout=300, env={**os.environ, "PYTHONPATH": f"{broken}:{broken/'docs'}"})
    assert done.returncode == 1 and "reference/data/transforms.html: picture without an alternative text" in done.stderr


def test_captions_are_shown(site):
    given = [(p, caption) for p in (ROOT/"nbs").rglob("*.ipynb") for cell in json.loads(p.read_text())["cells"]
             if (caption := cell["metadata"].get("figure", {}).get("caption"))]
    shown = "".join(re.sub(r"\s+", " ", "".join(Page(p.read_text()).text)) for p in site.rglob("*.html"))
    assert given and [(p.name, c) for p, c in given if c not in shown] == []


@pytest.fixture(scope="module")
def browser(site):
    "Opens a page of the site at a width; returns the driver"
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver): pytest.skip("needs Debian's chromium and chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs the extra docs: pip install \"dho_nb[docs]\"")
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *said): pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    chrome.set_page_load_timeout(120)
    def look(page, width=1280):
        chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                               dict(width=width, height=900, deviceScaleFactor=1, mobile=width < 600))
        chrome.get(f"http://127.0.0.1:{server.server_port}/{page}")
        return chrome
    yield look
    chrome.quit()
    server.shutdown()

def complaints(chrome): return [entry["message"] for entry in chrome.get_log("browser")
                                if entry["level"] in ("SEVERE", "WARNING")]

def wait(chrome, condition, seconds=60):
    from selenium.webdriver.support.ui import WebDriverWait
    return WebDriverWait(chrome, seconds).until(lambda c: c.execute_script(f"return {condition}"))


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("page",
                         ["index.html", "reference/training/trainer.html", "reference/evaluation/diagnostics.html",
                          "explain/conflict.html", "explain/alpha_beta.html", "paper/table1.html", "paper/figure4.html",
                                  "howto/sweep.html", "contributing.html", "changelog.html", "reference/index.html"])
def test_pages_look_right_on_a_desk_and_on_a_phone(browser, page, width):
    chrome = browser(page, width)
    wait(chrome, "[...document.images].filter(i => i.loading !== 'lazy').every(i => i.complete && i.naturalWidth > 0)")
    if "class=\"math" in chrome.page_source:
        wait(chrome, "document.querySelectorAll('mjx-container').length > 0 && !document.querySelector('mjx-merror')")
    beyond = chrome.execute_script("return [document.documentElement, ...document.querySelectorAll('.content')].map(e => e.scrollWidth - e.clientWidth)")
    assert len(beyond) == 2 and max(beyond) <= 0, "no scrolling sideways, of the page or inside of it"
    assert chrome.find_element("css selector", "h1").is_displayed()
    assert complaints(chrome) == []


def test_figures_are_seen(browser):
    chrome = browser("paper/figure4.html")
    seen = chrome.execute_script("return [...document.querySelectorAll('.cell_output img')].map(i => [i.alt, "
                                 "i.naturalWidth])")
    assert len(seen) >= 2 and all(alt and width > 300 for alt, width in seen)


def test_a_picture_has_100_pixels_an_inch_and_is_not_enlarged():
    from base64 import b64encode
    from io import BytesIO
    from PIL import Image
    def width(dpi):
        file = BytesIO()
        Image.new("RGB", (800, 100)).save(file, "png", dpi=(dpi, dpi))
        return picture_width([{"output_type": "stream"}, {"data": {"image/png": b64encode(file.getvalue()).decode()}}])
    assert [width(dpi) for dpi in (200, 100, 50)] == ["400px", "800px", "800px"] and picture_width([]) is None


SEARCHES = {"own images": "own_images", "resume": "howto/", "dual head": "students/", "cite": "howto/faq", "license": "howto/faq",
            "GPU": "howto/faq", "quickstart": "howto/faq", "FAQ": "howto/faq", "glossary": "explain/glossary",
            "distill": "commands/distill", "find a row": "paper/finder", "bibtex": "howto/faq", "licence": "howto/faq",
            "precomputed embeddings": "own_", "Table 13 Flowers": "paper/finder", "significant": "explain/glossary", "phone": "howto/faq",
            "resume after a crash": "howto/after_a_crash", "add a loss": "howto/extend", "install": "howto/faq"}  # what a newcomer types: part of a page that answers it


def test_the_search_page_has_a_field(browser):
    chrome = browser("search.html")
    field = chrome.find_element("css selector", "article input[name=q]")
    assert chrome.find_element("css selector", "article h1").text == "Search" and field.is_displayed() and complaints(chrome) == []


def test_numbers_stay_on_one_line_and_progress_is_no_result():
    table = "<tr><th>dho</th><td>29.2 ± 1.4</td><td><i>+6.0 [+3.1, +9.6]</i></td><td>a note</td></tr>"
    shown = output({"output_type": "display_data", "data": {"text/html": table}}, "index.ipynb")["data"]["text/html"]
    assert shown.count("<td data-num>") == 2 and re.sub(" data-num", "", shown) == table
    wide = table.replace("<td>a note</td>", "<td>1</td>"*4)
    assert "<i>+6.0<br><small>[+3.1, +9.6]</small></i>" in table_html(f"<table>{wide}</table>") and "<br>" not in shown
    assert ["data-wide" in table_html(f"<table><tr>{'<td>1</td>'*n}</tr></table>") for n in (6, 7)] == [False, True]
    assert re.sub(" data-words", "", table_html("<th>mean gain</th><th>1-shot</th>")) == "<th>mean gain</th><th>1-shot</th>"
    said = {"output_type": "stream", "name": "stdout", "text": "step 322/340, loss 0.081, about 1 s left\n\n"}
    assert output(said, "index.ipynb") is None and output({**said, "text": "2/3 of them"}, "index.ipynb")["text"] == "2/3 of them"


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("words", SEARCHES)
def test_a_search_finds_the_right_page_among_the_first_three(browser, words, width):
    chrome = browser(f"search.html?q={words.replace(' ', '+')}", width)
    wait(chrome, "document.querySelectorAll('ul.search li a').length >= 1")
    found = [a.get_attribute("href") for a in chrome.find_elements("css selector", "ul.search li a")]
    assert any(SEARCHES[words] in link for link in found[:3]), found[:8]
    assert complaints(chrome) == []


def test_the_figure_of_the_conflict_can_be_moved(browser):
    chrome = browser("explain/conflict.html")
    say = lambda: chrome.find_element("css selector", "#simplex .reading").text
    assert "Both pull the same way" in say()
    chrome.execute_script("document.querySelector('#simplex button').click()")
    assert "The two pull against each other" in say() and "cosine -1.00" in say()
    points = lambda: chrome.execute_script("return [...document.querySelectorAll('#curves polyline')].map(l => "
                                           "l.getAttribute('points'))")
    first = points()
    chrome.execute_script("const s = document.querySelector('#curves .data'); s.value = 'EuroSAT'; s.dispatchEvent(new "
                          "Event('input'))")
    assert len(first) == len(points()) == 2 and points() != first and complaints(chrome) == []


def test_source_opens_and_dark_mode_is_dark(browser):
    chrome = browser("reference/evaluation/diagnostics.html")
    chrome.execute_script("document.querySelector('details.hide summary').click()")
    assert wait(chrome, "document.querySelector('details.hide[open] pre')?.offsetHeight > 0", 10)
    assert len(chrome.find_elements("css selector", "button.copybtn")) > 10
    light = chrome.execute_script("return getComputedStyle(document.body).backgroundColor")
    chrome.execute_script("document.body.dataset.theme = 'dark'")
    assert chrome.execute_script("return getComputedStyle(document.body).backgroundColor") != light
