//! Conversations of APIs whose answers are lists of blocks or items: their histories, and their answers, whole and
//! streamed. Each API translates both to its own form.

pub mod answer;
pub mod blocks;
pub mod events;
pub mod history;
pub mod run;
pub mod text_or_list;
