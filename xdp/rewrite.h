/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What forwarding changes in a frame.
 */
#ifndef VC5_REWRITE_H
#define VC5_REWRITE_H

/* A MAC address and the 16 bits of flags behind it, as one word. */
static __always_inline u64 mac_word(const void *mac_and_flags)
{
	return READ_ONCE(*(const u64 *)mac_and_flags);
}

#define MAC_MASK 0x0000ffffffffffffULL /* the address's part of the word (little endian) */

static __always_inline u64 mac_of_frame(const u8 *mac)
{
	return (u64)*(const u32 *)mac | (u64)*(const u16 *)(mac + 4) << 32;
}

static __always_inline void mac_write(u8 *mac, u64 word)
{
	*(u32 *)mac = word;
	*(u16 *)(mac + 4) = word >> 32;
}

/* TTL less one, and the header's checksum with it (RFC 1624, eqn. 3; the TTL is a high byte). */
static __always_inline void ipv4_decrement_ttl(struct iphdr *ip)
{
	u32 sum = (u32)ip->check + bpf_htons(0x0100);

	ip->check = sum + (sum >= 0xffff);
	ip->ttl--;
}

#endif
