//! Finds stop strings that name special tokens, in a text that leaves such tokens out.

use std::ops::Range;

use super::{Shown, StopMatcher};

/// Parts of a text that are not shown, and the stop strings that name one of them.
#[derive(Debug, Default)]
pub(super) struct Unseen {
    /// Byte ranges, ascending.
    parts: Vec<Range<usize>>,
    /// True if each stop string, by index, names a special token that was generated.
    named_by: Vec<bool>,
}

impl Unseen {
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    pub fn num_bytes(&self) -> usize {
        self.parts.iter().map(Range::len).sum()
    }

    /// The bytes of `range` that are shown.
    pub fn cut_out(&self, text: &str, range: Range<usize>) -> String {
        let mut shown = String::new();
        let mut at = range.start;
        for part in &self.parts {
            let part = part.start.clamp(at, range.end)..part.end.clamp(at, range.end);
            shown.push_str(&text[at..part.start]);
            at = part.end;
        }
        shown.push_str(&text[at..range.end.max(at)]);
        shown
    }

    /// Index of each shown byte of a text, and at the end the text's length.
    fn places(&self, len: usize) -> Vec<usize> {
        let is_unseen = |at: &usize| self.parts.iter().any(|part| part.contains(at));
        let mut places: Vec<usize> = (0..len).filter(|at| !is_unseen(at)).collect();
        places.push(len);
        places
    }

    fn names(&self, stop: usize) -> bool {
        self.named_by.get(stop).copied().unwrap_or(false)
    }

    /// Removes the first `bytes` bytes of the text.
    fn drop_front(&mut self, bytes: usize) {
        self.parts.retain(|part| part.start >= bytes);
        for part in &mut self.parts {
            *part = part.start - bytes..part.end - bytes;
        }
    }
}

/// A stop string that was found.
struct Found {
    range: Range<usize>,
    stop: usize,
}

impl StopMatcher {
    /// Takes the text of a special token that is not shown.
    pub fn push_unseen(&mut self, text: &str) -> Shown {
        let may_end = self.may_end_in_next();
        let names = self.stops.iter().map(|stop| stop.contains(text));
        let names: Vec<bool> = names.collect();
        if text.is_empty() || names.is_empty() {
            return Shown {
                text: String::new(),
                stopped: None,
            };
        }
        self.unseen.named_by.resize(names.len(), false);
        for (known, named) in self.unseen.named_by.iter_mut().zip(names) {
            *known |= named;
        }
        let shown_bytes = self.tail.len();
        self.tail.push_str(text);
        self.unseen.parts.push(shown_bytes..self.tail.len());
        self.look_with_unseen(shown_bytes, may_end)
    }

    /// Searches stop strings in a tail with unseen parts. `new_from` is the beginning of the part that was added
    /// last, `may_end` whether a match may end there.
    pub(super) fn look_with_unseen(&mut self, new_from: usize, may_end: bool) -> Shown {
        let places = self.unseen.places(self.tail.len());
        let shown = self.unseen.cut_out(&self.tail, 0..self.tail.len());
        let found = self.find_with_unseen(&shown, &places, new_from);
        if let Some(Found { range, stop }) = found.filter(|_| may_end) {
            let shown = if self.include_in_output {
                new_from.min(range.end)..range.end
            } else {
                0..range.start
            };
            let text = self.unseen.cut_out(&self.tail, shown);
            self.tail.clear();
            self.unseen = Unseen::default();
            return Shown {
                text,
                stopped: self.stops.get(stop).cloned(),
            };
        }
        let keep_from = if self.include_in_output {
            let max = self.longest_bytes.saturating_sub(1);
            let at = (shown.len()).saturating_sub(max);
            let at = super::ceil_char_boundary(&shown, at);
            places.get(at).map_or(0, |at| self.before_unseen(*at))
        } else {
            self.beginning_with_unseen(&shown, &places)
        };
        let ready = if self.include_in_output {
            new_from..self.tail.len()
        } else {
            0..keep_from
        };
        let text = self.unseen.cut_out(&self.tail, ready);
        self.tail.drain(..keep_from);
        self.unseen.drop_front(keep_from);
        self.forget_unseen();
        Shown {
            text,
            stopped: None,
        }
    }

    /// Finds the first match that ends in the new part. A match that ends before it was passed over, or exists only
    /// because unseen parts were forgotten.
    fn find_with_unseen(&self, shown: &str, places: &[usize], new_from: usize) -> Option<Found> {
        let num_old_shown = places.partition_point(|at| *at < new_from);
        let found = self.stops.iter().enumerate().filter_map(|(index, stop)| {
            let range = if self.unseen.names(index) {
                let start = super::find_in_new(&self.tail, stop, new_from)?;
                start..start + stop.len()
            } else {
                let start = super::find_in_new(shown, stop, num_old_shown)?;
                *places.get(start)?..*places.get(start + stop.len() - 1)? + 1
            };
            Some(Found { range, stop: index })
        });
        found.min_by_key(|found| (found.range.end, found.range.start))
    }

    /// Start of the end of the tail that may begin a stop string.
    fn beginning_with_unseen(&self, shown: &str, places: &[usize]) -> usize {
        let begins = |text: &str, stop: &str| {
            (text.len().saturating_sub(stop.len().saturating_sub(1))..text.len())
                .filter(|at| text.is_char_boundary(*at))
                .find(|at| stop.starts_with(&text[*at..]))
        };
        let starts = self.stops.iter().enumerate().filter_map(|(index, stop)| {
            if self.unseen.names(index) {
                begins(&self.tail, stop)
            } else {
                begins(shown, stop).and_then(|at| places.get(at).copied())
            }
        });
        starts.min().unwrap_or(self.tail.len())
    }

    /// `at`, or the beginning of the unseen parts that end there.
    fn before_unseen(&self, mut at: usize) -> usize {
        for part in self.unseen.parts.iter().rev() {
            if part.contains(&at) || part.end == at {
                at = part.start;
            }
        }
        at
    }

    /// Forgets unseen parts that no stop string can reach any more, so that the tail stays short.
    fn forget_unseen(&mut self) {
        while let Some(part) = self.unseen.parts.first().cloned()
            && part.end + self.longest_bytes <= self.tail.len()
        {
            self.unseen.parts.remove(0);
            self.tail.drain(part.clone());
            for later in &mut self.unseen.parts {
                *later = later.start - part.len()..later.end - part.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Special tokens that are not shown. Everything else that is generated is text.
    const SPECIAL: [&str; 2] = ["<a>", "<b>"];

    fn run(stops: &[&str], include: bool, pieces: &[&str]) -> (String, Option<String>) {
        run_passing_over(0, stops, include, pieces)
    }

    fn run_passing_over(
        passed_over: usize,
        stops: &[&str],
        include: bool,
        pieces: &[&str],
    ) -> (String, Option<String>) {
        let stops = stops.iter().map(|stop| stop.to_string()).collect();
        let mut matcher = StopMatcher::new(stops, include).passing_over(passed_over as u32);
        let mut out = String::new();
        for piece in pieces {
            let shown = if SPECIAL.contains(piece) {
                matcher.push_unseen(piece)
            } else {
                matcher.push(piece.to_string())
            };
            out.push_str(&shown.text);
            if shown.stopped.is_some() {
                return (out, shown.stopped);
            }
            assert!(matcher.tail.len() <= 64, "the tail stays short");
        }
        out.push_str(&matcher.flush());
        (out, None)
    }

    /// Start of the first match in `text` whose `end` of its last byte is beyond `from`.
    fn first_beyond(
        text: &str,
        stop: &str,
        from: usize,
        end: impl Fn(usize) -> usize,
    ) -> Option<usize> {
        let starts = text.char_indices().map(|(start, _)| start);
        let mut matches = starts.filter(|start| text[*start..].starts_with(stop));
        matches.find(|start| end(start + stop.len() - 1) > from)
    }

    /// The same by definition: after each piece that is not passed over, search the whole text for matches that end
    /// beyond those that are.
    fn by_definition(
        passed_over: usize,
        stops: &[&str],
        include: bool,
        pieces: &[&str],
    ) -> (String, Option<String>) {
        let from = pieces
            .iter()
            .take(passed_over)
            .map(|piece| piece.len())
            .sum();
        let (mut whole, mut shown) = (String::new(), String::new());
        // Index in the whole text of each byte of the shown text.
        let mut places = Vec::new();
        let shown_of = |places: &[usize], shown: &str, range: Range<usize>| {
            let bytes = shown.bytes().zip(places);
            let bytes = bytes.filter(|(_, at)| range.contains(at));
            String::from_utf8(bytes.map(|(byte, _)| byte).collect()).unwrap()
        };
        for (i, piece) in pieces.iter().enumerate() {
            if !SPECIAL.contains(piece) {
                shown.push_str(piece);
                places.extend(whole.len()..whole.len() + piece.len());
            }
            whole.push_str(piece);
            let found = stops.iter().filter_map(|stop| {
                let range = if SPECIAL.iter().any(|special| stop.contains(special)) {
                    let start = first_beyond(&whole, stop, from, |last| last + 1)?;
                    start..start + stop.len()
                } else {
                    let start = first_beyond(&shown, stop, from, |last| places[last] + 1)?;
                    places[start]..places[start + stop.len() - 1] + 1
                };
                Some((range.end, range.start, *stop))
            });
            let found = found.min_by_key(|found| (found.0, found.1));
            if let Some((end, start, stop)) = found.filter(|_| i >= passed_over) {
                let end = if include { end } else { start };
                return (shown_of(&places, &shown, 0..end), Some(stop.to_string()));
            }
        }
        (shown, None)
    }

    #[test]
    fn a_special_token_as_stop_string_ends_the_text() {
        for include in [false, true] {
            let got = run(&["<a>"], include, &["hi", "<b>", " you", "<a>", "more"]);
            assert_eq!(got, ("hi you".into(), Some("<a>".into())));
        }
    }

    #[test]
    fn a_stop_string_may_span_text_around_a_special_token() {
        let pieces = ["one us", "er", "<a>", "as", "sistant", "\n"];
        for (stop, without, with) in [
            ("user<a>", "one ", "one user"),
            ("<a>assistant", "one user", "one userassistant"),
            ("er<a>as", "one us", "one useras"),
            ("<a>a", "one user", "one usera"),
        ] {
            assert_eq!(
                run(&[stop], false, &pieces),
                (without.into(), Some(stop.into()))
            );
            assert_eq!(
                run(&[stop], true, &pieces),
                (with.into(), Some(stop.into()))
            );
        }
    }

    #[test]
    fn other_stop_strings_are_searched_in_the_shown_text() {
        let pieces = ["a", "<a>", "b", "c"];
        assert_eq!(run(&["ab"], false, &pieces), ("".into(), Some("ab".into())));
        assert_eq!(
            run(&["ab", "<a>x"], false, &pieces),
            ("".into(), Some("ab".into()))
        );
        assert_eq!(run(&["a>b", "<a>x"], false, &pieces), ("abc".into(), None));
    }

    #[test]
    fn many_special_tokens_keep_the_tail_short() {
        let pieces: Vec<&str> = ["a"]
            .into_iter()
            .chain(std::iter::repeat_n("<a>", 200))
            .chain(["b"])
            .collect();
        for include in [false, true] {
            assert_eq!(run(&["<a>x", "ac"], include, &pieces), ("ab".into(), None));
        }
    }

    proptest! {
        #[test]
        fn matches_and_shown_text_equal_the_definition(
            pieces in prop::collection::vec(prop::sample::select(vec!["a", "b", "é", "<a>", "<b>"]), 0..16),
            stops in prop::collection::vec(
                prop::collection::vec(prop::sample::select(vec!["a", "b", "é", "<a>", "<b>"]), 1..4), 1..4),
            include: bool,
            passed_over in prop::sample::select(vec![0, 0, 1, 3, 6]),
        ) {
            let stops: Vec<String> = stops.iter().map(|parts| parts.concat()).collect();
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            prop_assert_eq!(
                run_passing_over(passed_over, &stops, include, &pieces),
                by_definition(passed_over, &stops, include, &pieces)
            );
        }
    }
}
