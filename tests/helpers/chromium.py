"""Debian's Chromium without a screen, driven over its debugging pipe (the DevTools protocol)."""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Page:
    """One page; ``run`` evaluates JavaScript in it, ``click`` and ``type`` are real input events."""

    def __init__(self, to: int, back: int):
        self.to, self.back = to, back
        self.rest, self.number, self.session = b'', 0, None
        self.events: list[dict[str, Any]] = []
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        self.session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Log', 'Network'):
            self.call(f'{domain}.enable')

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        message = {'id': self.number, 'method': method, 'params': params}
        if self.session:
            message['sessionId'] = self.session
        os.write(self.to, json.dumps(message).encode() + b'\0')
        while True:
            found = self.next()
            if found.get('id') == self.number:
                assert 'error' not in found, found
                return found['result']
            self.events.append(found)

    def next(self) -> dict[str, Any]:
        while b'\0' not in self.rest:
            data = os.read(self.back, 1 << 16)
            assert data, 'Chromium has ended'
            self.rest += data
        line, _, self.rest = self.rest.partition(b'\0')
        return json.loads(line)

    def open(self, path: Path) -> None:
        self.events.clear()
        self.call('Page.navigate', url=path.resolve().as_uri())
        while not any(event.get('method') == 'Page.loadEventFired' for event in self.events):
            self.events.append(self.next())

    def run(self, code: str) -> Any:
        found = self.call('Runtime.evaluate', expression=code, returnByValue=True, awaitPromise=True)
        assert 'exceptionDetails' not in found, found
        return found['result'].get('value')

    def click(self, selector: str) -> None:
        x, y = self.run(
            f'(() => {{ const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect();'
            ' return [b.x + b.width / 2, b.y + b.height / 2] })()'
        )
        for kind in ('mousePressed', 'mouseReleased'):
            self.call('Input.dispatchMouseEvent', type=kind, x=x, y=y, button='left', clickCount=1)

    def type(self, text: str) -> None:
        self.call('Input.insertText', text=text)

    def complaints(self) -> list[str]:
        """Errors and warnings of the console."""
        logged = [e['params'] for e in self.events if e.get('method') in ('Log.entryAdded', 'Runtime.exceptionThrown')]
        return [json.dumps(params) for params in logged]

    def requests(self) -> list[str]:
        sent = (e for e in self.events if e.get('method') == 'Network.requestWillBeSent')
        return [event['params']['request']['url'] for event in sent]

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call('Page.captureScreenshot')['data']))


@contextmanager
def chromium(profile: Path, width: int = 1200, height: int = 700) -> Iterator[Page]:
    child_in, to = os.pipe()
    back, child_out = os.pipe()
    # Chromium reads file descriptor 3 and writes 4.
    place = (
        'import os, sys; i, o, *argv = sys.argv[1:]; os.dup2(int(i), 3); os.dup2(int(o), 4); os.execvp(argv[0], argv)'
    )
    options = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run']
    options += ['--remote-debugging-pipe', f'--window-size={width},{height}', f'--user-data-dir={profile}']
    process = subprocess.Popen(
        [sys.executable, '-c', place, str(child_in), str(child_out), 'chromium', *options],
        pass_fds=(child_in, child_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(child_in), os.close(child_out)
    try:
        page = Page(to, back)
        yield page
        page.session = None
        page.call('Browser.close')
        process.wait(30)
    finally:
        process.kill()
        process.wait()
        os.close(to), os.close(back)
