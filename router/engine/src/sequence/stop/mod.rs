//! Finds stop strings in text that arrives in pieces, wherever in a piece they end.

mod unseen;

use unseen::Unseen;

/// Matcher of one sequence. The match does not depend on how the text is cut into pieces: it is the one that ends
/// first, as if the text came character by character, and the longest of those that end together.
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
            unseen: Unseen::default(),
        }
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
        if !self.unseen.is_empty() {
            let shown_bytes = self.tail.len();
            self.tail.push_str(&text);
            return self.look_with_unseen(shown_bytes);
        }
        let shown_bytes = if self.include_in_output {
            self.tail.len()
        } else {
            0
        };
        self.tail.push_str(&text);
        if let Some((start, stop)) = self.find(shown_bytes.saturating_sub(self.longest_bytes)) {
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

    /// The match that ends first, from byte `from` on: its start and its stop string.
    fn find(&self, from: usize) -> Option<(usize, String)> {
        let from = ceil_char_boundary(&self.tail, from);
        self.stops
            .iter()
            .filter_map(|stop| {
                self.tail[from..]
                    .find(stop.as_str())
                    .map(|at| (from + at, stop))
            })
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
        let mut matcher = StopMatcher::new(stops.iter().map(|s| s.to_string()).collect(), include);
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
