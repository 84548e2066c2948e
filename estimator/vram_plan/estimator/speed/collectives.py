"""Seconds of a collective: α + bytes/β by algorithm, the fastest of those NCCL chooses from.

NCCL's own tuning model (NVIDIA/nccl @ 5067397c ``src/graph/tuning.cc`` ncclTopoTuneModel,
ncclTopoGetAlgoTime): every algorithm (ring; tree, which is a chain inside a machine and a tree over
machines; NVLink SHARP, which adds in the switch; PAT for one GPU a machine) has a latency and a
bandwidth under every protocol (LL and LL128 trade bandwidth for latency, Simple does not), and the
quickest runs. Left out: its caps by channel, which do not bind with as many channels as a full
machine has, CollNet, and NVLSTree, which tuners of large clusters often reject.

Measured sweeps are slower than that model below a gibibyte: every call takes some 24 µs more, and
middle sizes do not reach the bandwidth. What eight H200 took beyond the model (their sweep from
32 KiB to 16 GiB, stas00/ml-engineering @ 744d01e1 ``network/README.md``) is added, the part that
grows with the size in inverse proportion to the bandwidth of the links.

Inside a machine that ``bench calibrate`` has measured, its own latency and bandwidth stand in for
all of that. Golden tests hold the model against other nccl-tests tables. RCCL is NCCL's copy; AMD's
constants are not public.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from math import floor, log2

from vram_plan.estimator.speed.links import Group

__all__ = ["KINDS", "algorithm", "seconds", "sent_bytes"]

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "broadcast",
    "all-to-all",
    "point-to-point",
)
OWN = "as measured"
"""What `algorithm` says of a machine that was measured."""
_US = 1e-6
_PROTOCOLS = ("LL", "LL128", "Simple")
_BASE = {"tree": (6.8, 14.0, 8.4), "ring": (6.6, 14.0, 8.4)}
"""``baseLatencies`` by protocol, microseconds."""
_HOP = {
    "nvlink": {"tree": (0.6, 1.25, 4.0), "ring": (0.6, 1.9, 3.4)},
    "pcie": {"tree": (1.0, 1.9, 4.0), "ring": (1.0, 2.5, 5.7)},
    "network": {"tree": (5.0, 8.5, 14.0), "ring": (2.7, 4.0, 14.0)},
}
"""``hwLatencies`` of one step by protocol, microseconds."""
_NET_OVERHEAD = 2.0
"""``getNetOverhead`` on AMD processors, microseconds; three times that under Simple."""
_PLATEAU = 1.4
_LL_RATE = {"Volta": 39.0, "Turing": 39.0, "Ampere": 87.7, "Ada": 87.7, "Hopper": 141.0}
_LL_RATE_BLACKWELL = 282.0
_LL_RATE_NETWORK = (22.5, 19.0)
"""``llMaxBws`` in GB/s: by GPU inside a machine, over two machines and over more."""
_SHARP_BASE = 25.0
"""``hwLatencies`` of NVLS under Simple, microseconds."""
_SHARP_GAIN = {"Hopper": 473.1 / 365.6, "Blackwell": 838.0 / 682.2}
_SHARP_RANKS = 8
"""NVLink SHARP against a ring, all-reduce of 8 GiB on eight H200 and eight B200 (nccl-tests,
stas00/ml-engineering @ 744d01e1 ``network/README.md``); below eight GPUs it gains less, or is not
chosen."""
_PAT_STEP, _PAT_RANK, _PAT_RATE = 14.0 / 3.5, 2.8, 0.75
_START = 24e-6
_RAMP_BYTES_PER_S = 370.8e9
_RAMP = (0, 4, 15, 23, 41, 45, 46, 49, 79, 88)
"""Microseconds beyond the model and the start, for 2, 4, 8 … 1,024 MiB over links of that rate."""
_RAMP_FROM = 21
"""2 MiB = 2²¹ bytes."""
_TREE_CORRECTION = {
    "LL": "1 1 1 1 .9 .8 .7 .7 .7 .7 .6 .5 .4 .4 .5 .6 .7 .8 .9 1 1 1 1",
    "LL128": "1 1 1 1 1 .9 .8 .8 .8 .7 .6 .6 .6 .6 .6 .6 .8 .9 .9 .9 .9 1 1",
    "Simple": ".9 .9 .9 .9 .9 .9 .9 .8 .7 .6 .6 .5 .5 .5 .5 .6 .7 .8 .7 .7 .8 .9 .9",
}
"""``treeCorrectionFactor``: share of a tree's bandwidth from 64 bytes on, by powers of two."""
_CORRECTION = {p: tuple(float(x) for x in text.split()) for p, text in _TREE_CORRECTION.items()}


def sent_bytes(kind: str, nbytes: float, ranks: int) -> float:
    """Bytes that every rank sends: 2 (n − 1)/n of an all-reduce's, (n − 1)/n of the others'.

    ``nbytes`` are those of the whole tensor: an all-gather's output, a reduce-scatter's input.
    Source: NVIDIA/nccl-tests ``doc/PERFORMANCE.md``.
    """
    _known(kind)
    if ranks == 1:
        return 0.0
    if kind in {"broadcast", "point-to-point"}:
        return float(nbytes)
    share = (ranks - 1) / ranks * nbytes
    return 2 * share if kind == "all-reduce" else share


def seconds(kind: str, nbytes: float, group: Group) -> float:
    """Seconds of one collective of ``nbytes`` over ``group``; nothing on a single rank."""
    return _quickest(kind, nbytes, group)[0]


def algorithm(kind: str, nbytes: float, group: Group) -> str:
    """The algorithm and protocol that ``seconds`` counts with, for example ``ring Simple``."""
    return _quickest(kind, nbytes, group)[1]


@lru_cache(maxsize=4096)
def _quickest(kind: str, nbytes: float, group: Group) -> tuple[float, str]:
    _known(kind)
    if group.ranks == 1 or nbytes <= 0:
        return 0.0, "none"
    own = group.measured.rate(kind, group.ranks) if group.measured and group.nodes == 1 else None
    if own:
        return own.latency_seconds + sent_bytes(kind, nbytes, group.ranks) / own.bytes_per_s, OWN
    if kind in {"all-to-all", "point-to-point"}:
        return _direct(kind, nbytes, group), "direct Simple"
    quickest, name = min(_candidates(kind, nbytes, group))
    return quickest + _beyond(nbytes, group), name


def _beyond(nbytes: float, group: Group) -> float:
    """Seconds that a sweep took beyond NCCL's model."""
    place = min(max(log2(nbytes) - _RAMP_FROM, 0.0), len(_RAMP) - 1.0)
    below = min(floor(place), len(_RAMP) - 2)
    grown = _RAMP[below] + (place - below) * (_RAMP[below + 1] - _RAMP[below])
    return _START + grown * _US * _RAMP_BYTES_PER_S / group.bus_bytes_per_s


def _candidates(kind: str, nbytes: float, group: Group) -> Iterator[tuple[float, str]]:
    for i, protocol in enumerate(_PROTOCOLS):
        if protocol == "LL128" and group.medium != "nvlink":
            continue
        yield _ring(kind, nbytes, group, i), f"ring {protocol}"
        if kind == "all-reduce":
            yield _tree(nbytes, group, i), f"tree {protocol}"
    if kind == "all-reduce" and group.nodes == 1 and group.ranks >= _SHARP_RANKS:
        gain = _SHARP_GAIN.get(group.architecture) if group.medium == "nvlink" else None
        if gain:
            rate = group.bus_bytes_per_s * gain * _per_payload(kind, group.ranks)
            yield _SHARP_BASE * _US + nbytes / rate, "NVLink SHARP Simple"
    if kind in {"all-gather", "reduce-scatter"} and group.per_node == 1:
        alpha = _BASE["tree"][2] + log2(group.nodes) * _PAT_STEP + group.ranks * _PAT_RANK
        yield alpha * _US + nbytes / (group.bus_bytes_per_s * _PAT_RATE), "PAT Simple"


def _ring(kind: str, nbytes: float, group: Group, protocol: int) -> float:
    """2 (n − 1) steps of an all-reduce, n − 1 of the others."""
    bus = group.bus_bytes_per_s
    if protocol == 0:
        bus = min(_ll_rate(group), bus / 2)
    elif protocol == 1:
        bus *= 0.92
    alpha = _BASE["ring"][protocol] + _ring_latency(kind, group, protocol)
    large = nbytes / group.ranks >= 64 * 1024
    if kind == "all-reduce" and group.nodes > 1 and protocol == 2 and large:
        alpha *= _PLATEAU
    return alpha * _US + nbytes / (bus * _per_payload(kind, group.ranks))


def _ring_latency(kind: str, group: Group, protocol: int) -> float:
    passes = 2 if kind == "all-reduce" else 1
    between = passes * (group.nodes - 1)
    within = passes * (group.ranks - 1) - between
    step = _hop(group.medium, "ring", protocol)
    if group.nodes > 1:
        step = max(step, _NET_OVERHEAD * (3 if protocol == 2 else 1))
    far = _hop("network", "tree" if group.per_node == 1 else "ring", protocol)
    return within * step + between * far


def _tree(nbytes: float, group: Group, protocol: int) -> float:
    """A chain inside each machine, a tree over machines: log₂ steps up and as many down."""
    bus = group.bus_bytes_per_s * 0.92
    if protocol == 0:
        bus = min(bus / 3.8, _ll_rate(group))
    elif protocol == 1:
        bus *= 7 / 9 if group.nodes == 1 else 120 / 128
    size = floor(log2(max(nbytes, 64) / 64))
    table = _CORRECTION[_PROTOCOLS[protocol]]
    bus *= table[size] if size < len(table) else 1.0
    within = (group.per_node - 1) * _hop(group.medium, "tree", protocol)
    between = floor(log2(group.nodes)) * _hop("network", "tree", protocol)
    alpha = _BASE["tree"][protocol] + 2 * (within + between)
    return alpha * _US + nbytes / (bus / 2)


def _direct(kind: str, nbytes: float, group: Group) -> float:
    """Every rank sends to every other at once; what leaves the machine takes the rank's share."""
    share = 1.0 if kind == "point-to-point" else 1 / group.ranks
    peers = 1 if kind == "point-to-point" else group.ranks - 1
    near = 0 if group.per_node == 1 else min(peers, group.per_node - 1)
    far = peers - near if group.nodes > 1 else 0
    if kind == "point-to-point" and group.nodes > 1:
        near, far = 0, 1  # the slowest hop is the one that is waited for
    alpha = _BASE["ring"][2] + _hop("network" if far else group.medium, "ring", 2)
    inside = near * share * nbytes / group.local_bytes_per_s
    outside = far * share * nbytes * group.per_node / group.network_bytes_per_s if far else 0.0
    return alpha * _US + max(inside, outside)


def _per_payload(kind: str, ranks: int) -> float:
    """Payload over bytes that pass every rank of a ring."""
    return (
        1.0 if kind == "broadcast" else ranks / ((2 if kind == "all-reduce" else 1) * (ranks - 1))
    )


def _hop(medium: str, shape: str, protocol: int) -> float:
    return _HOP["pcie" if medium == "xgmi" else medium][shape][protocol]


def _ll_rate(group: Group) -> float:
    if group.nodes > 1:
        return _LL_RATE_NETWORK[0 if group.nodes == 2 else 1] * 1e9
    return _LL_RATE.get(group.architecture, _LL_RATE_BLACKWELL) * 1e9


def _known(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"unknown collective {kind!r}: choose from {', '.join(KINDS)}")
