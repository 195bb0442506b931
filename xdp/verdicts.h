/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Every packet ends in exactly one verdict. This list is the only one: the C enum, the Python enum, the
 * metric labels and the documentation are all made from it. New verdicts go to the end; numbers are never
 * used again, since the counters outlive the program.
 *
 * V(number, NAME, action, description); the action is what happens to the frame: pass (to the host's own
 * stack), forward (to a real) or drop.
 */
#ifndef VC5_VERDICTS_H
#define VC5_VERDICTS_H

#define VERDICTS(V)                                                                                            \
	V(0, NOT_IP, PASS, "neither IPv4 nor anything else that can be for a VIP")                             \
	V(1, NOT_VIP, PASS, "the destination address is no VIP")                                               \
	V(2, NOT_OUR_MAC, PASS, "for a VIP, but the frame is addressed to another host")                       \
	V(3, UNREADABLE, PASS, "too short or too odd to tell the destination address")                         \
	V(4, FORWARDED_FLOW, FORWARD, "sent to the real that the flow table names")                            \
	V(5, FORWARDED_NEW, FORWARD, "sent to the real that the Maglev table names, and recorded")             \
	V(6, FORWARDED_REHASHED, FORWARD, "the flow's real is down: sent to another one, and recorded")        \
	V(7, FORWARDED_UNRECORDED, FORWARD, "sent by the Maglev table; the flow table had no room")            \
	V(8, FORWARDED_ENDING, FORWARD, "a FIN or RST of no known flow, sent by the Maglev table")             \
	V(9, BAD_IP_HEADER, DROP, "for a VIP, with an impossible IP header")                                   \
	V(10, BAD_L4_HEADER, DROP, "for a VIP, with a truncated or impossible TCP or UDP header")              \
	V(11, FRAGMENT, DROP, "for a VIP, but a fragment")                                                     \
	V(12, UNSUPPORTED_PROTOCOL, DROP, "for a VIP, but neither TCP nor UDP")                                \
	V(13, NO_SERVICE, DROP, "for a VIP, but no service has this port and protocol")                        \
	V(14, NO_BACKEND, DROP, "no real of the service is up")                                                \
	V(15, NO_NEIGHBOUR, DROP, "the MAC address of the chosen real is not known")                           \
	V(16, TTL_EXPIRED, DROP, "the time to live would become zero")                                         \
	V(17, LOOPED, DROP, "came back from the real it was sent to: the VIP is missing on its loopback")      \
	V(18, PROBE, FORWARD, "our own probe, sent to the real that it is to check")                           \
	V(19, PROBE_NO_BACKEND, DROP, "our own probe of a real that is gone or whose MAC is not known")

enum verdict {
#define V(number, name, action, description) VERDICT_##name = number,
	VERDICTS(V)
#undef V
};

/* Room for growth without a change of the pinned layout. */
#define VERDICT_SLOTS 64

#endif
