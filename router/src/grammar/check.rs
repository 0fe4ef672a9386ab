//! Checks of one grammar: everything that the library cannot enforce exactly is refused.

use std::collections::HashSet;
use std::sync::Arc;

use gridwork_engine::TokenTable;
use llguidance::api::{GrammarInit, ParserLimits, TopLevelGrammar};
use llguidance::earley::{CGrammar, CSymIdx, SlicedBiasComputer};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokRxInfo, TokTrie};
use llguidance::{Logger, Matcher, ParserFactory, TokenParser};

use super::json_schema;
use super::{Grammar, Part, Rules, place};

/// Maximum size of a serialised grammar. The largest schemas in use, such as those of editors' settings, are smaller.
const MAX_BYTES: usize = 256 * 1024;

/// Compiles grammars for one model's tokens.
pub struct Checker {
    factory: ParserFactory,
}

/// A grammar that is refused: the place in the request, and the reason, for the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub field: String,
    pub reason: String,
}

impl Checker {
    /// `vocab_size`: number of logits. `end_ids`: tokens that end a sequence.
    pub fn new(tokens: &TokenTable, vocab_size: u32, end_ids: &[u32]) -> Result<Self, String> {
        let known = |id: &u32| *id < vocab_size;
        let end_ids: &[u32] = &end_ids.iter().copied().filter(known).collect::<Vec<u32>>();
        let mut words: Vec<Vec<u8>> = (0..vocab_size)
            .map(|id| word(tokens, id, end_ids))
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
        Ok(Checker { factory })
    }

    /// Refuses a grammar that is invalid, too large, impossible to satisfy or to finish, or that the library would
    /// enforce only in part. Takes up to some hundred milliseconds.
    pub fn check(&self, grammar: &Grammar, serialized: &str) -> Result<(), Refusal> {
        for part in grammar.parts() {
            if let Rules::JsonSchema(schema) = &part.rules {
                json_schema::check_options(schema).map_err(|reason| Refusal {
                    field: part.field.to_string(),
                    reason,
                })?;
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
            return Err(first_line(&warning));
        }
        match matcher.compute_mask_or_eos() {
            Ok(_) => Ok(()),
            Err(error) => Err(first_line(&error.to_string())),
        }
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
        parser.map_err(|error| first_line(&error.to_string()))
    }

    /// Finds the part of a grammar, and the place in its schema, that is refused for `reason`.
    fn located(&self, grammar: &Grammar, reason: String) -> Refusal {
        let refused = |rules: Rules| {
            let alone = Grammar::single("", rules).serialized();
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
                Rules::Lark(_) => None,
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

/// The first line of an error of the library, without its position.
fn first_line(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default().trim();
    // The other lines of a regular expression's error say what is wrong.
    let last = message
        .lines()
        .find_map(|line| line.strip_prefix("error: "));
    match last {
        Some(error) => format!("{} ({error})", line.trim_end_matches(':')),
        None => line.to_owned(),
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
