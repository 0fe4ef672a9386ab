//! Reading of text that may not be complete yet.

/// Reason why something was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// More text is needed to tell.
    More,
    /// The text is something else.
    No,
}

/// Result of reading something that may be cut off.
pub type Try<T> = Result<T, Doubt>;

/// A marker: words with optional white space between them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marker {
    words: Vec<String>,
}

impl Marker {
    pub fn new(text: &str) -> Self {
        Self {
            words: text.split_whitespace().map(str::to_owned).collect(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// True if it has more than one word.
    pub fn has_words(&self) -> bool {
        self.words.len() > 1
    }

    /// First character.
    pub fn first(&self) -> Option<char> {
        self.words.first().and_then(|word| word.chars().next())
    }

    /// Number of bytes of the marker at the beginning of `text`. `end`: no more text comes.
    pub fn fit(&self, text: &str, end: bool) -> Try<usize> {
        match fit_words(&self.words, text, end)? {
            (len, words) if words == self.words.len() => Ok(len),
            _ => Err(Doubt::No),
        }
    }

    /// Number of bytes of as many neighbouring words of the marker as stand at the beginning of `text`, at least one.
    /// For markers that close something, of which models leave out words.
    pub fn fit_some(&self, text: &str, end: bool) -> Try<usize> {
        for first in 0..self.words.len() {
            let words = self.words.get(first..).unwrap_or_default();
            match fit_words(words, text, end)? {
                (_, 0) => {}
                (len, _) => return Ok(len),
            }
        }
        Err(Doubt::No)
    }
}

/// Bytes and number of the words at the beginning of `text`.
fn fit_words(words: &[String], text: &str, end: bool) -> Try<(usize, usize)> {
    let mut fitting = (0, 0);
    for (index, word) in words.iter().enumerate() {
        let rest = text.get(fitting.0..).unwrap_or_default();
        let trimmed = if index == 0 { rest } else { rest.trim_start() };
        if trimmed.starts_with(word.as_str()) {
            fitting = (text.len() - trimmed.len() + word.len(), index + 1);
        } else if !end && word.starts_with(trimmed) {
            return Err(Doubt::More);
        } else {
            break;
        }
    }
    Ok(fitting)
}

/// Result of a search for markers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// The marker `index` stands at `start`.
    At {
        start: usize,
        len: usize,
        index: usize,
    },
    /// No marker begins within this number of bytes. One may begin after them.
    Clear(usize),
}

/// Finds the first of `markers` in `text`, the longest where several begin at one place.
pub fn find(text: &str, markers: &[&Marker], end: bool) -> Found {
    for (start, c) in text.char_indices() {
        let mut best: Option<(usize, usize)> = None;
        for (index, marker) in markers.iter().enumerate() {
            if marker.first() != Some(c) {
                continue;
            }
            match marker.fit(text.get(start..).unwrap_or_default(), end) {
                Ok(len) if best.is_none_or(|(longest, _)| len > longest) => {
                    best = Some((len, index));
                }
                Err(Doubt::More) => return Found::Clear(start),
                _ => {}
            }
        }
        if let Some((len, index)) = best {
            return Found::At { start, len, index };
        }
    }
    Found::Clear(text.len())
}

/// A place in a text.
#[derive(Debug, Clone, Copy)]
pub struct Cursor<'a> {
    text: &'a str,
    pub at: usize,
    end: bool,
}

impl<'a> Cursor<'a> {
    pub fn new(text: &'a str, end: bool) -> Self {
        Self { text, at: 0, end }
    }

    pub fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    pub fn is_last(&self) -> bool {
        self.end
    }

    /// Doubt about text that is missing.
    pub fn doubt(&self) -> Doubt {
        if self.end { Doubt::No } else { Doubt::More }
    }

    /// Skips white space.
    pub fn space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    /// The next character.
    pub fn peek(&self) -> Try<char> {
        self.rest().chars().next().ok_or(self.doubt())
    }

    pub fn skip(&mut self, c: char) {
        self.at += c.len_utf8();
    }

    /// Skips `c` if it is next.
    pub fn take(&mut self, c: char) -> Try<bool> {
        let is_next = self.peek()? == c;
        if is_next {
            self.skip(c);
        }
        Ok(is_next)
    }

    pub fn expect(&mut self, c: char) -> Try<()> {
        self.take(c)?.then_some(()).ok_or(Doubt::No)
    }

    /// Skips `marker` if it is next; an empty one always is.
    pub fn accept(&mut self, marker: &Marker) -> Try<bool> {
        if marker.is_empty() {
            return Ok(true);
        }
        match marker.fit(self.rest(), self.end) {
            Ok(len) => {
                self.at += len;
                Ok(true)
            }
            Err(Doubt::No) => Ok(false),
            Err(more) => Err(more),
        }
    }

    /// True if `marker`, which is not empty, is next.
    pub fn sees(&self, marker: &Marker) -> Try<bool> {
        if marker.is_empty() {
            return Ok(false);
        }
        match marker.fit(self.rest(), self.end) {
            Ok(_) => Ok(true),
            Err(Doubt::No) => Ok(false),
            Err(more) => Err(more),
        }
    }

    /// Takes characters that fit. The one after them must be known, unless the text ends.
    pub fn word(&mut self, fits: impl Fn(char) -> bool) -> Try<&'a str> {
        let rest = self.rest();
        let len = rest.find(|c| !fits(c));
        let len = match len {
            Some(len) => len,
            None if self.end => rest.len(),
            None => return Err(Doubt::More),
        };
        self.at += len;
        Ok(rest.get(..len).unwrap_or_default())
    }

    /// Takes the text before `marker`, and the marker.
    pub fn until(&mut self, marker: &Marker) -> Try<&'a str> {
        let rest = self.rest();
        match find(rest, &[marker], self.end) {
            Found::At { start, len, .. } => {
                self.at += start + len;
                Ok(rest.get(..start).unwrap_or_default())
            }
            Found::Clear(_) => Err(self.doubt()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_fit_with_and_without_white_space() {
        let marker = Marker::new("\n<a> [\n");
        for text in ["<a> [", "<a>[x", "<a>\n\n["] {
            assert!(marker.fit(text, false).is_ok(), "{text}");
        }
        assert_eq!(marker.fit("<a> ", false), Err(Doubt::More));
        assert_eq!(marker.fit("<", false), Err(Doubt::More));
        assert_eq!(marker.fit("<a> ", true), Err(Doubt::No));
        assert_eq!(marker.fit("<b>", false), Err(Doubt::No));
        assert_eq!(marker.fit_some("<a> x", false), Ok(3));
        assert_eq!(marker.fit_some("[ x", false), Ok(1));
        assert_eq!(marker.fit_some("<", false), Err(Doubt::More));
        assert_eq!(marker.fit_some("x", false), Err(Doubt::No));
    }

    #[test]
    fn the_longest_marker_is_found_at_the_first_place() {
        let (short, long) = (Marker::new(">>>"), Marker::new(">>>all"));
        let found = |text, end| find(text, &[&short, &long], end);
        let at = |start, len, index| Found::At { start, len, index };
        assert_eq!(found("x>>>all", false), at(1, 6, 1));
        assert_eq!(found("x>>>f", false), at(1, 3, 0));
        assert_eq!(found("x>>>a", false), Found::Clear(1));
        assert_eq!(found("x>>>a", true), at(1, 3, 0));
        assert_eq!(found("é>>", false), Found::Clear(2));
    }
}
