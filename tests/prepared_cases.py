"""What tests of prepared sets share: pictures in class folders, and a server for what was prepared."""

import http.server
import threading
from contextlib import contextmanager
from functools import partial

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "cat")


def class_folders(root, counts, size=(20, 16)):
    """JPEGs of noise, all different: ``counts`` for each class, by part."""
    chance = np.random.default_rng(0)
    for part, count in counts.items():
        for name in CLASSES:
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = chance.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{name} {index}.v1.JPEG", quality=90)
    return root


def content(folder):
    """All files of a folder with their bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Handler(http.server.SimpleHTTPRequestHandler):
    """Gives the files of a folder; ``faults`` (path to a list of numbers) says what becomes of the next requests.

    A number from 400 on is answered as a status; a smaller one is how many bytes are sent before the connection ends.
    """

    def __init__(self, *arguments, faults, asked, **options):
        self.faults, self.asked = faults, asked
        super().__init__(*arguments, **options)

    def do_GET(self):
        self.asked.append(self.path)
        fault = next(iter(self.faults.get(self.path, [])), None)
        if fault is None:
            super().do_GET()
            return
        self.faults[self.path].pop(0)
        if fault >= 400 and fault < 600:
            self.send_error(fault)
            return
        with open(self.translate_path(self.path), "rb") as file:
            body = file.read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:fault])

    def log_message(self, *arguments):
        pass


@contextmanager
def serving(folder):
    """URL of a server on this machine that gives a folder, its faults, and the paths that were asked for."""
    faults, asked = {}, []
    handler = partial(Handler, directory=str(folder), faults=faults, asked=asked)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", faults, asked
        finally:
            server.shutdown()
            thread.join()
