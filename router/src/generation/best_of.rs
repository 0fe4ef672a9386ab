//! Chooses the best of several texts for a prompt: those whose tokens have the highest mean log-probability.

/// Mean log-probability of a text's tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct MeanLogprob {
    sum: f64,
    num_tokens: u32,
}

impl MeanLogprob {
    /// Counts a token, by its log-probability.
    pub fn add(&mut self, logprob: Option<f32>) {
        self.sum += f64::from(logprob.unwrap_or(f32::NEG_INFINITY));
        self.num_tokens += 1;
    }

    fn value(self) -> f64 {
        self.sum / f64::from(self.num_tokens.max(1))
    }
}

/// Sorts texts, the best first. Of equal ones the earlier comes first.
pub fn sort<T>(texts: &mut [T], mean: impl Fn(&T) -> MeanLogprob) {
    texts.sort_by(|a, b| mean(b).value().total_cmp(&mean(a).value()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(logprobs: &[f32]) -> MeanLogprob {
        let mut mean = MeanLogprob::default();
        logprobs.iter().for_each(|logprob| mean.add(Some(*logprob)));
        mean
    }

    #[test]
    fn the_mean_counts_and_not_the_sum() {
        let mut texts = [
            ("short", mean(&[-1.5])),
            ("long", mean(&[-1.0; 10])),
            ("impossible", mean(&[0.0, f32::NEG_INFINITY])),
            ("as long", mean(&[-1.0; 4])),
        ];
        sort(&mut texts, |(_, mean)| *mean);
        let order = texts.map(|(name, _)| name);
        assert_eq!(order, ["long", "as long", "short", "impossible"]);
    }
}
