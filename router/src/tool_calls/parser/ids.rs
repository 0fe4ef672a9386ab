//! Identifiers of calls.

use rand::RngExt as _;

/// Length of an identifier. Some chat templates take nine letters and digits alone.
pub const LEN: usize = 9;

const ALPHABET: &[u8; 62] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";

/// A new identifier: nine random letters and digits.
pub fn random() -> String {
    let mut random = rand::rng();
    (0..LEN)
        .filter_map(|_| ALPHABET.get(random.random_range(0..ALPHABET.len())))
        .map(|byte| char::from(*byte))
        .collect()
}
