//! Checks of one grammar: everything that the library cannot enforce exactly is refused.

use std::collections::HashSet;
use std::sync::Arc;

use gridwork_engine::TokenTable;
use llguidance::api::{GrammarInit, ParserLimits, TopLevelGrammar};
use llguidance::earley::{CGrammar, CSymIdx, SlicedBiasComputer};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokRxInfo, TokTrie};
use llguidance::{Logger, Matcher, ParserFactory, TokenParser};

use super::{Grammar, Part, Rules, json_schema, place, tightened};

/// Maximum size of a serialised grammar. The largest schemas in use, such as those of editors' settings, are smaller.
const MAX_BYTES: usize = 256 * 1024;

/// Compiles grammars for one model's tokens.
pub struct Checker {
    factory: ParserFactory,
    tokens: Arc<TokenTable>,
}

/// A grammar that is refused: the place in the request, and the reason, for the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub field: String,
    pub reason: String,
}

impl Checker {
    /// `vocab_size`: number of logits. `end_ids`: tokens that end a sequence.
    pub fn new(tokens: Arc<TokenTable>, vocab_size: u32, end_ids: &[u32]) -> Result<Self, String> {
        let known = |id: &u32| *id < vocab_size;
        let end_ids: &[u32] = &end_ids.iter().copied().filter(known).collect::<Vec<u32>>();
        let mut words: Vec<Vec<u8>> = (0..vocab_size)
            .map(|id| word(&tokens, id, end_ids))
            .collect();
        let end = end_ids.first().copied().unwrap_or_else(|| {
            // The library needs a token for the end: one that the model does not have.
            words.push(Vec::new());
            vocab_size
        });
        let info = TokRxInfo::new(words.len() as u32, end);
        let mut trie = TokTrie::from(&info, &words);
        if !end_ids.is_empty() {
            trie = trie.with_eos_tokens(end_ids);
        }
        let environment: llguidance::toktrie::TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = SlicedBiasComputer::general_slices();
        let mut factory =
            ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)
                .map_err(|error| error.to_string())?;
        factory.quiet();
        Ok(Checker { factory, tokens })
    }

    /// Refuses a grammar that is invalid, too large, impossible to satisfy or to finish, or that the library would
    /// enforce only in part. Takes up to some hundred milliseconds.
    pub fn check(&self, grammar: &Grammar, serialized: &str) -> Result<(), Refusal> {
        for part in grammar.parts() {
            if let Rules::JsonSchema(schema) = &part.rules {
                let at = |place: String, reason| Refusal {
                    field: format!("{}{place}", part.field),
                    reason,
                };
                json_schema::check_options(schema).map_err(|reason| at(String::new(), reason))?;
                tightened::check(schema).map_err(|(place, reason)| at(place, reason))?;
            }
        }
        self.compile(serialized)
            .map_err(|reason| self.located(grammar, reason))
    }

    /// The reason why a serialised grammar is refused.
    fn compile(&self, serialized: &str) -> Result<(), String> {
        let parsed: TopLevelGrammar =
            serde_json::from_str(serialized).map_err(|error| error.to_string())?;
        let parser = self.parser(parsed)?;
        let symbol = unfinished(parser.parser.grammar());
        let mut matcher = Matcher::new(Ok(parser));
        if let Some(symbol) = symbol {
            return Err(format!(
                "no finite text follows it: `{symbol}` needs itself without end"
            ));
        }
        if let Some(warning) = matcher.grammar_warnings().into_iter().next() {
            return Err(readable(&warning));
        }
        match matcher.compute_mask_or_eos() {
            Ok(_) => Ok(()),
            Err(error) => Err(readable(&error.to_string())),
        }
    }

    /// A matcher at the beginning of a text.
    pub fn matcher(&self, serialized: &str) -> Result<Matcher, String> {
        let parsed = serde_json::from_str(serialized).map_err(|error| error.to_string())?;
        Ok(Matcher::new(Ok(self.parser(parsed)?)))
    }

    fn parser(&self, grammar: TopLevelGrammar) -> Result<TokenParser, String> {
        let init = GrammarInit::Serialized(grammar);
        let capabilities = InferenceCapabilities::default();
        let parser = self.factory.create_parser_from_init_ext(
            init,
            Logger::new(0, 0),
            capabilities,
            limits(),
        );
        parser.map_err(|error| readable(&error.to_string()))
    }

    /// Finds the part of a grammar, and the place in its schema, that is refused for `reason`.
    fn located(&self, grammar: &Grammar, reason: String) -> Refusal {
        let refused = |rules: Rules| {
            let alone = Grammar::single("", rules).serialized(&self.tokens);
            self.compile(&alone).err()
        };
        let of_part = |part: &Part| -> Option<Refusal> {
            match &part.rules {
                Rules::JsonSchema(schema) => {
                    let fails =
                        |schema: &serde_json::Value| refused(Rules::JsonSchema(schema.clone()));
                    let (path, reason) = place::find(schema, fails)?;
                    Some(Refusal {
                        field: format!("{}{path}", part.field),
                        reason,
                    })
                }
                Rules::Lark(_) | Rules::Template(..) => None,
            }
        };
        let found = grammar.parts().iter().find_map(of_part);
        found.unwrap_or_else(|| Refusal {
            field: grammar.field().to_owned(),
            reason,
        })
    }
}

/// Limits of the library. What is compiled within them takes some hundred milliseconds at most, and a mask some
/// milliseconds. The shard has the same (`sampling/grammar.py`).
fn limits() -> ParserLimits {
    ParserLimits {
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// Bytes of a token in the library's form: special tokens, which are no part of a text, begin with a mark.
fn word(tokens: &TokenTable, id: u32, end_ids: &[u32]) -> Vec<u8> {
    let text = tokens.text(id);
    if !text.is_empty() && (tokens.is_special(id) || end_ids.contains(&id)) {
        return [&[TokTrie::SPECIAL_TOKEN_MARKER], text].concat();
    }
    text.to_vec()
}

/// Refuses a grammar that is too large to be looked at.
pub fn check_size(grammar: &Grammar, serialized: &str) -> Result<(), Refusal> {
    if serialized.len() <= MAX_BYTES {
        return Ok(());
    }
    Err(Refusal {
        field: grammar.field().to_owned(),
        reason: format!(
            "it has {} bytes, and a grammar may have {MAX_BYTES}",
            serialized.len()
        ),
    })
}

/// Name of a symbol that is reached from the start and from which no finite text follows.
fn unfinished(grammar: &CGrammar) -> Option<String> {
    let reached = reachable(grammar);
    let mut finite: HashSet<CSymIdx> = HashSet::new();
    let is_terminal = |symbol: CSymIdx| {
        let data = grammar.sym_data(symbol);
        data.is_terminal || data.lexeme.is_some() || data.is_nullable || data.gen_grammar.is_some()
    };
    loop {
        let before = finite.len();
        for &symbol in &reached {
            if finite.contains(&symbol) {
                continue;
            }
            let is_finite = |rule: &_| {
                let (parts, _, _) = grammar.rule_rhs(*rule);
                parts.iter().all(|part| finite.contains(part))
            };
            if is_terminal(symbol) || grammar.rules_of(symbol).iter().any(is_finite) {
                finite.insert(symbol);
            }
        }
        if finite.len() == before {
            break;
        }
    }
    let endless = reached.iter().find(|symbol| !finite.contains(symbol))?;
    Some(grammar.sym_name(*endless).to_owned())
}

/// Symbols that are reached from the start, deepest first, so that a pass over them settles most.
fn reachable(grammar: &CGrammar) -> Vec<CSymIdx> {
    let mut seen = HashSet::from([grammar.start()]);
    let mut order = vec![grammar.start()];
    let mut next = 0;
    while let Some(&symbol) = order.get(next) {
        next += 1;
        for rule in grammar.rules_of(symbol) {
            let (parts, _, _) = grammar.rule_rhs(*rule);
            order.extend(parts.iter().filter(|part| seen.insert(**part)));
        }
    }
    order.reverse();
    order
}

/// Beginnings of the library's errors, and what clients are told instead, before the rest of the error.
const REWORDED: [(&str, &str); 4] = [
    ("Unimplemented keys: ", "keywords that are not supported: "),
    (
        "oneOf constraints are not supported.",
        "`oneOf` is not supported where its options may overlap; use `anyOf`",
    ),
    ("NoExtension", "nothing can follow it"),
    ("at 1(8): invalid regex ", "invalid regular expression "),
];

/// Maximum number of characters of a reason.
const MAX_REASON_CHARS: usize = 300;

/// An error of the library for clients: its first line, and what is wrong with a regular expression.
fn readable(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default().trim();
    let reworded = REWORDED.iter().find_map(|(theirs, ours)| {
        let rest = line.strip_prefix(theirs)?;
        // The rest of some advises options that weaken a grammar, or is a part of a name.
        let keeps_rest = ours.ends_with(' ');
        Some(format!("{ours}{}", if keeps_rest { rest } else { "" }))
    });
    let line = reworded.unwrap_or_else(|| line.to_owned());
    let line = line.split("; following special").next().unwrap_or_default();
    let short: String = line.chars().take(MAX_REASON_CHARS).collect();
    match message
        .lines()
        .find_map(|line| line.strip_prefix("error: "))
    {
        Some(error) => format!("{} ({error})", short.trim_end_matches(':')),
        None => short,
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
