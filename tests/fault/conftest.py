from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fault.harness.processes import Zygote
from tests.fault.harness.scene import Scene


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    pytest.importorskip("torch")
    zygote = Zygote()
    yield zygote
    zygote.close()


@pytest.fixture
def scene(zygote: Zygote, tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(zygote, tmp_path)
    try:
        yield scene
    finally:
        scene.close()
