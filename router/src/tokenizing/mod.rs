//! Turns text into token ids: the tokenizer's files and checks of them, the vocabulary, and the worker threads.

pub mod fill_in_middle;
pub mod text_encoder;
pub mod token_bytes;
pub mod token_text;
pub mod tokenizer_file;
pub mod tokenizer_regex;
pub mod vocabulary;
pub mod workers;
