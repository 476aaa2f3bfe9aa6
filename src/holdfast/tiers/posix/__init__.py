"""`file://` and plain paths: any POSIX file system, local or shared."""

from holdfast.tiers.posix.tier import PosixTier, path_of_url

__all__ = ["PosixTier", "path_of_url"]
