"""Checks the built site: its links, the way to every public name, and ten pages in a browser.

    python tools/check_site.py links docs/_build/html
    python tools/check_site.py browse docs/_build/html [--pictures FOLDER]
"""

import argparse
import contextlib
import functools
import http.server
import shutil
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

MOST_CLICKS = 3
#: what the browser opens: a page of each kind
PAGES = ("index.html", "start/quickstart.html", "tutorials/tutorial_2_landscapes.html", "howto/schedules.html",
         "howto/migrate/torch.html", "gallery/index.html", "explain/how-a-step-works.html",
         "reference/optimizers/Adam.html", "reference/optimizer.html", "performance/results.html")
#: pages that list everything
LISTS = ("genindex.html", "py-modindex.html", "search.html")
WINDOWS = {"desktop": (1280, 800), "phone": (390, 844)}


class _Page(HTMLParser):
    """The links and the anchors of a page; the links that a reader can click; what pictures have no text."""

    def __init__(self, text):
        super().__init__()
        self.links, self.clicked, self.anchors, self.silent = [], [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag == "a" and values.get("href"):
            self.clicked.append(values["href"])
        self.anchors |= {values[key] for key in ("id", "name") if values.get(key)}
        if tag in ("a", "link", "script", "img"):
            self.links += [values[key] for key in ("href", "src") if values.get(key)]
        if tag == "img" and not values.get("alt"):
            self.silent.append(values.get("src", "")[:60])


def read(site):
    """The pages of the site by their path."""
    return {path.relative_to(site).as_posix(): _Page(path.read_text("utf-8"))
            for path in sorted(site.rglob("*.html")) if "_static" not in path.parts}


def target_of(link, page):
    """The file that a link of a page leads to, and the anchor; None if it leaves the site.

    A link that begins with / is taken from the index; `broken` reports it.
    """
    address, anchor = urldefrag(link)
    if urlparse(address).scheme or address.startswith("//"):
        return None
    address = address.partition("?")[0]
    parts = [] if address.startswith("/") else page.split("/")[:-1]
    for part in unquote(address).split("/") if address else [page.split("/")[-1]]:
        if part == "..":
            parts = parts[:-1]
        elif part not in (".", ""):
            parts.append(part)
    return "/".join(parts) + ("/index.html" if address.endswith("/") else ""), anchor


def broken(site, pages):
    """What is wrong with links and pictures, a line each."""
    for name, page in pages.items():
        for link in page.links:
            found = target_of(link, name)
            if found is None:
                continue
            path, anchor = found
            if link.startswith("/"):
                yield f"{name}: {link} begins with /, and fails on a site that is served below a path"
            elif not (site / (path or "index.html")).exists():
                yield f"{name}: {link} leads to no file"
            elif anchor and path in pages and unquote(anchor) not in pages[path].anchors:
                yield f"{name}: {link} leads to no place on its page"
        for picture in page.silent:
            yield f"{name}: picture {picture} has no text (alt)"


def clicks(pages):
    """How many clicks each page is away from the index, on links in texts and menus.

    The pages that list everything do not count: nobody reads from there on.
    """
    distance, border = {"index.html": 0}, ["index.html"]
    while border:
        name = border.pop(0)
        for link in pages[name].clicked:
            path = (target_of(link, name) or [None])[0]
            if path in pages and path not in distance and path not in LISTS:
                distance[path] = distance[name] + 1
                border.append(path)
    return distance


def public_names():
    """Every public name: of optimc, of its schedules, and of what an optimizer offers."""
    import optimc
    yield from (f"optimc.{name}" for name in optimc.__all__ if name != "schedules")
    yield from (f"optimc.schedules.{name}" for name in {*optimc.schedules.classes(), *optimc.schedules.public()})
    yield from (f"optimc.Optimizer.{name}" for name in dir(optimc.Adam())
                if not name.startswith("_") and name not in optimc.Adam._arguments)     # a page names its arguments


def too_far(pages):
    """The public names that no page has, or only one that is too many clicks away; a line each."""
    distance = clicks(pages)
    for name in public_names():
        nearest = min((distance[path] for path in distance if name in pages[path].anchors), default=None)
        if nearest is None:
            yield f"{name} is on no page that the index leads to"
        elif nearest > MOST_CLICKS:
            yield f"{name} is {nearest} clicks away from the index, expected at most {MOST_CLICKS}"


def links(site):
    pages = read(site)
    faults = [*broken(site, pages), *too_far(pages)]
    print(f"{len(pages)} pages, {sum(len(page.links) for page in pages.values())} links")
    return faults


@contextlib.contextmanager
def served(site):
    """Serves the site on this machine; gives its address."""
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


#: what is wrong on an open page; it scrolls through it first, because pictures load when they are seen, and waits for
#: the formulas
LOOK = """async () => {
    for (let y = 0; y < document.body.scrollHeight; y += 400) {
        window.scrollTo(0, y);
        await new Promise(resolve => setTimeout(resolve, 15));
    }
    const faults = [], {clientWidth: width, scrollWidth: most} = document.documentElement;
    if (most > width) {
        const wide = [...document.querySelectorAll('body *')]
            .filter(element => element.getBoundingClientRect().right > width + 1).slice(0, 4);
        faults.push(`${most} pixels wide, window ${width}: ${wide.map(element => element.outerHTML.slice(0, 90))}`);
    }
    for (const image of document.images) {
        image.loading = 'eager';
        await image.decode().catch(() => {});
        if (!image.naturalWidth) faults.push(`picture ${image.src.slice(0, 90)} does not load`);
    }
    if (window.MathJax?.startup?.promise) await MathJax.startup.promise;
    const formulas = document.querySelectorAll('.bd-article .math').length;
    const typeset = document.querySelectorAll('.bd-article .math mjx-container').length;
    if (typeset < formulas) faults.push(`${formulas - typeset} of ${formulas} formulas are not typeset`);
    for (const error of document.querySelectorAll('mjx-merror')) {
        faults.push(`formula: ${error.textContent.slice(0, 90)}`);
    }
    return faults;
}"""


def looked_at(page, address, pictures):
    """Opens every page of `PAGES` in a window; yields what is wrong on it."""
    from playwright.sync_api import TimeoutError as PlaywrightTimeout
    for name in PAGES:
        page.goto(f"{address}/{name}", wait_until="networkidle")
        yield from (f"{name}: {fault}" for fault in page.evaluate(LOOK))
        if pictures:
            page.evaluate("window.scrollTo(0, 0)")
            page.screenshot(path=f"{pictures}-{name.replace('/', '-')}.png", full_page=True)
    page.goto(f"{address}/search.html?q=weight_decay", wait_until="networkidle")
    try:
        page.wait_for_function("document.querySelectorAll('#search-results li').length >= 3", timeout=10_000)
    except PlaywrightTimeout:
        yield "the search finds fewer than 3 pages for weight_decay"


def watch(page, address, faults):
    """Appends to the list of faults every request that leaves the site, fails, or a script that raises."""
    def own(route):
        if route.request.url.startswith((address, "data:", "blob:")):
            return route.continue_()
        faults.append(f"a request to {route.request.url}")
        return route.abort()

    def answered(answer):
        if answer.status >= 400:
            faults.append(f"{answer.url}: status {answer.status}")

    page.route("**/*", own)
    page.on("pageerror", lambda error: faults.append(f"script: {error}"))
    page.on("response", answered)


def browse(site, pictures=None):
    from playwright.sync_api import sync_playwright
    faults = []
    with sync_playwright() as playwright, served(site) as address:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for window, (width, height) in WINDOWS.items():
            page, found = browser.new_page(viewport={"width": width, "height": height}), []
            watch(page, address, found)
            found += looked_at(page, address, pictures and Path(pictures) / window)
            faults += [f"{window}: {fault}" for fault in found]
        browser.close()
    print(f"{len(PAGES)} pages and the search, in windows of {' and '.join(WINDOWS)}")
    return faults


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=["links", "browse"])
    parser.add_argument("site", type=Path)
    parser.add_argument("--pictures", help="also write a picture of every page into this folder")
    given = parser.parse_args()
    faults = links(given.site) if given.check == "links" else browse(given.site, given.pictures)
    for fault in faults:
        print(fault, file=sys.stderr)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
