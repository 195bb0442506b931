/* SPDX-License-Identifier: GPL-2.0-only */
/* linux/icmp.h needs this one constant of it; the real file wants the C library. */
#define IFNAMSIZ 16
