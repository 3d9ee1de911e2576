#!/usr/bin/env python3
"""Plain TCP: one connection for each pair of NICs, all at once. What a network gives to somebody who only sends.

usage: sockets.py receive COUNT ADDRESS[,ADDRESS...] SECONDS    prints "ready PORT", then bytes per second in all
       sockets.py send SOURCE=TARGET:PORT[,...]                 until the other end closes
"""
import socket
import sys
import threading
import time

CHUNK = 1 << 20
WARM_UP = 0.3


def receive(count, addresses, seconds):
    """Takes `count` connections and adds up what they bring, all over the same time."""
    listener = socket.create_server(("", 0), backlog=64)
    print("ready", listener.getsockname()[1], flush=True)
    received = [0] * count
    allowed = set(addresses)

    def drain(connection, number):
        buffer = bytearray(CHUNK)
        while more := connection.recv_into(buffer):
            received[number] += more

    for number in range(count):
        connection, _ = listener.accept()
        if connection.getsockname()[0] not in allowed:
            raise SystemExit("a connection came in over another NIC")
        threading.Thread(target=drain, args=(connection, number), daemon=True).start()
    time.sleep(WARM_UP)
    begin, before = time.monotonic(), sum(received)
    time.sleep(seconds)
    print((sum(received) - before) / (time.monotonic() - begin), flush=True)


def send(pairs):
    def pump(source, target, port):
        data = bytes(CHUNK)
        with socket.create_connection((target, port), timeout=10, source_address=(source, 0)) as connection:
            try:
                while True:
                    connection.sendall(data)
            except OSError:
                pass

    threads = []
    for pair in pairs:
        source, rest = pair.split("=")
        target, port = rest.split(":")
        threads.append(threading.Thread(target=pump, args=(source, target, int(port)), daemon=True))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        receive(int(sys.argv[2]), sys.argv[3].split(","), float(sys.argv[4]))
    else:
        send(sys.argv[2].split(","))
