//! Text around and between the calls of an answer.

use super::lexemes::{common_prefix, common_suffix};
use crate::tool_calls::format::{Body, Calls};

/// Text around and between calls.
#[derive(Debug, Default)]
pub struct Frame<'t> {
    pub before_first: &'t str,
    pub between: Option<&'t str>,
    pub after_last: &'t str,
}

impl Frame<'_> {
    /// Tells the markers of the section from those of each call.
    pub fn calls(&self, list: bool, body: Body) -> Calls {
        let (before, after) = (self.before_first, self.after_last);
        let mut calls = Calls {
            list,
            ..Calls::without_markers(body)
        };
        let part =
            |text: &str, from: usize, to: usize| text.get(from..to).unwrap_or_default().to_owned();
        match self.between {
            _ if list => {
                calls.section_open = before.to_owned();
                calls.section_close = after.to_owned();
            }
            None => {
                calls.open = before.to_owned();
                calls.close = after.to_owned();
            }
            Some(between) => {
                let open = common_suffix(before, between);
                let left = between.get(..between.len() - open).unwrap_or_default();
                let close = common_prefix(after, left);
                calls.open = part(before, before.len() - open, before.len());
                calls.section_open = part(before, 0, before.len() - open);
                calls.close = part(after, 0, close);
                calls.section_close = part(after, close, after.len());
                calls.separator = part(left, close, left.len());
            }
        }
        calls
    }
}
