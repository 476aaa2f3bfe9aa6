"""What forked ranks do: functions by name. The first argument, `tell`, sends the test a value."""

from __future__ import annotations
