//! Text to token ids: the tokenizer's files, what of them is refused, its vocabulary, and the threads that it runs on.

pub mod text_encoder;
pub mod token_bytes;
pub mod token_text;
pub mod tokenizer_file;
pub mod tokenizer_regex;
pub mod vocabulary;
pub mod workers;
