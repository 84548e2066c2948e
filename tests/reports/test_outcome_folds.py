"""Outcomes out of fold: no run decides the slack that judges it."""

from vram_plan.profiles.measured import Row
from vram_plan.reports.outcome_folds import LARGEST_SHARE, Trial, held_out_matrix, slack_share


def _trial(group: str, outcome: str, spare: float) -> Trial:
    row = Row(id=f"{group}-{outcome}-{spare}", group=group, outcome=outcome, quality="A")
    return Trial(row=row, spare=spare)


RUNS = [
    _trial("a/one", "ok", 0.5),
    _trial("a/one", "oom", 0.10),
    _trial("b/two", "ok", 0.05),
    _trial("b/two", "failed", 0.20),
    _trial("c/three", "oom", -0.3),
    _trial("c/three", "ok", 0.4),
]


def test_the_share_is_the_smallest_that_tells_all_failures() -> None:
    share = slack_share(RUNS)
    assert 0.20 < share < 0.2001
    assert not any(run.fits(share) for run in RUNS if run.row.outcome != "ok")


def test_a_failure_far_from_the_limit_is_no_fragmentation() -> None:
    assert slack_share([*RUNS, _trial("d/four", "oom", LARGEST_SHARE + 0.1)]) == slack_share(RUNS)


def test_no_failures_need_no_slack() -> None:
    assert slack_share([run for run in RUNS if run.row.outcome == "ok"]) < 1e-5


def test_a_group_is_judged_by_the_others() -> None:
    matrix = held_out_matrix(RUNS)
    assert sum(sum(verdicts.values()) for verdicts in matrix.values()) == len(RUNS)
    assert matrix["failed"] == {"fits": 1, "does not fit": 0}  # its own group decided the share
    assert matrix["oom"] == {"fits": 0, "does not fit": 2}
    assert matrix["ok"] == {"fits": 2, "does not fit": 1}
