//! Repair of JSON with values that the parser cannot represent: they are overwritten, so that the rest
//! can be parsed.
//!
//! The parser refuses a whole body for one lone surrogate, for a number that overflows `f64`, and for
//! one value that is nested too deep, although the body may also hold a STOP. A refused body is
//! therefore scanned again, byte by byte, and such values are overwritten in place. A body that is no
//! JSON stays invalid. A body that can be parsed is never repaired.

use serde::de::IgnoredAny;

/// The nesting depth that the parser accepts.
const MAX_DEPTH: usize = 127;

/// Returns the body with these values replaced:
///
/// - bytes that are not UTF-8 become U+FFFD REPLACEMENT CHARACTER,
/// - the escape of a surrogate without its other half becomes `\ufffd`,
/// - unescaped control characters become spaces,
/// - a number that overflows `f64` becomes `null`,
/// - an array or object beyond [`MAX_DEPTH`] becomes an empty text.
pub(super) fn repair_json(body: &[u8]) -> Vec<u8> {
    let mut repair = JsonRepair { bytes: String::from_utf8_lossy(body).into_owned().into_bytes() };
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(byte) = repair.byte(at) {
        at = match byte {
            b'"' => repair.string(at),
            b'[' | b'{' if depth >= MAX_DEPTH => repair.too_deep(at),
            b'[' | b'{' => {
                depth = depth.saturating_add(1);
                at + 1
            }
            b']' | b'}' => {
                depth = depth.saturating_sub(1);
                at + 1
            }
            b'-' | b'0'..=b'9' => repair.number(at),
            _ => repair.control(at),
        };
    }
    repair.bytes
}

/// The body, which is overwritten from front to back.
struct JsonRepair {
    bytes: Vec<u8>,
}

impl JsonRepair {
    fn byte(&self, at: usize) -> Option<u8> {
        self.bytes.get(at).copied()
    }

    /// Overwrites the bytes from `start` to `end` with a shorter value and spaces.
    fn overwrite(&mut self, start: usize, end: usize, value: &[u8]) {
        let value = value.iter().copied().chain(std::iter::repeat(b' '));
        for (slot, byte) in self.bytes.iter_mut().take(end).skip(start).zip(value) {
            *slot = byte;
        }
    }

    /// Whether the bytes from `start` to `end` are JSON, whatever its values and its depth.
    fn is_json(&self, start: usize, end: usize) -> bool {
        let value = self.bytes.get(start..end).unwrap_or_default();
        serde_json::from_slice::<IgnoredAny>(value).is_ok()
    }

    /// Replaces a control character by a space. Returns the index after it.
    fn control(&mut self, at: usize) -> usize {
        if self.byte(at).is_some_and(|byte| byte < b' ') {
            self.overwrite(at, at + 1, b"");
        }
        at + 1
    }

    /// Repairs the string that begins at `start`. Returns the index after it.
    fn string(&mut self, start: usize) -> usize {
        let mut at = start + 1;
        while let Some(byte) = self.byte(at) {
            at = match byte {
                b'"' => return at + 1,
                b'\\' if self.byte(at + 1) == Some(b'u') => self.escape(at),
                b'\\' => at + 2,
                _ => self.control(at),
            };
        }
        at
    }

    /// Repairs the escape `\uXXXX` at `at`. Returns the index after it.
    fn escape(&mut self, at: usize) -> usize {
        match self.code_unit(at) {
            Some(0xd800..=0xdbff) if matches!(self.code_unit(at + 6), Some(0xdc00..=0xdfff)) => {
                at + 12
            }
            Some(0xd800..=0xdfff) => {
                self.overwrite(at, at + 6, b"\\ufffd");
                at + 6
            }
            Some(_) => at + 6,
            // An invalid escape, which the parser will refuse.
            None => at + 2,
        }
    }

    /// The UTF-16 code unit of the escape at `at`, if it is valid.
    fn code_unit(&self, at: usize) -> Option<u16> {
        let digits = self.bytes.get(at..at.checked_add(6)?)?.strip_prefix(b"\\u")?;
        // `from_str_radix` would accept a sign.
        let digits = digits.iter().all(u8::is_ascii_hexdigit).then_some(digits)?;
        u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    }

    /// Overwrites the number that begins at `start` if it overflows. Returns the index after it.
    fn number(&mut self, start: usize) -> usize {
        let is_part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
        let number = self.bytes.get(start..).unwrap_or_default();
        let length = number.iter().take_while(|byte| is_part(byte)).count();
        let number = number.get(..length).and_then(|number| std::str::from_utf8(number).ok());
        let value: Option<f64> = number.and_then(|number| number.parse().ok());
        if value.is_some_and(f64::is_infinite) && self.is_json(start, start + length) {
            self.overwrite(start, start + length, b"null");
        }
        start + length
    }

    /// Overwrites the array or object that begins at `start`. Returns the index after it, which is the
    /// body's end if it is not closed.
    fn too_deep(&mut self, start: usize) -> usize {
        let mut depth = 0_usize;
        let mut at = start;
        while let Some(byte) = self.byte(at) {
            match byte {
                b'"' => {
                    at = self.string(at);
                    continue;
                }
                b'[' | b'{' => depth = depth.saturating_add(1),
                b']' | b'}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            at += 1;
            if depth == 0 {
                if self.is_json(start, at) {
                    self.overwrite(start, at, b"\"\"");
                }
                return at;
            }
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parsed(body: &[u8]) -> Option<Value> {
        assert!(serde_json::from_slice::<Value>(body).is_err(), "the body is valid already");
        serde_json::from_slice(&repair_json(body)).ok()
    }

    #[test]
    fn lone_surrogates_become_replacement_characters() {
        for (escaped, text) in [
            (r"\ud83d", "\u{fffd}"),
            (r"\uDE00", "\u{fffd}"),
            (r"a\ud83d\ud83d\ude00b", "a\u{fffd}\u{1f600}b"),
            (r"\ud83d\n", "\u{fffd}\n"),
            (r"\ud83d\\ude00", "\u{fffd}\\ude00"),
            (r"\ud83d\u0041", "\u{fffd}A"),
        ] {
            let body = format!(r#"{{"{escaped}":["{escaped}","stop"]}}"#);
            assert_eq!(parsed(body.as_bytes()), Some(json!({text: [text, "stop"]})), "{escaped}");
        }
    }

    #[test]
    fn other_invalid_values_are_replaced_alone() {
        let deep = |inner: &str| format!("{}{inner}{}", "[".repeat(200), "]".repeat(200));
        for (value, reads) in [
            (b"1e400".to_vec(), Value::Null),
            (b"-9e999".to_vec(), Value::Null),
            (b"\"a\xffb\"".to_vec(), json!("a\u{fffd}b")),
            (b"\"a\nb\x00\"".to_vec(), json!("a b ")),
        ] {
            let body = [b"{\"a\":", &value[..], b",\"b\":\"\\\"stop\"}"].concat();
            assert_eq!(parsed(&body), Some(json!({"a": reads, "b": "\"stop"})));
        }
        for inner in ["", "\"]]]\\\"\"", "{\"a\":[1]}"] {
            let body = format!("{{\"a\":{},\"b\":\"stop\"}}", deep(inner));
            let read = parsed(body.as_bytes()).unwrap();
            assert_eq!(read["b"], "stop", "{inner}");
        }
    }

    #[test]
    fn invalid_json_stays_invalid() {
        for body in ["", "{", "{\"a\":}", "{\"a\":\"\\ud83d}", "{\"a\":\"\\x\"}", "{\"a\":01}"] {
            assert_eq!(parsed(body.as_bytes()), None, "{body}");
        }
        assert_eq!(parsed("[".repeat(100_000).as_bytes()), None);
        for value in ["01e999", "1.e999", "-.1e999"] {
            assert_eq!(parsed(format!("{{\"a\":{value}}}").as_bytes()), None, "{value}");
        }
        let deep = format!("{}x{}", "[".repeat(200), "]".repeat(200));
        assert_eq!(parsed(format!("{{\"a\":{deep}}}").as_bytes()), None);
        assert_eq!(parsed("\u{feff}{}".as_bytes()), None);
    }
}
