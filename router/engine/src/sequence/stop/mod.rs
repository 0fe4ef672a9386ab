//! Finds stop strings in text that arrives in pieces, wherever in a piece they end.

mod unseen;

use unseen::Unseen;

/// Matcher of one sequence. The match does not depend on how the text is cut into pieces: it is the one that ends
/// first, as if the text came character by character, and the longest of those that end together.
///
/// In the first pieces, as many as it passes over, no match may end.
///
/// Special tokens that are left out of the text are unseen parts of it. A stop string that names one is searched in
/// the text with them, any other in the text without.
#[derive(Debug)]
pub(crate) struct StopMatcher {
    stops: Vec<String>,
    include_in_output: bool,
    /// End of the text so far. It is held back when stop strings are excluded from the output, else already shown.
    tail: String,
    longest_bytes: usize,
    /// Number of next pieces in which no match may end.
    num_passed_over: u32,
    /// Unseen parts of `tail`; nearly always none.
    unseen: Unseen,
}

/// Result of a piece of text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    /// Text that can be shown now.
    pub text: String,
    /// The stop string that was found. Nothing more is shown after it.
    pub stopped: Option<String>,
}

impl StopMatcher {
    pub fn new(mut stops: Vec<String>, include_in_output: bool) -> Self {
        stops.retain(|stop| !stop.is_empty());
        let longest_bytes = stops.iter().map(String::len).max().unwrap_or(0);
        StopMatcher {
            stops,
            include_in_output,
            tail: String::new(),
            longest_bytes,
            num_passed_over: 0,
            unseen: Unseen::default(),
        }
    }

    /// Lets no match end in the next `pieces` pieces. Each is the text of a token, seen or unseen.
    pub fn passing_over(mut self, pieces: u32) -> Self {
        self.num_passed_over = pieces;
        self
    }

    /// True if a match may end in the next piece, which is taken now.
    fn may_end_in_next(&mut self) -> bool {
        let may_end = self.num_passed_over == 0;
        self.num_passed_over = self.num_passed_over.saturating_sub(1);
        may_end
    }

    /// True if there are stop strings to search.
    pub fn is_looking(&self) -> bool {
        !self.stops.is_empty()
    }

    /// True if text is held back.
    pub fn holds_text(&self) -> bool {
        !self.include_in_output && self.tail.len() > self.unseen.num_bytes()
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, text: String) -> Shown {
        if self.stops.is_empty() {
            return Shown {
                text,
                stopped: None,
            };
        }
        let may_end = self.may_end_in_next();
        let new_from = self.tail.len();
        self.tail.push_str(&text);
        if !self.unseen.is_empty() {
            return self.look_with_unseen(new_from, may_end);
        }
        let shown_bytes = if self.include_in_output { new_from } else { 0 };
        if let Some((start, stop)) = self.find(new_from).filter(|_| may_end) {
            let end = if self.include_in_output {
                start + stop.len()
            } else {
                start
            };
            let text = self.tail[shown_bytes..end].to_owned();
            self.tail.clear();
            return Shown {
                text,
                stopped: Some(stop),
            };
        }
        if self.include_in_output {
            let keep_from = ceil_char_boundary(
                &self.tail,
                (self.tail.len() + 1).saturating_sub(self.longest_bytes),
            );
            self.tail.drain(..keep_from);
            Shown {
                text,
                stopped: None,
            }
        } else {
            let held = self.possible_beginning();
            let rest = self.tail.split_off(self.tail.len() - held);
            Shown {
                text: std::mem::replace(&mut self.tail, rest),
                stopped: None,
            }
        }
    }

    /// The text still held back, when the text ends without a stop string.
    pub fn flush(&mut self) -> String {
        let tail = self.unseen.cut_out(&self.tail, 0..self.tail.len());
        self.tail.clear();
        self.unseen = Unseen::default();
        if self.include_in_output {
            String::new()
        } else {
            tail
        }
    }

    /// The first match that ends after byte `new_from`: its start and its stop string.
    fn find(&self, new_from: usize) -> Option<(usize, String)> {
        self.stops
            .iter()
            .filter_map(|stop| Some((find_in_new(&self.tail, stop, new_from)?, stop)))
            .min_by_key(|(at, stop)| (at + stop.len(), *at))
            .map(|(at, stop)| (at, stop.clone()))
    }

    /// Number of bytes at the end of the text that may begin a stop string.
    fn possible_beginning(&self) -> usize {
        let longest = self.longest_bytes.saturating_sub(1).min(self.tail.len());
        (1..=longest)
            .rev()
            .filter(|&bytes| self.tail.is_char_boundary(self.tail.len() - bytes))
            .find(|&bytes| {
                let end = &self.tail[self.tail.len() - bytes..];
                self.stops
                    .iter()
                    .any(|stop| stop.len() > bytes && stop.starts_with(end))
            })
            .unwrap_or(0)
    }
}

/// Start of the first match in `text` that ends after byte `new_from`.
fn find_in_new(text: &str, stop: &str, new_from: usize) -> Option<usize> {
    let from = ceil_char_boundary(text, (new_from + 1).saturating_sub(stop.len()));
    text[from..].find(stop).map(|at| from + at)
}

fn ceil_char_boundary(text: &str, mut at: usize) -> usize {
    while at < text.len() && !text.is_char_boundary(at) {
        at += 1;
    }
    at.min(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], include: bool, pieces: &[&str]) -> (String, Option<String>) {
        shown(
            StopMatcher::new(stops.iter().map(|s| s.to_string()).collect(), include),
            pieces,
        )
    }

    /// Text that is shown of `pieces`, and the stop string that ended it.
    fn shown(mut matcher: StopMatcher, pieces: &[&str]) -> (String, Option<String>) {
        let mut out = String::new();
        for piece in pieces {
            let shown = matcher.push(piece.to_string());
            out.push_str(&shown.text);
            if shown.stopped.is_some() {
                return (out, shown.stopped);
            }
        }
        out.push_str(&matcher.flush());
        (out, None)
    }

    #[test]
    fn a_stop_string_over_several_pieces_is_never_shown() {
        assert_eq!(
            run(&["###"], false, &["abc#", "#", "# tail"]),
            ("abc".into(), Some("###".into()))
        );
        assert_eq!(
            run(&["###"], true, &["abc#", "#", "# tail"]),
            ("abc###".into(), Some("###".into()))
        );
    }

    #[test]
    fn text_that_only_begins_like_a_stop_string_is_shown() {
        assert_eq!(
            run(&["###"], false, &["a##", "b##"]),
            ("a##b##".into(), None)
        );
    }

    #[test]
    fn the_match_that_ends_first_wins() {
        assert_eq!(
            run(&["abc", "b"], false, &["xabc"]),
            ("xa".into(), Some("b".into()))
        );
        assert_eq!(
            run(&["bc", "abc"], false, &["xabc"]),
            ("x".into(), Some("abc".into()))
        );
    }

    #[test]
    fn characters_of_several_bytes_are_not_cut() {
        assert_eq!(
            run(&["é!"], false, &["caf", "é", "é", "!"]),
            ("café".into(), Some("é!".into()))
        );
    }

    #[test]
    fn a_match_that_ends_in_a_piece_passed_over_is_text() {
        for include in [false, true] {
            let run = |passed_over, pieces: &[&str]| {
                let stops = ["ab".to_owned(), "b".to_owned(), "bcd".to_owned()].to_vec();
                shown(
                    StopMatcher::new(stops, include).passing_over(passed_over),
                    pieces,
                )
            };
            let end = |without: &str, stop: &str| {
                let end = if include { stop } else { "" };
                (format!("{without}{end}"), Some(stop.to_owned()))
            };
            assert_eq!(run(2, &["ab", "b", "x"]), ("abbx".into(), None));
            assert_eq!(run(1, &["ab", "xb", "x"]), end("abx", "b"));
            // A match may begin in a piece passed over.
            assert_eq!(run(1, &["xa", "b"]), end("x", "ab"));
            assert_eq!(run(1, &["ab", "c", "d"]), end("a", "bcd"));
        }
    }

    proptest! {
        #[test]
        fn the_result_does_not_depend_on_the_pieces(
            text in "[abé]{0,24}",
            stops in prop::collection::vec("[abé]{1,4}", 0..3),
            cuts in prop::collection::vec(0usize..24, 0..8),
            include: bool,
        ) {
            let chars: Vec<char> = text.chars().collect();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(chars.len())).chain([0, chars.len()]).collect();
            cuts.sort_unstable();
            let pieces: Vec<String> = cuts.windows(2).map(|w| chars[w[0]..w[1]].iter().collect()).collect();
            let by_char: Vec<String> = chars.iter().map(char::to_string).collect();
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            prop_assert_eq!(
                run(&stops, include, &pieces.iter().map(String::as_str).collect::<Vec<_>>()),
                run(&stops, include, &by_char.iter().map(String::as_str).collect::<Vec<_>>())
            );
        }
    }
}
