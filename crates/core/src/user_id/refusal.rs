//! Why a user id was refused, and what would be right.

use std::fmt;

use crate::hidden_chars::HiddenChar;

/// Why a user id was refused. The text says what was wrong and what would be right, and holds
/// nothing of the id but one character and its place.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Refusal {
    /// Nothing was given.
    Empty,
    /// It is longer than [`MAX_USER_ID_BYTES`](super::MAX_USER_ID_BYTES).
    TooLong,
    /// A character of an opaque id is invisible, or looks like another one.
    Hidden(HiddenChar),
    /// There is nothing but punctuation.
    NoDigit,
    /// There are more than 15 digits.
    TooManyDigits,
    /// It begins with a 0 that is not the 00 of an international prefix.
    LeadingZero,
    /// `(0)` where the numbers of that country may themselves begin with 0.
    BracketedZero,
    /// It ends in `.0`.
    SpreadsheetDecimal,
    /// It has a fraction.
    Decimal,
    /// It is written with an exponent.
    Exponent,
    /// It has commas.
    Comma,
    /// It begins with an apostrophe.
    Apostrophe,
    /// It begins with `=`, or is in quotation marks.
    Formula,
    /// It is more than one number.
    SeveralNumbers,
    /// A `+` stands behind a digit.
    PlusInside,
    /// It has an extension.
    Extension,
    /// It begins with `+` and has letters.
    LetterInNumber,
    /// Text that is no known prefix is before a `+`.
    UnknownPrefix,
    /// A link that holds no number.
    LinkWithoutNumber,
    /// A gateway's address whose user is no number.
    UnreadableAddress,
    /// A hidden id of WhatsApp's.
    LidAddress,
    /// The address of a group, a list or a channel.
    GroupAddress,
    /// There is no letter, and this character is not one that a number is written with.
    NotANumber {
        /// The character.
        character: char,
        /// Where it is, in bytes of UTF-8 from 0, in what is left without a channel's prefix.
        place: usize,
    },
    /// It has the form of a business-scoped id and is longer than one.
    PlatformIdTooLong,
    /// It is how a ledger names a template.
    Template,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hidden(hidden) => return hidden.fmt(f),
            Self::NotANumber { character, place } => {
                let code = u32::from(*character);
                return write!(
                    f,
                    "holds a character that no phone number is written with: U+{code:04X} at byte \
                     {place}; give a number as +15550123456, or an id of your own with a letter in \
                     it"
                );
            }
            Self::Empty => "required: 1 to 160 bytes of UTF-8",
            Self::TooLong => "longer than 160 bytes of UTF-8",
            Self::NoDigit => "a phone number needs at least one digit, such as +1 555 012 3456",
            Self::TooManyDigits => {
                "a phone number has at most 15 digits (E.164), country code first; give one number \
                 alone"
            }
            Self::LeadingZero => {
                "begins with a 0, as numbers are dialled inside one country: write the country code \
                 first and leave that 0 out, such as +44 7700 900123 for 07700 900123"
            }
            Self::BracketedZero => {
                "has (0) behind a country code whose numbers may begin with 0, so that it can mean \
                 two lines: write the number as it is dialled from abroad, without brackets"
            }
            Self::SpreadsheetDecimal => {
                "a phone number that ends in \".0\" was read from a spreadsheet as a decimal \
                 number; format that column as text and give the number without it"
            }
            Self::Decimal => {
                "a phone number with a decimal fraction was read from a spreadsheet as a quantity; \
                 format that column as text and give whole digits"
            }
            Self::Exponent => {
                "a phone number in scientific notation has lost digits; format that column as text \
                 and export it again"
            }
            Self::Comma => {
                "holds a comma: write the digits without grouping commas, and one number alone"
            }
            Self::Apostrophe => {
                "begins with an apostrophe, with which spreadsheets guard a text; remove it"
            }
            Self::Formula => {
                "is a spreadsheet's formula or in quotation marks; give the number alone"
            }
            Self::SeveralNumbers => "holds several phone numbers; give each one by itself",
            Self::PlusInside => {
                "holds a + behind a digit: give one phone number alone, + and country code first"
            }
            Self::Extension => {
                "a phone number with an extension or a parameter cannot be messaged; give the \
                 number alone"
            }
            Self::LetterInNumber => {
                "begins like a phone number and holds letters; give the number in digits alone, \
                 such as +15550123456"
            }
            Self::UnknownPrefix => {
                "has text before the + of a phone number that is no known prefix (whatsapp:, tel:, \
                 sms:, rcs:, p:, https://wa.me/); give the number alone"
            }
            Self::LinkWithoutNumber => {
                "is a link without a phone number; give the number, such as \
                 https://wa.me/15550123456 has it"
            }
            Self::UnreadableAddress => {
                "is a gateway's address whose user is no phone number; give the number alone, such \
                 as 15550123456@s.whatsapp.net has it"
            }
            Self::LidAddress => {
                "is a linked id (@lid), under which nobody can be messaged by a business; give the \
                 phone number or the business-scoped id"
            }
            Self::GroupAddress => {
                "is the address of a group, a list or a channel; give the phone number or the \
                 business-scoped id of one person"
            }
            Self::Template => {
                "begins with template:, which names a message template and no person; name the \
                 template beside the user"
            }
            Self::PlatformIdTooLong => {
                "has the form of a business-scoped id and more than 128 letters and digits behind \
                 the point; give it as WhatsApp's webhook has it"
            }
        })
    }
}
