"""Drives headless Chromium over its debugging pipe, with nothing but the standard library.

The protocol is the Chrome DevTools Protocol (https://chromedevtools.github.io/devtools-protocol/):
JSON messages, each ended by a zero byte, on the file descriptors 3 and 4 of the browser.
"""

import base64
import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import time

PATIENCE_S = 120  # a page takes less than a second; a busy machine may need much more
NAMES = ("chromium", "chromium-browser", "google-chrome")


def find():
    """The path of the browser, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of a headless browser, with all that went wrong on it in `errors`."""

    def __init__(self, profile):
        # Descriptors from 10 on, so that they cannot be 3 or 4 themselves
        pipes = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (*os.pipe(), *os.pipe())]
        self.read_by_browser, self.to_browser, self.from_browser, self.written_by_browser = pipes
        redirect = f'exec "$0" "$@" 3<&{self.read_by_browser} 4>&{self.written_by_browser}'
        options = [
            "--headless",
            "--no-sandbox",  # it cannot make one as root, and the page is our own
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
        ]
        self.process = subprocess.Popen(
            ["bash", "-c", redirect, find(), *options],
            pass_fds=(self.read_by_browser, self.written_by_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.numbers, self.received, self.session = itertools.count(1), b"", None
        self.errors, self.events = [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Runtime", "Log", "Page", "Network"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=1500, height=1000, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip

    def call(self, method, **parameters):
        """The result of a command of the protocol."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def receive(self):
        """The next message. Events are kept, and those that are errors also in `errors`."""
        deadline = time.monotonic() + PATIENCE_S
        while b"\0" not in self.received:
            ready, _, _ = select.select([self.from_browser], [], [], deadline - time.monotonic())
            assert ready, "the browser does not answer"
            more = os.read(self.from_browser, 1 << 20)
            assert more, "the browser has ended"
            self.received += more
        line, _, self.received = self.received.partition(b"\0")
        message = json.loads(line)
        if "method" in message:
            self.events.append(message)
            self.note_errors(message["method"], message.get("params", {}))
        return message

    def note_errors(self, method, parameters):
        if method == "Runtime.exceptionThrown":
            self.errors.append(parameters["exceptionDetails"])
        elif method == "Log.entryAdded":
            self.errors.append(parameters["entry"])
        elif method in ("Runtime.consoleAPICalled", "Page.javascriptDialogOpening"):
            self.errors.append(parameters)

    def requested(self):
        """The addresses that the page has loaded, but for those that hold their data."""
        urls = []
        for event in self.events:
            if event["method"] == "Network.requestWillBeSent":
                urls.append(event["params"]["request"]["url"])
        return [url for url in urls if not url.startswith("data:")]

    def open(self, url):
        """Load a page. Returns when it is there, with all that its script does at once."""
        self.navigate("about:blank")  # else an address that differs after "#" loads nothing
        self.navigate(url)

    def navigate(self, url):
        self.errors.clear()
        self.events.clear()
        self.call("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.receive()

    def evaluate(self, expression):
        """The value of a JavaScript expression on the page. Promises are waited for."""
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def screenshot(self):
        """What the window shows, as the bytes of a PNG file."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def close(self):
        self.session = None
        with contextlib.suppress(AssertionError, OSError):
            self.call("Browser.close")
        self.process.wait(PATIENCE_S)
        for end in (
            self.read_by_browser,
            self.to_browser,
            self.from_browser,
            self.written_by_browser,
        ):
            os.close(end)
