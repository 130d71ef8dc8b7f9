import pytest

import dicenet.optimize.network as planned


@pytest.fixture
def plans(monkeypatch):
    """The plans that are made while a test runs, as (sizes, plan)."""
    made = []
    lower = planned.lower

    def remember(graph, sizes):
        plan = lower(graph, sizes)
        made.append((sizes, plan))
        return plan

    monkeypatch.setattr(planned, "lower", remember)
    return made
