//! Signatures of reasoning. Anthropic's clients keep one with each thinking block and send both back; here they are a
//! digest, which nothing depends on.

use std::hash::{DefaultHasher, Hash, Hasher};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Digest of a reasoning, never empty.
pub fn signature(thinking: &str) -> String {
    let mut hasher = DefaultHasher::new();
    thinking.hash(&mut hasher);
    STANDARD.encode(hasher.finish().to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_reasoning_has_equal_signatures() {
        assert_eq!(signature("Hm."), signature("Hm."));
        assert_ne!(signature("Hm."), signature("Hm!"));
        assert!(!signature("").is_empty());
    }
}
