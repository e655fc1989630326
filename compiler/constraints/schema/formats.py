"""Languages of `format` values, and which formats there are."""

from __future__ import annotations

from functools import cache

from ..char_algebra import intersect
from ..char_dfa import CharDfa, from_regex
from ..regex_syntax import parse_regex

_MONTH_DAY = (
    r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))"
)
_LEAP_YEAR = r"(?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
# RFC 3339, without the year 0000: neither `datetime` nor validators in Python take it.
_YEAR = r"(?:[1-9]\d{3}|\d[1-9]\d{2}|\d{2}[1-9]\d|\d{3}[1-9])"
_DATE = rf"(?:{_YEAR}-{_MONTH_DAY}|{_LEAP_YEAR}-02-29)"
_CLOCK = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d+)?"
_ZONE = r"(?:[Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
_DURATION_TIME = r"T(?:\d+H(?:\d+M(?:\d+S)?)?|\d+M(?:\d+S)?|\d+S)"
_DURATION_DATE = r"(?:\d+Y(?:\d+M(?:\d+D)?)?|\d+M(?:\d+D)?|\d+D)"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = rf"{_OCTET}(?:\.{_OCTET}){{3}}"
_H16 = r"[0-9A-Fa-f]{1,4}"
_LS32 = rf"(?:{_H16}:{_H16}|{_IPV4})"
_IPV6 = "|".join(
    [
        rf"(?:{_H16}:){{6}}{_LS32}",
        rf"::(?:{_H16}:){{5}}{_LS32}",
        *(
            rf"(?:{_H16}(?::{_H16}){{0,{i}}})?::" + (rf"(?:{_H16}:){{{4 - i}}}" if i < 4 else "") + _LS32
            for i in range(5)
        ),
        rf"(?:{_H16}(?::{_H16}){{0,5}})?::{_H16}",
        rf"(?:{_H16}(?::{_H16}){{0,6}})?::",
    ]
)
# RFC 3986, appendix A.
_PCT = r"%[0-9A-Fa-f]{2}"
_UNRESERVED, _SUB = r"A-Za-z0-9._~\-", r"!$&'()*+,;="
_PCHAR = rf"(?:[{_UNRESERVED}{_SUB}:@]|{_PCT})"
_IP_LITERAL = rf"\[(?:{_IPV6}|[Vv][0-9A-Fa-f]+\.[{_UNRESERVED}{_SUB}:]+)\]"


def _uri_parts(unreserved: str, private: str) -> tuple[str, str]:
    """(what follows the scheme's colon, relative part), query and fragment included; RFC 3987 adds characters."""
    pchar = rf"(?:[{unreserved}{_SUB}:@]|{_PCT})"
    userinfo = rf"(?:(?:[{unreserved}{_SUB}:]|{_PCT})*@)?"
    host = rf"(?:{_IP_LITERAL}|(?:[{unreserved}{_SUB}]|{_PCT})*)"
    authority = rf"//{userinfo}{host}(?::\d*)?(?:/{pchar}*)*"
    absolute = rf"/(?:{pchar}+(?:/{pchar}*)*)?"
    rootless = rf"{pchar}+(?:/{pchar}*)*"
    no_scheme = rf"(?:[{unreserved}{_SUB}@]|{_PCT})+(?:/{pchar}*)*"
    tail = rf"(?:\?(?:{pchar}|[/?{private}])*)?(?:#(?:{pchar}|[/?])*)?"
    return rf"(?:{authority}|{absolute}|{rootless}|){tail}", rf"(?:{authority}|{absolute}|{no_scheme}|){tail}"


_URI_REST, _RELATIVE = _uri_parts(_UNRESERVED, "")
_UCS = (
    r"\u00A0-\uD7FF\uF900-\uFDCF\uFDF0-\uFFEF\U00010000-\U0001FFFD\U00020000-\U0002FFFD\U00030000-\U0003FFFD"
    r"\U000E1000-\U000EFFFD"
)
_IRI_REST, _IRI_RELATIVE = _uri_parts(_UNRESERVED + _UCS, r"\uE000-\uF8FF\U000F0000-\U000FFFFD")
_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*:"
_TEMPLATE_VAR = rf"(?:[A-Za-z0-9_]|{_PCT})(?:\.?(?:[A-Za-z0-9_]|{_PCT}))*"
_TEMPLATE_SPEC = rf"{_TEMPLATE_VAR}(?::[1-9]\d{{0,3}}|\*)?"

_PATTERNS = {
    "date": _DATE,
    "time": rf"{_CLOCK}{_ZONE}",
    "date-time": rf"{_DATE}[Tt]{_CLOCK}{_ZONE}",
    "duration": rf"P(?:{_DURATION_DATE}(?:{_DURATION_TIME})?|{_DURATION_TIME}|\d+W)",
    "email": rf"{_ATEXT}(?:\.{_ATEXT})*@{_LABEL}(?:\.{_LABEL})*",
    "hostname": rf"{_LABEL}(?:\.{_LABEL})*",
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "uuid": r"[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}",
    "uri": rf"{_SCHEME}{_URI_REST}",
    "uri-reference": rf"{_SCHEME}{_URI_REST}|{_RELATIVE}",
    "iri": rf"{_SCHEME}{_IRI_REST}",
    "iri-reference": rf"{_SCHEME}{_IRI_REST}|{_IRI_RELATIVE}",
    "uri-template": rf"(?:[^\x00-\x20\x7f\"'%<>\\^`{{|}}]|{_PCT}"
    rf"|\{{[+#./;?&=,!@|]?{_TEMPLATE_SPEC}(?:,{_TEMPLATE_SPEC})*\}})*",
    "json-pointer": r"(?:/(?:[^~/]|~[01])*)*",
    "relative-json-pointer": r"(?:0|[1-9]\d*)(?:#|(?:/(?:[^~/]|~[01])*)*)",
}
FORMATS = frozenset(_PATTERNS)
# Total length where the specification bounds it (RFC 1123 for host names).
_LENGTHS = {"hostname": r".{1,253}"}


@cache
def format_language(name: str) -> CharDfa | None:
    """The strings of a format; None for one that is not known (then it is a note, as the specification says)."""
    pattern = _PATTERNS.get(name)
    if pattern is None:
        return None
    language = from_regex(parse_regex(f"(?a)(?s:{pattern})"))
    bound = _LENGTHS.get(name)
    return language if bound is None else intersect(language, from_regex(parse_regex(bound)))
