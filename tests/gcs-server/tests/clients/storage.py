"""Uses Google's Python client on a bucket as its documentation does, and checks what comes back.

Usage: storage.py KEY.json DIRECTORY, with STORAGE_EMULATOR_HOST set.
"""

import os
import sys

from google.api_core import exceptions
from google.cloud import storage
from google.cloud.storage import transfer_manager

key, directory = sys.argv[1:]
# The emulator's client would be anonymous if it were not told otherwise.
client = storage.Client.from_service_account_json(key)
bucket = client.get_bucket("bucket")
assert bucket.hierarchical_namespace_enabled
data = os.urandom(9_000_000)


def expect(error, action):
    try:
        action()
    except error:
        return
    raise AssertionError(f"{action} did not raise {error}")


# One request, then resumable in chunks of 1 MiB.
small = bucket.blob("dir/small")
small.metadata = {"key": "value"}
small.upload_from_string(data[:1000], checksum="crc32c", if_generation_match=0)
expect(
    exceptions.PreconditionFailed,
    lambda: bucket.blob("dir/small").upload_from_string(b"x", if_generation_match=0),
)
assert bucket.get_blob("dir/small").metadata == {"key": "value"}
large = bucket.blob("dir/large", chunk_size=1 << 20)
path = os.path.join(directory, "large")
with open(path, "wb") as file:
    file.write(data)
large.upload_from_filename(path, checksum="crc32c")
assert large.size == len(data)
assert large.download_as_bytes(raw_download=True) == data
assert small.download_as_bytes(start=10, end=19) == data[10:20]
with bucket.blob("dir/stream").open("wb", chunk_size=1 << 18) as stream:
    stream.write(data[:600_000])
assert bucket.blob("dir/stream").download_as_bytes() == data[:600_000]

whole = bucket.blob("dir/whole")
whole.compose([small, large], if_generation_match=0)
assert whole.download_as_bytes() == data[:1000] + data
assert whole.md5_hash is None and whole.component_count == 2

copy = bucket.blob("dir/copy")
copy.rewrite(whole)
assert copy.crc32c == whole.crc32c
copy.metadata = {"another": "value"}
copy.patch()
assert bucket.get_blob("dir/copy").metadata == {"another": "value"}

names = [blob.name for blob in client.list_blobs("bucket", prefix="dir/", page_size=2)]
assert names == ["dir/copy", "dir/large", "dir/small", "dir/stream", "dir/whole"], names

# Threads, because each process would start an interpreter of its own.
pieces = bucket.blob("pieces")
transfer_manager.upload_chunks_concurrently(
    path, pieces, chunk_size=5 << 20, worker_type=transfer_manager.THREAD, max_workers=3
)
back = os.path.join(directory, "back")
pieces.reload()
transfer_manager.download_chunks_concurrently(
    pieces, back, chunk_size=2 << 20, worker_type=transfer_manager.THREAD, max_workers=3
)
with open(back, "rb") as file:
    assert file.read() == data
results = transfer_manager.upload_many_from_filenames(
    bucket, ["large"], source_directory=directory, blob_name_prefix="many/",
    worker_type=transfer_manager.THREAD,
)
assert results == [None], results

for blob in client.list_blobs("bucket"):
    blob.delete(if_generation_match=blob.generation)
expect(exceptions.NotFound, small.delete)
