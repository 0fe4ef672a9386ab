//! Generated tokens as answers report them.

use gridwork_engine::{GeneratedToken, TopToken};
use tokenizers::Tokenizer;

use super::types::Token;

/// A generated token as answers report it. Takes the text out of `token`.
pub(super) fn reported(tokenizer: &Tokenizer, token: &mut GeneratedToken) -> Token {
    let text = std::mem::take(&mut token.text);
    Token {
        id: token.id,
        text: match token.special {
            true => own_text(tokenizer, token.id),
            false => text,
        },
        logprob: token.logprob.unwrap_or(0.0),
        special: token.special,
    }
}

/// The most likely tokens at a position as answers report them.
pub(super) fn reported_top(tokenizer: &Tokenizer, tops: &[TopToken]) -> Vec<Token> {
    let special = |id: u32| {
        let added = tokenizer.get_added_tokens_decoder();
        added.get(&id).is_some_and(|token| token.special)
    };
    let token = |top: &TopToken| Token {
        id: top.id,
        text: own_text(tokenizer, top.id),
        logprob: top.logprob,
        special: special(top.id),
    };
    tops.iter().map(token).collect()
}

/// Text of a single token, also of a special one.
pub(super) fn own_text(tokenizer: &Tokenizer, id: u32) -> String {
    tokenizer.decode(&[id], false).unwrap_or_default()
}
