"What must not be on a page of the site"
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

MACHINE = re.compile(r"(?<![\w./~-])/(?:root|home|Users|tmp|work)/\w")


class Page(HTMLParser):
    "A page's links, anchors, pictures and texts"
    def __init__(self, text):
        super().__init__()
        self.links, self.anchors, self.pictures, self.figures, self.inputs, self.stack, self.text = [], set(), [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors |= {given[k] for k in ("id", "name") if given.get(k)}
        if tag in ("a", "link") and given.get("href"): self.links.append(given["href"])
        if tag in ("img", "script", "source") and given.get("src"): self.links.append(given["src"])
        if tag == "img": self.pictures.append(given)
        if tag == "svg" and given.get("role") == "img": self.pictures.append({"src": "svg", "alt": given.get("aria-label")})
        if tag == "div" and "cell_input" in (given.get("class") or "").split(): self.inputs.append("")
        if tag not in ("img", "br", "hr", "meta", "link", "input", "source", "wbr", "col"): self.stack.append((tag, given.get("class") or ""))

    def handle_endtag(self, tag):
        if tag in (name for name, _ in self.stack):
            while self.stack.pop()[0] != tag: pass

    def handle_data(self, data):
        if self.stack and self.stack[-1][0] in ("script", "style"): return
        self.text.append(data)
        if any("cell_input" in c.split() for _, c in self.stack): self.inputs[-1] += data


def pages(site): return {p: Page(p.read_text(encoding="utf-8")) for p in sorted(Path(site).rglob("*.html"))}

def problems(site):
    "One line per fault"
    site, read = Path(site).resolve(), pages(site)
    if not read: return [f"{site}: there is no page"]
    read = {p.resolve(): page for p, page in read.items()}
    return [f"{p.relative_to(site)}: {fault}" for p, page in read.items() for fault in faults(p, page, read, site)]

def faults(place, page, read, site):
    for link in dict.fromkeys(page.links):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc: continue
        to = (place.parent/unquote(parts.path)).resolve() if parts.path else place
        if to.is_dir(): to = to/"index.html"
        if not to.exists() or not to.is_relative_to(site): yield f"dead link {link}"
        elif parts.fragment and to in read and place.name not in ("search.html", "genindex.html") and unquote(parts.fragment) not in read[to].anchors: yield f"dead anchor {link}"
    for picture in page.pictures:
        if not (picture.get("alt") or "").strip() or re.search(r"\.(png|svg|jpe?g)$|^data:", picture["alt"]): yield f"picture without an alternative text: {picture.get('src', '')[:80]}"
    for text in page.inputs:
        if found := re.search(r"^\s*#\|.*$", text, re.M): yield f"raw directive: {found[0]}"
        if "jupytext_version" in text: yield "a cell that is the header of a text notebook"
    if found := MACHINE.search("".join(page.text)): yield f"a path of somebody's machine: {''.join(page.text)[found.start():found.start() + 60]!r}"

def external(site):
    "Links that leave the site, with a page that has them"
    found = {link: p.relative_to(site) for p, page in pages(site).items() for link in page.links if urlsplit(link).scheme in ("http", "https")}
    return [f"{link}  {place}" for link, place in sorted(found.items())]
