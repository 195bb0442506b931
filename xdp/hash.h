/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A flow's 64-bit name: a keyed mix of its 5-tuple, the same on all nodes that have the same key. Multiply
 * and xor-shift, after the finalisers of MurmurHash3 and SplitMix64; one multiplier is secret. Its bits are
 * used so: 0-23 first set, 24-47 second set, 40-55 Maglev slot.
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

static __always_inline u64 hash_ports(__be16 sport, __be16 dport, u8 protocol)
{
	return (u64)protocol << 32 | (u64)dport << 16 | sport;
}

/* Addresses and ports in network byte order, as they lie in the packet. */
static __always_inline u64 flow_hash4(__be32 saddr, __be32 daddr, __be16 sport, __be16 dport, u8 protocol)
{
	u64 h = hash_mix(FLOW_KEY, (u64)daddr << 32 | saddr);

	return hash_finish(hash_mix(h, hash_ports(sport, dport, protocol)));
}

static __always_inline u32 hash_slot(u64 hash)
{
	return hash >> 40 & 0xffff;
}

#endif
