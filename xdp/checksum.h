/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Internet checksums (RFC 1071), and their incremental update (RFC 1624). Sums are kept as plain numbers of
 * 16-bit words as they lie in memory, and folded at the end.
 */
#ifndef VC5_CHECKSUM_H
#define VC5_CHECKSUM_H

/* Of a sum of fewer than 2^16 words of 32 bits: it fits 17 bits before the last fold. */
static __always_inline u16 csum_fold(u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
	return (sum & 0xffff) + (sum >> 16);
}

static __always_inline u64 csum_words(const u32 *words, u32 count)
{
	u64 sum = 0;

#pragma unroll
	for (u32 i = 0; i < count; i++)
		sum += words[i];
	return sum;
}

/* The checksum field after `from` has become `to` somewhere in what it covers. */
static __always_inline u16 csum_replace(u16 check, u64 from, u64 to)
{
	return ~csum_fold((u64)(u16)~check + (u16)~csum_fold(from) + to);
}

static __always_inline u16 ipv4_header_csum(const struct iphdr *ip)
{
	return ~csum_fold(csum_words((const u32 *)ip, sizeof(*ip) / 4));
}

#endif
