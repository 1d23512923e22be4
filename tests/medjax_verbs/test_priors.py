"""Tokens of tasks: analogies and neighbours that are known, a map that keeps groups together."""

import json

import numpy as np
import pytest

from medjax import cli
from medjax.errors import UsageError
from medjax_verbs import prior_tokens, priors
from tests.support.run import make_run

NAMES = ("left kidney", "right kidney", "left adrenal gland", "right adrenal gland", "liver")
SIDE, ORGAN = np.eye(6)[0], np.eye(6)[1:4]


def tokens():
    """A token is what it is plus its side: analogies of sides hold exactly."""
    pool = np.stack([ORGAN[0] + SIDE, ORGAN[0] - SIDE, ORGAN[1] + SIDE, ORGAN[1] - SIDE, ORGAN[2]])
    return prior_tokens.trained((*NAMES, "spleen"), np.vstack([pool, np.zeros(6)]))


def test_analogies_of_sides_hold_where_sides_are_added():
    found = prior_tokens.measured(tokens())
    assert len(found["analogies"]) == 2
    for one in found["analogies"]:
        assert one["cosine"] == pytest.approx(1) and one["rank"] == 1
    assert found["untrained"] == ["spleen"]
    (wrong,) = prior_tokens.measured(tokens(), [("left kidney", "right kidney", "liver", "liver")])[
        "analogies"
    ]
    assert wrong["cosine"] == pytest.approx(1 / np.sqrt(5)) and wrong["d"] == "liver"
    with pytest.raises(UsageError, match="no trained token of 'spleen'"):
        prior_tokens.analogy(tokens(), ("liver", "liver", "liver", "spleen"))
    with pytest.raises(UsageError, match="fewer than three"):
        prior_tokens.trained(NAMES[:2], np.ones((2, 3)))


def test_a_map_keeps_groups_together():
    rng = np.random.default_rng(0)
    centres = 8 * rng.normal(size=(3, 12))
    vectors = np.concatenate([c + 0.3 * rng.normal(size=(8, 12)) for c in centres])
    places = prior_tokens.placed(vectors)
    assert np.isfinite(places).all() and places.shape == (24, 2)
    group = np.repeat(np.arange(3), 8)
    away = np.square(places[:, None] - places[None]).sum(-1) + 1e9 * np.eye(24)
    assert (group[away.argmin(1)] == group).all()
    inner = max(np.ptp(places[group == k], axis=0).max() for k in range(3))
    between = [
        np.linalg.norm(places[group == a].mean(0) - places[group == b].mean(0))
        for a, b in ((0, 1), (0, 2), (1, 2))
    ]
    assert min(between) > inner / 2


def test_affinities_have_the_perplexity_that_is_asked():
    rng = np.random.default_rng(1)
    squared = prior_tokens._squared(rng.normal(size=(20, 4)))
    found = prior_tokens._affinities(squared, 5.0)
    assert found.sum() == pytest.approx(1) and np.allclose(found, found.T)


def test_files_of_the_verb(tmp_path):
    found = prior_tokens.measured(tokens())
    prior_tokens.write(found, tmp_path)
    assert json.loads((tmp_path / "priors.json").read_text())["analogies"][0]["rank"] == 1
    assert "left kidney" in (tmp_path / "priors.md").read_text()
    assert (tmp_path / "priors.svg").read_text().count("<circle") == 5
    prior_tokens.write(found, tmp_path)
    (tmp_path / "priors.svg").write_text("mine")
    with pytest.raises(UsageError, match="did not write"):
        prior_tokens.write(found, tmp_path)


@pytest.mark.slow
def test_a_run_without_tokens_is_refused(tmp_path, capsys):
    make_run(tmp_path / "run")
    assert priors.add and cli.main(["priors", str(tmp_path / "run")]) == 2
    assert "no token of every class" in capsys.readouterr().err
