//! The guards that spreadsheets and exports put around a cell, so that no program takes it for a formula.

/// A cell without its guard: an apostrophe before it, or `="…"` around it.
///
/// In the cells of texts an apostrophe is a guard only before a sign that begins a formula, because
/// sentences begin with apostrophes too.
pub(super) fn without_guard(cell: &str, is_text: bool) -> &str {
    let cell = cell.trim();
    if let Some(inner) = cell.strip_prefix("=\"").and_then(|rest| rest.strip_suffix('"')) {
        return inner.trim();
    }
    match cell.strip_prefix('\'') {
        Some(rest) if !is_text || rest.starts_with(['=', '+', '-', '@', '\t', '\r']) => rest.trim(),
        _ => cell,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guard_is_taken_off_and_nothing_else() {
        for (cell, is_text, expected) in [
            ("'+447700900123", false, "+447700900123"),
            ("'07700900123", false, "07700900123"),
            ("=\"07700900123\"", false, "07700900123"),
            ("=\"+447700900123\" ", false, "+447700900123"),
            (" 15550123456 ", false, "15550123456"),
            ("'-10% for you", true, "-10% for you"),
            ("'Tis the season", true, "'Tis the season"),
            ("=\"", false, "=\""),
            ("=1+1", false, "=1+1"),
            ("'", false, ""),
        ] {
            assert_eq!(without_guard(cell, is_text), expected, "{cell}");
        }
    }
}
