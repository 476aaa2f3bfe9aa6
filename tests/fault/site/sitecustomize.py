"""Found by every Python process that has this directory on PYTHONPATH: the agent, in fault tests, and nobody else."""

import os

if os.environ.get("HOLDFAST_TEST_FAULTS"):
    from tests.fault.inject.faults import install_in_agent

    install_in_agent()
