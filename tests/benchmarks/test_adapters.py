"""The comparison of adapters: its runs differ in what is trained and in nothing else."""

import argparse

import pytest

from benchmarks import adapters
from medjax import main
from medjax.registry import plain
from medjax.runs import build
from tests.support.configs import typed


@pytest.fixture
def given(tmp_path):
    return argparse.Namespace(
        data=tmp_path,
        out=tmp_path,
        nets=tuple(adapters.NETS),
        targets=tuple(adapters.TARGETS),
        seeds=(0, 1),
        steps=30,
        percent=10,
        lr=1e-3,
        both=True,
    )


def _fields(job, repository, monkeypatch):
    monkeypatch.chdir(repository)
    (line,) = job.lines
    return plain(main.parse(line[2:]).config)


@pytest.mark.slow
def test_every_run_follows_a_base_and_takes_its_flags(given, repository, monkeypatch):
    found = adapters.jobs(given)
    assert len(found) == 2 + 2 * 3 * 4 * 2 + 3
    for name, job in found.items():
        fields = _fields(job, repository, monkeypatch)
        assert job.after == ("" if name.endswith("_base") else f"{name.split('_')[0]}_base") or (
            job.after == "unet_base" and name.startswith(("both", "only"))
        )
        config = typed(fields)
        rate = build.make_optimizer(config).schedule
        assert 0 < float(rate(0)) <= fields["optim"]["lr"] * 1.001


def test_arms_differ_in_what_is_trained_only(given, repository, monkeypatch):
    found = adapters.jobs(given)
    arms = {}
    for arm in adapters.arms("unet", given.out):
        fields = _fields(found[f"unet_Heart_{arm}_1"], repository, monkeypatch)
        arms[arm] = fields.pop("adapters", {}), fields
    first = next(iter(arms.values()))[1]
    assert all(fields == first for _, fields in arms.values())
    settings = {
        arm: build.adapter_settings(typed(fields | {"adapters": own}))
        for arm, (own, fields) in arms.items()
    }
    assert settings["full"] is None and not settings["head"].grafts
    ranks = [{r for _, r in settings[f"lora{n}"].rules} for n in adapters.RANKS]
    assert ranks == [{n, "whole", 0} for n in adapters.RANKS]


def test_a_run_that_is_scored_is_not_repeated(given, tmp_path, monkeypatch):
    scored = {tmp_path / "unet_base", tmp_path / "unet_Heart_full_0"}
    monkeypatch.setattr(
        adapters.trainings, "cells", lambda folder: {0: 0} if folder in scored else {}
    )
    found = adapters.jobs(given)
    assert "unet_base" not in found and "unet_Heart_full_0" not in found
    assert (
        found["unet_Heart_full_1"].after == "" and found["swin_Heart_full_1"].after == "swin_base"
    )
