"""Strangers at a gabion node's door: what a shell cannot do with many sockets.

proxy PORT FILE         forwards to PORT and writes the first 80 bytes of the first connection into FILE; prints its own
                        port, and for each connection how many bytes were answered
silent PORT FILE        knocks with random bytes, nothing, too much, and the opening in FILE played again: fails if a
                        single byte comes back
flood PORT N ADDRESS    opens N connections from ADDRESS, sends 80 random bytes on half of them, holds them all until
                        killed; fails if a single byte comes back
"""

import os
import selectors
import socket
import sys
import threading
import time


def say(text):
    print(text, flush=True)


def pump(source, sink, count, keep=None):
    try:
        while data := source.recv(65536):
            count[0] += len(data)
            if keep is not None:
                keep(data)
            sink.sendall(data)
    except OSError:
        pass
    try:
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def forward(near, port, path):
    far = socket.create_connection(("127.0.0.1", port))
    opening = bytearray()

    def keep(data):
        if len(opening) < 80:
            opening.extend(data[: 80 - len(opening)])
            if len(opening) == 80 and not os.path.exists(path):
                with open(path + ".new", "wb") as file:
                    file.write(opening)
                os.rename(path + ".new", path)

    asked, answered = [0], [0]
    back = threading.Thread(target=pump, args=(far, near, answered), daemon=True)
    back.start()
    pump(near, far, asked, keep)
    back.join()
    say(f"answered {answered[0]} bytes to {asked[0]}")


def proxy(port, path):
    listener = socket.create_server(("127.0.0.1", 0))
    say(f"port {listener.getsockname()[1]}")
    while True:
        near, _ = listener.accept()
        threading.Thread(target=forward, args=(near, port, path), daemon=True).start()


def knock(port, what, data):
    with socket.create_connection(("127.0.0.1", port)) as stream:
        try:
            stream.sendall(data)
            stream.settimeout(10)
            answer = stream.recv(1)
        except ConnectionError:
            answer = b""
        except TimeoutError:
            sys.exit(f"{what}: neither an answer nor an end within 10 s")
        if answer:
            sys.exit(f"{what}: got an answer")


def silent(port, path):
    with open(path, "rb") as file:
        opening = file.read()
    edited = bytearray(opening)
    edited[40] ^= 1
    for what, data in [
        ("random bytes", os.urandom(80)),
        ("many random bytes", os.urandom(100_000)),
        ("our magic and then random bytes", opening[:16] + os.urandom(64)),
        ("a replayed opening", opening),
        ("a replayed opening again", opening),
        ("an edited opening", bytes(edited)),
        ("a request of HTTP", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + bytes(80)),
        ("half an opening", opening[:40]),
    ]:
        knock(port, what, data)
    say("8 kinds of knocking, 0 bytes back")


def flood(port, count, address):
    selector = selectors.DefaultSelector()
    streams, refused = [], 0
    for number in range(count):
        stream = socket.socket()
        stream.bind((address, 0))
        stream.settimeout(10)
        try:
            stream.connect(("127.0.0.1", port))
            if number % 2 == 0:
                stream.sendall(os.urandom(80))
        except OSError:
            refused += 1
            stream.close()
            continue
        stream.setblocking(False)
        selector.register(stream, selectors.EVENT_READ)
        streams.append(stream)
        if number % 100 == 0:
            listen(selector, 0)
    say(f"{len(streams)} strangers connected, {refused} were refused")
    while True:
        listen(selector, 0.2)


def listen(selector, wait):
    for key, _ in selector.select(wait):
        try:
            data = key.fileobj.recv(1)
        except OSError:
            data = b""
        if data:
            say("FAILED: a stranger got an answer")
            sys.exit("a stranger got an answer")
        selector.unregister(key.fileobj)
        key.fileobj.close()


def main():
    mode, port, *rest = sys.argv[1:]
    if mode == "proxy":
        proxy(int(port), rest[0])
    elif mode == "silent":
        silent(int(port), rest[0])
    elif mode == "flood":
        flood(int(port), int(rest[0]), rest[1])
    else:
        sys.exit(__doc__)


main()
