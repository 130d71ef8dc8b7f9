"""What tests of commands share as fixtures."""

import re

import pytest
from command_cases import run


@pytest.fixture
def fails(capsys):
    """Run a command that must fail with exit code 2 and one line; returns the line."""

    def check(*arguments, message=""):
        capsys.readouterr()
        run(*arguments, code=2)
        error = capsys.readouterr().err.strip()
        assert error.startswith("dicenet: ")
        assert "\n" not in error
        assert "Traceback" not in error
        assert re.search(message, error), error
        return error

    return check
