"""What a page must not do: log an error, load from elsewhere, overflow, or fall short of axe's rules."""

import contextlib
import functools
import http.server
import threading

# name: (width, height, color scheme, touch)
VIEWS = {
    "desktop": (1280, 900, "light", False),
    "phone": (390, 844, "light", True),
    "dark": (1280, 900, "dark", False),
}

AXE_TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]

# axe would load style sheets once more, from wrong addresses: nothing of what is checked here needs that.
AXE_RUN = """async ([tags, contrast]) => (await axe.run(document, {
    runOnly: tags, preload: false, rules: {"color-contrast": {enabled: contrast}}})).violations.flatMap(
    v => v.nodes.map(n => `axe: ${v.id} at ${n.target.join(' ')}`))"""

# The theme waits for 300 ms of quiet before it makes wide code reachable by keyboard.
DEBOUNCE_MS = 500

# Scripts that typeset or decorate the page late: axe must see what the reader sees.
SETTLED = """() => Promise.all([
    document.fonts.ready, ...(window.MathJax && MathJax.startup ? [MathJax.startup.promise] : [])]).then(() => true)"""


# The width of A4 paper without its margins.
PAPER = {"width": 718, "height": 1000}

# What paper would cut off: it does not scroll.
CUT_OFF = """() => [...document.querySelectorAll("article :is(pre, table, img, svg, div.math)")].filter(e => {
    const box = e.getBoundingClientRect();
    const scrolls = getComputedStyle(e).overflowX !== "visible" && getComputedStyle(e).display !== "inline";
    return box.width && (box.right > innerWidth + 1 || (scrolls && e.scrollWidth > e.clientWidth + 1));
}).map(e => `cut off: ${e.tagName} ${e.textContent.trim().slice(0, 30)}`)"""


# On a phone, a table may be wider than the page.
SCROLLING_TABLES = """() => [...document.querySelectorAll("table")].filter(t => t.scrollWidth > t.clientWidth + 1)
    .map(t => `a table scrolls: ${t.textContent.trim().replace(/\\s+/g, " ").slice(0, 30)}`)"""


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serve files, and say nothing of it."""

    def log_message(self, format, *args):
        """Do not write a line for every request."""


@contextlib.contextmanager
def serve(folder):
    """Serve `folder` on this machine alone and give the address, which ends with a slash."""
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@contextlib.contextmanager
def view(browser, name, site, **options):
    """Give a fresh browser context of the view `name`, in which nothing but `site` can be reached."""
    width, height, scheme, touch = VIEWS[name]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=touch, **options
    )
    context.set_default_timeout(120_000)  # not the fault of the page if the machine is busy
    context.route(lambda url: not url.startswith((site, "data:", "blob:")), lambda route: route.abort())
    try:
        yield context
    finally:
        context.close()


def faults(context, site, path, axe, contrast=True):
    """Open ``site + path`` and return what is wrong with the page, one line each.

    The contrast of colors takes most of axe's time, so it can be left out where other pages show the same colors;
    without `axe`, none of its rules is checked.
    """
    found = []

    def on_console(message):
        if message.type == "error":
            found.append(f"console: {message.text} {message.location['url'].removeprefix(site)}".rstrip())

    def on_request(request):
        if not request.url.startswith((site, "data:", "blob:")):
            found.append(f"leaves the site: {request.url}")

    page = context.new_page()
    try:
        page.on("console", on_console)
        page.on("pageerror", lambda error: found.append(f"page error: {error}"))
        page.on("request", on_request)
        page.goto(site + path, wait_until="load")
        if axe:
            page.wait_for_timeout(DEBOUNCE_MS)
        page.wait_for_function(SETTLED)
        scroll, inner = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        if scroll > inner:
            found.append(f"overflows: {scroll} > {inner}")
        if inner >= VIEWS["desktop"][0]:
            found += page.evaluate(SCROLLING_TABLES)
        if axe:
            page.evaluate(axe)
            found += page.evaluate(AXE_RUN, [AXE_TAGS, contrast])
    finally:
        page.close()
    return found
