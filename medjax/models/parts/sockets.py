"""Sockets: places inside a network that a config fills by a word.

    model.mlp         {"kind": "experts", "routing": "gate"}      the MLPs of transformer blocks
                      {"kind": "dynamic_low_rank", "rank": 32}    the same with experts beside them
    model.bottleneck  {"kind": "vit", "width": 192, "heads": 3}   the deepest map
    model.context     {"kind": "embedding", "of": "modality"}     what the deepest map is told
    model.head        {"kind": "corpus_softmax"}                  features to logits

In: the kind, its arguments, and facts of the data. Out: a `Socket`, the constructor that a network
calls with `name`, `dtype` and what the place needs (see `parts.attention`, `parts.heads`). A
network has the sockets that its `make` names. `KINDS` holds, per socket, kind -> the function whose
signature lists the arguments; those named in `FACTS` are filled in from the data.
"""

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from medjax.errors import ModelError, did_you_mean
from medjax.models.context import STANDARD, Spec, union
from medjax.models.parts import conditioning, dmoe, heads, moe
from medjax.models.parts.attention import Context, Mlp, call, check_initial, split_offer
from medjax.models.parts.blocks import check_word
from medjax.models.parts.vit import Bottleneck

Words = Mapping[str, Any] | str  # of a config: {"kind": ..., arguments}, or the kind alone
PLACES = ("all", "encoder", "decoder")
FACTS = ("corpus_channels", "corpora", "modalities", "tasks")
EMBEDDED = {"corpus": "corpora", "modality": "modalities", "task": "tasks"}  # entry -> its names


@dataclasses.dataclass(frozen=True, eq=False)
class Socket:
    """A constructor of modules, and what they read.

    Attributes:
      kind: a word of `KINDS`.
      make: the constructor; None if the network uses its own (or nothing).
      reads: entries of the call's context.
      place: "all", or the side of the network that is filled.
      swin_only: only blocks of window attention can hold it.
    """

    kind: str
    make: Callable[..., nn.Module] | None = None
    reads: Spec = dataclasses.field(default_factory=dict)
    place: str = "all"
    swin_only: bool = False

    def at(self, side: str) -> Callable[..., nn.Module] | None:
        """The constructor for "encoder" or "decoder"; None where the network uses its own."""
        return self.make if self.place in ("all", side) else None

    def __call__(self, *arguments: Any, **named: Any) -> nn.Module:
        if self.make is None:
            raise ModelError(f"the socket {self.kind!r} makes no module of its own")
        return self.make(*arguments, **named)


def dense() -> Socket:
    """The network's own MLPs."""
    return Socket("dense")


def experts(
    *,
    modalities: int = 1,
    experts: int | None = None,
    routing: str = "gate",
    gate_scope: str = "token",
    expert_of: Sequence[int] | None = None,
    dispatch: str = "auto",
    place: str = "all",
) -> Socket:
    """A mixture of expert MLPs in every block.

    Args:
      modalities: of the label space: the number of experts unless `experts` says otherwise.
      experts: their number; None: one per modality.
      routing, gate_scope, expert_of, dispatch: see `parts.moe.MixtureOfExperts`.
      place: one of `PLACES`.
    """
    check_word("routing", routing, moe.ROUTINGS[1:])
    check_word("gate_scope", gate_scope, moe.SCOPES)
    check_word("dispatch", dispatch, moe.DISPATCHES)
    check_word("place", place, PLACES)
    count = experts if experts is not None else modalities
    chosen = tuple(expert_of) if expert_of is not None else None
    if count < 1 or (routing == "hard" and (len(chosen) if chosen else count) < modalities):
        raise ModelError(
            "a modality has no expert",
            found=f"{count} experts, {modalities} modalities",
            fix="raise experts or set expert_of",
        )
    made = moe.socket(routing, count, gate_scope, expert_of=chosen, dispatch=dispatch)
    return Socket("experts", made, moe.reads(routing), place)


def dynamic_low_rank(
    *,
    tasks: int = 1,
    k1: int = 2,
    k2: int = 2,
    top_k: int = 2,
    rank: int = 32,
    placement: str = "parallel",
    expert_input: str = "ln2",
    specific: str = "per_task",
    generic_path: bool = True,
    router: str = "token",
    router_noise: bool = False,
    activation: str = "none",
    scale: float | int = 1.0,
    expert_dropout: float | int = 0.0,
    place: str = "all",
) -> Socket:
    """A dynamic mixture of low-rank experts beside every MLP (MAST-Pro).

    Args:
      tasks: how many there are.
      k1, k2: experts of every task, and of all tasks together.
      top_k: experts that are kept of the two kinds together.
      rank: of the experts.
      placement: parallel, replace, after_mlp or qkv_lora, see `parts.dmoe.DynamicExperts`.
      expert_input: ln2, or residual: the tokens before the norm.
      specific: per_task, pooled or none.
      generic_path: whether the experts of all tasks have a router of their own as well.
      router: token, or sample: the mean token decides.
      router_noise: noise of a learned size on the router in training.
      activation: none or relu, within an expert.
      scale: factor of the experts' outputs.
      expert_dropout: rate within an expert, in training.
      place: one of `PLACES`.
    """
    check_word("place", place, PLACES)
    words = {"placement": placement, "expert_input": expert_input, "specific": specific}
    words |= {"router": router, "router_noise": router_noise, "activation": activation}
    numbers = {"k1": k1, "k2": k2, "top_k": top_k, "rank": rank, "generic_path": generic_path}
    sizes = {"scale": float(scale), "expert_dropout": float(expert_dropout)}
    made = dmoe.socket(tasks, **words, **numbers, **sizes)
    inside = placement == "qkv_lora" or expert_input == "residual"
    return Socket("dynamic_low_rank", made, {"task": STANDARD["task"]}, place, inside)


def nothing() -> Socket:
    """The map as it is."""
    return Socket("none")


def vit(
    *,
    width: int = 192,
    layers: int = 4,
    heads: int = 3,
    mlp_ratio: float | int = 4,
    kernels: Sequence[int] = (1, 1),
    residual: bool = True,
    dropout: float | int = 0.1,
    position: str = "learned",
    scan: bool = True,
    remat: str = "none",
    initial: str = "xavier",
) -> Socket:
    """A vision transformer on the voxels of the deepest map; see `parts.vit.Bottleneck`.

    Args:
      width, layers, heads, mlp_ratio: of the transformer.
      kernels: sides of the convolutions before and after it, 1 or 3.
      residual: add its input to its output.
      dropout: rate; training then needs the rng "dropout".
      position: its table, "learned" or "sincos".
      scan: its layers are one scanned program.
      remat: any word but "none": its layers are recomputed in the backward pass.
      initial: how its linear maps start, a word of `parts.attention.INITIAL`.
    """
    made = functools.partial(
        Bottleneck,
        width,
        layers,
        heads,
        mlp_ratio,
        tuple(kernels),
        residual,
        dropout,
        position,
        scan,
        remat,
        offers=True,
        initial=check_initial(initial),
    )
    return Socket("vit", made)


def sigmoid() -> Socket:
    """Independent channels, one linear map."""
    return Socket("sigmoid", heads.DenseHead)


def corpus_softmax(
    *,
    corpus_channels: Sequence[Sequence[int]] | None = None,
    share: str | Sequence[int] = "corpus",
) -> Socket:
    """A softmax per corpus over the background and the classes it annotates; see `parts.heads`.

    Args:
      share: which corpora share a head, see `parts.heads.numbered`.
    """
    made = heads.socket("corpus_softmax", corpus_channels, share)
    return Socket("corpus_softmax", made, heads.reads("corpus_softmax"))


def embedding(
    *, of: str = "modality", modalities: int = 1, corpora: int = 1, tasks: int = 1
) -> Socket:
    """A learned vector per corpus, modality or task, added to the deepest map (`conditioning`).

    Args:
      of: "corpus", "modality" or "task".
      modalities, corpora, tasks: how many there are.
    """
    check_word("entry of an embedding", of, tuple(EMBEDDED))
    values = {"modalities": modalities, "corpora": corpora, "tasks": tasks}[EMBEDDED[of]]
    made = functools.partial(conditioning.Embedding, of=of, values=values)
    return Socket("embedding", made, {of: STANDARD[of]})


def linear(*, of: str = "spacing_mm") -> Socket:
    """A linear map of the spacing, added to the deepest map; see `conditioning.Linear`.

    Args:
      of: "spacing_mm".
    """
    check_word("entry of a linear map", of, ("spacing_mm",))
    return Socket("linear", functools.partial(conditioning.Linear, of=of), {of: STANDARD[of]})


KINDS: Mapping[str, Mapping[str, Callable[..., Socket]]] = {
    "mlp": {"dense": dense, "experts": experts, "dynamic_low_rank": dynamic_low_rank},
    "bottleneck": {"none": nothing, "vit": vit},
    "context": {"none": nothing, "embedding": embedding, "linear": linear},
    "head": {"sigmoid": sigmoid, "corpus_softmax": corpus_softmax},
}


def make(socket: str, words: Words, facts: Mapping[str, Any]) -> Socket:
    """The socket of a config's words.

    Args:
      socket: a key of `KINDS`. words: see `Words`.
      facts: values of `FACTS`; a kind takes those that its signature names.

    Raises: `ModelError` for an unknown kind, an argument that it lacks or a value that it refuses.
    """
    given = {"kind": words} if isinstance(words, str) else dict(words)
    kinds = KINDS[socket]
    kind = given.pop("kind", None)
    if kind not in kinds:
        raise ModelError(
            f"unknown kind {kind!r} of model.{socket}",
            expected=" or ".join(kinds),
            fix=did_you_mean(str(kind), kinds),
        )
    known = inspect.signature(kinds[kind]).parameters
    own = [name for name in known if name not in FACTS]
    for name in given:
        if name not in own:
            raise ModelError(
                f"model.{socket} of kind {kind!r} has no field {name!r}",
                expected=", ".join(own) or "no field beside kind",
                fix=did_you_mean(name, own),
            )
    return kinds[kind](**{k: v for k, v in facts.items() if k in known} | given)


def resolved(
    model: str, accepted: Sequence[str], fields: Mapping[str, Any], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """A network's arguments with the words of its sockets made into `Socket`s.

    A head that is a word alone stays a word: it belongs to the arguments `share_heads` and
    `corpus_channels` of the network.

    Args:
      model: name of the network, for errors. accepted: names that its `make` takes.
      fields: its arguments. facts: see `make`.

    Raises: `ModelError` for a socket that the network does not have, and what `make` raises.
    """
    found = dict(fields)
    for socket in KINDS:
        words = fields.get(socket)
        if words is None or (socket == "head" and isinstance(words, str)):
            continue
        if socket not in accepted:
            there = [name for name in KINDS if name in accepted]
            raise ModelError(
                f"the network {model!r} has no socket {socket!r}",
                expected=f"its sockets: {', '.join(there)}" if there else "none: it has no sockets",
                fix=f"leave out model.{socket}",
            )
        found[socket] = make(socket, words, facts)
    return found


def filled(
    given: Socket | Words | None,
    socket: str,
    facts: Mapping[str, Any] | None = None,
) -> Socket | None:
    """A network's argument as a socket: words become one, a socket and None stay what they are."""
    return given if given is None or isinstance(given, Socket) else make(socket, given, facts or {})


def words(model: Mapping[str, Any], socket: str) -> dict[str, Any]:
    """What a config's model has in a socket: {"kind": ..., its arguments}.

    The one place that knows the fields which older configs have in place of words.

    Args:
      model: the section `model` of a config. socket: a key of `KINDS`.
    """
    given = model.get(socket)
    if isinstance(given, Mapping):
        return dict(given)
    if socket == "head":
        found = {"kind": given or _default(model, "head", "sigmoid")}
        return found | ({"share": model["share_heads"]} if "share_heads" in model else {})
    if socket == "mlp" and given is None:
        place = model.get("experts_in", _default(model, "experts_in", "none"))
        fields = ("experts", "routing", "gate_scope", "expert_of", "dispatch")
        found = {"kind": "dense" if place == "none" else "experts"}
        return found | {name: model[name] for name in fields if name in model}
    if socket == "bottleneck" and given is None and model.get("vit") is not None:
        return {"kind": "vit" if model["vit"] else "none"}
    return {"kind": given or next(iter(KINDS[socket]))}


def _default(model: Mapping[str, Any], name: str, otherwise: Any) -> Any:
    """The default of an argument of a network."""
    try:
        made = importlib.import_module(f"medjax.models.{model['name']}").make
        return inspect.signature(made).parameters[name].default
    except (ModuleNotFoundError, AttributeError, KeyError):
        return otherwise


def head(
    given: Socket | Words, corpus_channels: Any = None, share: str | Sequence[int] = "corpus"
) -> Socket:
    """The head of a network's arguments: a socket as it is, or the socket of its words."""
    if isinstance(given, str):
        check_word("head", given, tuple(KINDS["head"]))
        given = {"kind": given} | ({"share": share} if given == "corpus_softmax" else {})
    return filled(given, "head", {"corpus_channels": corpus_channels})


def own_head(socket: Socket) -> Callable[..., nn.Module] | None:
    """The constructor of a head; None for networks whose own last layer is the linear map."""
    return None if socket.kind == "sigmoid" else socket.make


def reads(*sockets: Socket | None) -> Spec:
    """What the sockets of a network read together."""
    return union(*(socket.reads for socket in sockets if socket is not None))


def mlp_at(socket: Socket | None, side: str) -> Callable[..., nn.Module]:
    """The MLP of the Swin blocks of one side."""
    return (socket.at(side) if socket is not None else None) or Mlp


def only_encoder(socket: Socket | None, owner: str) -> Socket | None:
    """The socket, if it fills blocks of an encoder; `ModelError` for those of a decoder."""
    if socket is not None and socket.place == "decoder":
        raise ModelError(
            f"the decoder of {owner} has no MLPs",
            found='mlp with place "decoder"',
            expected="all or encoder",
            fix="change model.mlp.place",
        )
    return socket


def in_transformer(bottleneck: Socket | None, mlp: Socket | None, owner: str) -> Socket | None:
    """The bottleneck with the MLPs of its layers replaced.

    Raises: `ModelError` if there are no layers.
    """
    if mlp is None or mlp.make is None:
        return bottleneck
    if bottleneck is None or bottleneck.kind != "vit":
        raise ModelError(
            f"{owner} has MLPs in the transformer of its bottleneck only",
            found=f"model.mlp of kind {mlp.kind!r} without one",
            fix='set model.bottleneck.kind to "vit"',
        )
    only_encoder(mlp, owner)
    if mlp.swin_only:
        raise ModelError(
            f"{owner} has no window attention, which experts of this kind need",
            found="placement qkv_lora or expert_input residual",
            fix="leave them out of model.mlp",
        )
    return dataclasses.replace(
        bottleneck,
        make=functools.partial(bottleneck.make, mlp=mlp.make),
        reads=union(bottleneck.reads, mlp.reads),
    )


def deepest(
    x: Float[Array, "b *low c"],
    conditioning: Socket | None,
    bottleneck: Socket | None,
    context: Context,
    train: bool,
    *,
    dtype: Any,
    name: str = "bottleneck",
) -> tuple[Float[Array, "b *low c"], dict[str, Any]]:
    """(the deepest map after the sockets `context` and `bottleneck`, what the latter offers).

    Called within a compact method of the network. Parameters `context/...` and `name`/....
    """
    if conditioning is not None and conditioning.make is not None:
        x = call(conditioning(dtype=dtype, name="context"), x, context)
    if bottleneck is None or bottleneck.make is None:
        return x, {}
    module = bottleneck(dtype=dtype, name=name)
    x, offered = split_offer(module, call(module, x, context, train))
    return x, named(offered, name)


def named(offered: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Offers of modules below a place: {what: {"place/module": array}}, or {what: array}."""
    return {
        what: {f"{place}/{inner}": array for inner, array in value.items()}
        if isinstance(value, Mapping)
        else value
        for what, value in offered.items()
    }


def of_blocks(side: str, stages: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Offers {stage: {block: {what: array}}} as {what: {"side/stage/block": array}}."""
    found: dict[str, dict[str, Any]] = {}
    for stage, blocks in stages.items():
        for block, offers in blocks.items():
            for what, array in offers.items():
                found.setdefault(what, {})[f"{side}/{stage}/{block}"] = array
    return found


def together(*offers: Mapping[str, Any]) -> dict[str, Any]:
    """Offers of several places as one dictionary, {what: {place: array}} or {what: array}."""
    found: dict[str, Any] = {}
    for one in offers:
        for what, value in one.items():
            if isinstance(value, Mapping):
                found[what] = {**found.get(what, {}), **value}
            else:
                found[what] = value
    return found


def seen(context: Context, offered: Mapping[str, Any]) -> Context:
    """The context of a head: that of the call, and what the network's other parts offer."""
    return {**(context or {}), **offered} if offered else context
