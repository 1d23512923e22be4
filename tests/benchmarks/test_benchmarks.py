"""The command lines that benchmarks start are ones that the program takes: every run length has a
schedule.
"""

import argparse

import pytest

from benchmarks import m4oe
from medjax import main
from medjax.registry import plain
from medjax.runs import build
from tests.support.configs import typed


@pytest.mark.parametrize("steps", [2, 30, 41, 400, 1500])
def test_m4oes_jobs_have_a_schedule_at_any_length(steps, tmp_path, repository, monkeypatch):
    monkeypatch.chdir(repository)
    given = argparse.Namespace(data=tmp_path, out=tmp_path, steps=steps, threads=1, patch_size=4)
    lines = m4oe.commands(given, ["--config.train.batch=3", "--config.train.validation_batches=2"])
    assert {"pretrain", "pretrain_dense"} <= set(lines) and set(m4oe.TRAINED) <= set(lines)
    for name, (line, *_) in lines.items():
        if "medjax.main" not in line:
            continue
        fields = plain(main.parse(line[2:]).config)
        assert (
            fields["train"]["steps"] == steps
            and fields["train"]["batch"] == 3
            and fields["train"]["validation_batches"] == 2
        )
        rate = build.make_optimizer(typed(fields)).schedule
        assert (
            0 < float(rate(steps - 1)) < float(rate(steps // 10)) <= fields["optim"]["lr"] * 1.001
        ), name
        assert fields["model"]["patch_size"] == 4
        if name.startswith("pretrain"):
            assert (
                fields["task_options"]["patch_size"] * fields["task_options"]["block"]
                == m4oe.HIDDEN
            )
            # the configs' share of warm-up, and no more than their steps of it
            assert fields["optim"]["warmup_steps"] == min(40, steps // 10) and fields["train"][
                "validate_every"
            ] == max(steps // 10, 1)
