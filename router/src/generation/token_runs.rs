//! Runs of tokens that a text does not contain, or seldom, or often.

use gridwork_proto::v1::SamplingParameters;

/// Bias of a token that never comes.
pub const NEVER: f32 = f32::NEG_INFINITY;

/// Adds a run and the bias of its last token, where the tokens before that are the others.
pub fn add(sampling: &mut SamplingParameters, run: &[u32], bias: f32) {
    match run {
        [] => {}
        // A single token does not depend on those before it, and its bias is added for all sequences at once.
        [token] => {
            sampling.logit_bias_tokens.push(*token);
            sampling.logit_bias_values.push(bias);
        }
        _ => {
            sampling.run_tokens.extend(run);
            sampling.run_lengths.push(run.len() as u32);
            sampling.run_biases.push(bias);
        }
    }
}

/// Texts whose tokens a word's text has: at its beginning, and behind a space.
pub fn spellings(word: &str) -> [String; 2] {
    let word = word.trim_start();
    [word.to_owned(), format!(" {word}")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_tokens_are_biases_and_longer_runs_are_runs() {
        let mut sampling = SamplingParameters::default();
        for (run, bias) in [(&[7][..], NEVER), (&[], NEVER), (&[1, 2, 3], 1.5)] {
            add(&mut sampling, run, bias);
        }
        assert_eq!(sampling.logit_bias_tokens, [7]);
        assert_eq!(sampling.logit_bias_values, [NEVER]);
        assert_eq!(sampling.run_tokens, [1, 2, 3]);
        assert_eq!(sampling.run_lengths, [3]);
        assert_eq!(sampling.run_biases, [1.5]);
    }

    #[test]
    fn a_word_is_spelled_with_and_without_a_space_before_it() {
        for word in ["cat", " cat", "  cat"] {
            assert_eq!(spellings(word), ["cat", " cat"]);
        }
    }
}
