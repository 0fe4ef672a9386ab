//! Dependence of keys on the number of tokens computed together; see `InfoResponse.length_border`.

use gridwork_proto::v1::InfoResponse;

/// The rule of the shard's model. The default is for models whose keys depend on tokens and positions alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LengthRule {
    /// Number of tokens computed together up to which keys do not depend on it; 0: they never do.
    pub border: usize,
    /// True if each number beyond the border gives different keys, or all the same.
    pub apart: bool,
    /// Length at which a sequence that began shorter is recomputed; 0: never.
    pub recompute_at: usize,
}

impl LengthRule {
    pub fn of(info: &InfoResponse) -> Self {
        LengthRule {
            border: info.length_border as usize,
            apart: info.lengths_apart,
            recompute_at: info.recompute_at_tokens as usize,
        }
    }

    /// Number of a sequence's leading tokens that count as computed together.
    pub fn num_first(&self, num_prompt_tokens: usize, num_tokens: usize) -> usize {
        if (num_prompt_tokens + 1..=num_tokens).contains(&self.recompute_at) {
            self.recompute_at
        } else {
            num_prompt_tokens
        }
    }

    /// Class of sequences with equal keys, by the number of tokens computed together.
    pub fn class(&self, num_first: usize) -> usize {
        match self.border {
            0 => 0,
            border if num_first <= border => 0,
            _ if self.apart => num_first,
            _ => 1,
        }
    }

    /// Number of tokens up to which a sequence is computed before it is recomputed; `None`: no limit.
    pub fn max_computed(&self, num_first: usize) -> Option<usize> {
        (num_first < self.recompute_at).then(|| self.recompute_at - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_that_crosses_is_recomputed_once() {
        let rule = LengthRule {
            border: 64,
            apart: false,
            recompute_at: 65,
        };
        assert_eq!(rule.num_first(40, 64), 40);
        assert_eq!(rule.num_first(40, 65), 65);
        assert_eq!(rule.num_first(40, 300), 65);
        assert_eq!(rule.num_first(64, 65), 65);
        assert_eq!(rule.num_first(65, 65), 65);
        assert_eq!(rule.num_first(70, 90), 70);
        assert_eq!(rule.max_computed(40), Some(64));
        assert_eq!(rule.max_computed(65), None);
        assert_eq!(rule.max_computed(70), None);
    }

    #[test]
    fn classes_follow_the_border() {
        let mut rule = LengthRule {
            border: 64,
            ..Default::default()
        };
        assert_eq!([1, 64, 65, 300].map(|n| rule.class(n)), [0, 0, 1, 1]);
        rule.apart = true;
        assert_eq!([1, 64, 65, 300].map(|n| rule.class(n)), [0, 0, 65, 300]);
        let none = LengthRule::default();
        assert_eq!([1, 64, 300].map(|n| none.class(n)), [0, 0, 0]);
        assert_eq!(none.num_first(5, 9), 5);
        assert_eq!(none.max_computed(5), None);
    }
}
