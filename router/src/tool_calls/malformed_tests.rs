//! Answers that stray from their format: nothing fails, no text is lost, and cuts change nothing.

use serde_json::json;

use super::test_families::{Family, Parsed, families, parse_cut_everywhere};

/// Turns a well-formed answer into malformed ones.
fn mutations(answer: &str) -> Vec<String> {
    let boundaries: Vec<usize> = answer.char_indices().map(|(at, _)| at).collect();
    let at = |part: usize, of: usize| boundaries[boundaries.len() * part / of];
    let mut all = Vec::new();
    for part in 1..8 {
        let place = at(part, 8);
        all.push(answer[..place].to_owned());
        all.push(answer[place..].to_owned());
        all.push(format!(
            "{} zqjunkword {}",
            &answer[..place],
            &answer[place..]
        ));
        let other = at(part - 1, 8);
        all.push(format!("{}{}", &answer[..other], &answer[place..]));
        all.push(format!("{}{}", &answer[..place], &answer[other..]));
    }
    for removed in ["{", "}", "\"", ">", "<", "]", "[", "\n", ":", "/", "|"] {
        all.push(answer.replacen(removed, "", 1));
        all.push(answer.replace(removed, ""));
    }
    all.push(format!("{answer} {answer}"));
    all.push(format!("{answer} zqjunkword"));
    all.push(format!("{answer}}}}}"));
    all.push(format!("zqjunkword {answer}"));
    all.push(answer.chars().rev().collect());
    all
}

/// Words that begin with `zq`. Texts on both sides of a call may touch.
fn words(text: &str) -> Vec<&str> {
    let starts = text.match_indices("zq").map(|(at, _)| at);
    let words = starts.map(|at| {
        let word = &text[at..];
        let end = word.find(|c: char| !c.is_alphanumeric());
        let next = word[2..].find("zq").map(|next| next + 2);
        let ends = [end, next, Some(word.len())];
        &word[..ends.into_iter().flatten().min().unwrap_or_default()]
    });
    words.collect()
}

/// Words of the answer that are in no piece.
fn lost<'a>(answer: &'a str, parsed: &Parsed) -> Vec<&'a str> {
    let calls = parsed.calls.iter();
    let calls: String = calls
        .map(|(name, arguments)| format!(" {name} {arguments} "))
        .collect();
    let shown = format!("{} {} {calls}", parsed.content, parsed.reasoning);
    // A marker that is a word sticks to the word before it.
    let shown = shown.replace("functools", " ").replace("\\n", " ");
    let mut shown: Vec<String> = words(&shown).into_iter().map(str::to_owned).collect();
    let missing = answer.split("functools").flat_map(words).filter(|word| {
        // The rest of a call may touch the text before it.
        let whole = shown.iter().position(|other| other == word);
        let begun = || shown.iter().position(|other| other.starts_with(word));
        match whole.or_else(begun) {
            Some(at) => {
                shown.swap_remove(at);
                false
            }
            None => true,
        }
    });
    let missing: Vec<&str> = missing.collect();
    // An identifier or a type is no text.
    let structural = ["\"id\": \"", "\"type\": \""].iter().any(|key| {
        let values = answer.split(key).skip(1);
        values
            .filter_map(|value| value.split('"').next())
            .any(|value| value.contains("zqjunkword"))
    });
    match structural && missing == ["zqjunkword"] {
        true => Vec::new(),
        false => missing,
    }
}

fn answers(family: &Family) -> Vec<String> {
    let arguments = json!({"zqtext": "zqone zqtwo", "zqcount": 5, "zqlist": ["zqthree"]});
    let call = |name: &str, index: usize| family.call(index, name, &arguments);
    let with = |content: Option<&str>, calls: serde_json::Value| json!({"role": "assistant", "content": content, "reasoning_content": "zqthought", "tool_calls": calls});
    [
        with(None, json!([call("zqalpha", 0)])),
        with(
            Some("zqcontent"),
            json!([call("zqalpha", 0), call("zqgamma", 1)]),
        ),
    ]
    .iter()
    .filter_map(|message| family.answer(message))
    .map(|(_, answer)| answer)
    .collect()
}

#[test]
fn malformed_answers_lose_no_text_wherever_they_are_cut() {
    let mut count = 0;
    let mut wrong = Vec::new();
    for family in families() {
        if family.name == "harmony" {
            continue;
        }
        let plan = family.plan("");
        let Some(plan) = plan else {
            continue;
        };
        for answer in answers(&family) {
            for malformed in mutations(&answer) {
                let parsed = parse_cut_everywhere(&plan, &malformed, &family.name);
                count += 1;
                let lost = lost(&malformed, &parsed);
                if !lost.is_empty() {
                    wrong.push(format!(
                        "{}: {lost:?} of {malformed:?}\n   in {parsed:?}",
                        family.name
                    ));
                }
            }
        }
    }
    assert!(count >= 200, "{count}");
    assert!(
        wrong.is_empty(),
        "{} of {count} lost text:\n{}",
        wrong.len(),
        wrong
            .iter()
            .take(30)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n")
    );
}
