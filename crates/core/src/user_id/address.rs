//! The parts of an id that name a channel and not a person: prefixes, links, gateways' domains.

use super::notation::{self, Sign};
use super::refusal::Refusal;

/// Prefixes that stand before a number, in any case: what channels, gateways and lead forms write.
/// A link's are below.
const PREFIXES: [&str; 8] =
    ["whatsapp:", "tel:", "sms:", "smsto:", "mms:", "rcs:", "callto:", "p:"];

/// Links that hold a number, longest first where one begins another.
const LINKS: [&str; 9] = [
    "https://api.whatsapp.com/send/?phone=",
    "https://api.whatsapp.com/send?phone=",
    "https://web.whatsapp.com/send?phone=",
    "whatsapp://send/?phone=",
    "whatsapp://send?phone=",
    "https://wa.me/",
    "http://wa.me/",
    "wa.me/",
    "//wa.me/",
];

/// The domains of gateways' addresses of a person with a number.
const NUMBER_DOMAINS: [&str; 3] = ["s.whatsapp.net", "c.us", "hosted"];
/// The domains of people whose number is hidden.
const LID_DOMAINS: [&str; 2] = ["lid", "hosted.lid"];
/// The domains of what is no person.
const GROUP_DOMAINS: [&str; 4] = ["g.us", "broadcast", "newsletter", "call"];

/// The part of an id without white space at its ends that names a person and no channel.
pub(super) fn body(id: &str) -> Result<&str, Refusal> {
    if let Some(rest) = without_any(id, &LINKS) {
        return number_of_link(rest);
    }
    let mut body = id;
    if let Some(rest) = without_any(id, &PREFIXES) {
        body = notation::trim(rest);
        // A text may follow the number: RFC 5724.
        if let Some((number, _)) = body.split_once('?') {
            body = number;
        }
    }
    match body.split_once('@') {
        Some((user, domain)) => number_of_gateway(body, user, domain),
        None => Ok(body),
    }
}

/// The number of a link ends where the link's path or parameter does.
fn number_of_link(rest: &str) -> Result<&str, Refusal> {
    let end = rest.find(['?', '&', '/', '#']).unwrap_or(rest.len());
    let number = rest.get(..end).unwrap_or_default();
    // A + of a parameter is written so.
    let number = number.strip_prefix("%2B").or(number.strip_prefix("%2b")).unwrap_or(number);
    let is_number = number.bytes().any(|byte| byte.is_ascii_digit())
        && number.chars().all(|c| !matches!(notation::sign(c), Sign::Letter | Sign::Other));
    if is_number { Ok(number) } else { Err(Refusal::LinkWithoutNumber) }
}

/// `user[.agent][:device]@domain`, as gateways write the accounts and devices of a person.
fn number_of_gateway<'a>(body: &'a str, user: &'a str, domain: &str) -> Result<&'a str, Refusal> {
    let is_of = |domains: &[&str]| domains.iter().any(|of| domain.eq_ignore_ascii_case(of));
    if is_of(&LID_DOMAINS) {
        return Err(Refusal::LidAddress);
    }
    if is_of(&GROUP_DOMAINS) {
        return Err(Refusal::GroupAddress);
    }
    if !is_of(&NUMBER_DOMAINS) {
        return Ok(body);
    }
    let (user, parts) = match user.find(['.', '_', ':']) {
        Some(end) => user.split_at_checked(end).unwrap_or_default(),
        None => (user, ""),
    };
    let is_number = user.strip_prefix('+').unwrap_or(user).bytes().all(|b| b.is_ascii_digit())
        && parts.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'_' | b':'));
    if is_number && !user.is_empty() { Ok(user) } else { Err(Refusal::UnreadableAddress) }
}

/// The text behind whichever of these it begins with, in any case.
fn without_any<'a>(text: &'a str, prefixes: &[&str]) -> Option<&'a str> {
    prefixes.iter().find_map(|prefix| {
        let (start, rest) = text.split_at_checked(prefix.len())?;
        start.eq_ignore_ascii_case(prefix).then_some(rest)
    })
}
