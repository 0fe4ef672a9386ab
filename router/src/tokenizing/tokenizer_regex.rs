//! Finds regular expressions of tokenizer.json that take too long for some texts.
//!
//! Oniguruma runs them by backtracking: `(a+)+$` takes twice as long for each further `a`. A search cannot be stopped
//! from outside. So an expression whose steps grow exponentially is refused at the start, by name. An expression that
//! could grow in another way, such as `\d{1,3}(?=(?:\d{3})*\b)` with the square of the number of digits, is first run
//! alone over a long text, with a bound on its time.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use onig::{MatchParam, Regex, Region, SearchOptions};
use serde::Deserialize;
use serde_json::Value;

/// Maximum number of steps for a short text. More means exponential growth.
const PROBE_STEPS: u32 = 1_000_000;
/// Number of repetitions of one character, and of two in turn.
const PROBE_LENGTHS: [usize; 2] = [32, 24];

/// Maximum number of steps of one search. Oniguruma applies it at each possible start of a match.
const SEARCH_STEPS: std::ffi::c_ulong = 100_000_000;

/// Maximum size of a text whose time is negligible, whatever power of the size it grows with.
const SHORT_BYTES: usize = 4096;

/// Maximum time for a text: a fixed part, and a part for each byte.
const BASE_TIME: Duration = Duration::from_secs(1);
const TIME_PER_BYTE: Duration = Duration::from_micros(2);

/// Characters of the classes that expressions distinguish.
const KINDS: [char; 10] = [
    ' ', 'a', 'A', '1', '!', '\n', '\'', '\u{e9}', '\u{6f22}', '_',
];

/// Expressions of one tokenizer that are first run alone over long texts. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct SlowRegexes(Arc<Vec<Slow>>);

#[derive(Debug)]
struct Slow {
    pattern: String,
    regex: Regex,
}

/// An expression whose steps grow exponentially.
#[derive(Debug, PartialEq, Eq)]
pub struct Exponential {
    pub pattern: String,
    /// Path of the expression in tokenizer.json.
    pub place: String,
}

/// The parts of tokenizer.json that have expressions.
#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
}

impl SlowRegexes {
    /// Searches a tokenizer.json that was read successfully.
    pub fn read(path: &Path) -> Result<Self, Exponential> {
        // SAFETY: sets a number, before other threads search.
        unsafe { onig_sys::onig_set_retry_limit_in_search(SEARCH_STEPS) };
        let parts = File::open(path)
            .ok()
            .and_then(|file| serde_json::from_reader::<_, Parts>(BufReader::new(file)).ok());
        let mut found = Vec::new();
        if let Some(parts) = parts {
            find_patterns(&parts.normalizer, "normalizer", &mut found);
            find_patterns(&parts.pre_tokenizer, "pre_tokenizer", &mut found);
            find_patterns(&parts.decoder, "decoder", &mut found);
        }
        let mut slow = Vec::new();
        for (place, pattern) in found {
            if !may_be_slow(&pattern) {
                continue;
            }
            let Ok(regex) = Regex::new(&pattern) else {
                continue;
            };
            if is_exponential(&regex, &pattern) {
                return Err(Exponential { pattern, place });
            }
            slow.push(Slow { pattern, regex });
        }
        Ok(SlowRegexes(Arc::new(slow)))
    }

    /// Runs the expressions over `text`. The error names the one that takes too long. Blocks for seconds at most.
    pub fn check(&self, text: &str) -> Result<(), String> {
        if text.len() <= SHORT_BYTES {
            return Ok(());
        }
        let bytes = u32::try_from(text.len()).unwrap_or(u32::MAX);
        let limit = BASE_TIME + TIME_PER_BYTE * bytes;
        let began = thread_time();
        for slow in self.0.iter() {
            if !ends_in_time(&slow.regex, text, began + limit) {
                return Err(format!(
                    "the regular expression `{}` in the model's tokenizer.json takes too long for this text",
                    slow.pattern
                ));
            }
        }
        Ok(())
    }
}

fn find_patterns(value: &Value, place: &str, found: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value.as_str().filter(|_| name == "Regex") {
                    Some(pattern) => found.push((place.to_owned(), pattern.to_owned())),
                    None => find_patterns(value, &format!("{place}.{name}"), found),
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                find_patterns(item, &format!("{place}[{index}]"), found);
            }
        }
        _ => {}
    }
}

/// True if a group is repeated or referred back to. No other expression can take
/// exponentially many steps.
fn may_be_slow(pattern: &str) -> bool {
    let pairs = pattern.as_bytes().windows(2);
    let mut pairs = pairs.map(|pair| (pair[0], pair[1]));
    pairs.any(|pair| {
        matches!(pair, (b')', b'+' | b'*' | b'{')) || matches!(pair, (b'\\', b'1'..=b'9' | b'k'))
    })
}

fn is_exponential(regex: &Regex, pattern: &str) -> bool {
    let mut alphabet: Vec<char> = KINDS.to_vec();
    for char in pattern.chars().filter(|char| char.is_alphanumeric()) {
        if !alphabet.contains(&char) && alphabet.len() < 32 {
            alphabet.push(char);
        }
    }
    // A text without a substring that every match needs is not searched at all.
    let is_of_syntax = |char: &char| r"()[]{}*+?|\^$.:<>=,-".contains(*char);
    let words: String = pattern.chars().filter(|char| !is_of_syntax(char)).collect();
    let words = format!("\u{1}{words}");
    let single = alphabet
        .iter()
        .map(|char| char.to_string().repeat(PROBE_LENGTHS[0]));
    let pairs = alphabet.iter().flat_map(|first| {
        let pair = move |second: &char| format!("{first}{second}").repeat(PROBE_LENGTHS[1]);
        alphabet.iter().take(16).map(pair)
    });
    single.chain(pairs).any(|repeated| {
        let ends = ["", "\u{1}", "a", " ", "!", "1", "\n", "\u{6f22}", &words];
        ends.iter()
            .any(|end| takes_too_many_steps(regex, &(repeated.clone() + end)))
    })
}

fn takes_too_many_steps(regex: &Regex, text: &str) -> bool {
    let mut limit = MatchParam::default();
    limit.set_retry_limit_in_match(PROBE_STEPS);
    let options = SearchOptions::SEARCH_OPTION_NONE;
    regex
        .search_with_param(text, 0, text.len(), options, None, limit)
        .is_err()
}

/// True if all matches in `text` are found before this thread has used `limit` of CPU time.
fn ends_in_time(regex: &Regex, text: &str, until: Duration) -> bool {
    let mut region = Region::new();
    let mut from = 0;
    while from <= text.len() {
        region.clear();
        let options = SearchOptions::SEARCH_OPTION_NONE;
        let param = MatchParam::default();
        let found =
            regex.search_with_param(text, from, text.len(), options, Some(&mut region), param);
        match found {
            Ok(None) => return true,
            Ok(Some(_)) => {}
            Err(_) => return false,
        }
        if thread_time() > until {
            return false;
        }
        let Some((start, end)) = region.pos(0) else {
            return true;
        };
        let after_empty = || {
            text[end..]
                .chars()
                .next()
                .map_or(text.len() + 1, |next| end + next.len_utf8())
        };
        from = if end > start { end } else { after_empty() };
    }
    true
}

/// Returns the CPU time of this thread.
fn thread_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid for writing.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(pattern: &str) -> Result<SlowRegexes, Exponential> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tokenizer.json");
        let split = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"});
        let json =
            json!({"model": {}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split]}});
        std::fs::write(&path, json.to_string()).expect("a file");
        SlowRegexes::read(&path)
    }

    #[test]
    fn an_exponential_expression_is_refused_by_name() {
        for pattern in [
            "(a+)+$",
            "(a+)+$|b",
            r"(?:\s*[^x]+)*!x",
            r"(\w|\d)+!",
            "(a|aa)+$",
            r"(?:\p{L}+\p{M}*)+!",
            "(ab|a|b)+$",
        ] {
            let expected = Exponential {
                pattern: pattern.to_owned(),
                place: "pre_tokenizer.pretokenizers[0].pattern".to_owned(),
            };
            assert_eq!(read(pattern).expect_err(pattern), expected);
        }
    }

    #[test]
    fn expressions_of_models_are_accepted() {
        for pattern in [
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t)?|\s+",
            r"\d{1,3}(?=(?:\d{3})*\b)",
            r"(\p{L}\p{M}*)+| ?\p{N}",
        ] {
            assert!(read(pattern).is_ok(), "{pattern}");
        }
    }

    #[test]
    fn a_text_that_takes_too_long_is_refused_and_others_are_not() {
        let slow = read(r"\d{1,3}(?=(?:\d{3})*\b)").expect("a square");
        slow.check(&"words and 1234567 numbers ".repeat(2000))
            .expect("a usual text");
        let message = slow.check(&"1".repeat(150_000)).expect_err("digits");
        assert!(message.contains(r"(?:\d{3})*"), "{message}");
    }
}
