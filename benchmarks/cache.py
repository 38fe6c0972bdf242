"""What does an epoch ask of the store, with and without the cache, in random order and in windows of few shards?

Writes logs of Waymo-sized frames to an S3 server: the one that `AWS_ENDPOINT_URL` names, with its credentials, else
moto's in a process of its own. A counting proxy stands before it. Then one process reads all frames, sweep and labels,
through the reader that training uses, epoch after epoch. It keeps the footers of a quarter of the files, as a process
does that reads 512 logs. `half` is a cache that holds half of the dataset.

    python benchmarks/cache.py --json
"""

from __future__ import annotations

import argparse
import http.client
import json
import logging
import multiprocessing
import os
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from typing import Any
from urllib.parse import urlsplit

import cache_frames
import numpy as np
import numpy.typing as npt

from spot_ray.operators.shuffle import window_order
from spot_ray.storage import s3
from spot_ray.storage import uri as uris
from spot_ray.storage.cache import CacheConfig
from spot_ray.storage.codec import OCCUPANCY_SCHEMA, columns_for
from spot_ray.storage.dataset import open_dataset
from spot_ray.storage.occupancy import open_occupancy
from spot_ray.storage.shards import ShardReader

COLUMNS = ("xyz", "intensity", "elongation", "lidar_id", "ring", "boxes")
WINDOW_LOGS = 2
"""Logs of a window, of the eight or so that there are."""
START_S = 30

Order = npt.NDArray[np.int64]


def serve_moto(pipe: Connection) -> None:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    pipe.send(f"http://{host}:{port}")
    pipe.recv()


def serve_counting(pipe: Connection, target: str) -> None:
    """Pass requests on; whenever something comes through the pipe, send what was counted since."""
    counted = {"HEAD": 0, "GET": 0, "other": 0, "bytes": 0}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            server = http.client.HTTPConnection(target)
            server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():  # `Host` too: it is signed
                if name.lower() not in ("connection", "expect"):
                    server.putheader(name, value)
            server.endheaders(body or None)
            answer = server.getresponse()
            content = answer.read()
            server.close()
            counted[self.command if self.command in counted else "other"] += 1
            counted["bytes"] += len(content)
            self.send_response_only(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding", "content-length", "keep-alive"):
                    self.send_header(name, value)
            length = answer.getheader("content-length", "0") if self.command == "HEAD" else str(len(content))
            self.send_header("Content-Length", length)
            self.end_headers()
            with suppress(BrokenPipeError):
                self.wfile.write(content)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any

        def log_message(self, *_: object) -> None:
            """Nothing."""

    import threading

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    pipe.send(f"http://127.0.0.1:{server.server_port}")
    while pipe.recv() != "end":
        pipe.send(dict(counted))
        counted.update(dict.fromkeys(counted, 0))


def start(stack: ExitStack, serve: Callable[..., None], *arguments: str) -> tuple[str, Connection]:
    """Start a server in a process of its own; return its URL and a pipe to it."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, *arguments), daemon=True)
    process.start()
    stack.callback(process.join)
    stack.callback(ours.send, "end")
    if not ours.poll(START_S):
        raise TimeoutError(f"{serve.__name__} does not start")
    return ours.recv(), ours


class Frames:
    """Where sweeps and labels of all frames are, and how to read them."""

    def __init__(self, uri: str) -> None:
        dataset, labels = open_dataset(uri), open_occupancy(uri, "default")
        self.uri = dataset.uri
        self.columns = columns_for(COLUMNS, dataset.info)
        self._places = [
            tuple(zip(rows["shard"].to_pylist(), rows["row_group"].to_pylist(), strict=True))
            for rows in (dataset.manifest, labels.manifest)
        ]
        self.log = np.unique(dataset.manifest["sequence_id"].to_numpy(zero_copy_only=False), return_inverse=True)[1]
        self.num_logs = int(self.log.max()) + 1

    def __len__(self) -> int:
        return len(self.log)

    def read(self, order: Order, cache: CacheConfig | None) -> dict[str, Any]:
        """Read an epoch, and return what the reader counted and how long it took."""
        reader = ShardReader(self.uri, max_open=2 * self.num_logs // 4, cache=cache)
        begin, begin_cpu = time.perf_counter(), time.process_time()
        for i in order:
            reader.read(*self._places[0][i], self.columns)
            reader.read(*self._places[1][i], OCCUPANCY_SCHEMA.names)
        seconds, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
        reader.close()
        traffic = {name: value for name, value in vars(reader.traffic).items() if value}
        return {"seconds": round(seconds, 1), "cpu_ms_a_frame": round(1e3 * cpu / len(self), 2), "reader": traffic}


def orders(frames: Frames, epoch: int) -> dict[str, Order]:
    rng = np.random.default_rng(epoch)
    window = WINDOW_LOGS * len(frames) // frames.num_logs
    return {"random": rng.permutation(len(frames)), "window": window_order(frames.log, window=window, rng=rng)}


def measure(frames: Frames, size: int, folder: str, counter: Connection) -> dict[str, Any]:
    """Return what each epoch of each case asks for."""

    def epochs(name: str, order: str, cache: CacheConfig | None, count: int) -> None:
        results = []
        for epoch in range(count):
            counter.send("reset")
            counter.recv()
            result = frames.read(orders(frames, epoch)[order], cache)
            counter.send("count")
            counted = counter.recv()
            requests = sum(counted[kind] for kind in ("HEAD", "GET", "other"))
            results.append({"requests": requests, "GB": round(counted["bytes"] / 1e9, 4), **result})
        report[f"{name}, {order}"] = results

    report: dict[str, Any] = {}
    for order in ("random", "window"):
        epochs("no cache", order, None, 1)
        epochs("cache", order, CacheConfig(f"{folder}/{order}", 2 * size), 2)
        epochs("half", order, CacheConfig(f"{folder}/{order}-half", size // 2), 3)
    epochs("cache, next run", "window", CacheConfig(f"{folder}/window", 2 * size), 1)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print only one JSON object, as the last line")
    parser.add_argument("--full", action="store_true", help="the size of the committed figures")
    options = parser.parse_args()
    logs, frames, columns = (8, 200, 2800) if options.full else (4, 10, 300)
    with ExitStack() as stack:
        endpoint = os.environ.get("AWS_ENDPOINT_URL")
        server = endpoint or start(stack, serve_moto)[0]
        if endpoint is None:
            os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ["AWS_ENDPOINT_URL"], counter = start(stack, serve_counting, urlsplit(server).netloc)
        bucket = f"cache-{uuid.uuid4().hex[:12]}"
        s3.client().mkdir(bucket)
        stack.callback(uris.remove_tree, f"s3://{bucket}")
        uri = f"s3://{bucket}/dataset"
        cache_frames.write(uri, logs=logs, frames=frames, columns=columns)
        sizes = {name: size for name, size in uris.file_sizes(uri).items() if name.endswith(".parquet")}
        shards = {name: size for name, size in sizes.items() if "shards/" in name}
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        report = {
            "benchmark": "cache",
            "date": datetime.now(UTC).date().isoformat(),
            "load_average": round(os.getloadavg()[0], 1),
            "cpus": os.cpu_count(),
            "store": "moto" if endpoint is None else "of AWS_ENDPOINT_URL",
            "logs": logs,
            "frames": logs * frames,
            "points": 64 * columns,
            "shards_GB": round(sum(shards.values()) / 1e9, 4),
            "epochs": measure(Frames(uri), sum(shards.values()), folder, counter),
        }
    if not options.json:
        print(f"{report['frames']} frames in {len(shards)} shards of {report['shards_GB']} GB in all")
        print(f"{'case':<26} {'epoch':>5} {'requests':>9} {'GB':>8} {'s':>6} {'CPU ms/frame':>13}")
        for name, results in report["epochs"].items():
            for epoch, result in enumerate(results):
                figures = (result["requests"], result["GB"], result["seconds"], result["cpu_ms_a_frame"])
                print(f"{name:<26} {epoch:>5} {figures[0]:>9} {figures[1]:>8.4f} {figures[2]:>6} {figures[3]:>13}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
