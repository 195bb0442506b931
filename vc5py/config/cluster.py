"""The keys of `cluster:` and what becomes of them: with whom flows are shared, and by which secret.

Must not know: files, how flows are shared. Invariant: `build` can't fail on what `language` and `check` found
good.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from vc5py.config.bgp_scalars import SecretFile, Variable
from vc5py.config.mapping import Mapping
from vc5py.config.report import Path
from vc5py.config.scalars import Name, NonEmpty, Optionally, Port, ReachableAddress, expects
from vc5py.config.view import View, parsed_address
from vc5py.limits import DATAGRAM_BYTES
from vc5py.model import Cluster, Secret

_CLUSTER = Cluster(Secret())
InterfaceName = Annotated[
    str, Field(max_length=15, pattern=r"^[^\s/:\x00-\x1f\x7f]+$"), expects("the name of an interface")
]
_LEAST, _MOST = DATAGRAM_BYTES
DatagramBytes = Annotated[
    int, Field(ge=_LEAST, le=_MOST), expects(f"a whole number from {_LEAST} to {_MOST}")
]


class ClusterSpec(Mapping):
    """The balancers that share their flows. All of them have the same name and secret."""

    name: Name = Field(_CLUSTER.name, description="Balancers with another name here are no peers.")
    secret_file: Optionally[SecretFile] = Field(
        None, description="File with the secret that flows are named by, 16 bytes or more. Default: none."
    )
    secret_env: Optionally[Variable] = Field(
        None, description="Variable of the environment with it, in place of `secret_file`. Default: none."
    )
    keys_file: Optionally[SecretFile] = Field(
        None,
        description="File with one or two keys, a line each: the first signs datagrams, both are accepted."
        " Default: one that follows from the secret.",
    )
    keys_env: Optionally[Variable] = Field(
        None, description="Variable of the environment with them, in place of `keys_file`. Default: none."
    )
    peers: Optionally[NonEmpty[ReachableAddress]] = Field(
        None, description="Addresses of balancers that get everything by unicast. Default: none."
    )
    port: Port = Field(_CLUSTER.port, description="UDP port, where `multicast` doesn't say another one.")
    interface: Optionally[InterfaceName] = Field(
        None, description="Interface that multicast goes by. Default: the first that the balancer is on."
    )
    datagram: DatagramBytes = Field(_CLUSTER.datagram, description="Largest UDP payload, in bytes.")


MODELS: dict[Path, type[Mapping]] = {("cluster",): ClusterSpec}


def build(spec: ClusterSpec) -> Cluster:
    keys = Secret(spec.keys_file, spec.keys_env) if spec.keys_file or spec.keys_env else None
    return Cluster(
        secret=Secret(spec.secret_file, spec.secret_env),
        keys=keys,
        name=spec.name,
        peers=tuple(spec.peers or ()),
        port=spec.port,
        interface=spec.interface,
        datagram=spec.datagram,
    )


def check(view: View) -> None:
    """Report a cluster without a secret, and settings that exclude each other."""
    cluster = view.node(("cluster",))
    if not isinstance(cluster, dict):
        return
    if not cluster.keys() & {"secret_file", "secret_env"}:
        view.add(("cluster",), "found no key 'secret_file' or 'secret_env', expected one")
    for one, other in (("secret_env", "secret_file"), ("keys_env", "keys_file")):
        if one in cluster and other in cluster and not view.spoilt(("cluster", one)):
            view.add_at_key(("cluster", one), f"found beside '{other}', expected one of them")
    view.once(view.several(("cluster", "peers")), parsed_address)
