"""vc5py: a distributed layer-4 load balancer with an XDP data plane and direct server return."""

__version__ = "0.1.0"
