"""s3:// -> a place whose faults are those of a file: that a store does not answer is an OSError, as of a network disk.

The S3 library passes on what its own library raises where there was no answer at all, which no caller knows. Its own
answers, such as that there is no such file or no such right, it translates itself.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
from botocore.exceptions import ConnectionError as NoConnection
from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem
from s3fs.core import S3_RETRYABLE_ERRORS
from upath.implementations.cloud import S3Path
from upath.registry import register_implementation

_READ_BYTES = 1 << 20


class BucketPath(S3Path):
    """A path in a bucket. Read from a pickle in another process, it brings this module with it."""


@contextlib.contextmanager
def _no_answer() -> Iterator[None]:
    try:
        yield
    except (NoConnection, *S3_RETRYABLE_ERRORS) as error:
        raise ConnectionError(str(error)) from error


class _Bucket(S3FileSystem):  # type: ignore[misc]
    """The library's own, whose calls raise ConnectionError where there was no answer, after as many tries as ever."""

    async def _call_s3(self, *arguments: Any, **options: Any) -> Any:
        with _no_answer():
            return await super()._call_s3(*arguments, **options)

    call_s3 = sync_wrapper(_call_s3)

    async def _info(self, path: str, *arguments: Any, **options: Any) -> dict[str, Any]:
        """What a place is. A key for one prefix alone may not ask for a file of its name, but may list it."""
        try:
            return dict(await super()._info(path, *arguments, **options))
        except PermissionError:
            bucket, key, _version = self.split_path(path)
            if not key:
                raise
            below = await self._call_s3("list_objects_v2", Bucket=bucket, Prefix=f"{key.rstrip('/')}/", MaxKeys=1)
            if below.get("KeyCount"):
                return {"name": f"{bucket}/{key}", "size": 0, "type": "directory", "StorageClass": "DIRECTORY"}
            if await self._is_listed(bucket, key):
                raise  # It is there, and the key may not read it.
            raise FileNotFoundError(path) from None

    async def _is_listed(self, bucket: str, key: str) -> bool:
        with contextlib.suppress(PermissionError):
            found = await self._call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1)
            return any(file["Key"] == key for file in found.get("Contents", ()))
        return False

    # What is read of an answer after it has begun.

    async def _cat_file(self, *arguments: Any, **options: Any) -> Any:
        with _no_answer():
            return await super()._cat_file(*arguments, **options)

    async def _get_file(self, rpath: str, lpath: str, **_: Any) -> None:
        """Bring an object as one version of it: where the store breaks off, the rest is asked for.

        The library's own brings large objects as ten ranges at a time, each whole in memory, none a second time, and
        not all of one version where the object is replaced meanwhile.
        """
        bucket, key, _version = self.split_path(rpath)
        tag, length, fruitless = None, 0, 0
        with Path(lpath).open("wb") as file:
            while tag is None or file.tell() < length:
                begin = file.tell()
                rest: dict[str, str] = {} if tag is None else {"IfMatch": tag, "Range": f"bytes={begin}-"}
                try:
                    answer = await self._call_s3("get_object", Bucket=bucket, Key=key, **rest)
                    if tag is None:
                        tag, length = answer["ETag"], answer["ContentLength"]
                    async with answer["Body"] as body:
                        while some := await body.read(_READ_BYTES):
                            file.write(some)
                except S3_RETRYABLE_ERRORS as error:
                    fruitless = 0 if file.tell() > begin else fruitless + 1
                    if fruitless >= self.retries:
                        raise ConnectionError(f"{rpath}: the store breaks off again and again ({error}).") from error
                    await asyncio.sleep(min(1.7**fruitless * 0.1, 15))
                except OSError as error:
                    fruitless += 1
                    if tag is None or not _is_another_version(error) or fruitless >= self.retries:
                        raise
                    tag = None
                    file.seek(0)
                    file.truncate()


def _is_another_version(error: OSError) -> bool:
    answer = getattr(error.__cause__, "response", {})
    return bool(answer.get("ResponseMetadata", {}).get("HTTPStatusCode") == 412)


for _protocol in ("s3", "s3a"):
    fsspec.register_implementation(_protocol, _Bucket, clobber=True)
    register_implementation(_protocol, BucketPath, clobber=True)
