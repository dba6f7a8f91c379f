"""Object stores: which URLs there can be, and pyarrow's file systems behind them."""

import os
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from sweeps.store.patience import StorageError
from sweeps.store.redact import credentials_in, redacted

_CONNECT_SECONDS, _REQUEST_SECONDS = 5.0, 30.0


def check_url(url: str) -> None:
    """Raises StorageError for a URL that no store can be at, before anything is sent or recorded of it."""
    parts = urlsplit(url)
    if credentials_in(url):
        where = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials"
        if parts.scheme in ("gs", "gcs"):
            where = "GOOGLE_APPLICATION_CREDENTIALS"
        raise StorageError(
            f"{redacted(url.split('?')[0])}: credentials in an address end up in logs and records; give them "
            f"in {where}, and leave them out here"
        )
    if not parts.netloc and parts.scheme in ("s3", "gs", "gcs"):
        raise StorageError(f"{url}: names no bucket; write {parts.scheme}://BUCKET/PREFIX")


def open_remote(url: str) -> tuple[Any, str]:
    """(pyarrow filesystem, root path). An S3 endpoint: AWS_ENDPOINT_URL or ?endpoint_override=."""
    import pyarrow as pa
    from pyarrow import fs

    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    try:
        if parts.scheme == "s3":
            return _s3(parts.netloc, query), f"{parts.netloc}{parts.path}".rstrip("/")
        whole = urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), urlencode(query), ""))
        filesystem, root = fs.FileSystem.from_uri(whole)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise StorageError(
            f"cannot open {url.split('?')[0]}: {str(error).splitlines()[0]}; give a path, s3://BUCKET/PREFIX "
            "or gs://BUCKET/PREFIX"
        ) from error
    return filesystem, root.rstrip("/")


def _s3(bucket: str, query: dict[str, str]) -> Any:
    """pyarrow's S3, with few retries of its own: `Files` waits and tells, it does neither.

    Raises ValueError for an option it does not know.
    """
    from pyarrow import fs

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint and "endpoint_override" not in query:
        scheme, _, host = endpoint.rpartition("://")
        query |= {"endpoint_override": host.rstrip("/"), "scheme": scheme or "https"}
    if unknown := query.keys() - {"region", "endpoint_override", "scheme"}:
        raise ValueError(f"unknown option {min(unknown)}; there are region, endpoint_override and scheme")
    known = ("AWS_REGION", "AWS_DEFAULT_REGION")
    region = query.get("region") or next((os.environ[name] for name in known if os.environ.get(name)), None)
    if region is None and "endpoint_override" not in query:
        region = fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(
        region=region,
        endpoint_override=query.get("endpoint_override"),
        scheme=query.get("scheme", "https"),
        connect_timeout=_CONNECT_SECONDS,
        request_timeout=_REQUEST_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=2),
    )
