"""The DNS codec against scapy's, and against messages that nobody should send."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest
from scapy.layers.dns import DNS, DNSQR, DNSRR, DNSRRMX, DNSRRSOA, DNSRRSRV, dns_compress

from vc5py.checks.dns_message import MAX_ANSWERS, RCODES, RECORDS, Response, canonical, parse_response, query
from vc5py.checks.result import ProbeFailure, Reason

NAME = "www.example.com"
MAIL = DNSRRMX(rrname=NAME, preference=10, exchange="Mail.Example.com.")
SOA = DNSRRSOA(
    rrname=NAME,
    mname="ns.example.com.",
    rname="me.example.com.",
    serial=2**32 - 1,
    refresh=2,
    retry=3,
    expire=4,
    minimum=5,
)
SRV = DNSRRSRV(rrname=NAME, priority=1, weight=2, port=443, target="a.example.com.")


def response(record: str, *answers: Any, **fields: Any) -> bytes:
    """As a server would send it, names compressed."""
    settings = {
        "id": 7,
        "qr": 1,
        "rd": 1,
        "ra": 1,
        "qd": [DNSQR(qname=NAME, qtype=record)],
        "an": list(answers),
    }
    return bytes(dns_compress(DNS(**{**settings, **fields})))


def parse(message: bytes, record: str = "A", name: str = NAME) -> Response:
    return parse_response(message, 7, name, record)


def refusal(message: bytes, record: str = "A", name: str = NAME) -> Reason:
    with pytest.raises(ProbeFailure) as caught:
        parse(message, record, name)
    assert caught.value.detail.isprintable()
    return caught.value.reason


# --- questions ---


@pytest.mark.parametrize("record", list(RECORDS))
@pytest.mark.parametrize(
    "name", [".", "example", "www.example.com", "www.example.com.", "_sip._tcp.Example.org"]
)
def test_the_question_as_another_reads_it(record: str, name: str) -> None:
    read = DNS(query(0xBEEF, name, record))
    assert (read.id, read.qr, read.opcode, read.rd, read.qdcount, read.ancount) == (0xBEEF, 0, 0, 1, 1, 0)
    assert read.qd[0].qname.decode() == name.rstrip(".") + "."
    assert (read.qd[0].sprintf("%qtype%"), read.qd[0].qclass) == (record, 1)
    assert bytes(read) == query(0xBEEF, name, record)


# --- answers ---


def plain(record: str, data: Any) -> DNSRR:
    return DNSRR(rrname=NAME, type=record, rdata=data, ttl=60)


@pytest.mark.parametrize(
    ("record", "answer", "text", "said"),
    [
        ("A", plain("A", "192.0.2.1"), "192.0.2.1", "192.0.2.1"),
        ("AAAA", plain("AAAA", "2001:db8::1"), "2001:db8::1", "2001:DB8:0::01"),
        ("NS", plain("NS", "ns.example.com."), "ns.example.com.", "NS.example.com"),
        ("CNAME", plain("CNAME", "a.example.com."), "a.example.com.", "a.example.com."),
        ("PTR", plain("PTR", "host-1.example.com."), "host-1.example.com.", "host-1.example.com"),
        ("MX", MAIL, "10 mail.example.com.", "10  Mail.example.com"),
        (
            "SOA",
            SOA,
            "ns.example.com. me.example.com. 4294967295 2 3 4 5",
            "ns.example.com me.example.com 4294967295 2 3 4 5",
        ),
        ("SRV", SRV, "1 2 443 a.example.com.", "1 2 443 a.example.com"),
        ("TXT", plain("TXT", [b"v=spf1 ", b"-all"]), "v=spf1 -all", '"v=spf1 " "-all"'),
        ("TXT", plain("TXT", [b'say "hi" \\']), 'say "hi" \\', r'"say \"hi\" \\"'),
    ],
)
def test_every_record_in_presentation_form(record: str, answer: Any, text: str, said: str) -> None:
    assert parse(response(record, answer), record) == Response("noerror", False, (text,))
    assert canonical(record, said) == text
    assert canonical(record, text) == text


def test_answers_of_other_types_and_classes_are_passed_over() -> None:
    alias = DNSRR(rrname=NAME, type="CNAME", rdata="a.example.com.")
    chaos = DNSRR(rrname=NAME, type="A", rclass=3, rdata="192.0.2.9")
    end = DNSRR(rrname="a.example.com.", type="A", rdata="192.0.2.1")
    message = response("A", alias, chaos, end, plain("A", "192.0.2.2"))
    assert parse(message).answers == ("192.0.2.1", "192.0.2.2")


@pytest.mark.parametrize("number", range(16))
def test_rcodes(number: int) -> None:
    name = RCODES[number] if number < len(RCODES) else f"rcode{number}"
    assert parse(response("A", rcode=number)) == Response(name, False, ())


def test_case_of_the_question_does_not_matter() -> None:
    assert parse(response("A", qd=[DNSQR(qname="WWW.example.COM", qtype="A")])).rcode == "noerror"


def test_who_refuses_may_leave_the_question_out() -> None:
    refused = struct.pack("!HHHHHH", 7, 0x8005, 0, 0, 0, 0)
    assert parse(refused) == Response("refused", False, ())
    assert refusal(struct.pack("!HHHHHH", 7, 0x8000, 0, 0, 0, 0)) is Reason.WRONG_DNS_QUESTION


def test_truncation_may_cut_answers_off_that_are_counted() -> None:
    whole = response("A", plain("A", "192.0.2.1"), plain("A", "192.0.2.2"), tc=1)
    assert parse(whole) == Response("noerror", True, ("192.0.2.1", "192.0.2.2"))
    assert parse(whole[:-16]) == Response("noerror", True, ("192.0.2.1",))


def test_odd_names_are_printable() -> None:
    odd = b"\x03a.b\x02\x00\xff\x00"
    message = response("NS")[:6] + b"\0\1\0\0\0\0" + response("NS")[12:]
    message += b"\xc0\x0c" + struct.pack("!HHIH", 2, 1, 0, len(odd)) + odd
    assert parse(message, "NS").answers == (r"a\.b.\000\255.",)


# --- what isn't an answer ---


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"", Reason.BAD_DNS_MESSAGE),
        (b"\0" * 11, Reason.BAD_DNS_MESSAGE),
        (response("A", id=8), Reason.WRONG_DNS_ID),
        (response("A", qr=0), Reason.BAD_DNS_MESSAGE),
        (response("A", opcode=4), Reason.BAD_DNS_MESSAGE),
        (response("AAAA"), Reason.WRONG_DNS_QUESTION),
        (response("A", qd=[DNSQR(qname="example.com", qtype="A")]), Reason.WRONG_DNS_QUESTION),
        (response("A", qd=[DNSQR(qname=NAME), DNSQR(qname=NAME)]), Reason.WRONG_DNS_QUESTION),
        (response("A", plain("A", "192.0.2.1"))[:-1], Reason.BAD_DNS_MESSAGE),
        (response("A", plain("A", "192.0.2.1"))[:-16], Reason.BAD_DNS_MESSAGE),
    ],
)
def test_refusals(message: bytes, reason: Reason) -> None:
    assert refusal(message) is reason


HEAD = struct.pack("!HHHHHH", 7, 0x8180, 1, 1, 0, 0) + query(7, NAME, "A")[12:]


def record_of(type_: int, data: bytes, name: bytes = b"\xc0\x0c") -> bytes:
    return name + struct.pack("!HHIH", type_, 1, 60, len(data)) + data


@pytest.mark.parametrize(
    "answer",
    [
        record_of(1, b"\1\2\3"),
        record_of(1, b"\1\2\3\4", name=b"\xc0"),
        record_of(1, b"\1\2\3\4", name=b"\x41" + b"a" * 65 + b"\0"),
        b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, 5) + b"\1\2\3\4",
        b"\xc0\x0c\0\1\0",
        b"\x03www",
    ],
    ids=["short", "pointer", "label", "length", "cut", "cut name"],
)
def test_a_bad_record(answer: bytes) -> None:
    assert refusal(HEAD + answer) is Reason.BAD_DNS_MESSAGE


@pytest.mark.parametrize(
    ("record", "data"),
    [
        ("MX", b"\0"),
        ("MX", b"\0\1\1a\0\0"),
        ("NS", b""),
        ("NS", b"\1a"),
        ("NS", b"\xc0"),
        ("NS", b"\xc0" + bytes([len(HEAD) + 12])),
        ("NS", b"\xff\xff"),
        ("NS", b"\x41" + b"a" * 65 + b"\0"),
        ("NS", (b"\x3f" + b"a" * 63) * 4 + b"\0"),
        ("TXT", b"\5abc"),
        ("SRV", b"\0\1\0\1"),
        ("SOA", b"\0\0" + bytes(19)),
        ("AAAA", bytes(15)),
    ],
)
def test_bad_data_of_a_record(record: str, data: bytes) -> None:
    head = struct.pack("!HHHHHH", 7, 0x8180, 1, 1, 0, 0) + query(7, NAME, record)[12:]
    assert refusal(head + record_of(RECORDS[record], data), record) is Reason.BAD_DNS_MESSAGE


def test_a_chain_of_pointers_ends() -> None:
    hops = b"".join(
        struct.pack("!H", 0xC000 | 12 if not n else 0xC000 | len(HEAD) + 12 + 2 * (n - 1)) for n in range(20)
    )
    head = struct.pack("!HHHHHH", 7, 0x8180, 1, 1, 0, 0) + query(7, NAME, "NS")[12:]
    for depth, good in ((16, True), (17, False)):
        chain = hops[
            : 2 * (depth - 1)
        ]  # a TXT's data that nobody reads, then a pointer to its last two bytes
        message = head[:6] + b"\0\2" + head[8:] + record_of(16, chain)
        message += record_of(2, struct.pack("!H", 0xC000 | len(head) + 12 + len(chain) - 2))
        if good:
            assert parse(message, "NS").answers == ("www.example.com.",)
        else:
            assert refusal(message, "NS") is Reason.BAD_DNS_MESSAGE


def test_no_more_answers_are_looked_at_than_the_limit() -> None:
    head = struct.pack("!HHHHHH", 7, 0x8180, 1, 60_000, 0, 0) + query(7, NAME, "A")[12:]
    message = head + b"".join(record_of(1, struct.pack("!I", n)) for n in range(4000))
    assert parse(message).answers[-1] == "0.0.0.63"
    assert len(parse(message).answers) == MAX_ANSWERS == 64


def test_mutated_messages_give_a_response_or_a_reason() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    originals = {
        "A": response("A", plain("CNAME", "a.example.com."), plain("A", "192.0.2.1")),
        "MX": response("MX", MAIL, MAIL),
        "SOA": response("SOA", SOA),
        "SRV": response("SRV", SRV),
        "TXT": response("TXT", plain("TXT", [b"a", b"b"])),
    }
    allowed = {Reason.BAD_DNS_MESSAGE, Reason.WRONG_DNS_ID, Reason.WRONG_DNS_QUESTION}
    outcomes = {"answers": 0, "refusals": 0}
    for _ in range(30_000):
        record, original = rng.choice(list(originals.items()))
        message = bytearray(original)
        for _ in range(rng.randrange(1, 4)):
            place = rng.randrange(2, len(message))
            match rng.randrange(3):
                case 0:
                    message[place] = rng.choice((0, 1, 63, 64, 0xC0, 0xFF, rng.randrange(256)))
                case 1:
                    del message[place:]
                case _:
                    message[place:place] = rng.randbytes(rng.randrange(4))
            if len(message) < 4:
                break
        try:
            answers = parse(bytes(message), record).answers
        except ProbeFailure as failure:
            assert failure.reason in allowed
            outcomes["refusals"] += 1
        else:
            assert all(len(answer) <= 4 * 65_535 for answer in answers)
            outcomes["answers"] += 1
    assert min(outcomes.values()) > 1000
