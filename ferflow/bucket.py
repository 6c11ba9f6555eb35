"""s3:// -> a place whose faults are those of a file: that a store does not answer is an OSError, as of a network disk.

The S3 library passes on what its own library raises where there was no answer at all, which no caller knows. Its own
answers, such as that there is no such file or no such right, it translates itself.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import fsspec
from botocore.exceptions import ConnectionError as NoConnection
from botocore.exceptions import HTTPClientError
from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem
from upath.implementations.cloud import S3Path
from upath.registry import register_implementation


class BucketPath(S3Path):
    """A path in a bucket. Read from a pickle in another process, it brings this module with it."""


@contextlib.contextmanager
def _no_answer() -> Iterator[None]:
    try:
        yield
    except (NoConnection, HTTPClientError) as error:
        raise ConnectionError(str(error)) from error


class _Bucket(S3FileSystem):  # type: ignore[misc]
    """The library's own, whose calls raise ConnectionError where there was no answer, after as many tries as ever."""

    async def _call_s3(self, *arguments: Any, **options: Any) -> Any:
        with _no_answer():
            return await super()._call_s3(*arguments, **options)

    call_s3 = sync_wrapper(_call_s3)

    # What is read of an answer after it has begun.

    async def _cat_file(self, *arguments: Any, **options: Any) -> Any:
        with _no_answer():
            return await super()._cat_file(*arguments, **options)

    async def _get_file(self, *arguments: Any, **options: Any) -> Any:
        with _no_answer():
            return await super()._get_file(*arguments, **options)


for _protocol in ("s3", "s3a"):
    fsspec.register_implementation(_protocol, _Bucket, clobber=True)
    register_implementation(_protocol, BucketPath, clobber=True)
