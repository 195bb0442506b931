/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A flow's 64-bit name: a keyed mix of its 5-tuple, the same on all nodes that have the same key. Multiply
 * and xor-shift, after the finalisers of MurmurHash3 and SplitMix64; one multiplier is secret. Its bits are
 * used so: 0-23 first set, 24-47 second set, 40-55 Maglev slot, 48-63 second candidate, 56-63 sampling.
 * vc5py/core/flowhash.py computes the same.
 */
#ifndef VC5_HASH_H
#define VC5_HASH_H

static __always_inline u64 hash_mix(u64 h, u64 word)
{
	h = (h ^ word) * 0xff51afd7ed558ccdULL;
	return h ^ h >> 32;
}

static __always_inline u64 hash_finish(u64 h)
{
	h *= FLOW_KEY_ODD;
	h ^= h >> 29;
	h *= 0xc4ceb9fe1a85ec53ULL;
	return h ^ h >> 32;
}

/* Addresses in network byte order as they lie in the packet; an IPv4 address is the low half of [0]. */
static __always_inline u64 hash_addresses(const u64 saddr[2], const u64 daddr[2], bool ipv6)
{
	u64 h = FLOW_KEY;

	if (!ipv6)
		return hash_mix(h, daddr[0] << 32 | saddr[0]);
	h = hash_mix(h, saddr[0]);
	h = hash_mix(h, saddr[1]);
	h = hash_mix(h, daddr[0]);
	return hash_mix(h, daddr[1]);
}

/* The last word: ports, or the identification of a fragmented packet, with the protocol. */
static __always_inline u64 hash_end(u64 h, u64 ports, u8 protocol)
{
	return hash_finish(hash_mix(h, (u64)protocol << 32 | ports));
}

static __always_inline u32 hash_slot(u64 hash)
{
	return hash >> 40 & 0xffff;
}

static __always_inline u32 hash_other_slot(u64 hash)
{
	return hash >> 48;
}

#endif
