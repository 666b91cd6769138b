"""Makes numbering_plan.rs, regions.tsv and the fixture of example numbers from libphonenumber's metadata.

Run by scripts/phone-numbers/generate, which installs the library.
"""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

try:
    from re import _parser as sre_parse  # Python 3.11 and later
except ImportError:
    import sre_parse

import phonenumbers
from phonenumbers import PhoneMetadata, PhoneNumberType
from phonenumbers.phonenumberutil import COUNTRY_CODE_TO_REGION_CODE

RUST = Path("crates/core/src/user_id/numbering_plan.rs")
REGIONS = Path("crates/core/src/user_id/regions.tsv")
FIXTURE = Path("crates/core/src/user_id/example_numbers.tsv")
VERSION = importlib.metadata.version("phonenumbers")
DIGITS = "0123456789"
# E.164 allows 15 digits in all; the longest trunk prefix in use has 2.
LONGEST = 16


class Pattern:
    """A regular expression over digits as a nondeterministic automaton, which can answer what
    `re` cannot: is there a match of this length that begins so?"""

    def __init__(self, pattern):
        self.edges = []  # (state, digits or None for a free step, state)
        self.states = 0
        start = self.state()
        self.end = self.add(sre_parse.parse(pattern), start)
        self.free, self.steps = {}, {}
        for source, digits, target in self.edges:
            table = self.free if digits is None else self.steps
            table.setdefault(source, []).append(target if digits is None else (digits, target))
        self.start = self.close({start})

    def state(self):
        self.states += 1
        return self.states

    def add(self, items, state):
        for op, value in items:
            state = self.add_one(str(op), value, state)
        return state

    def add_one(self, op, value, state):
        if op == "LITERAL":
            return self.step(state, chr(value))
        if op == "IN":
            return self.step(state, "".join(self.members(value)))
        if op == "SUBPATTERN":
            return self.add(value[-1], state)
        if op == "BRANCH":
            end = self.state()
            for branch in value[1]:
                self.edges.append((self.add(branch, state), None, end))
            return end
        if op == "MAX_REPEAT":
            low, high, items = value
            for _ in range(low):
                state = self.add(items, state)
            end = self.state()
            self.edges.append((state, None, end))
            for _ in range(min(high, LONGEST) - low):
                state = self.add(items, state)
                self.edges.append((state, None, end))
            return end
        if op == "AT" and str(value) == "AT_END":
            return state
        raise ValueError(f"{op} is not expected in a numbering plan")

    @staticmethod
    def members(items):
        for op, value in items:
            if str(op) == "LITERAL":
                yield chr(value)
            elif str(op) == "RANGE":
                yield from map(chr, range(value[0], value[1] + 1))
            elif str(op) == "CATEGORY" and str(value) == "CATEGORY_DIGIT":
                yield from DIGITS
            else:
                raise ValueError(f"{op} is not expected in a class of digits")

    def step(self, state, digits):
        end = self.state()
        self.edges.append((state, digits, end))
        return end

    def close(self, states):
        found, todo = set(states), list(states)
        while todo:
            for target in self.free.get(todo.pop(), []):
                if target not in found:
                    found.add(target)
                    todo.append(target)
        return frozenset(found)

    def after(self, states, digits):
        next_states = set()
        for state in states:
            for accepted, target in self.steps.get(state, []):
                if any(digit in accepted for digit in digits):
                    next_states.add(target)
        return self.close(next_states)

    def matches(self, begin, length):
        """Whether a number of `length` digits matches that begins with `begin`."""
        states = self.start
        for place in range(length):
            states = self.after(states, begin[place] if place < len(begin) else DIGITS)
        return self.end in states


def plans():
    """The metadata of every region, by country code."""
    for code, regions in sorted(COUNTRY_CODE_TO_REGION_CODE.items()):
        yield code, [
            (
                region,
                PhoneMetadata.metadata_for_nongeo_region(code)
                if region == "001"
                else PhoneMetadata.metadata_for_region(region),
            )
            for region in regions
        ]


def trunk_rows():
    """Where a trunk prefix behind a country code cannot be a part of the number itself: the
    digits with it match no plan of that code, and those without it match one."""
    rows = []
    for code, regions in plans():
        prefixes = {plan.national_prefix for _, plan in regions} - {None}
        # Gabon's leading 0 is in its parsing rule alone.
        for _, plan in regions:
            rule = plan.national_prefix_for_parsing or ""
            if plan.national_prefix is None and re.match(r"0\(", rule):
                prefixes.add("0")
        patterns = [Pattern(plan.general_desc.national_number_pattern) for _, plan in regions]
        for prefix in sorted(prefixes):
            for length in range(len(prefix) + 4, LONGEST - len(str(code)) + len(prefix)):
                following = 0
                for pair in range(100):
                    begin = f"{pair:02}"
                    is_own = any(p.matches(prefix + begin, length) for p in patterns)
                    is_stripped = any(p.matches(begin, length - len(prefix)) for p in patterns)
                    if is_stripped and not is_own:
                        following |= 1 << pair
                if following:
                    rows.append((code, prefix, length, following))
    return rows


def codes_with_leading_zero():
    return [
        code
        for code, regions in plans()
        if any(
            Pattern(plan.general_desc.national_number_pattern).matches("0", length)
            for _, plan in regions
            for length in range(4, LONGEST)
        )
    ]


def argentine_areas():
    """The area codes that a domestic mobile 15 may follow, from the rule that replaces it."""
    rule = PhoneMetadata.metadata_for_region("AR").national_prefix_for_parsing
    inner = re.fullmatch(r"0\?\(\?:\((.*)\)15\)\?", rule).group(1)
    areas = Pattern(inner)
    three = [n for n in range(1000) if areas.matches(f"{n:03}", 3)]
    four = [n for n in range(10000) if areas.matches(f"{n:04}", 4)]
    two = [n for n in range(100) if areas.matches(f"{n:02}", 2)]
    assert two == [11], two
    return three, four


def regions():
    """The numbering plan of each region, for reading the numbers that are dialled inside it: for each
    length of a number, the two digits that one may begin with, one bit each."""
    rows = [
        f"# Generated by scripts/phone-numbers/generate from libphonenumber {VERSION}.",
        "# region\tcode\ttrunk\tlength:beginnings",
    ]
    for code, regions in plans():
        for region, plan in regions:
            if region == "001":
                continue
            pattern = Pattern(plan.general_desc.national_number_pattern)
            lengths = []
            for length in range(4, 16 - len(str(code))):
                begin = sum(1 << n for n in range(100) if pattern.matches(f"{n:02}", length))
                if begin:
                    lengths.append(f"{length}:{begin:x}")
            trunk = plan.national_prefix or ""
            rows.append("\t".join([region, str(code), trunk, " ".join(lengths)]))
    return "\n".join(sorted(rows[2:])).join(["\n".join(rows[:2]) + "\n", "\n"])


def rust():
    out = [
        f"// Generated by scripts/phone-numbers/generate from libphonenumber {VERSION}.",
        "",
        "//! What reading a number needs to know of the numbering plans, from libphonenumber's metadata.",
        "",
        "/// A trunk prefix that people leave behind a country code, where it cannot be a digit of the number.",
        "pub(super) struct Trunk {",
        "    /// The country code.",
        "    pub(super) code: u16,",
        "    /// The prefix, as a number.",
        "    pub(super) prefix: u8,",
        "    /// The digits of the prefix.",
        "    pub(super) prefix_len: u8,",
        "    /// The digits behind the country code, the prefix among them.",
        "    pub(super) len: u8,",
        "    /// The two digits behind the prefix for which this holds, one bit each.",
        "    pub(super) following: u128,",
        "}",
        "",
        "const fn trunk(code: u16, prefix: u8, prefix_len: u8, len: u8, following: u128) -> Trunk {",
        "    Trunk { code, prefix, prefix_len, len, following }",
        "}",
        "",
    ]
    rows = trunk_rows()
    out += ["/// Ordered by country code.", f"pub(super) static TRUNKS: [Trunk; {len(rows)}] = ["]
    out += [
        f"    trunk({code}, {int(prefix)}, {len(prefix)}, {length}, 0x{following:_x}),"
        for code, prefix, length, following in rows
    ]
    out += ["];", ""]
    codes = [code for code, _ in plans()]
    two = sum(1 << code for code in codes if 10 <= code < 100)
    out += [
        "/// The country codes of two digits, one bit each; those of one digit are 1 and 7.",
        f"pub(super) const TWO_DIGIT_CODES: u128 = 0x{two:_x};",
        "",
    ]
    assert [code for code in codes if code < 10] == [1, 7]
    zero = codes_with_leading_zero()
    out += [
        "/// The country codes behind which a number may begin with 0.",
        f"pub(super) static LEADING_ZERO: [u16; {len(zero)}] = {zero};",
        "",
    ]
    three, four = argentine_areas()
    out += [
        "/// Argentina's area codes of three digits; 11 is the one of two digits.",
        f"pub(super) static ARGENTINE_AREAS_OF_THREE: [u16; {len(three)}] = {three};",
        "",
        "/// Argentina's area codes of four digits.",
        f"pub(super) static ARGENTINE_AREAS_OF_FOUR: [u16; {len(four)}] = {four};",
    ]
    text = "\n".join(out) + "\n"
    return subprocess.run(
        ["rustfmt", "--edition", "2024", "--config-path", "."],
        input=text, capture_output=True, text=True, check=True,
    ).stdout


def number(text):
    """The digits that the library reads, country code first, or nothing."""
    try:
        parsed = phonenumbers.parse(text, None)
    except phonenumbers.NumberParseException:
        return ""
    return phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164)[1:]


def examples():
    """Each example number of each region: as the library writes it, and behind the region's trunk
    prefix together with what the library then reads."""
    form = phonenumbers.PhoneNumberFormat
    for code, regions in plans():
        for region, plan in regions:
            seen = set()
            for kind in sorted(PhoneNumberType.values()):
                if region == "001":
                    example = phonenumbers.example_number_for_non_geo_entity(code)
                else:
                    example = phonenumbers.example_number_for_type(region, kind)
                if example is None:
                    continue
                digits = phonenumbers.format_number(example, form.E164)[1:]
                if digits in seen:
                    continue
                seen.add(digits)
                own = digits[len(str(code)):]
                trunk = plan.national_prefix or ""
                yield [
                    region,
                    PhoneNumberType.to_string(kind).lower(),
                    str(code),
                    own,
                    trunk,
                    number(f"+{code} {trunk}{own}") if trunk else "",
                    phonenumbers.format_number(example, form.INTERNATIONAL),
                    phonenumbers.format_number(example, form.RFC3966),
                    phonenumbers.format_number(example, form.NATIONAL),
                ]


def fixture():
    rows = [
        f"# Generated by scripts/phone-numbers/generate from libphonenumber {VERSION}.",
        "# region\tkind\tcode\tnumber\ttrunk\tread_with_trunk\tinternational\trfc3966\tnational",
    ]
    rows += ["\t".join(row) for row in examples()]
    return "\n".join(rows) + "\n"


def main():
    files = [(RUST, rust()), (REGIONS, regions()), (FIXTURE, fixture())]
    if sys.argv[1:] == ["--check"]:
        old = [path for path, text in files if path.read_text() != text]
        if old:
            sys.exit(f"not what scripts/phone-numbers/generate writes: {', '.join(map(str, old))}")
        return
    for path, text in files:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        print(f"{path}: {len(text.splitlines())} lines")


main()
