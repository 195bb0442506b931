"""The control of a running balancer: HTTP with JSON over a Unix socket in the state directory.

`server` and `memory` are the balancer's side, `client` and `commands` that of `vc5py drain` and the like.
Who may open the socket may command.
"""
