"""The training step compiled for a card that is not there; skipped without its compiler."""

import pytest

from configs import multitalent, tsfm
from medjax.errors import UsageError
from medjax.registry import plain
from medjax.runs import open as corpora
from medjax.runs.ahead import cards, compiled
from tests.support.configs import typed

pytestmark = [pytest.mark.slow, pytest.mark.aot]
SPACING = (1.5, 1.0, 1.0)


@pytest.fixture(autouse=True)
def compiler(monkeypatch):
    """The compiler, without the flags that make the other tests quick."""
    try:
        cards.check(cards.known()["h200"])
    except UsageError as error:
        pytest.skip(str(error))
    monkeypatch.delenv("XLA_FLAGS", raising=False)


def _asked(c, folder, target):
    config = typed(plain(c))
    space = corpora.open_data(config.data, folder, files=False).space
    return compiled.ask(config, space, target, SPACING)


def _unet(layout):
    c = multitalent.get_config("unet").unlock()
    c.model.update(dict(max_stages=3))
    c.train.update(dict(patch=(32, 64, 64), batch=2, conv_layout=layout))
    return c


def test_convolutions_have_their_channels_last(tmp_path):
    ours, theirs = (_asked(_unet(word), tmp_path, "h200") for word in ("auto", "xla"))
    assert set(ours["convolutions"]) == {"channels last"}
    assert set(theirs["convolutions"]) == {"channels first"}
    assert sum(ours["convolutions"].values()) == sum(theirs["convolutions"].values()) > 20
    assert ours["bytes"] < theirs["bytes"] and ours["collectives"] == {}
    assert 0 < ours["temporary"] < ours["peak"] < cards.known()["h200"].memory_bytes
    assert ours["flops"] > 1e9 and ours["floor_s"] > 0 and ours["compile_s"] > 0
    assert compiled.text(ours, cards.known()["h200"]).count("\n") > 15


def test_the_networks_of_the_papers_compile_at_their_size(tmp_path):
    """TSFM t on eight cards: 59 communications per step before activations were pinned."""
    found = _asked(multitalent.get_config("unet"), tmp_path, "h200")
    assert found["convolutions"] == {"channels last": 65}
    assert 10 < found["peak"] / 2**30 < 25 and 16e12 < found["flops"] < 18e12
    c = tsfm.get_config("t").unlock()
    c.train.batch, c.sharding.fsdp = 8, 8
    found = _asked(c, tmp_path, "h200x8")
    assert "all-to-all" not in found["collectives"]
    assert sum(found["collectives"].values()) <= 20
