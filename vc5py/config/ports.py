"""Ports by name: the services that stand behind load balancers, as IANA registered them.

Must not know: /etc/services, which differs between machines and is often not there: a file that is good on
one balancer has to mean the same on all.
"""

from __future__ import annotations

PORTS = {
    "ftp": 21, "ssh": 22, "telnet": 23, "smtp": 25, "domain": 53, "tftp": 69, "http": 80, "kerberos": 88,
    "pop3": 110, "ntp": 123, "imap": 143, "snmp": 161, "bgp": 179, "ldap": 389, "https": 443,
    "submissions": 465, "syslog": 514, "submission": 587, "ipp": 631, "ldaps": 636, "domain-s": 853,
    "rsync": 873, "imaps": 993, "pop3s": 995, "radius": 1812, "mqtt": 1883, "nfs": 2049, "mysql": 3306,
    "rdp": 3389, "epmd": 4369, "sip": 5060, "sips": 5061, "xmpp-client": 5222, "postgresql": 5432,
    "amqps": 5671, "amqp": 5672, "redis": 6379, "http-alt": 8080, "secure-mqtt": 8883, "git": 9418,
    "memcache": 11211,
}  # fmt: skip
"""By the name in IANA's registry of service names (`rdp` is ms-wbt-server there); of TCP and UDP alike."""


def number(port: int | str) -> int:
    """The number of a port that is known to be good."""
    return PORTS[port] if isinstance(port, str) else port
