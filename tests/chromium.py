"""Pages in a headless Chromium, by its DevTools protocol over a pipe: what a page asks for, complains of, and looks like."""

import base64
import json
import os
import shutil
import subprocess
import tempfile

import pytest

SECONDS = 60  # for a page, on a busy machine


def find():
    """The command; the test skips where there is none."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    return path or pytest.skip("no Chromium here: apt-get install chromium")


class Chromium:
    """A browser, in a `with` block."""

    def __enter__(self):
        reads, self.asks = os.pipe()
        self.answers, writes = os.pipe()
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        plain = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --hide-scrollbars"
        command = [find(), *plain.split(), "--remote-debugging-pipe", f"--user-data-dir={self.folder.name}"]
        shell = ["bash", "-c", f'exec "$@" 3<&{reads} 4>&{writes}', "bash", *command]  # those of the protocol
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(shell, pass_fds=(reads, writes), **quiet)
        os.close(reads)
        os.close(writes)
        self.count, self.rest, self.events = 0, b"", []
        try:
            target = self.ask("Target.createTarget", url="about:blank")["targetId"]
            self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Network", "Runtime", "Log"):
                self.ask(f"{domain}.enable")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait()
        os.close(self.asks)
        os.close(self.answers)
        self.folder.cleanup()

    session = None

    def ask(self, method, **params):
        """Send a command and return its result; the events before it are kept."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.asks, json.dumps(message).encode() + b"\0")
        answer = self._until(lambda message: message.get("id") == self.count)
        assert "result" in answer, answer
        return answer["result"]

    def open(self, address, width=1280, height=900, dark=False):
        """Load a page and wait until it is there."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", features=scheme)
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.events = []
        self.ask("Page.navigate", url=address)
        self._until(lambda message: message.get("method") == "Page.loadEventFired", self.events)

    def value(self, expression):
        """Of JavaScript in the page."""
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def requests(self):
        """The addresses that the page asked for, itself and `data:` left out."""
        sent = [event["params"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        addresses = [each["request"]["url"] for each in sent if each["request"]["url"] != each["documentURL"]]
        return [address for address in addresses if not address.startswith("data:")]

    def complaints(self):
        """What the page wrote to its console, and its errors."""
        kinds = {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"}
        return [event["params"] for event in self.events if event["method"] in kinds]

    def picture(self):
        """The whole page as PNG."""
        return base64.b64decode(self.ask("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def _until(self, is_it, seen=()):
        """The first message of which this is true; events before it are kept."""
        if found := next(filter(is_it, seen), None):
            return found
        while True:
            while b"\0" not in self.rest:
                self.rest += os.read(self.answers, 1 << 20) or pytest.fail("Chromium has ended")
            first, _, self.rest = self.rest.partition(b"\0")
            message = json.loads(first)
            if "method" in message:
                self.events.append(message)
            if is_it(message):
                return message
