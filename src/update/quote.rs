//! Words of others in reasons of ours: short, and of one line. A reason goes into the audit log, the record, the `model` topic
//! and the journal, and much of it may come from whoever writes to the broker.

/// Characters of a reason.
const MOST: usize = 240;
/// Of them, characters of its end: what to do stands there.
const END: usize = 80;

/// The text with what controls a terminal replaced, and its middle left out when it is long.
pub(crate) fn in_short(text: &str) -> String {
    let plain = |letter: char| if is_odd(letter) { char::REPLACEMENT_CHARACTER } else { letter };
    let length = text.chars().count();
    if length <= MOST {
        return text.chars().map(plain).collect();
    }
    let begin = text.chars().take(MOST - END - 1);
    begin.chain(['…']).chain(text.chars().skip(length - END)).map(plain).collect()
}

/// Control characters, and those that change the order or hide what stands beside them.
fn is_odd(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_keeps_its_ends_and_loses_what_controls_a_terminal() {
        let cases = [
            ("the broker has no x; run ocelctl push".to_owned(), 37),
            ("ä".repeat(MOST), MOST),
            ("ä".repeat(MOST + 1), MOST),
            (format!("begin {}; run ocelctl push", "\u{1b}[2J\u{202e}\n\0".repeat(40_000)), MOST),
        ];
        for (text, characters) in cases {
            let short = in_short(&text);
            assert_eq!(short.chars().count(), characters, "{short}");
            assert_eq!(short.chars().next(), text.chars().next());
            assert_eq!(short.chars().next_back(), text.chars().next_back());
            assert!(!short.chars().any(is_odd), "{short}");
        }
    }
}
