#!/usr/bin/env python3
"""Opens a page of `vlm report` in headless Chromium and uses it: filters, search, keyboard, dialog, both colour schemes,
a phone's width. Python's standard library and Debian's chromium are all that it needs.

    check_page.py PAGE.html                      the checks; exit code 1 and a line for each that fails
    check_page.py PAGE.html --screenshots DIR    also PNG files, desktop and phone, light and dark
    check_page.py PAGE.html --scroll             also scrolls through all photos and prints the times of the frames

Chromium is talked to over a pipe in its DevTools protocol. What has to be shown is computed here from the page's data.
Exit code 77: there is no Chromium.
"""

import argparse
import base64
import json
import os
import pathlib
import select
import shutil
import subprocess
import sys
import tempfile
import time

NAMES = ["chromium", "chromium-browser", "google-chrome", "chrome"]
PATIENCE = 120


class Browser:
    def __init__(self, program):
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_child, self.write = os.pipe()
        self.read, from_child = os.pipe()
        flags = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--remote-debugging-pipe",
            "--disable-background-networking", "--disable-dev-shm-usage", f"--user-data-dir={self.folder.name}",
        ]  # fmt: skip

        def place():
            # the child's 3 and 4, whatever numbers the pipes have here
            a, b = os.dup(to_child), os.dup(from_child)
            os.dup2(a, 3)
            os.dup2(b, 4)

        self.process = subprocess.Popen(
            [program, *flags], preexec_fn=place, close_fds=False, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        os.close(to_child)
        os.close(from_child)
        self.buffer, self.number, self.events, self.session = b"", 0, [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for part in ["Page", "Runtime", "Log", "Network", "Accessibility"]:
            self.call(part + ".enable")

    def receive(self):
        end = time.monotonic() + PATIENCE
        while b"\0" not in self.buffer:
            if not select.select([self.read], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError("Chromium does not answer")
            piece = os.read(self.read, 1 << 20)
            if not piece:
                raise ConnectionError("Chromium ended")
            self.buffer += piece
        message, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(message)
        if "id" not in message:
            self.events.append(message)
        return message

    def call(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while (reply := self.receive()).get("id") != self.number:
            pass
        if "error" in reply:
            raise RuntimeError(f"{method}: {reply['error']['message']}")
        return reply["result"]

    def open(self, path):
        self.call("Page.navigate", url=pathlib.Path(path).resolve().as_uri())
        while not any(e["method"] == "Page.loadEventFired" for e in self.events):
            self.receive()

    def js(self, code):
        """The value of an expression, promises awaited."""
        said = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in said:
            raise RuntimeError(f"{code}: {said['exceptionDetails']}")
        return said["result"].get("value")

    def settle(self):
        self.js("new Promise((done) => setTimeout(() => requestAnimationFrame(() => requestAnimationFrame(done)), 30))")

    def key(self, name, text=None):
        code = {"/": "Slash"}.get(name, name)
        number = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowRight": 39, "ArrowLeft": 37, "ArrowDown": 40, "ArrowUp": 38,
                  "End": 35, "Home": 36, "/": 191}[name]  # fmt: skip
        about = {"key": name, "code": code, "windowsVirtualKeyCode": number}
        text = {"text": "\r"} if name == "Enter" else {"text": text} if text else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **about, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)
        self.settle()

    def size(self, width, height, scale=1, phone=False):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone)
        self.settle()

    def scheme(self, name):
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])
        self.settle()

    def end(self):
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()


class Checks:
    def __init__(self, browser):
        self.browser, self.failed, self.done = browser, [], 0

    def that(self, ok, what):
        self.done += 1
        if not ok:
            self.failed.append(what)

    def same(self, got, want, what):
        self.that(got == want, f"{what}: {got!r}, wanted {want!r}")


def wanted(data, evaluation, text="", verdict="", label="", prediction="", tag=""):
    """Which photos have to be shown, computed from the data alone."""
    found = []
    for i, photo in enumerate(data["photos"]):
        answer = photo["a"][evaluation]
        said = [x for a in photo["a"] if a for x in (a["p"], a["w"] or "")]
        words = "\n".join([photo["n"], photo["l"], *photo["t"], *said]).lower()
        keeps = (
            all(word in words for word in text.lower().split())
            and (not verdict or (answer and str(answer["r"]) == verdict))
            and (not label or label in [photo["l"], *photo["l"].split(", ")])
            and (not prediction or (answer and answer["p"] == prediction))
            and (not tag or tag in photo["t"])
        )
        if keeps:
            found.append(i)
    return found


def choose(browser, **values):
    browser.js("document.getElementById('filters').reset()")
    browser.settle()
    for name, value in values.items():
        browser.js(
            f"(() => {{ const f = document.getElementById('f-{name}'); f.value = {json.dumps(value)};"
            " f.dispatchEvent(new Event('input', {bubbles: true})); })()"
        )
    browser.settle()


def gallery(browser, check):
    data = json.loads(browser.js("document.getElementById('data').textContent"))
    last = len(data["evals"]) - 1
    count = lambda: int(browser.js("document.getElementById('count').textContent").split()[0])
    same = lambda what, **values: (
        choose(browser, **values),
        check.same(count(), len(wanted(data, last, **values)), what),
    )
    browser.js("document.getElementById('gallery').scrollIntoView({behavior: 'instant'})")
    same("all photos")
    n_cards = browser.js("document.querySelectorAll('.card').length")
    check.that(0 < n_cards <= 250, f"{n_cards} cards exist at once")
    for verdict in ["0", "1"]:
        same(f"verdict {verdict}", verdict=verdict)
    for label in data["classes"]:
        same(f"label {label!r}", label=label)
        same(f"wrong of {label!r}", label=label, verdict="0")
    predictions = sorted({a["p"] for p in data["photos"] for a in p["a"] if a})
    for prediction in predictions[:6]:
        same(f"prediction {prediction!r}", prediction=prediction)
    for tag in sorted({t for p in data["photos"] for t in p["t"]}):
        same(f"tag {tag!r}", tag=tag)
    # by typing
    choose(browser)
    browser.js("document.body.focus()")
    browser.key("/", "/")
    check.same(browser.js("document.activeElement.id"), "f-text", "the key / goes to the search")
    name = data["photos"][-1]["n"].split("/")[-1][:6].strip()
    browser.call("Input.insertText", text=name)
    browser.settle()
    check.same(count(), len(wanted(data, last, text=name)), f"search for {name!r}")
    browser.key("Escape")
    check.same(browser.js("document.getElementById('f-text').value"), "", "Escape empties the search")
    browser.call("Input.insertText", text="no such thing anywhere")
    browser.settle()
    check.same(count(), 0, "search for nothing that is there")
    check.same(browser.js("document.querySelectorAll('.card').length"), 0, "cards of an empty result")
    choose(browser)
    keyboard(browser, check, data)
    for order in ["sure", "unsure"]:
        choose(browser, order=order)
        check.same(count(), len(data["photos"]), f"photos in the order {order}")
    choose(browser)
    # the numbers further up
    for selector in ["button[data-prediction]", "button[data-tag]"]:
        for i in range(min(6, browser.js(f"document.querySelectorAll('{selector}').length"))):
            number = browser.js(
                f"(() => {{ const b = document.querySelectorAll('{selector}')[{i}]; b.click();"
                " return parseInt((b.querySelector('.count') || b).textContent); })()"
            )
            browser.settle()
            check.same(count(), number, f"photos behind {selector} {i}")
            cards = browser.js("document.querySelectorAll('.card').length")
            check.same(cards > 0, number > 0, f"cards behind {selector} {i}")
    choose(browser)
    return len(data["photos"])


def keyboard(browser, check, data):
    at = lambda: browser.js("Number(document.activeElement.dataset.at ?? -1)")
    n = len(data["photos"])
    columns = browser.js(
        "(() => { const ys = [...document.querySelectorAll('.item')].map((i) => [Number(i.firstChild.dataset.at),"
        " i.getBoundingClientRect().top]); const first = ys.find((y) => y[0] === 0)[1];"
        " return ys.filter((y) => y[1] === first).length; })()"
    )
    browser.js("document.querySelector('.card[tabindex=\"0\"]').focus()")
    check.same(at(), 0, "the first photo can be tabbed to")
    check.same(browser.js("document.querySelectorAll('.card[tabindex=\"0\"]').length"), 1, "one stop of the Tab key")
    if n > 1:
        browser.key("ArrowRight")
        check.same(at(), 1, "arrow right")
        browser.key("ArrowLeft")
        check.same(at(), 0, "arrow left")
    if n > columns:
        browser.key("ArrowDown")
        check.same(at(), columns, "arrow down")
    browser.key("End")
    check.same(at(), n - 1, "End")
    browser.js("document.activeElement.blur(); scrollTo({top: 0, behavior: 'instant'})")
    browser.settle()
    browser.js("document.getElementById('gallery').scrollIntoView({behavior: 'instant'})")
    browser.settle()
    check.same(browser.js("document.querySelectorAll('.card[tabindex=\"0\"]').length"), 1, "one stop of the Tab key later")
    browser.js("document.querySelector('.card[tabindex=\"0\"]').focus()")
    browser.key("Home")
    check.same(at(), 0, "Home")
    browser.key("Enter")
    check.same(browser.js("document.getElementById('detail').open"), True, "Enter opens the photo")
    shown = browser.js("document.getElementById('detail-h').textContent")
    check.same(shown, data["photos"][0]["n"].split("/")[-1], "the name in the dialog")
    check.same(browser.js(BROKEN), [], "numbers of the dialog in two lines")
    if n > 1:
        browser.key("ArrowRight")
        shown = browser.js("document.getElementById('detail-h').textContent")
        check.same(shown, data["photos"][1]["n"].split("/")[-1], "arrow right in the dialog")
    browser.key("Escape")
    check.same(browser.js("document.getElementById('detail').open"), False, "Escape closes the dialog")
    check.same(at(), min(1, n - 1), "the focus is on the photo that was open")


def whole(browser, check):
    """What holds for any page."""
    check.same(browser.js("typeof window.hacked"), "undefined", "text of the data ran as script")
    markup = "document.querySelectorAll('[onerror],[onload],[onclick],iframe,object,embed').length"
    check.same(browser.js(markup), 0, "elements or handlers that the page does not have")
    check.same(browser.js("document.querySelectorAll('h1').length"), 1, "headings of the first level")
    check.same(browser.js("document.querySelectorAll('img:not([alt])').length"), 0, "pictures without alt")
    check.same(browser.js("document.querySelectorAll('svg.chart:not([aria-labelledby])').length"), 0, "charts without a title")
    check.same(browser.js("document.querySelectorAll('table:not(.odds):not(:has(caption))').length"), 0, "tables without a caption")
    dangling = "[...document.querySelectorAll('[aria-labelledby]')].flatMap((e) => e.getAttribute('aria-labelledby').split(' ')).filter((id) => !document.getElementById(id)).length"
    check.same(browser.js(dangling), 0, "labels that are not there")
    tree = browser.call("Accessibility.getFullAXTree")["nodes"]
    roles = ["button", "link", "textbox", "searchbox", "combobox", "img", "image"]
    nameless = [
        n["role"]["value"]
        for n in tree
        if not n.get("ignored") and n.get("role", {}).get("value") in roles and not n.get("name", {}).get("value", "").strip()
    ]
    check.same(nameless, [], "what a screen reader has no name for")
    for width in [1280, 768, 390]:
        browser.size(width, 844)
        wide = browser.js("document.documentElement.scrollWidth")
        check.that(wide <= width, f"at {width} pixels the page is {wide} wide")
        for what, code in [("charts", CHARTS), ("cut text", CUT), ("pictures", PICTURES), ("tables", TABLES)]:
            check.same(browser.js(code), [], f"at {width} pixels, {what}")
    browser.size(1280, 900)
    for scheme in ["light", "dark"]:
        browser.scheme(scheme)
        for selector in ["body", "figcaption", ".text .file", "#count"]:
            ratio = browser.js(CONTRAST % json.dumps(selector))
            check.that(ratio is None or ratio >= 4.5, f"contrast of {selector} in {scheme} is {ratio}")
    browser.scheme("light")


# Of each chart that is seen: text over text, text outside of the chart, lines of the grid through text, text too small.
CHARTS = """(() => {
  const bad = [];
  const over = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 0.5
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 0.5;
  const seen = [...document.querySelectorAll('svg.chart')].filter((svg) => svg.getBoundingClientRect().width);
  const figures = new Set([...document.querySelectorAll('svg.chart')].map((svg) => svg.parentElement));
  if (seen.length !== figures.size) bad.push(seen.length + ' charts are seen in ' + figures.size + ' figures');
  for (const svg of seen) {
    const id = svg.getAttribute('aria-labelledby');
    const whole = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll('text')].map((t) => [t.firstChild.textContent, t.getBoundingClientRect()]);
    const scale = whole.width / svg.viewBox.baseVal.width;
    const lines = [...svg.querySelectorAll('.grid')].flatMap((g) =>
      [...g.getAttribute('d').matchAll(/M([\\d.]+) ([\\d.]+)([HVv])([\\d.]+)/g)].map(([, x, y, way, n]) => {
        const [left, top] = [whole.left + scale * x, whole.top + scale * y];
        const right = way === 'H' ? whole.left + scale * n : left;
        const bottom = way === 'V' ? whole.top + scale * n : way === 'v' ? top + scale * n : top;
        return {left: left - 1, right: right + 1, top: top - 1, bottom: bottom + 1};
      }));
    texts.forEach(([said, box], i) => {
      if (box.left < whole.left - 1 || box.right > whole.right + 1 || box.top < whole.top - 1 || box.bottom > whole.bottom + 1)
        bad.push(id + ': ' + said + ' is outside');
      if (box.height < 11) bad.push(id + ': ' + said + ' is ' + box.height + ' high');
      for (const [other, at] of texts.slice(i + 1)) if (over(box, at)) bad.push(id + ': ' + said + ' over ' + other);
      if (lines.some((line) => over(box, line))) bad.push(id + ': a line through ' + said);
    });
  }
  return bad;
})()"""

# What the form says before anything is chosen, and whatever does not scroll, has room.
CUT = """(() => {
  const bad = [];
  const measure = document.createElement('canvas').getContext('2d');
  for (const field of document.querySelectorAll('#f-text, #f-order, #f-verdict')) {
    const style = getComputedStyle(field);
    measure.font = style.fontSize + ' ' + style.fontFamily;
    const said = field.placeholder || field.options[0].textContent;
    // an arrow, or the cross that empties a search
    const room = field.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight) - 20;
    if (measure.measureText(said).width > room) bad.push(said + ': ' + measure.measureText(said).width + ' in ' + room);
  }
  for (const e of document.querySelectorAll('main h2, main p, main li, main figcaption, main label, main button, main th > span'))
    if (!e.closest('#grid') && e.clientWidth && e.scrollWidth > e.clientWidth + 1) bad.push(e.textContent.slice(0, 60) + ' is cut');
  return bad;
})()"""

# Photos are shown whole, in their frames.
PICTURES = """[...document.querySelectorAll('.thumb img, .frame img')].flatMap((image) => {
  const [a, b] = [image, image.parentElement].map((e) => e.getBoundingClientRect());
  const within = a.left >= b.left - 1 && a.right <= b.right + 1 && a.top >= b.top - 1 && a.bottom <= b.bottom + 1;
  return within && getComputedStyle(image).objectFit === 'contain' ? [] : [a.width + ' x ' + a.height + ' in ' + b.width + ' x ' + b.height];
})"""

# Of what the model thinks of each answer.
BROKEN = """[...document.querySelectorAll('#detail .odds .n')].flatMap((cell) => {
  const range = document.createRange();
  range.selectNodeContents(cell);
  return range.getClientRects().length > 1 ? [cell.textContent] : [];
})"""

# A name leaves room for numbers, and on a wide page for all of them where so many columns have room beside it. The rest is
# reached by scrolling.
TABLES = """[...document.querySelectorAll('.scroll')].flatMap((region) => {
  const bad = [];
  const end = region.getBoundingClientRect().right;
  const name = region.getAttribute('aria-label');
  const cell = region.querySelector('tbody td.n');
  const box = cell && cell.getBoundingClientRect();
  if (box && box.right > end) bad.push(name + ': the first number is cut');
  if (box && box.left < region.querySelector('tbody th').getBoundingClientRect().right - 1) bad.push(name + ': a name over a number');
  if (!box) return bad;
  const row = [...region.querySelector('tbody tr').children];
  const least = row[0].getBoundingClientRect().width + 38 * (row.length - 1);
  if (innerWidth > 1200 && region.scrollWidth > region.clientWidth && least <= region.clientWidth)
    bad.push(name + ': the last column is cut');
  region.scrollLeft = region.scrollWidth;
  if (row[row.length - 1].getBoundingClientRect().right > end + 1) bad.push(name + ': the last column is out of reach');
  region.scrollLeft = 0;
  return bad;
})"""

CONTRAST = """(() => {
  const element = document.querySelector(%s);
  if (!element) return null;
  const numbers = (c) => c.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = (c) => {
    const [r, g, b] = numbers(c).map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const a = light(getComputedStyle(element).color), b = light(getComputedStyle(document.body).backgroundColor);
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
})()"""

SCROLL = """new Promise((done) => {
  document.getElementById('gallery').scrollIntoView({behavior: 'instant'});
  const times = [];
  let last = performance.now(), blank = 0, most = 0;
  const step = (now) => {
    times.push(now - last);
    last = now;
    most = Math.max(most, document.querySelectorAll('.card').length);
    const middle = document.elementFromPoint(innerWidth / 3, innerHeight / 2);
    const grid = document.getElementById('grid').getBoundingClientRect();
    if (grid.top < innerHeight / 3 && grid.bottom > innerHeight * 0.7 && (!middle || !middle.closest('#grid'))) blank++;
    const before = scrollY;
    scrollBy({top: 400, behavior: 'instant'});
    if (scrollY === before || times.length > 4000) {
      const sorted = times.slice(2).sort((a, b) => a - b);
      const at = (q) => sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))];
      done({frames: sorted.length, median_ms: at(0.5), p95_ms: at(0.95), p99_ms: at(0.99), longest_ms: at(1),
            over_50_ms: sorted.filter((t) => t > 50).length, blank_frames: blank, most_cards: most});
    } else requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
})"""


def screenshots(browser, folder):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, width, height, scale, phone in [("desktop", 1280, 900, 1, False), ("phone", 390, 844, 2, True)]:
        for scheme in ["light", "dark"]:
            browser.size(width, height, scale, phone)
            browser.scheme(scheme)
            browser.js("scrollTo({top: 0, behavior: 'instant'})")
            browser.settle()
            places = ["gallery", "comparison", "confusion", "classes", "training", "curve", "leaks"]
            for part, place in [("top", None)] + [(place, place) for place in places]:
                if place and not browser.js(f"Boolean(document.getElementById('{place}'))"):
                    continue
                if place:
                    browser.js(f"document.getElementById('{place}').scrollIntoView({{behavior: 'instant'}})")
                    browser.settle()
                picture = browser.call("Page.captureScreenshot", format="png")["data"]
                (folder / f"{name}-{scheme}-{part}.png").write_bytes(base64.b64decode(picture))
            if browser.js("Boolean(document.querySelector('.card'))"):
                browser.js("document.querySelector('.card').click()")
                browser.settle()
                picture = browser.call("Page.captureScreenshot", format="png")["data"]
                (folder / f"{name}-{scheme}-photo.png").write_bytes(base64.b64decode(picture))
                browser.js("document.getElementById('detail').close()")


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("page")
    a.add_argument("--screenshots", metavar="DIR")
    a.add_argument("--scroll", action="store_true")
    a.add_argument("--chromium", metavar="FILE", help="the program, where it is not on the path")
    a = a.parse_args()
    program = a.chromium or next((found for found in map(shutil.which, NAMES) if found), None)
    if not program:
        print("there is no Chromium on the path (Debian: apt-get install chromium)", file=sys.stderr)
        sys.exit(77)
    browser = Browser(program)
    try:
        start = time.monotonic()
        browser.size(1280, 900)
        browser.open(a.page)
        browser.settle()
        check = Checks(browser)
        said = {"load_seconds": round(time.monotonic() - start, 3)}
        if browser.js("Boolean(document.getElementById('grid'))"):
            said["photos"] = gallery(browser, check)
        whole(browser, check)
        if a.scroll:
            said["scroll"] = browser.js(SCROLL)
        if a.screenshots:
            screenshots(browser, a.screenshots)
        for event in browser.events:
            method, about = event["method"], event.get("params", {})
            if method == "Runtime.exceptionThrown":
                check.that(False, f"an exception: {about['exceptionDetails']}")
            elif method == "Runtime.consoleAPICalled" and about["type"] in ["error", "warning", "assert"]:
                check.that(False, f"the console says: {about['args']}")
            elif method == "Log.entryAdded" and about["entry"]["level"] in ["error", "warning"]:
                check.that(False, f"the log says: {about['entry']['text']}")
            elif method == "Network.requestWillBeSent":
                url = about["request"]["url"]
                check.that(url.startswith(("file:", "data:")), f"it asks the network for {url[:100]}")
        for failure in check.failed:
            print("failed:", failure)
        print(json.dumps({**said, "checks": check.done, "failed": len(check.failed)}))
        sys.exit(bool(check.failed))
    finally:
        browser.end()


main()
