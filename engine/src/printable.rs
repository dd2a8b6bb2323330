//! Names that others chose, as text that a terminal shows and does not obey.

/// The bytes of a name as text: what is no UTF-8, or could move a cursor, hide or turn text around, is escaped, and so is the
/// backslash, so that different names stay different.
pub fn printable(name: impl AsRef<[u8]>) -> String {
    let mut text = String::new();
    for chunk in name.as_ref().utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                c => push(&mut text, c),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// A message that may hold such names, on one line. Backslashes stay: a message holds names that were escaped already.
pub fn printable_message(message: &str) -> String {
    let mut text = String::with_capacity(message.len());
    for c in message.chars() {
        push(&mut text, c);
    }
    text
}

fn push(text: &mut String, c: char) {
    match c {
        '\n' => text.push_str("\\n"),
        '\r' => text.push_str("\\r"),
        '\t' => text.push_str("\\t"),
        c if is_treacherous(c) => text.extend(c.escape_unicode()),
        c => text.push(c),
    }
}

/// Control characters, line and paragraph separators, and what is invisible or changes the direction of writing.
fn is_treacherous(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{115f}'..='\u{1160}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{3164}'
                | '\u{fe00}'..='\u{fe0f}'
                | '\u{feff}'
                | '\u{ffa0}'
                | '\u{fff0}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn names_are_shown_and_not_obeyed() {
        for (name, shown) in [
            (&b"models/weights-\xc3\xa4.bin"[..], "models/weights-ä.bin"),
            (b"a\x1b[2Jb", "a\\u{1b}[2Jb"),
            (b"a\nb\tc\\d", "a\\nb\\tc\\\\d"),
            (b"\xff\xfe.txt", "\\xff\\xfe.txt"),
            ("\u{9b}31m".as_bytes(), "\\u{9b}31m"),
            ("x\u{202e}gpj.exe".as_bytes(), "x\\u{202e}gpj.exe"),
            (b"", ""),
        ] {
            assert_eq!(printable(name), shown);
        }
    }
}
