/* SPDX-License-Identifier: GPL-2.0-only */
/* bcc includes it for this one constant. */
#define PAGE_SIZE 4096
