"""A wrapper that changes nothing: subclasses override what they change."""

from __future__ import annotations

from collections.abc import Iterator

from holdfast.tiers.contract import Buffer, ObjectInfo, Tier, Upload


class WrappedUpload:
    """Passes every call on."""

    def __init__(self, inner: Upload) -> None:
        self._inner = inner

    def write(self, offset: int, buffer: Buffer) -> None:
        """See Upload.write."""
        self._inner.write(offset, buffer)

    def publish(self, *, if_absent: bool = True) -> None:
        """See Upload.publish."""
        self._inner.publish(if_absent=if_absent)

    def abort(self) -> None:
        """See Upload.abort."""
        self._inner.abort()


class WrappedTier:
    """Passes every call on; name and capabilities are those of the tier underneath."""

    def __init__(self, inner: Tier) -> None:
        self.inner = inner
        self.name = inner.name
        self.capabilities = inner.capabilities

    def put(self, key: str, buffer: Buffer, *, if_absent: bool = False) -> None:
        """See Tier.put."""
        self.inner.put(key, buffer, if_absent=if_absent)

    def upload(self, key: str, size_bytes: int) -> Upload:
        """See Tier.upload."""
        return self.inner.upload(key, size_bytes)

    def read_into(self, key: str, offset: int, buffer: Buffer, *, cached: bool = False) -> None:
        """See Tier.read_into."""
        self.inner.read_into(key, offset, buffer, cached=cached)

    def size(self, key: str) -> int:
        """See Tier.size."""
        return self.inner.size(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See Tier.list."""
        return self.inner.list(prefix)

    def delete(self, key: str) -> None:
        """See Tier.delete."""
        self.inner.delete(key)

    def settle(self, prefix: str) -> None:
        """See Tier.settle."""
        self.inner.settle(prefix)

    def sweep(self, *, owner_prefix: str | None = None, untouched_s: float = 0.0) -> int:
        """See Tier.sweep."""
        return self.inner.sweep(owner_prefix=owner_prefix, untouched_s=untouched_s)

    def close(self) -> None:
        """See Tier.close."""
        self.inner.close()
