"""Pickles as torch writes them, read and written without pickle: nothing in one is ever run.

`machine` is the reader and its bounds, `opcodes` what it understands, `meanings` which names; `archive` is the zip
that torch.save wraps around a pickle, `writing` the other way.
"""
