"""What the benchmark scripts share: builds, inputs, the shaped server, figures and tables."""

import functools
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[1]


def cargo_build(name, *arguments):
    """Path of the release executable `name` that cargo built; None without cargo or if it does not build."""
    if not shutil.which("cargo"):
        return None
    command = ["cargo", "build", "--release", "--locked", *arguments, "--message-format=json-render-diagnostics"]
    result = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    if result.returncode != 0:
        return None
    for line in result.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == name:
            return message["executable"]
    return None


@functools.cache
def program(name, variable):
    """The executable that the environment names, or that of this workspace; ends the benchmark without either."""
    if os.environ.get(variable):
        return shutil.which(os.environ[variable]) or sys.exit(f"${variable} is no program")
    return cargo_build(name, "--workspace", "--bins") or sys.exit(f"cargo built no {name}")


def cache():
    """Where tests/provision.sh keeps its inputs."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(os.environ.get("PODSNAP_CACHE") or os.path.join(home, "podsnap")).resolve()


def provision(*parts):
    only = [argument for part in parts for argument in ("--only", part)]
    subprocess.run([ROOT / "tests" / "provision.sh", *only], check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)


class Server:
    """The project's GCS test server behind a shaped link, for as long as the block lasts."""

    BUCKET = "bench"

    def __init__(self, first_byte_ms, stream_mb_per_s, total_mb_per_s, *more):
        self.command = [
            program("podsnap-gcs-server", "PODSNAP_GCS_SERVER"),
            *("--bucket", self.BUCKET, "--hierarchical", "--anonymous", "--no-md5", "--no-mutation-limit"),
            *("--first-byte-ms", str(first_byte_ms), "--stream-mb-per-s", str(stream_mb_per_s)),
            *("--total-mb-per-s", str(total_mb_per_s), *more),
        ]

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().strip()
        self.environment = {"STORAGE_EMULATOR_HOST": self.url}
        return self

    def set_link(self, first_byte_ms, stream_mb_per_s, total_mb_per_s):
        """Another link; 0 MB/s are no limit."""
        link = {"first_byte_ms": first_byte_ms, "stream_bytes_per_s": int(stream_mb_per_s * 1e6), "total_bytes_per_s": int(total_mb_per_s * 1e6)}
        self.control("config", "PATCH", {"link": link})

    def control(self, what, method="GET", document=None):
        data = None if document is None else json.dumps(document).encode()
        request = urllib.request.Request(f"{self.url}/_control/{what}", method=method, data=data)
        with urllib.request.urlopen(request) as answer:
            return answer.read()

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def summary(values):
    """median (min..max)"""
    return f"{statistics.median(values):.2f} ({min(values):.2f}..{max(values):.2f})"


def print_table(rows, markdown, labels=1):
    """A table whose first row is its heading and whose first `labels` columns are text."""
    if markdown:
        print("| " + " | ".join(rows[0]) + " |")
        print("|" + " --- |" * labels + " ---: |" * (len(rows[0]) - labels))
        for row in rows[1:]:
            print("| " + " | ".join(row) + " |")
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(width) if at < labels else cell.rjust(width) for at, (cell, width) in enumerate(zip(row, widths))]
        print("  ".join(cells).rstrip())


def machine():
    model = "unknown processor"
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)
    return f"{model}, {os.cpu_count()} processors, {memory:.0f} GiB"
