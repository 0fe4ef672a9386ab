//! Bounds the bytes of text for one token. A text that cannot fit is then refused before it is tokenized.

use serde_json::Value;
use tokenizers::models::ModelWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{Model, Tokenizer};

/// Returns the maximum number of bytes of text for one token, or `None` if it is unbounded or unknown: a
/// normalizer may drop characters, and a model may give one token to an unknown word of any length.
pub(crate) fn max_bytes_per_token(tokenizer: &Tokenizer) -> Option<usize> {
    let added = tokenizer.get_added_tokens_decoder();
    // Such tokens include the whitespace around them.
    if added.values().any(|token| token.lstrip || token.rstrip) {
        return None;
    }
    let ModelWrapper::BPE(model) = tokenizer.get_model() else {
        return None;
    };
    let normalizer = serde_json::to_value(tokenizer.get_normalizer()).ok()?;
    let pre_tokenizer = serde_json::to_value(tokenizer.get_pre_tokenizer()).ok()?;
    let shrinks_by = shrinkage(&normalizer)?;
    let mut is_byte_level = false;
    if !keeps_everything(&pre_tokenizer, &mut is_byte_level) {
        return None;
    }
    let has_every_byte = if is_byte_level {
        ByteLevel::alphabet()
            .iter()
            .all(|byte| model.token_to_id(&byte.to_string()).is_some())
    } else {
        model.byte_fallback
            && (0..=255_u8).all(|byte| model.token_to_id(&format!("<0x{byte:02X}>")).is_some())
    };
    if !has_every_byte {
        return None;
    }
    let vocabulary = model.get_vocab();
    let of_model = vocabulary.keys().map(|token| {
        if is_byte_level {
            token.chars().count()
        } else {
            token.len()
        }
    });
    let of_added = added.values().map(|token| token.content.len());
    let longest = of_model.chain(of_added).max()?;
    Some(longest.max(1) * shrinks_by)
}

/// Returns the maximum factor by which a normalizer shortens a text in bytes; `None` if unbounded.
fn shrinkage(normalizer: &Value) -> Option<usize> {
    if normalizer.is_null() {
        return Some(1);
    }
    match normalizer["type"].as_str()? {
        "Prepend" => Some(1),
        // The largest factor by which decomposing makes UTF-8 longer (Unicode's FAQ on normalization).
        "NFC" => Some(3),
        "Replace" => {
            let pattern = normalizer["pattern"]["String"].as_str()?;
            let content = normalizer["content"].as_str()?;
            (content.len() >= pattern.len()).then_some(1)
        }
        "Sequence" => normalizer["normalizers"]
            .as_array()?
            .iter()
            .try_fold(1_usize, |factor, part| factor.checked_mul(shrinkage(part)?)),
        _ => None,
    }
}

/// True if a pre-tokenizer only splits and drops nothing. Records whether it maps bytes to characters.
fn keeps_everything(pre_tokenizer: &Value, is_byte_level: &mut bool) -> bool {
    if pre_tokenizer.is_null() {
        return true;
    }
    match pre_tokenizer["type"].as_str() {
        Some("ByteLevel") => {
            *is_byte_level = true;
            true
        }
        Some("Metaspace" | "Digits") => true,
        Some("Split" | "Punctuation") => pre_tokenizer["behavior"] != "Removed",
        Some("Sequence") => pre_tokenizer["pretokenizers"]
            .as_array()
            .is_some_and(|parts| {
                parts
                    .iter()
                    .all(|part| keeps_everything(part, is_byte_level))
            }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use serde_json::json;

    use super::*;

    fn tokenizer(change: impl Fn(&mut Value)) -> Tokenizer {
        let alphabet = ByteLevel::alphabet();
        let mut vocab: serde_json::Map<String, Value> = (0..)
            .zip(&alphabet)
            .map(|(id, byte): (u32, _)| (byte.to_string(), json!(id)))
            .collect();
        for (id, word) in (256..).zip(["\u{120}b", "\u{120}bo", "\u{120}boa"]) {
            vocab.insert(word.to_owned(), json!(id));
        }
        let mut json = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
            "added_tokens": [{"id": 300, "content": "<|end|>", "single_word": false, "lstrip": false,
                              "rstrip": false, "normalized": false, "special": true}],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                              "use_regex": true},
            "decoder": null,
            "model": {"type": "BPE", "vocab": vocab, "merges": [["\u{120}", "b"], ["\u{120}b", "o"],
                                                                  ["\u{120}bo", "a"]]}
        });
        change(&mut json);
        Tokenizer::from_str(&json.to_string()).expect("a tokenizer")
    }

    #[test]
    fn the_longest_token_is_the_bound() {
        assert_eq!(max_bytes_per_token(&tokenizer(|_| ())), Some(7));
        let composing = tokenizer(|json| json["normalizer"] = json!({"type": "NFC"}));
        assert_eq!(max_bytes_per_token(&composing), Some(21));
    }

    #[test]
    fn dropped_text_leaves_no_bound() {
        for (what, change) in [
            (
                "stripping token",
                (|json| json["added_tokens"][0]["lstrip"] = json!(true)) as fn(&mut Value),
            ),
            ("stripping", |json| {
                json["normalizer"] =
                    json!({"type": "Strip", "strip_left": true, "strip_right": true});
            }),
            ("removing", |json| {
                json["normalizer"] =
                    json!({"type": "Replace", "pattern": {"String": "a"}, "content": ""});
            }),
            ("shortening by pattern", |json| {
                json["normalizer"] =
                    json!({"type": "Replace", "pattern": {"Regex": " +"}, "content": " "});
            }),
            ("split away", |json| {
                json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
                    {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": false},
                    json["pre_tokenizer"].clone(),
                ]});
            }),
            ("unknown bytes", |json| {
                json["model"]["vocab"]
                    .as_object_mut()
                    .expect("a map")
                    .remove("z");
            }),
        ] {
            assert_eq!(max_bytes_per_token(&tokenizer(change)), None, "{what}");
        }
    }
}
