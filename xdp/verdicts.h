/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Every packet ends in exactly one verdict. This list is the only one: the C enum, the Python enum, the
 * metric labels and the documentation are all made from it. New verdicts go to the end; numbers are never
 * used again, since the counters outlive the program.
 *
 * V(number, NAME, action, description); the action is what happens to the frame: pass (to the host's own
 * stack), forward (to a real), answer (back to where it came from) or drop.
 */
#ifndef VC5_VERDICTS_H
#define VC5_VERDICTS_H

#define VERDICTS(V)                                                                                            \
	V(0, NOT_IP, PASS, "neither IPv4 nor IPv6")                                                            \
	V(1, NOT_VIP, PASS, "the destination address is no VIP")                                               \
	V(2, NOT_OUR_MAC, PASS, "for a VIP, but the frame is addressed to another host")                       \
	V(3, UNREADABLE, PASS, "too short or too odd to tell the destination address")                         \
	V(4, FORWARDED_FLOW, FORWARD, "sent to the real that the flow table names")                            \
	V(5, FORWARDED_NEW, FORWARD, "sent to the real that the Maglev table names, and recorded")             \
	V(6, FORWARDED_REHASHED, FORWARD, "the flow's real is down: sent to another one, and recorded")        \
	V(7, FORWARDED_UNRECORDED, FORWARD, "sent by the Maglev table; the flow table had no room")            \
	V(8, FORWARDED_ENDING, FORWARD, "a FIN or RST of no known flow, sent by the Maglev table")             \
	V(9, BAD_IP_HEADER, DROP, "for a VIP, with an impossible IP header")                                   \
	V(10, BAD_L4_HEADER, DROP, "for a VIP, with a truncated or impossible TCP, UDP or ICMP header")        \
	V(11, FRAGMENT, DROP, "for a VIP, but a fragment, and fragments are to be dropped")                    \
	V(12, UNSUPPORTED_PROTOCOL, DROP, "for a VIP, but neither TCP nor UDP nor ICMP")                       \
	V(13, NO_SERVICE, DROP, "for a VIP, but no service has this port and protocol")                        \
	V(14, NO_BACKEND, DROP, "no real of the service is up")                                                \
	V(15, NO_NEIGHBOUR, DROP, "the MAC address of the chosen real or its gateway is not known")            \
	V(16, TTL_EXPIRED, DROP, "the time to live would become zero")                                         \
	V(17, LOOPED, DROP, "came back from the real it was sent to: the VIP is missing on its loopback")      \
	V(18, PROBE, FORWARD, "our own probe, sent to the real that it is to check")                           \
	V(19, PROBE_NO_BACKEND, DROP, "our own probe of a real that is gone or whose MAC is not known")        \
	V(20, FORWARDED_STABLE, FORWARD, "sent by the Maglev table, whose slot is stable: no look-up needed")  \
	V(21, FORWARDED_PREVIOUS, FORWARD, "sent to the real that an unstable slot named before, recorded")    \
	V(22, FORWARDED_FRAGMENT, FORWARD, "a later fragment, sent where the first one went")                  \
	V(23, FORWARDED_ICMP, FORWARD, "an ICMP error about a flow, sent to the flow's real")                  \
	V(24, FRAGMENT_UNKNOWN, DROP, "a later fragment of a packet whose first one was not seen")             \
	V(25, ECHO_ANSWERED, ANSWER, "a ping to a VIP, answered")                                              \
	V(26, TOO_BIG_ANSWERED, ANSWER, "does not fit the tunnel or the link: the client was told")            \
	V(27, TOO_BIG, DROP, "does not fit; the client can't be told, or was told too often")                  \
	V(28, BAD_ICMP, DROP, "for a VIP, an ICMP message of no use here or about no flow of ours")            \
	V(29, UNKNOWN_PASSED, PASS, "for a VIP, but for no service of it, and these are to be passed")         \
	V(30, BAD_EXTENSION, DROP, "for a VIP, with IPv6 extension headers that can't be followed")            \
	V(31, MODE_UNSUPPORTED, DROP, "this kind of packet can't be sent in the way the real wants it")        \
	V(32, NO_HEADROOM, DROP, "the driver left no room for the headers to be added")                        \
	V(33, TOO_MANY_TAGS, PASS, "more than two VLAN tags")                                                  \
	V(34, NO_EXIT, DROP, "no link leads to the chosen real: of its bond no member is running")             \
	V(35, BAD_SOURCE, DROP, "for a VIP, would be answered, but its source is no address of a single host") \
	V(36, PATH_TOO_SMALL, PASS, "says that a packet of a tunnel of ours was too big for its way")

enum verdict {
#define V(number, name, action, description) VERDICT_##name = number,
	VERDICTS(V)
#undef V
};

/* Room for growth without a change of the pinned layout. */
#define VERDICT_SLOTS 64

#endif
