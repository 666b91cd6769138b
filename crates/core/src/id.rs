//! User ids and their notations, business ids, and the key of a pair.
//!
//! An id is read by one of two rules. `parse` is for asking and recording: it reads a user id in
//! any notation ([`user_id`]), and refuses an id with a [hidden](hidden_chars) character, so that two ids that look
//! alike are never two people.
//! `recorded` is for ids that are in a ledger already, and for erasing and showing what was recorded
//! under them: versions before took such ids, and their records keep their keys.

use std::fmt;

use siphasher::sip128::SipHasher24;

use super::template::{self, Subject, TemplateId};
use super::user_id::{self, MAX_USER_ID_BYTES, Reading};
use super::{Violation, hidden_chars};

mod key;

pub use self::key::{BusinessTag, Key, Spread};

/// The longest business id, in bytes of UTF-8.
pub const MAX_BUSINESS_ID_BYTES: usize = 128;

/// The version of the keys of new ledgers: which notations of a user's id have one key, and what a key says.
///
/// Version 1 is the reading of [`user_id::read_formerly`], and version 2 that of [`user_id::read`]. Version 3
/// is the same reading; a key then names its business by a [`BusinessTag`]. In version 4 it also has the
/// [`Spread`] of its user, so that it says in which partition of a ledger its pair is. A ledger says by which
/// version its keys were derived: derived by another one, a person would be several.
pub const KEY_VERSION: u32 = 4;

/// The oldest version of keys that is served: that of the reading of today.
pub const OLDEST_KEY_VERSION: u32 = 2;

/// The first version whose keys name their business.
pub const TAGGED_KEY_VERSION: u32 = 3;

/// The first version whose keys have the spread of their user.
pub const SPREAD_KEY_VERSION: u32 = 4;

/// A user's id, as the rules read it.
///
/// Versions before read some notations otherwise, such as `+44 (0)7700 900123` with the 0, or
/// `whatsapp:+15550123456` as an opaque id. What they recorded has the key of that reading, so that
/// the id has both.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct UserId<'a> {
    reading: Reading<'a>,
    former: Option<Reading<'a>>,
}

impl<'a> UserId<'a> {
    /// Reads a user id: see [`user_id::read`].
    ///
    /// # Errors
    ///
    /// A [`Violation`] of `user_id`, with what was wrong and what would be right.
    #[inline]
    pub fn parse(id: &'a str) -> Result<Self, Violation> {
        match user_id::read_both(id) {
            Ok((reading, former)) => Ok(Self { reading, former }),
            Err(refusal) => Err(Violation::new("user_id", refusal.to_string())),
        }
    }

    /// Reads a user id that is in a ledger already: as [`parse`](Self::parse) does, and what that
    /// refuses as versions before read it. The ids of [templates](template) are read, too.
    ///
    /// # Errors
    ///
    /// As for [`parse`](Self::parse), for ids that no version took.
    pub fn recorded(id: &'a str) -> Result<Self, Violation> {
        Self::parse(id).or_else(|violation| {
            if Subject::of(id) != Subject::Person {
                return Ok(Self { reading: Reading::Opaque(id), former: None });
            }
            let reading = user_id::read_formerly(id).ok_or(violation)?;
            Ok(Self { reading, former: None })
        })
    }

    /// The spread of its keys: see [`Layout::partition_at`](super::partition::Layout::partition_at).
    #[inline]
    #[must_use]
    pub fn spread(&self) -> Spread {
        spread_of(&self.reading)
    }

    /// The spread of its [former](KeySecret::former_key) keys, if versions before read it otherwise.
    #[inline]
    #[must_use]
    pub fn former_spread(&self) -> Option<Spread> {
        self.former.as_ref().map(spread_of)
    }

    /// Whether it is a phone number.
    #[must_use]
    pub fn is_phone(&self) -> bool {
        matches!(self.reading, Reading::Phone(_))
    }

    /// Whether it is a phone number that begins with these digits, which are `len` many.
    #[inline]
    pub(crate) fn has_prefix(&self, digits: u64, len: usize) -> bool {
        matches!(self.reading, Reading::Phone(number) if number.has_prefix(digits, len))
    }

    /// Whether it is a business-scoped id, or the parent's, of a user in this country.
    #[inline]
    pub(crate) fn is_scoped_in(&self, country: [u8; 2]) -> bool {
        matches!(self.reading, Reading::Opaque(id)
            if id.as_bytes().strip_prefix(&country).is_some_and(|rest| rest.starts_with(b".")))
    }
}

#[inline]
fn spread_of(user: &Reading<'_>) -> Spread {
    match user {
        Reading::Phone(number) => Spread::of_number(number.value(), number.len()),
        Reading::Opaque(user) => match Subject::of(user) {
            Subject::Person => Spread::of_opaque(user),
            Subject::Template | Subject::Account => Spread::FIRST,
        },
    }
}

fn check_length(field: &str, id: &str) -> Result<(), Violation> {
    let why = match id.len() {
        0 => "required: 1 to 128 bytes of UTF-8",
        1..=MAX_BUSINESS_ID_BYTES => return Ok(()),
        _ => "longer than 128 bytes of UTF-8",
    };
    Err(Violation::new(field, why))
}

/// Refuses an id that looks like another one.
fn check_plain(field: &str, id: &str) -> Result<(), Violation> {
    check_length(field, id)?;
    match hidden_chars::find(id) {
        None => Ok(()),
        Some(hidden) => Err(Violation::new(field, hidden.to_string())),
    }
}

/// Refuses what every version refused.
fn check_recorded(field: &str, id: &str) -> Result<(), Violation> {
    if id.chars().any(user_id::was_never_taken) {
        check_plain(field, id)
    } else {
        check_length(field, id)
    }
}

/// A business's id, by the deployment's own naming; opaque and case-sensitive.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BusinessId<'a> {
    id: &'a str,
    /// Computed here, so that a batch about one business computes it once.
    tag: BusinessTag,
}

impl<'a> BusinessId<'a> {
    fn new(id: &'a str) -> Self {
        Self { id, tag: BusinessTag::of(id) }
    }

    /// The id.
    #[must_use]
    pub fn as_str(&self) -> &'a str {
        self.id
    }

    /// The tag by which keys name the business.
    #[must_use]
    pub fn tag(&self) -> BusinessTag {
        self.tag
    }

    /// Parses a business id.
    ///
    /// # Errors
    ///
    /// A [`Violation`] of `business_id` where the id is empty, longer than [`MAX_BUSINESS_ID_BYTES`], or
    /// holds a [hidden](hidden_chars) character, which is named.
    pub fn parse(id: &'a str) -> Result<Self, Violation> {
        check_plain("business_id", id)?;
        Ok(Self::new(id))
    }

    /// Parses a business id that is in a ledger already: see [`UserId::recorded`].
    ///
    /// # Errors
    ///
    /// As for [`parse`](Self::parse), except for the hidden characters that older versions accepted.
    pub fn recorded(id: &'a str) -> Result<Self, Violation> {
        check_recorded("business_id", id)?;
        Ok(Self::new(id))
    }
}

/// The longest `phone_number_id`, in bytes of UTF-8. Meta's have about 15 digits.
pub const MAX_PHONE_NUMBER_ID_BYTES: usize = 64;

/// The id that Meta gives to one of a business's phone numbers, `phone_number_id`. It is opaque, and is
/// not the number.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PhoneNumberId(Box<str>);

impl PhoneNumberId {
    /// Parses the id of a business's number.
    ///
    /// # Errors
    ///
    /// A [`Violation`] of `phone_number_id` where it is empty, longer than [`MAX_PHONE_NUMBER_ID_BYTES`],
    /// or holds a [hidden](hidden_chars) character, which is named.
    pub fn parse(id: &str) -> Result<Self, Violation> {
        let wrong = |why: String| Err(Violation::new("phone_number_id", why));
        if !(1..=MAX_PHONE_NUMBER_ID_BYTES).contains(&id.len()) {
            return wrong("must be 1 to 64 bytes of UTF-8, such as 106540352242922".to_owned());
        }
        match hidden_chars::find(id) {
            None => Ok(Self(id.into())),
            Some(hidden) => wrong(hidden.to_string()),
        }
    }

    /// The id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PhoneNumberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The secret with which a ledger's keys are hashed.
#[derive(Clone)]
pub struct KeySecret {
    hasher: SipHasher24,
    /// Whether the keys name their business.
    is_tagged: bool,
    /// Whether they have the spread of their user.
    is_spread: bool,
}

impl fmt::Debug for KeySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeySecret(…)")
    }
}

/// A key's input: a tag, the user, a separator where the user may be of any length, the business.
const KEY_INPUT_BYTES: usize = MAX_USER_ID_BYTES + MAX_BUSINESS_ID_BYTES + 2;
/// The same of a template, whose name is longer than any other id.
const TEMPLATE_KEY_INPUT_BYTES: usize = template::PREFIX.len()
    + template::MAX_NAME_BYTES
    + template::MAX_LANGUAGE_BYTES
    + MAX_BUSINESS_ID_BYTES
    + 4;
/// The same of a phone number or a usual id at a business whose id is as long as most are.
const SHORT_KEY_INPUT_BYTES: usize = 64;

impl KeySecret {
    /// The hasher with this secret, for keys of today's version.
    #[must_use]
    pub fn new(secret: &[u8; 16]) -> Self {
        Self::of_version(secret, KEY_VERSION)
    }

    /// The hasher with this secret, for keys of this [version](KEY_VERSION).
    #[must_use]
    pub fn of_version(secret: &[u8; 16], version: u32) -> Self {
        let hasher = SipHasher24::new_with_key(secret);
        let (is_tagged, is_spread) = (version >= TAGGED_KEY_VERSION, version >= SPREAD_KEY_VERSION);
        Self { hasher, is_tagged, is_spread }
    }

    /// Whether the keys name their business.
    #[must_use]
    pub fn is_tagged(&self) -> bool {
        self.is_tagged
    }

    /// The key of a pair, the same for every notation of one phone line.
    #[must_use]
    pub fn key(&self, user: &UserId<'_>, business: BusinessId<'_>) -> Key {
        self.key_of_reading(&user.reading, business)
    }

    /// The key under which versions before recorded the pair, if they read the id otherwise.
    #[inline]
    #[must_use]
    pub fn former_key(&self, user: &UserId<'_>, business: BusinessId<'_>) -> Option<Key> {
        user.former.map(|former| self.key_of_reading(&former, business))
    }

    fn key_of_reading(&self, user: &Reading<'_>, business: BusinessId<'_>) -> Key {
        let BusinessId { id, tag } = business;
        let spread = || spread_of(user);
        match user {
            Reading::Phone(number) => {
                let len = u8::try_from(number.len()).unwrap_or(u8::MAX);
                let parts: [&[u8]; 3] =
                    [&[b'p', len], &number.value().to_be_bytes(), id.as_bytes()];
                self.key_of(tag, spread, &parts)
            }
            // Ids hold no control characters, so NUL parts them without doubt.
            Reading::Opaque(user) => {
                self.key_of(tag, spread, &[b"o", user.as_bytes(), b"\0", id.as_bytes()])
            }
        }
    }

    /// The key that the pair with this key would have if its names had been gone when the ledger was
    /// re-keyed: its business and its user's spread are not known then. `None` if this is such a key, or in a
    /// ledger whose keys name no business.
    #[must_use]
    pub fn nameless(&self, key: Key) -> Option<Key> {
        (self.is_tagged && key.tag() != BusinessTag::NAMELESS)
            .then(|| self.placed(key, BusinessTag::NAMELESS, || Spread::FIRST))
    }

    /// The key with this tag and spread, as far as keys of this version have them.
    fn placed(&self, key: Key, tag: BusinessTag, spread: impl FnOnce() -> Spread) -> Key {
        let key = if self.is_tagged { key.with_tag(tag) } else { key };
        if self.is_spread { key.with_spread(spread()) } else { key }
    }

    fn key_of(&self, tag: BusinessTag, spread: impl FnOnce() -> Spread, parts: &[&[u8]]) -> Key {
        let len = parts.iter().fold(0_usize, |len, part| len.saturating_add(part.len()));
        // Nearly all inputs are short, and zeroing the longest buffer takes as long as hashing one.
        let (mut short, mut long, mut of_template, mut longest);
        let input: &mut [u8] = if len <= SHORT_KEY_INPUT_BYTES {
            short = [0_u8; SHORT_KEY_INPUT_BYTES];
            &mut short
        } else if len <= KEY_INPUT_BYTES {
            long = [0_u8; KEY_INPUT_BYTES];
            &mut long
        } else if len <= TEMPLATE_KEY_INPUT_BYTES {
            of_template = [0_u8; TEMPLATE_KEY_INPUT_BYTES];
            &mut of_template
        } else {
            longest = vec![0_u8; len];
            &mut longest
        };
        let len = join(input, parts);
        let hash = self.hasher.hash(input.get(..len).unwrap_or_default());
        self.placed(Key::from_halves((hash.h1, hash.h2)), tag, spread)
    }

    /// Parses a user and a business of a request, and returns the key of their pair.
    ///
    /// # Errors
    ///
    /// The [`Violation`]s of both ids.
    pub fn parse(&self, user_id: &str, business_id: &str) -> Result<Key, Vec<Violation>> {
        self.key_of_both(UserId::parse(user_id), BusinessId::parse(business_id))
    }

    /// The key of a template at a business, in whose record its category is kept.
    #[must_use]
    pub fn template_key(&self, template: &TemplateId<'_>, business: BusinessId<'_>) -> Key {
        let parts: [&[u8]; 7] = [
            b"o",
            template::PREFIX.as_bytes(),
            template.name().as_bytes(),
            b":",
            template.language().as_bytes(),
            b"\0",
            business.id.as_bytes(),
        ];
        self.key_of(business.tag, || Spread::FIRST, &parts)
    }

    /// The key of the account of a business, in whose record it is kept whether WhatsApp restricts it.
    #[must_use]
    pub fn account_key(&self, business: BusinessId<'_>) -> Key {
        self.key_of_reading(&Reading::Opaque(template::ACCOUNT), business)
    }

    /// Parses the ids of an event about this kind of subject, and returns the key of their pair.
    ///
    /// # Errors
    ///
    /// The [`Violation`]s of both ids.
    pub fn parse_subject(
        &self,
        subject: Subject,
        user_id: &str,
        business_id: &str,
    ) -> Result<Key, Vec<Violation>> {
        let user = match subject {
            Subject::Person => UserId::parse(user_id),
            subject if Subject::of(user_id) == subject => UserId::recorded(user_id),
            Subject::Account => Err(Violation::new(
                "user_id",
                "must be template:*, which stands for all templates of the business",
            )),
            Subject::Template => {
                Err(Violation::new("user_id", "must name a template: template:NAME:LANGUAGE"))
            }
        };
        self.key_of_both(user, BusinessId::parse(business_id))
    }

    /// Parses a user and a business that are in a ledger, and returns the key of their pair: see
    /// [`UserId::recorded`].
    ///
    /// # Errors
    ///
    /// The [`Violation`]s of both ids.
    pub fn read(&self, user_id: &str, business_id: &str) -> Result<Key, Vec<Violation>> {
        self.key_of_both(UserId::recorded(user_id), BusinessId::recorded(business_id))
    }

    /// The key under which versions before recorded what was said under this id, if they read the id
    /// otherwise than [`read`](Self::read) does.
    #[must_use]
    pub fn read_formerly(&self, user_id: &str, business_id: &str) -> Option<Key> {
        let (user, business) = (UserId::recorded(user_id), BusinessId::recorded(business_id));
        self.former_key(&user.ok()?, business.ok()?)
    }

    /// The key of a pair that is in a ledger already, by the reading of today; `None` if the user's id is
    /// refused today.
    #[must_use]
    pub fn key_today(&self, user_id: &str, business_id: &str) -> Option<Key> {
        let user = match Subject::of(user_id) {
            Subject::Person => UserId::parse(user_id),
            Subject::Template | Subject::Account => UserId::recorded(user_id),
        };
        Some(self.key(&user.ok()?, BusinessId::recorded(business_id).ok()?))
    }

    fn key_of_both(
        &self,
        user: Result<UserId<'_>, Violation>,
        business: Result<BusinessId<'_>, Violation>,
    ) -> Result<Key, Vec<Violation>> {
        match (user, business) {
            (Ok(user), Ok(business)) => Ok(self.key(&user, business)),
            (user, business) => Err([user.err(), business.err()].into_iter().flatten().collect()),
        }
    }

    /// Whether the other secret produces the same keys.
    #[must_use]
    pub fn is_same_as(&self, other: &Self) -> bool {
        (self.is_tagged, self.is_spread) == (other.is_tagged, other.is_spread)
            && self.digest(b"") == other.digest(b"")
    }

    /// A keyed 128-bit digest of other data, which must be compared but not stored.
    #[must_use]
    pub fn digest(&self, bytes: &[u8]) -> [u8; 16] {
        self.hasher.hash(bytes).as_bytes()
    }
}

/// Concatenates `parts` into `out`, and returns their length.
fn join(out: &mut [u8], parts: &[&[u8]]) -> usize {
    let mut len = 0_usize;
    for part in parts {
        let end = len.saturating_add(part.len());
        if let Some(slot) = out.get_mut(len..end) {
            slot.copy_from_slice(part);
            len = end;
        }
    }
    len
}

#[cfg(test)]
mod tests;
